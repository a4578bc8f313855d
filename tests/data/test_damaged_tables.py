"""However a table is damaged, it gives a manifest or one printable line, and no row of it is lost in silence.

MAE_TABLE_TRIALS: number of damaged copies of each source's tables (a long run: 1000).
"""

import csv
import gzip
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mimic_tree import build_mimic_tree
from public_trees import build_chexpert_tree, build_mimic_dicom_tree, build_nih_tree
from tiny_world import tiny_config

from data.errors import UserError
from data.manifest import open_manifest
from data.sources import LeftOut
from data.stand_ins import opened

TRIALS = int(os.environ.get("MAE_TABLE_TRIALS", "8"))
ILL = [number % 3 == 0 for number in range(24)]


# ---------------------------------------------------------------- sources


def table(root: Path) -> Path:
    rows = {
        "path": [f"{number:03}.png" for number in range(24)],
        "label": np.where(ILL, "abnormal", "normal"),
        "patient_id": [f"p{number // 2}" for number in range(24)],
        "note": ['seen "twice", left', "ä → α", "", "of, commas"] * 6,
        "Pneumonia": np.where(ILL, 1.0, 0.0),
    }
    root.mkdir()
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return root


def mimic(root: Path) -> Path:
    build_mimic_tree(root, [None] * 24, ILL, compress=True)
    (root / "files").mkdir(exist_ok=True)
    return root


def plain_mimic(root: Path) -> Path:
    build_mimic_tree(root, [None] * 24, ILL)
    (root / "files").mkdir(exist_ok=True)
    return root


def mimic_dicom(root: Path) -> Path:
    build_mimic_dicom_tree(root, root.parent / "labels", ILL)
    for path in (root.parent / "labels").glob("*.csv"):
        path.rename(root / path.name)
    return root


def chexpert(root: Path) -> Path:
    return build_chexpert_tree(root, patients=8, images=False)


def nih(root: Path) -> Path:
    build_nih_tree(root, ["No Finding", "Mass|Nodule", "Hernia"] * 8, images=False)
    return root


SOURCES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {  # last: the tables with one row per image
    "table": ("table", table, ("manifest.csv",)),
    "mimic": ("mimic-cxr-jpg", mimic, ("mimic-cxr-2.0.0-metadata.csv.gz",)),
    "plain mimic": ("mimic-cxr-jpg", plain_mimic, ("mimic-cxr-2.0.0-metadata.csv",)),
    "mimic dicom": ("mimic-cxr-dicom", mimic_dicom, ("cxr-record-list.csv.gz",)),
    "chexpert": ("chexpert", chexpert, ("train.csv", "valid.csv")),
    "nih": ("nih-cxr14", nih, ("Data_Entry_2017_v2020.csv",)),
}


