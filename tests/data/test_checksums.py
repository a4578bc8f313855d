"""Laws of published checksums: a file that differs is rejected and named, and a list stops no files that it lacks."""

import hashlib
import os
import re

import numpy as np
import pandas as pd
import pytest
from interrupted_reading import stop_at
from mimic_tree import build_mimic_tree
from tiny_world import radiograph, tiny_config, write_table

import data.preparation
from data.checksums import NAMES
from data.errors import UserError
from data.preparation import prepare

BAD = ("0004.png", "0017.png", "0058.png")


def write_list(place, files, kind="sha256", line="{digest}  {name}"):
    """Write a list as its makers' tools do; `files` maps the names in it to files."""
    rows = []
    for name, path in files.items():
        rows.append(line.format(digest=hashlib.new(kind, path.read_bytes()).hexdigest(), name=name))
    place.write_text("\n".join(rows) + "\n", encoding="utf-8")


def pictures(root):
    return {path.name: path for path in sorted((root / "images").glob("*.png"))}


def flip(path):
    """Append one byte after the picture's end: it reads as before."""
    path.write_bytes(path.read_bytes() + b"\1")


def rejected(store):
    return pd.read_csv(store.folder / "rejected.csv").set_index("image_id")["reason"].to_dict()


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("SHA256SUMS.txt", "sha256", "{digest} {name}"),  # PhysioNet
        ("SHA256SUMS", "sha256", "{digest}  {name}"),
        ("sha256sums.txt", "sha256", "{digest} *{name}"),
        ("all.sha256", "sha256", "{digest} *./{name}\r"),
        ("checksums.txt", "sha256", "SHA256 ({name}) = {digest}"),
        ("MD5SUMS", "md5", "{digest}  ./{name}"),
        ("md5sum.txt", "md5", "MD5 ({name}) = {digest}"),
        ("all.sha1", "sha1", "{digest}\t{name}"),
        ("SHA512SUMS", "sha512", "\ufeff# made today\n\n{digest}  .\\{name}"),
    ],
)
def test_who_differs_from_a_list_is_rejected_and_named(name, kind, line, tmp_path, capsys):
    config = tiny_config(tmp_path)
    write_list(tmp_path / "images" / name, pictures(tmp_path), kind, line)
    lines = (tmp_path / "images" / name).read_text(encoding="utf-8-sig").splitlines()
    for bad in BAD:
        flip(tmp_path / "images" / bad)
    store = prepare(config)
    assert len(store) == 57

    reasons = rejected(store)
    assert sorted(reasons) == list(BAD)
    for bad, reason in reasons.items():
        path = tmp_path / "images" / bad
        number = next(number for number, text in enumerate(lines, start=1) if text.rstrip("\r").find(bad) >= 0)
        found = hashlib.new(kind, path.read_bytes()).hexdigest()
        published = hashlib.new(kind, path.read_bytes()[:-1]).hexdigest()
        expected = f"found {kind.upper()} {found[:12]}…, expected {published[:12]}… by {name} line {number}"
        assert reason == f"{path}: {expected}"
    line = f"{name}: 60 images compared, 3 differ; 0 images are not listed, 0 listed files are not on disk"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["SHA256SUMS", "sha256sum.txt", "x.md5", "a-sha256.txt", "CHECKSUMS", "x_md5sums.txt"])
def test_names_of_lists_are_known(name):
    assert NAMES.fullmatch(name)


@pytest.mark.parametrize("name", ["manifest.csv", "md5.py", "SHA256SUMS.txt.asc", "00000001_000.png", "LICENSE.txt"])
def test_other_files_are_no_lists(name):
    assert not NAMES.fullmatch(name)


def test_a_list_may_lie_above_or_in_a_folder_of_the_root(tmp_path):
    for part in ("NORMAL", "SICK"):
        write_table(tmp_path / "images" / part, 12)
    sick = {path.name: path for path in (tmp_path / "images/SICK").glob("*.png")}
    normal = {f"images/NORMAL/{path.name}": path for path in (tmp_path / "images/NORMAL").glob("*.png")}
    write_list(tmp_path / "images/SICK/SHA256SUMS", sick)
    write_list(tmp_path / "SHA256SUMS", normal)
    for part in ("NORMAL", "SICK"):
        flip(tmp_path / "images" / part / "0003.png")
    store = prepare(tiny_config(tmp_path, data__source="folder"))
    assert sorted(rejected(store)) == ["NORMAL/0003.png", "SICK/0003.png"]


def test_a_relative_root_is_the_lists_too(tmp_path, monkeypatch):
    write_table(tmp_path / "images", 12)
    write_list(tmp_path / "SHA256SUMS", {f"images/{name}": path for name, path in pictures(tmp_path).items()})
    flip(tmp_path / "images/0003.png")
    monkeypatch.chdir(tmp_path)
    assert list(rejected(prepare(tiny_config(tmp_path, data__root="./images")))) == ["0003.png"]


