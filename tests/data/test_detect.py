"""The kind of a folder is told by its content; if it may be of several kinds, one line says so."""

import gzip
import shlex
from pathlib import Path

import numpy as np
import pytest
from mimic_tree import build_mimic_tree
from odd_folders import FOLDERS, classes, plain, save, with_csv
from public_trees import build_chexpert_tree, build_mimic_dicom_tree, build_nih_tree, write_dicom

from data.config import parse_overrides
from data.errors import UserError
from data.image_sizes import image_size_of, sampled_sizes
from data.phantom import write_tree
from data.sources.detect import detect, named


def source(place: Path, labels: bool = True) -> str:
    return detect(place, labels).source


def refusal(place: Path, labels: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        detect(place, labels)
    line = str(caught.value)
    assert line.startswith("--data: ") and "\n" not in line
    return line


# ---------------------------------------------------------------- public data sets


@pytest.mark.parametrize("labels", [True, False])
def test_public_data_sets_are_known_by_their_tables(labels, tmp_path):
    pixels = [np.full((8, 9), number, np.uint8) for number in range(6)]
    build_mimic_tree(tmp_path / "jpg", pixels, [True, False] * 3)
    build_mimic_tree(tmp_path / "packed", pixels, [True, False] * 3, version="2.1.0", compress=True)
    build_mimic_dicom_tree(tmp_path / "dcm", tmp_path / "tables", [True, False] * 3)
    build_chexpert_tree(tmp_path / "parent", patients=8)
    build_nih_tree(tmp_path / "nih", ["No Finding", "Mass"] * 5)
    write_tree(tmp_path / "drawn", 20)
    found = {place.name: source(place, labels) for place in tmp_path.iterdir() if place.name != "tables"}
    assert found == {
        "jpg": "mimic-cxr-jpg",
        "packed": "mimic-cxr-jpg",
        "dcm": "mimic-cxr-dicom",
        "parent": "chexpert",
        "nih": "nih-cxr14",
        "drawn": "phantom",
    }
    assert source(tmp_path / "parent/CheXpert-v1.0-small", labels) == "chexpert"


def test_dicom_files_beside_all_tables_are_read_as_dicom(tmp_path):
    build_mimic_dicom_tree(tmp_path, tmp_path / "tables", [True, False] * 3)
    for table in (tmp_path / "tables").glob("*.csv"):
        table.rename(tmp_path / table.name)
    assert source(tmp_path) == "mimic-cxr-dicom"


def test_a_train_csv_of_something_else_is_no_chexpert(tmp_path):
    plain(tmp_path, 5)
    (tmp_path / "train.csv").write_text("id,target\n1,0\n")
    assert source(tmp_path, labels=False) == "images"


def test_an_archive_of_chexpert_is_no_chexpert(tmp_path):
    classes(tmp_path, 3)
    (tmp_path / "CheXpert-v1.0-small.zip").write_bytes(b"PK\3\4")
    assert source(tmp_path) == "folder"


def test_a_folder_in_the_place_of_a_table_hides_no_other(tmp_path):
    build_nih_tree(tmp_path, ["No Finding", "Mass"] * 5)
    (tmp_path / "Data_Entry_2017_v2099.csv").mkdir()
    assert source(tmp_path) == "nih-cxr14"


# ---------------------------------------------------------------- own images


def test_class_folders_with_and_without_splits(tmp_path):
    classes(tmp_path / "bare", 3)
    for split in ("train", "val", "TEST"):
        classes(tmp_path / "split" / split, 2, ("No_Finding", "TB", "COVID"))
    assert source(tmp_path / "bare") == source(tmp_path / "split") == "folder"


def test_folders_of_no_known_meaning_are_images_unless_labels_are_needed(tmp_path):
    classes(tmp_path, 3, ("site 1", "site 2"))
    assert source(tmp_path, labels=False) == "images"
    line = refusal(tmp_path)
    assert "6 images in folders site 1, site 2, none of which says that it is normal" in line
    assert "'data.normal=[NAME]'" in line
    assert detect(tmp_path, labels=True, classes=True).source == "folder"


def test_folders_of_known_private_data_are_not_named(tmp_path):
    for number in range(3):
        save(tmp_path / f"p10/p1000003{number}/s5000000{number}/a.png")
        save(tmp_path / f"p11/p1100003{number}/s5000000{number}/a.png")
    assert "p10" not in refusal(tmp_path)


def test_the_only_folder_is_gone_into_but_a_class_or_split_is_not(tmp_path):
    classes(tmp_path / "a/b/c", 3)
    assert detect(tmp_path / "a", True).settings["root"] == str(tmp_path / "a/b/c")
    classes(tmp_path / "train only/train", 3)
    assert detect(tmp_path / "train only", True).settings["root"] == str(tmp_path / "train only")
    plain(tmp_path / "one class/NORMAL", 3)
    assert detect(tmp_path / "one class", False).settings["root"] == str(tmp_path / "one class")


def test_a_table_counts_before_folders_and_the_one_called_manifest_before_others(tmp_path):
    with_csv(tmp_path)
    assert detect(tmp_path, True).settings["table"] == "labels.csv"
    with_csv(tmp_path, "other.csv")
    line = refusal(tmp_path)
    assert f"give --data {tmp_path}/labels.csv (" in line and f"; --data {tmp_path}/other.csv (" in line
    with_csv(tmp_path, "manifest.csv")
    assert detect(tmp_path, True).settings["table"] == "manifest.csv"


def test_a_packed_table_with_a_byte_order_mark_is_read(tmp_path):
    with_csv(tmp_path, "list.csv")
    text = (tmp_path / "list.csv").read_text()
    (tmp_path / "list.csv").unlink()
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert detect(tmp_path / "list.csv.gz", True).settings["table"] == "list.csv.gz"


@pytest.mark.parametrize("name", ["a.npz", "A.NPZ", "a.Npz"])
def test_an_archive_is_known_whatever_the_case_of_its_ending(name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, train_images=np.zeros((2, 3, 5)))
    assert detect(tmp_path, True).settings == {"source": "medmnist", "root": f"{tmp_path}/{name}"}
    assert source(tmp_path / name) == "medmnist"


def test_a_config_a_picture_and_nothing_are_no_data(tmp_path):
    plain(tmp_path, 1)
    (tmp_path / "my.yaml").write_text("seed: 1\n")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert "give it as --config" in refusal(tmp_path / "my.yaml")
    assert "found one file, expected a folder" in refusal(tmp_path / "00.png")
    assert "found arrays x, expected train_images" in refusal(tmp_path / "other.npz")
    assert "found no such file or folder" in refusal(tmp_path / "nowhere")


def test_each_way_that_a_line_offers_is_one_in_which_the_data_are_read(tmp_path):
    arrays = {f"{part}_{kind}": np.zeros((2, 7, 11)) for part in ("train", "val") for kind in ("images", "labels")}
    outer = tmp_path / "my data"  # which holds one folder and nothing else, as an archive unpacks
    classes(outer / "unpacked", 2)
    for name in ("small", "large"):
        np.savez(outer / "unpacked" / name, **arrays)
    with_csv(outer / "unpacked", "the list.csv")

    offers = refusal(outer).partition("; give ")[2].split("; ")
    found = []
    for offer in offers:
        option, place, *overrides = shlex.split(offer.partition(" (")[0])
        assert option == "--data"
        given = parse_overrides(overrides)
        found.append(named(place, given["data.source"]) if given else detect(place, True))
    assert sorted(each.source for each in found) == ["folder", "medmnist", "medmnist", "table"]
    assert len({str(each.settings) for each in found}) == 4


def test_what_is_named_is_not_looked_at(tmp_path):
    assert named(tmp_path / "any", "chexpert").settings == {"source": "chexpert", "root": str(tmp_path / "any")}
    with_csv(tmp_path)
    settings = named(tmp_path / "labels.csv", "table").settings
    assert settings == {"source": "table", "root": str(tmp_path), "table": "labels.csv"}


def test_every_odd_folder_is_something_or_one_line(tmp_path):
    for name, odd in FOLDERS.items():
        place = tmp_path / name
        place.mkdir()
        odd.make(place)
        for labels in (True, False):
            try:
                assert detect(place / odd.inner, labels).saw
            except UserError as error:
                assert "\n" not in str(error)


# ---------------------------------------------------------------- sizes


def test_sizes_are_told_by_headers_alone(tmp_path):
    save(tmp_path / "a.png", side=(31, 17))
    save(tmp_path / "b.jpg", side=(13, 29))
    write_dicom(tmp_path / "c", np.zeros((19, 23), np.uint8))
    arrays = {f"{part}_{kind}": np.zeros((2, 7, 11)) for part in ("train", "val") for kind in ("images", "labels")}
    np.savez(tmp_path / "d.npz", **arrays)
    (tmp_path / "e.png").write_bytes(b"no picture")

    # cut off everything behind the header
    for name in ("a.png", "b.jpg"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(
            whole[: whole.index(b"IDAT") + 4 if name == "a.png" else whole.index(b"\xff\xda")]
        )
    (tmp_path / "no#1").mkdir()
    (tmp_path / "d.npz").rename(tmp_path / "no#1/d.npz")
    names = ["a.png", "b.jpg", "c", "no#1/d.npz#train_images/1", "e.png", "nowhere.png"]
    sizes = [image_size_of(str(tmp_path / name)) for name in names]
    assert sizes == [(17, 31), (29, 13), (19, 23), (7, 11), None, None]
    assert sampled_sizes([str(tmp_path / name) for name in names]).shape == (4, 2)
