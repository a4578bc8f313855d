"""Laws of reading a user's own data: class folders, a bare folder, a table, a MedMNIST file."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkout import SHARED
from public_trees import build_chexpert_tree, write_dicom
from source_files import read, refusal, touch

from data.labels import FINDINGS, judge, tally
from data.sources import COLUMNS

# ---------------------------------------------------------------- folder


def test_class_folders_give_labels_and_split_folders_splits(tmp_path):
    names = {
        "train/NORMAL/a.jpeg": ("train", 0),
        "train/PNEUMONIA/deep/b.JPG": ("train", 1),
        "Val/normal/c.png": ("validate", 0),
        "test/Covid-19/d.dcm": ("test", 1),
        "test/No_Finding/e.DCM": ("test", 0),
    }
    touch(
        tmp_path,
        *names,
        "train/NORMAL/._a.jpeg",
        "train/NORMAL/notes.txt",
        "test/loose.png",
        "__MACOSX/x/f.png",
    )
    table, notes = read(tmp_path, "folder")
    assert dict(zip(table["image_id"], zip(table["split"], table["label"], strict=True), strict=True)) == names
    assert table["path"].tolist() == [str(tmp_path / name) for name in table["image_id"]]
    assert table[["patient_id", "study_id", "view"]].isna().all(axis=None)
    assert notes[0].startswith("normal: normal (1 image), No_Finding (1 image), NORMAL (1 image); abnormal: ")
    assert "1 images left out: in no class folder" in notes
    assert "1 files passed over: folders, __MACOSX of the system" in notes


def test_class_folders_without_splits_come_sorted(tmp_path):
    touch(tmp_path, "sick/z.png", "sick/b.png", "Healthy/y.png", "Healthy/.hidden/x.png")
    table, notes = read(tmp_path, "folder")
    assert table["image_id"].tolist() == ["Healthy/y.png", "sick/b.png", "sick/z.png"]
    assert table["label"].tolist() == [0, 1, 1]
    assert table["split"].isna().all()
    assert notes == ["normal: Healthy (1 image); abnormal: sick (2 images)"]


@pytest.mark.parametrize("name", ["normal", "NO FINDING", "no_finding", "Healthy", "0", "negative"])
def test_names_of_health_mean_normal(tmp_path, name):
    touch(tmp_path, f"{name}/a.png", "1/b.png")
    assert dict(read(tmp_path, "folder")[0][["image_id", "label"]].to_numpy()) == {
        f"{name}/a.png": 0,
        "1/b.png": 1,
    }


def test_root_without_class_folders_is_refused(tmp_path):
    assert "found no class folders" in refusal(tmp_path, "folder")
    touch(tmp_path, "a.png", "train/b.png", "docs/readme.txt")
    assert f"data.root: {tmp_path}: found no class folders" in refusal(tmp_path, "folder")
    assert "no such folder" in refusal(tmp_path / "gone", "folder")


# ---------------------------------------------------------------- table


def write_table(root: Path, text: str) -> Path:
    (root / "manifest.csv").write_text(text)
    return root


def test_table_words_are_read_in_any_case(tmp_path):
    rows = "a.png,Normal,train\nb.png,ABNORMAL,Val\nc.png,0,valid\n"
    rows += "d.png,1,validation\ne.png,,TEST\nf.png,1.0,validate\n"
    table, _ = read(write_table(tmp_path, "path,label,split\n" + rows), "table")
    assert table["label"].fillna(-1).tolist() == [0, 1, 0, 1, -1, 1]
    assert table["split"].tolist() == ["train", "validate", "validate", "validate", "test", "validate"]


def test_table_ids_default_to_paths_and_stay_text(tmp_path):
    text = "path,label,patient_id,image_id,comment\nx/a.png,,0012,,k\n/elsewhere/b.png,1,0007,007,m\n"
    table, _ = read(write_table(tmp_path, text), "table")
    assert table["image_id"].tolist() == ["x/a.png", "007"]
    assert table["path"].tolist() == [f"{tmp_path}/x/a.png", "/elsewhere/b.png"]
    assert table["patient_id"].tolist() == ["0012", "0007"]
    assert list(table.columns) == [*COLUMNS, "comment"]


def test_table_keeps_findings_views_and_sources(tmp_path):
    text = "path,label,view,source,Edema,Pneumonia\na.png,1,PA,here,1,\nb.png,0,,,0,-1\n"
    table, _ = read(write_table(tmp_path, text), "table")
    assert table["source"].tolist() == ["here", "table"]
    assert table["view"].fillna("").tolist() == ["PA", ""]
    assert table["Edema"].tolist() == [1, 0]
    assert table["Pneumonia"].fillna(9).tolist() == [9, -1]


def test_table_without_any_label_or_split_is_all_unknown(tmp_path):
    table, _ = read(write_table(tmp_path, "path,label,split\na.png,,\nb.png,,\n"), "table")
    assert table["label"].isna().all()
    assert table["split"].isna().all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\na,1\n", "found columns file, label, expected column path"),
        ("path,diagnosis\na,1\n", "found columns path, diagnosis, expected column label"),
        ("path,label\na,1\nb,sick\n", "row 3: found label 'sick', expected one of normal, abnormal, 0, 1"),
        ("path,label,split\na,1,train\nb,1,dev\n", "row 3: found split 'dev', expected one of train, val"),
        ("path,label\na,1\n,0\n", "row 3: found no path, expected one in every row"),
        ("path,label,Edema\na,1,often\n", "often"),
        ("", "not a readable CSV"),
    ],
)
def test_bad_table_is_answered_by_file_and_place(tmp_path, text, expected):
    line = refusal(write_table(tmp_path, text), "table")
    assert line.startswith(f"{tmp_path / 'manifest.csv'}: ")
    assert expected in line


def test_missing_table_is_named(tmp_path):
    line = refusal(tmp_path, "table", table="other.csv")
    assert line.startswith(f"{tmp_path / 'other.csv'}: no such file")
    assert "data.table" in line


@pytest.mark.skipif(not (SHARED / "kermany224").is_dir(), reason="shared radiographs are not here")
def test_kermany_table_has_the_documented_counts():
    table, _ = read(SHARED / "kermany224", "table")
    counts = table.groupby(["split", "label"]).size().to_dict()
    assert [counts["train", label] for label in (0, 1)] == [1033, 2972]
    assert [counts["validate", label] for label in (0, 1)] == [136, 390]
    assert [counts["test", label] for label in (0, 1)] == [180, 521]
    assert Path(table["path"].iloc[-1]).is_file()


# ---------------------------------------------------------------- MedMNIST


def arrays(**changes) -> dict[str, np.ndarray]:
    sizes = {"train": 7, "val": 3, "test": 5}
    images = {f"{part}_images": np.zeros((n, 28, 28), np.uint8) for part, n in sizes.items()}
    return images | {f"{part}_labels": np.arange(n)[:, None] % 2 for part, n in sizes.items()} | changes


def test_medmnist_images_are_addressed_inside_the_file(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays())
    table, _ = read(path, "medmnist")
    assert table["split"].value_counts().to_dict() == {"train": 7, "test": 5, "validate": 3}
    assert table.loc[8, ["image_id", "path", "label"]].tolist() == ["val/1", f"{path}#val_images/1", 1]
    assert table["image_id"].is_unique


def test_medmnist_image_with_any_label_is_abnormal(tmp_path):
    labels = np.array([[0, 0], [0, 1], [2, 0]], np.uint8)
    np.savez_compressed(tmp_path / "x.npz", **arrays(val_labels=labels))
    table, _ = read(tmp_path / "x.npz", "medmnist")
    assert table.loc[table["split"] == "validate", "label"].tolist() == [0, 1, 1]


def test_a_split_may_be_empty(tmp_path):
    nothing = {"val_images": np.zeros((0, 28, 28), np.uint8), "val_labels": np.zeros((0, 1), int)}
    np.savez(tmp_path / "x.npz", **arrays(**nothing))
    table, _ = read(tmp_path / "x.npz", "medmnist")
    assert table["split"].value_counts().to_dict() == {"train": 7, "test": 5}


def test_file_that_is_no_medmnist_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    assert refusal(path, "medmnist") == f"data.root: {path}: no such file"
    assert "is a folder" in refusal(tmp_path, "medmnist")
    path.write_bytes(b"garbage")
    assert "found no .npz archive" in refusal(path, "medmnist")
    np.savez(path, images=np.zeros(3))
    assert "found arrays images, expected array train_images" in refusal(path, "medmnist")
    np.savez(path, **arrays(test_labels=np.zeros((4, 1), int)))
    assert "found 4 test_labels, expected 5, one per image" in refusal(path, "medmnist")
    for odd in (np.zeros((3, 28, 28), np.float32), np.zeros((3, 28, 28, 4), np.uint8), np.uint8(3)):
        np.savez(path, **arrays(val_images=odd))
        assert f"val_images: found {odd.dtype} {odd.shape}, expected uint8 (n h w), " in refusal(path, "medmnist")
    np.savez(path, **arrays(val_labels=np.array(["a", "b", "c"])))
    assert "val_labels: found <U1 labels, expected an array of integers" in refusal(path, "medmnist")
    np.savez(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[:-70])
    assert "found an archive that is cut off, expected" in refusal(path, "medmnist")
    path.write_bytes(content.replace(b"\x93NUMPY", b"\x93RUMPY"))
    assert f"{path}: damaged .npz" in refusal(path, "medmnist")


# ---------------------------------------------------------------- a bare folder


def test_bare_folder_reads_images_at_any_depth(tmp_path):
    touch(tmp_path, "b.PNG", "a/deep/er/c.jpeg", ".hidden.png", ".git/x.png", "a/._c.jpeg", "notes.txt")
    write_dicom(tmp_path / "a/IM-0001", np.zeros((9, 7), np.uint8))
    write_dicom(tmp_path / "1.2.840.99", np.zeros((9, 7), np.uint8))
    for directory in ("DICOMDIR", "a/dicomdir"):
        shutil.copy(tmp_path / "a/IM-0001", tmp_path / directory)
    table, notes = read(tmp_path, "images")
    assert table["image_id"].tolist() == ["1.2.840.99", "a/IM-0001", "a/deep/er/c.jpeg", "b.PNG"]
    assert table["path"].tolist() == [f"{tmp_path}/{name}" for name in table["image_id"]]
    assert table[["label", "patient_id", "study_id", "split", "view"]].isna().all(axis=None)
    assert notes == [
        "4 images without labels, for pretraining",
        "2 files passed over: a DICOMDIR",
        "2 files passed over: hidden",
        "1 files passed over: no images",
    ]


def test_bare_folder_without_images_is_refused(tmp_path):
    touch(tmp_path, "a.txt", "b/c.csv")
    line = refusal(tmp_path, "images")
    assert line == f"data.root: {tmp_path}: found no images among 2 files, expected JPEG, PNG or DICOM files"
    assert "no such folder" in refusal(tmp_path / "gone", "images")


# ---------------------------------------------------------------- a table with findings


def test_table_can_have_any_column_as_its_target(tmp_path):
    text = "path,Tuberculosis,Edema\na.png,1,\nb.png,0,1\nc.png,-1,0\nd.png,,0\ne.png,,\n"
    (tmp_path / "manifest.csv").write_text(text)
    table, _ = read(tmp_path, "table", target="Tuberculosis", uncertain="positive")
    assert table["label"].fillna(-1).tolist() == [1, 0, 1, 0, -1]
    assert list(table.columns) == [*COLUMNS, "Tuberculosis", "Edema", "rule"]
    line = refusal(tmp_path, "table", target="Tubercolosis")
    assert line == "data.target: found 'Tubercolosis', expected one of Edema; did you mean Tuberculosis?"


def test_a_target_without_a_column_of_its_own_is_told_with_the_columns_that_are_there(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,tb,sex,view\na.png,1,1,PA\nb.png,0,0,AP\n")
    assert refusal(tmp_path, "table", target="TB") == "data.target: found 'TB', expected one of tb; did you mean tb?"
    for taken in ("sex", "view"):  # which the manifest reads as something else
        assert refusal(tmp_path, "table", target=taken) == f"data.target: found '{taken}', expected one of tb"
    (tmp_path / "manifest.csv").write_text("path,label\na.png,1\nb.png,0\n")
    assert "expected such a column in" in refusal(tmp_path, "table", target="TB")


def test_rules_of_every_row_are_the_counted_ones(tmp_path):
    table, _ = read(build_chexpert_tree(tmp_path, images=False), "chexpert")
    label, rule = judge(table[list(FINDINGS)], "unknown")
    pd.testing.assert_series_equal(table["label"], label)
    assert tally(table["rule"]) == tally(rule)