def test_mimics_list_speaks_of_images_and_tables(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [radiograph(False, rng) for _ in range(40)]
    build_mimic_tree(tmp_path / "mimic", images, [number % 2 == 0 for number in range(40)], compress=True)
    root = tmp_path / "mimic"
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    listed = [path for path in files.values() if path.suffix == ".jpg"]
    files.pop(str(listed[7].relative_to(root)))  # not in the list
    write_list(root / "SHA256SUMS.txt", files, line="{digest} {name}")

    listed[0].unlink()  # not yet downloaded
    damaged = listed[3]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    table = root / "mimic-cxr-2.0.0-negbio.csv.gz"
    table.write_bytes(table.read_bytes() + b"\n")

    store = prepare(tiny_config(tmp_path, data__source="mimic-cxr-jpg", data__root=str(root)))
    out, err = capsys.readouterr()
    assert list(rejected(store)) == [damaged.stem]
    line = "SHA256SUMS.txt: 38 images compared, 1 differ; 1 images are not listed, 1 listed files are not on disk"
    assert line in out.splitlines()
    [warning] = [line for line in err.splitlines() if line.startswith("warning: ")]
    said = rf"warning: {table}: found SHA256 .*, expected .* by SHA256SUMS.txt line \d+; a damaged download, or .*"
    assert re.fullmatch(said, warning)


def test_an_unreadable_file_is_also_compared(tmp_path):
    config = tiny_config(tmp_path)
    write_list(tmp_path / "images/SHA256SUMS", pictures(tmp_path))
    path = tmp_path / "images/0002.png"
    path.write_bytes(path.read_bytes()[:200])
    [reason] = rejected(prepare(config)).values()
    assert re.search(r"found damaged content.*; found SHA256 .*by SHA256SUMS line 3$", reason)


def test_rows_decoded_before_there_was_a_list_are_compared(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    intact = tmp_path / "sums"
    write_list(intact, pictures(tmp_path))
    for bad in BAD:
        flip(tmp_path / "images" / bad)
    monkeypatch.setattr(data.preparation, "CHUNK", 5)
    with monkeypatch.context() as patch:
        stop_at(patch, 37)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    intact.rename(tmp_path / "images/SHA256SUMS")
    paths = stop_at(monkeypatch, 0)
    assert sorted(rejected(prepare(config))) == list(BAD)
    assert len(paths) == 60 - 35 + 2  # two of the bad ones had been read


def test_too_many_that_differ_stop(tmp_path, capsys):
    config = tiny_config(tmp_path)
    write_list(tmp_path / "images/SHA256SUMS", pictures(tmp_path))
    for path in list(pictures(tmp_path).values())[:11]:
        flip(path)
    with pytest.raises(UserError, match="found 11 unreadable of 60 files, expected at most 10"):
        prepare(config)
    assert "SHA256SUMS: 60 images compared, 11 differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>\n<body>\n</html>\n", "line 1: found '<!DOCTYPE html><html>', expected a digest and a"),
        (b"0123 0001.png\n", "line 1: found '0123 0001.png', expected a digest and a path"),
        (b"0" * 63 + b"  0001.png\n", "line 1: found a digest of 63 digits, expected one of md5, sha1"),
        (b"0" * 64 + b"  0001.png\n" + b"1" * 64 + b"  0001.png\n", "line 2: found another digest of a file than in"),
        (os.urandom(999).replace(b"\n", b"") + b"\0\n", "line 1: found "),
        (b"\xff\xfe" + f"{'0' * 64}  0001.png\n".encode("utf-16-le"), "line 1: found "),
        (b"x" * 10**6, "line 1: found 'xxx"),
    ],
)
def test_an_odd_list_is_a_line_and_no_more(content, said, tmp_path, capsys):
    config = tiny_config(tmp_path)
    (tmp_path / "images/SHA256SUMS.txt").write_bytes(content)
    assert len(prepare(config)) == 60
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {tmp_path}/images/SHA256SUMS.txt: {said}")
    assert warning.isprintable() and warning.endswith("; not compared")


def test_a_list_of_other_files_is_said_to_be_one(tmp_path, capsys):
    config = tiny_config(tmp_path)
    write_list(tmp_path / "images/SHA256SUMS", {f"other/{name}": path for name, path in pictures(tmp_path).items()})
    assert len(prepare(config)) == 60
    assert "SHA256SUMS: none of the 60 images is among its 60 files" in capsys.readouterr().out


def test_an_archive_is_compared_as_a_whole(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 255, (10, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = np.arange(10)[:, None] % 2
    path = tmp_path / "some.npz"
    np.savez(path, **arrays)
    (tmp_path / "some.npz.md5").write_text("0" * 32 + "\n")
    assert len(prepare(tiny_config(tmp_path, data__source="medmnist", data__root=str(path)))) == 30
    found = hashlib.md5(path.read_bytes()).hexdigest()[:12]
    assert f"{path}: found MD5 {found}…, expected 000000000000… by some.npz.md5 line 1" in capsys.readouterr().err
