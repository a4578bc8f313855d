"""Inputs that a user names: which images they are, and that they are read as a store reads them."""

import tracemalloc
from pathlib import Path

import deadly_reading
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from radiograph_files import dicom, save, scene

from data.errors import UserError
from data.image_files import read_some
from data.images import read_fitted
from data.inputs import BATCH, as_inputs, find_inputs, read_inputs
from data.settings import DataSettings
from data.store import Postponed
from data.workers import FEW, ThisProcess

HOW = DataSettings(source="images", image_size=(16, 24), resize="crop", tone="mimic_jpg")


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 255, (30, 50), dtype=np.uint8)).save(path)
    return path


def shown(inputs) -> list[str]:
    return [one.shown for one in inputs]


def everything(inputs, workers: int = 1) -> tuple[np.ndarray, list[str | None]]:
    parts = list(read_inputs(inputs, HOW, workers))
    assert [number for part in parts for number in part.numbers] == list(range(len(inputs)))
    return np.concatenate([part.images for part in parts]), [reason for part in parts for reason in part.reasons]


# ---------------------------------------------------------------- which


def test_words_are_taken_in_their_order_and_as_often_as_they_are_named(tmp_path):
    b, a = picture(tmp_path / "b.png"), picture(tmp_path / "a.png")
    assert shown(find_inputs([b, a, b])) == [str(b), str(a), str(b)]


def test_folders_are_searched_to_any_depth_and_what_is_passed_over_is_said(tmp_path):
    picture(tmp_path / "x/y/z/ä ö\n1.png")
    picture(tmp_path / "x/b.jpg")
    (tmp_path / "x/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "x/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "x/notes.txt").write_text("text")
    said: list[str] = []
    found = find_inputs([tmp_path / "x"], said.append)
    assert shown(found) == [f"{tmp_path}/x/b.jpg", f"{tmp_path}/x/y/z/ä ö\n1.png"]
    assert said == [f"{tmp_path}/x: 1 files passed over: hidden", f"{tmp_path}/x: 2 files passed over: no images"]


@pytest.mark.parametrize("name", ["path", "File Name", "image_path", "Image Index", "DICOM"])
def test_a_tables_paths_are_beside_it_or_in_the_working_folder(tmp_path, monkeypatch, name):
    picture(tmp_path / "tables/one.png")
    picture(tmp_path / "here/two.png")
    monkeypatch.chdir(tmp_path / "here")
    rows = {name: ["two.png", "one.png", "", "none.png"], "Study ID": ["s", "s", "", "NA"], "label": [1, 0, 1, "odd"]}
    pd.DataFrame(rows).to_csv(tmp_path / "tables/list.csv", index=False)
    found = find_inputs([tmp_path / "tables/list.csv"])
    assert shown(found) == ["two.png", "one.png", "", "none.png"]
    assert [one.study_id for one in found] == ["s", "s", "", "NA"]
    _, reasons = everything(found)
    assert reasons[:2] == [None, None]
    assert reasons[2] == "found no path in this row, expected one"
    assert reasons[3] == "found no such file or directory, expected a readable image file"


def test_what_leads_nowhere_is_a_line(tmp_path):
    (tmp_path / "empty").mkdir()
    pd.DataFrame({"where": ["a.png"]}).to_csv(tmp_path / "other.csv", index=False)
    for word, line in {
        "missing.png": "found no such file or folder",
        "empty": "found no image",
        "other.csv": "found columns where, expected one called path",
    }.items():
        with pytest.raises(UserError, match=line) as caught:
            find_inputs([tmp_path / word])
        assert str(caught.value).startswith(str(tmp_path / word))


# ---------------------------------------------------------------- read


@pytest.mark.parametrize("workers", [1, 2])
def test_images_are_read_as_those_of_a_store(tmp_path, workers):
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(2 * BATCH + 3)]
    paths[5] = save(dicom(scene(3000).astype(np.uint16)), tmp_path / "five.dcm")
    paths[7].write_bytes(b"no image")
    assert len(paths) > FEW
    inputs = find_inputs(paths)
    images, reasons = everything(inputs, workers)
    assert images.shape == (len(paths), 1, 16, 24)
    for number, path in enumerate(paths):
        if number == 7:
            assert reasons[7] == "found other bytes, expected JPEG, PNG or DICOM" and not images[7].any()
        else:
            assert reasons[number] is None
            assert (images[number, 0] == read_fitted(path, (16, 24), "crop", "mimic_jpg")).all()


def test_memory_does_not_grow_with_the_number_of_inputs(tmp_path):
    side = 256
    picture(tmp_path / "one.png")
    settings = DataSettings(source="images", image_size=side)

    def peak(number: int) -> int:
        inputs = find_inputs([tmp_path / "one.png"] * number)
        tracemalloc.start()
        for part in read_inputs(inputs, settings, workers=1):
            assert part.reasons[0] is None
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(BATCH)  # load what is loaded once
    assert peak(11 * BATCH) - peak(3 * BATCH) < BATCH * side**2 / 2