# ---------------------------------------------------------------- damage


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def put(data: bytearray, rng: random.Random) -> None:
    signs = (b'"', b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xe4", b";", b"\t", b"\x1b[31m", b"\xe2\x80\xae", b"'")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.choice(signs)


def put_in_a_field(data: bytearray, rng: random.Random) -> None:
    """Insert something odd at the beginning or end of a field."""
    commas = [place for place, sign in enumerate(data) if sign in b",\n"]
    at = rng.choice(commas or [0]) + rng.randint(0, 1)
    odd = (b'"', b" ", b"nan", b"inf", b"1e999", b"-", b"7.0", b"\xc2\xa0", b"../", b"x" * 200_000, b"=1+1", b"\x00")
    data[at:at] = rng.choice(odd)


def change_lines(data: bytearray, rng: random.Random) -> None:
    lines = bytes(data).split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.choice(("repeat", "remove", "swap", "header", "join", "reverse"))
    if kind == "repeat":
        lines.insert(second, lines[first])
    elif kind == "remove":
        del lines[first]
    elif kind == "swap":
        lines[first], lines[second] = lines[second], lines[first]
    elif kind == "header":
        lines.insert(second, lines[0])
    elif kind == "join" and first + 1 < len(lines):
        lines[first : first + 2] = [lines[first] + lines[first + 1]]
    elif kind == "reverse":
        lines.reverse()
    data[:] = b"\n".join(lines)


def change_columns(data: bytearray, rng: random.Random) -> None:
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
    except (csv.Error, UnicodeError):
        return
    width = min((len(row) for row in rows), default=0)
    if width < 2:
        return
    first, second = rng.randrange(width), rng.randrange(width)
    kind = rng.choice(("swap", "repeat", "remove", "swap a row's", "blank"))
    for row in [rng.choice(rows)] if kind == "swap a row's" else rows:
        if kind.startswith("swap"):
            row[first], row[second] = row[second], row[first]
        elif kind == "repeat":
            row.insert(second, row[first])
        elif kind == "remove":
            del row[first]
        elif row is not rows[0]:
            row[first] = ""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    data[:] = out.getvalue().encode()


def write_otherwise(data: bytearray, rng: random.Random) -> None:
    """Rewrite it in another encoding, with other line ends, or with a byte order mark."""
    text = data.decode("utf-8", errors="replace")
    ways = {
        "bom": text.encode("utf-8-sig"),
        "utf-16": text.encode("utf-16"),
        "utf-16 without its mark": text.encode("utf-16-le"),
        "latin-1": text.encode("latin-1", errors="replace") + b"\xe4",
        "windows": text.replace("\n", "\r\n").encode(),
        "old mac": text.replace("\n", "\r").encode(),
        "blank lines": text.replace("\n", "\n\n \n").encode(),
        "commas at the ends": text.replace("\n", ",,\n").encode(),
        "semicolons": text.replace(",", ";").encode(),
        "empty": b"",
        "blank": b" \n\n",
        "header": text.split("\n")[0].encode(),
        "page": b"<html>" + text.encode(),
        "no last line end": text.rstrip("\n").encode(),
    }
    data[:] = rng.choice(list(ways.values()))


DAMAGES = (flip, cut, put, put_in_a_field, change_lines, change_columns, write_otherwise)


def damage(path: Path, rng: random.Random) -> None:
    """One or two kinds of damage to a table, or to the packed file around it."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2))):
        if content:
            rng.choice(DAMAGES)(content, rng)
    if packed and rng.random() < 0.8:
        content = bytearray(gzip.compress(content))
        if rng.random() < 0.2:
            rng.choice((flip, cut))(content, rng)
    path.write_bytes(content)


# ---------------------------------------------------------------- laws


def rows_of(path: Path) -> int:
    """How many rows a plain CSV reader finds below the header; blank lines do not count."""
    with opened(path) as file:
        data = file.read()
    csv.field_size_limit(10**7)
    rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), skipinitialspace=True)
    return sum(any(row) or len(row) > 1 for row in rows) - 1


@pytest.mark.parametrize("name", SOURCES)
def test_a_damaged_table_is_read_whole_or_refused_in_a_line(name, tmp_path):
    source, build, per_image = SOURCES[name]
    intact = build(tmp_path / "intact")
    config = tiny_config(
        tmp_path, data__source=source, data__root=str(tmp_path / "damaged"), data__views=[], data__target=None
    )
    tables = sorted(path.name for path in intact.iterdir() if path.suffix in (".csv", ".gz", ".txt"))

    outcomes = {"read": 0, "refused": 0}
    for trial in range(TRIALS):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(intact, tmp_path / "damaged")
        victim = random.Random(f"{name} {trial}").choice(tables)
        damage(tmp_path / "damaged" / victim, random.Random(trial))
        try:
            manifest = open_manifest(config)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 2000, trial
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        left_out = sum(note.images for note in manifest.notes if isinstance(note, LeftOut))
        whole = sum(rows_of(tmp_path / "damaged" / each) for each in per_image)
        assert len(manifest.table) + left_out == whole, trial
        assert "\n".join(manifest.notes).replace("\n", "").isprintable(), trial
    assert TRIALS < 20 or min(outcomes.values()) > 0, outcomes  # some copies are refused, and some are read


# ---------------------------------------------------------------- single kinds


def open_table(tmp_path: Path, content: bytes | str):
    (tmp_path / "images").mkdir(exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "images" / "manifest.csv").write_bytes(data)
    return open_manifest(tiny_config(tmp_path, data__views=[]))


ROWS = "".join(f"{number}.png,{number % 2},p{number}\n" for number in range(20))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,label,patient_id\n" + ROWS + 'x.png,0,"p21\n' + ROWS, "line 42: not a readable CSV: unexpected end"),
        ('path,label,patient_id\n"a.png,0,p1\n' + ROWS + '"b.png,1,p2\n', "line 23: not a readable CSV: ',' expected"),
        ('path,label,patient_id\n"a.png,0,p1\n' + ROWS + 'b.png",1,p2\n', "row 2: found a line break in path"),
        ("path,label,patient_id\na.png,0,p1,x\n" + ROWS, "line 2: found 4 fields, expected 3 as in the header"),
        ("path,label,patient_id\n" + ROWS + "a.png,0\n", "line 22: found 2 fields, expected 3 as in the header"),
        ("path,label,patient_id\na.png,0,p1\0x\n" + ROWS, "line 2: found a NUL byte"),
        (("path,label,patient_id\n" + ROWS).encode("utf-16-le"), "line 1: found a NUL byte"),
        (("path,label,patient_id\n" + ROWS).encode("utf-16"), "found another encoding, expected UTF-8"),
        ("path;label\n" + ROWS.replace(",", ";"), "found columns path;label, expected column path"),
        ("pa\x1b[31mth,label\n", r"found columns pa\x1b[31mth, label, expected column path"),
    ],
)
def test_what_would_lose_or_shift_rows_is_refused(content, said, tmp_path):
    with pytest.raises(UserError) as caught:
        open_table(tmp_path, content)
    assert f"manifest.csv: {said}" in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", ",\n", ",,\r\n", "\n \n"])
@pytest.mark.parametrize("quoted", [False, True])
def test_line_ends_blank_lines_and_commas_at_the_end_are_no_matter(end, quoted, tmp_path):
    text = "\ufeffpath,label,patient_id\n" + ROWS
    if quoted:
        text = text.replace("p7", '"p7" ').replace("path", '"path"')
    manifest = open_table(tmp_path, text.replace("\n", end))
    assert manifest.table["patient_id"].tolist() == [f"p{number}" for number in range(20)]


def test_quoted_texts_over_several_lines_are_read(tmp_path):
    text = "path,label,report\n" + "".join(f'{n}.png,{n % 2},"no ""change"",\nfine"\n' for n in range(20))
    assert len(open_table(tmp_path, text).table) == 20


@pytest.mark.parametrize("name", SOURCES)
def test_a_header_alone_is_no_image(name, tmp_path):
    source, build, per_image = SOURCES[name]
    root = build(tmp_path / "root")
    for each in per_image:
        header = pd.read_csv(root / each, nrows=0, index_col=False)
        header.to_csv(root / each, index=False)
    with pytest.raises(UserError, match="found no images"):
        open_manifest(tiny_config(tmp_path, data__source=source, data__root=str(root), data__views=[]))
