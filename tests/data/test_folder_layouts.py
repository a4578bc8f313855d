"""Files in a folder are read by their content, or counted; a layout is recognised, or refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from radiograph_files import STORED, dicom, picture, save
from tiny_world import call, tiny_config

from data.cli import prepare as main
from data.errors import UserError
from data.manifest import open_manifest

GREY = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))


def opened(root: Path, **changed):
    config = tiny_config(root.parent, data__source="folder", data__root=str(root), **changed)
    return open_manifest(config.data)


def fill(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        picture(GREY + number, folder / f"{folder.name}{number}.png")


@pytest.mark.parametrize("source", ["folder", "images"])
def test_an_image_is_known_by_what_it_holds(source, tmp_path):
    for name in ("NORMAL", "PNEUMONIA"):
        folder = tmp_path / "root" / name
        folder.mkdir(parents=True)
        save(dicom(STORED), folder / "1.2.840.113619.2.5")  # named by a UID
        save(dicom(STORED), folder / "scan.IMA")
        picture(GREY, folder / "a.png").rename(folder / "picture.img")
        picture(GREY, folder / "b.jpg").rename(folder / "picture")
        picture(GREY, folder / "c.JPEG")
        (folder / "notes.txt").write_text("nothing")
        (folder / "._c.jpeg").write_bytes(b"\0")
        (folder / "broken.png").write_bytes(b"half")  # an image by its ending: it is listed as unreadable, not lost
    manifest = open_manifest(tiny_config(tmp_path, data__source=source, data__root=str(tmp_path / "root")).data)
    assert len(manifest.table) == 12
    assert "2 files passed over: hidden" in manifest.notes
    assert "2 files passed over: no images" in manifest.notes


def test_linked_folders_are_followed_once(tmp_path):
    fill(tmp_path / "elsewhere/ABNORMAL")
    fill(tmp_path / "root/NORMAL")
    (tmp_path / "root/ABNORMAL").symlink_to(tmp_path / "elsewhere/ABNORMAL")
    (tmp_path / "root/NORMAL/again").symlink_to(tmp_path / "root/NORMAL")  # a loop
    (tmp_path / "root/NORMAL/gone.png").symlink_to(tmp_path / "nothing.png")
    table = opened(tmp_path / "root").table
    assert sorted(table["label"].value_counts().to_dict().items()) == [(0.0, 5), (1.0, 4)]


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("train", "test"), ("TRAIN", "Test"), ("training ", "testing")]
)
def test_split_folders_are_known_by_their_words(train, test, tmp_path):
    for split in (train, test):
        fill(tmp_path / "root" / split / "NORMAL")
        fill(tmp_path / "root" / split / "Sick", 3)
    table = opened(tmp_path / "root").table
    assert (table["split"] == "test").sum() == 7
    assert (table["image_id"].str.startswith(test) == (table["split"] == "test")).all()
    assert table["label"].sum() == 6


@pytest.mark.parametrize(
    "folders",
    [
        ("set1/NORMAL", "set1/SICK"),  # the data set lies one folder below
        ("chest_xray/train/NORMAL", "chest_xray/test/SICK"),
        ("train/batch1/NORMAL", "train/batch1/SICK"),
        ("train/test/NORMAL", "train/test/SICK"),
    ],
)
def test_a_class_folder_that_holds_classes_or_splits_is_an_error(folders, tmp_path):
    for folder in folders:
        fill(tmp_path / "root" / folder)
    with pytest.raises(UserError, match=r"which would be a class|inside another") as caught:
        opened(tmp_path / "root")
    assert "\n" not in str(caught.value)


def test_folders_inside_a_class_belong_to_it(tmp_path):
    fill(tmp_path / "root/NORMAL/normal")
    fill(tmp_path / "root/PNEUMONIA/bacteria")
    fill(tmp_path / "root/PNEUMONIA/virus", 3)
    assert opened(tmp_path / "root").table["label"].sum() == 7


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("NORMAL", "SICK"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "root" / name / f"{number}.png").write_bytes(os.urandom(9))
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{source: folder, root: {tmp_path}/root, store: {tmp_path}/stores, workers: 1}}\n")
    for more in ((), ("data.max_rejected=8",)):
        outcome = call(main, "--config", config, *more)
        assert outcome.code == 2
        assert "found none of 8 files readable, expected some" in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