# ---------------------------------------------------------------- what people type


def test_what_a_shell_would_have_expanded_is_expanded(tmp_path, monkeypatch):
    for name in ("b.png", "a.png", "x/c.png"):
        picture(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shown(find_inputs([f"{tmp_path}/*.png"])) == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
    assert shown(find_inputs(["~/x"])) == [f"{tmp_path}/x/c.png"]
    picture(tmp_path / "odd[1].png")
    assert shown(find_inputs([f"{tmp_path}/odd[1].png"])) == [f"{tmp_path}/odd[1].png"]  # a name goes first


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("-", "found standard input"),
        ("https://hospital.org/a.png", "found an address.*fetch it first"),
        ("none*.png", "found no file of this pattern"),
        ("chst.png", "did you mean .*chest.png?"),
        ("all.npz", "a MedMNIST archive is for mae-evaluate"),
        ("list.xlsx", "found .xlsx, expected a CSV"),
        ("odd.csv", "is it where_it_lies. Then call it path"),
        ("bare.txt", "the first line names an image already: put a line with the columns' names above it"),
        ("twice.csv", "found column path twice"),
    ],
)
def test_every_mistake_is_a_line(tmp_path, monkeypatch, word, line):
    picture(tmp_path / "chest.png")
    (tmp_path / "all.npz").write_bytes(b"PK\3\4")
    (tmp_path / "list.xlsx").write_bytes(b"PK\3\4")
    (tmp_path / "odd.csv").write_text("label,where_it_lies\n1,chest.png\n")
    (tmp_path / "bare.txt").write_text("chest.png\nchest.png\n")
    (tmp_path / "twice.csv").write_text("path,path\na,b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line) as caught:
        find_inputs([word])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_another_system_is_understood(tmp_path, separator):
    picture(tmp_path / "images/a b.png")
    text = "\ufeffPath,Patient ID\r\nimages\\a b.png, 7 \r\n".replace(",", separator)
    (tmp_path / "list.csv").write_bytes(text.encode())
    [one] = find_inputs([tmp_path / "list.csv"])
    assert (one.path, one.shown, one.patient_id) == (tmp_path / "images/a b.png", "images\\a b.png", "7")


# ---------------------------------------------------------------- what may happen meanwhile


def test_a_table_is_not_taken_for_the_names_of_its_columns(tmp_path):
    path = str(picture(tmp_path / "a.png"))
    for found in (pd.DataFrame({"path": [path]}), {"path": [path]}, Path(path).read_bytes()):
        with pytest.raises(UserError, match=f"found {type(found).__name__}, expected paths.*give the column of its"):
            as_inputs(found)
    assert shown(as_inputs(pd.DataFrame({"path": [path]})["path"])) == [path]


def test_a_damaged_picture_of_pillow_costs_no_other(tmp_path):
    """Pillow opens a file without decoding it, so the damage shows only when the picture is used."""
    whole = picture(tmp_path / "a.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:-400])
    closed = Image.open(whole)
    closed.close()
    images, reasons = everything(as_inputs([Image.open(whole), Image.open(cut), closed, Image.new("LAB", (9, 9))]))
    assert reasons[0] is None
    assert images[0].any()
    assert reasons[1].startswith("found damaged content (image file is truncated")
    assert reasons[2].startswith("found damaged content (Operation on closed image)")
    assert reasons[3].startswith("found damaged content (conversion from LAB")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_may_pass_is_tried_again(tmp_path, monkeypatch, workers):
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(2 * BATCH)]
    asked: list[list[str]] = []

    def not_now(place, start, some, *how):
        asked.append(list(some))
        reasons = read_some(place, start, some, *how)
        if len(some) > 1:
            reasons[1] = Postponed(f"{some[1]}: found too many open files, expected a readable image file")
        return reasons

    monkeypatch.setattr("data.inputs.read_some", not_now)
    monkeypatch.setattr("data.inputs.start_processes", lambda _: ThisProcess())
    monkeypatch.setattr("data.inputs.run_one_by_one", lambda function, jobs: (function(*job) for job in jobs))
    images, reasons = everything(find_inputs(paths), workers)
    assert reasons == [None] * len(paths)
    assert [len(some) for some in asked].count(1) == 2
    assert (images[1, 0] == read_fitted(paths[1], (16, 24), "crop", "mimic_jpg")).all()


def test_a_file_that_kills_whoever_reads_it_costs_no_other(tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(2 * BATCH)]
    for number, word in {4: deadly_reading.ALWAYS, 6: deadly_reading.ONCE}.items():
        with paths[number].open("ab") as file:
            file.write(word)
    monkeypatch.setattr("data.inputs.read_some", deadly_reading.read_some_or_die)
    _, reasons = everything(find_inputs(paths), workers=2)
    assert [number for number, reason in enumerate(reasons) if reason] == [4]
    assert str(reasons[4]).startswith("found the process that reads it killed")
