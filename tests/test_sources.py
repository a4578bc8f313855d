"""Laws of the layouts: what each reads, and the one line it answers to bad input."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mimic_tree import FINDINGS, build_mimic_tree, folders, write_mimic_csv

import data.phantom
import data.sources.phantom
from data.config import UserError
from data.settings import DataSettings, PhantomSettings
from data.sources import COLUMNS, read_source

SHARED = Path(__file__).parents[2] / "shared" / "data"
SICK = [True, False, False, None, True, True, False] * 6  # of 42 images, in 21 patients


def read(root: Path, source: str, **settings):
    return read_source(DataSettings(source=source, root=str(root), **settings), Path(root))


def refusal(root: Path, source: str, **settings) -> str:
    """The one line that answers bad input."""
    with pytest.raises(UserError) as caught:
        read(root, source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, change) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def tree(tmp_path):
    build_mimic_tree(tmp_path, [None] * len(SICK), SICK)
    return tmp_path


# ---------------------------------------------------------------- MIMIC-CXR-JPG


def test_mimic_rows_are_the_official_files(tmp_path):
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    metadata = build_mimic_tree(tmp_path, [image] * 9, SICK[:9], views=("PA", None, "LATERAL"))
    table, _ = read(tmp_path, "mimic-cxr-jpg")
    assert list(table.columns) == [*COLUMNS, *FINDINGS, "rule"]
    assert table["image_id"].tolist() == metadata["dicom_id"].tolist()
    assert table["patient_id"].tolist() == metadata["subject_id"].astype(str).tolist()
    assert table["path"].map(lambda path: Path(path).is_file()).all()
    assert Path(table["path"][0]).parent == tmp_path / "files/p10/p10000032/s50414267"
    assert table["view"].fillna("").tolist() == ["PA", "", "LATERAL"] * 3
    assert set(table["source"]) == {"mimic-cxr-jpg"}


def test_mimic_labels_follow_the_study(tree):
    table, notes = read(tree, "mimic-cxr-jpg")
    assert table["label"].fillna(-1).tolist() == [{True: 1, False: 0, None: -1}[sick] for sick in SICK]
    assert table["split"].value_counts().to_dict() == {"train": 30, "test": 8, "validate": 4}
    assert "chexpert: a finding is 1 → abnormal: 18 studies" in notes
    assert "chexpert: nothing decides → unknown: 6 studies" in notes


def test_mimic_images_of_one_study_share_its_label(tree):
    extra = {"dicom_id": "second-image", "ViewPosition": "LL"}
    for kind in ("metadata", "split"):
        path = tree / f"mimic-cxr-2.0.0-{kind}.csv"
        rewrite(
            path,
            lambda table: pd.concat([table, table.iloc[[0]].assign(**{k: extra[k] for k in extra if k in table})]),
        )
    table, _ = read(tree, "mimic-cxr-jpg")
    assert table["label"].iloc[[0, -1]].tolist() == [1, 1]
    assert table["study_id"].iloc[0] == table["study_id"].iloc[-1]


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0", "3"])
@pytest.mark.parametrize("compress", [False, True])
def test_mimic_csvs_of_any_version_read_alike_packed_or_not(tmp_path, version, compress):
    build_mimic_tree(tmp_path / "a", [None] * 11, SICK[:11])
    build_mimic_tree(tmp_path / "b", [None] * 11, SICK[:11], version=version, compress=compress)
    first, second = (read(tmp_path / name, "mimic-cxr-jpg")[0].drop(columns="path") for name in "ab")
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize(("uncertain", "label"), [("unknown", -1), ("positive", 1), ("negative", 0)])
def test_uncertain_setting_reaches_the_labels_and_the_notes(tree, uncertain, label):
    rewrite(
        tree / "mimic-cxr-2.0.0-chexpert.csv",
        lambda table: table.assign(Edema=-1).assign(**{"No Finding": 1}),
    )
    table, notes = read(tree, "mimic-cxr-jpg", uncertain=uncertain)
    assert table["label"].fillna(-1).tolist() == [1 if sick else label for sick in SICK]
    uncertain_notes = [note for note in notes if "a finding is -1" in note]
    meaning = {"unknown": "unknown", "positive": "abnormal"}.get(uncertain)
    assert uncertain_notes == ([f"chexpert: a finding is -1 → {meaning}: 24 studies"] if meaning else [])


def test_newest_of_several_mimic_versions_is_read(tree):
    table = pd.read_csv(tree / "mimic-cxr-2.0.0-chexpert.csv")
    write_mimic_csv(tree, "chexpert", table.assign(Fracture=0), version="2.9.0")
    write_mimic_csv(tree, "chexpert", table.assign(Fracture=1), version="2.10.0", compress=True)
    assert (read(tree, "mimic-cxr-jpg")[0]["label"] == 1).all()


def test_unpacked_csv_is_read_rather_than_its_archive(tree):
    table = pd.read_csv(tree / "mimic-cxr-2.0.0-chexpert.csv")
    write_mimic_csv(tree, "chexpert", table.assign(Fracture=1), compress=True)
    assert not (read(tree, "mimic-cxr-jpg")[0]["label"] == 1).all()


def test_agreement_drops_labels_on_which_the_labelers_differ(tree):
    def differ(table):
        table.loc[0, ["Lung Opacity", "Pneumonia"]] = np.nan  # from abnormal to unknown
        table.loc[1, "Edema"] = 1  # from normal to abnormal
        return table

    rewrite(tree / "mimic-cxr-2.0.0-negbio.csv", differ)
    chexpert, negbio, agreement = (
        read(tree, "mimic-cxr-jpg", labeler=name)[0]["label"] for name in ("chexpert", "negbio", "agreement")
    )
    assert agreement[:2].isna().all()
    assert agreement[2:].equals(chexpert[2:])
    assert negbio[1] == 1
    notes = read(tree, "mimic-cxr-jpg", labeler="agreement")[1]
    assert "agreement: one normal, one abnormal → unknown: 1 studies" in notes
    assert "agreement: both labelers abnormal: 17 studies" in notes


def test_radiologists_replace_the_labeler_on_the_test_split_only(tree):
    before, _ = read(tree, "mimic-cxr-jpg")
    flipped = before.assign(**{"Airspace Opacity": (before["label"] == 0).astype(float)})
    flipped["No Finding"] = (before["label"] == 1).astype(float)
    readings = flipped.loc[flipped["split"] != "validate", ["study_id", "Airspace Opacity", "No Finding"]]
    unread = before.index[before["split"] == "test"][0]
    write_mimic_csv(tree, "test-set-labeled", readings.drop(index=unread), version="2.1.0")
    after, notes = read(tree, "mimic-cxr-jpg")
    test = (before["split"] == "test") & (before.index != unread)
    expected = before["label"].where(~test, 1 - before["label"])
    pd.testing.assert_series_equal(after["label"], expected)
    assert (after.loc[test, "Lung Opacity"] == (before.loc[test, "label"] == 0)).all()
    assert "mimic-cxr-2.1.0-test-set-labeled.csv: radiologists' labels for 7 of 8 test studies" in notes


def test_study_the_labeler_skipped_is_unknown_and_counted(tree):
    rewrite(tree / "mimic-cxr-2.0.0-chexpert.csv", lambda table: table.iloc[5:])
    table, notes = read(tree, "mimic-cxr-jpg")
    assert table["label"][:5].isna().all()
    assert "chexpert: not in mimic-cxr-2.0.0-chexpert.csv → unknown: 5 studies" in notes
    assert "chexpert: nothing decides → unknown: 5 studies" in notes


def test_image_without_a_split_is_left_out_and_counted(tree):
    rewrite(tree / "mimic-cxr-2.0.0-split.csv", lambda table: table.iloc[3:])
    table, notes = read(tree, "mimic-cxr-jpg")
    assert len(table) == 39
    assert "3 images left out: not in the split CSV" in notes


@pytest.mark.parametrize("kind", ["metadata", "split", "chexpert"])
def test_missing_mimic_csv_is_named_with_its_place_and_origin(tree, kind):
    (tree / f"mimic-cxr-2.0.0-{kind}.csv").unlink()
    line = refusal(tree, "mimic-cxr-jpg")
    assert str(tree) in line
    assert f"mimic-cxr-*-{kind}.csv" in line
    assert "physionet.org" in line


@pytest.mark.parametrize(
    ("kind", "column"),
    [("metadata", "ViewPosition"), ("split", "split"), ("chexpert", "Pneumonia"), ("chexpert", "study_id")],
)
def test_missing_mimic_column_is_named_with_those_found(tree, kind, column):
    path = tree / f"mimic-cxr-2.0.0-{kind}.csv"
    rewrite(path, lambda table: table.drop(columns=column))
    line = refusal(tree, "mimic-cxr-jpg")
    assert line.startswith(f"{path}: found columns ")
    assert "subject_id" in line
    assert line.endswith(f"expected column {column}")


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("chexpert", {"Edema": 2}, "column Edema: found 2, expected 1, 0, -1 or blank"),
        ("chexpert", {"Edema": "yes"}, "yes"),
        ("split", {"split": "dev"}, "row 2: found split 'dev', expected one of train, val"),
        ("metadata", {"subject_id": None}, "row 2: found no subject_id, expected one in every row"),
        ("split", {"dicom_id": "same"}, "found 41 repeated dicom_id, expected one row for each"),
        ("chexpert", {"study_id": 50414267}, "found 41 repeated study_id, expected one row for each"),
    ],
)
def test_unofficial_mimic_value_is_refused(tree, kind, change, expected):
    path = tree / f"mimic-cxr-2.0.0-{kind}.csv"
    rewrite(path, lambda table: table.assign(**change))
    line = refusal(tree, "mimic-cxr-jpg")
    assert line.startswith(f"{path}: ")
    assert expected in line


def test_damaged_mimic_csv_is_refused(tree):
    for content in (b"", b"\x1f\x8b\x08\x00garbage", b"\xff\xfe\x00\x01", b'a,b\n"unclosed'):
        (tree / "mimic-cxr-3.0.0-metadata.csv.gz").write_bytes(content)
        assert "mimic-cxr-3.0.0-metadata.csv.gz: not a readable CSV" in refusal(tree, "mimic-cxr-jpg")


def test_mimic_root_must_exist_and_hold_files(tmp_path):
    assert refusal(tmp_path / "gone", "mimic-cxr-jpg") == f"data.root: {tmp_path / 'gone'}: no such folder"
    (tmp_path / "file").touch()
    assert "expected a folder" in refusal(tmp_path / "file", "mimic-cxr-jpg")
    assert f"{tmp_path}/files: no such folder" in refusal(tmp_path, "mimic-cxr-jpg")


@pytest.mark.skipif(not (SHARED / "kermany_originals").is_dir(), reason="shared radiographs are not here")
def test_real_radiographs_in_a_mimic_tree_are_found_by_their_paths(tmp_path):
    originals = [*(SHARED / "kermany_originals").glob("*/*.jpeg")][:13]
    metadata = build_mimic_tree(tmp_path, originals, [path.parent.name == "PNEUMONIA" for path in originals])
    table, _ = read(tmp_path, "mimic-cxr-jpg")
    assert [Path(path).stat().st_size for path in table["path"]] == [path.stat().st_size for path in originals]
    assert [str(Path(path).parent.relative_to(tmp_path)) for path in table["path"]] == folders(metadata)


# ---------------------------------------------------------------- phantom


@pytest.fixture
def drawings(monkeypatch):
    """Lists which phantoms are drawn."""
    asked = []

    def write_tree(root, images, seed, workers):
        asked.append((images, seed))
        data.phantom.write_tree(root, images, seed)

    monkeypatch.setattr(data.sources.phantom, "write_tree", write_tree)
    return asked


def test_phantom_is_drawn_once_and_read_as_mimic(tmp_path, drawings):
    root, phantom = tmp_path / "deep" / "phantom", PhantomSettings(images=26, seed=3)
    first, _ = read(root, "phantom", phantom=phantom)
    second, _ = read(root, "phantom", phantom=phantom)
    assert drawings == [(26, 3)]
    pd.testing.assert_frame_equal(first, second)
    assert set(first["source"]) == {"phantom"}
    assert Path(first["path"][0]).is_relative_to(root)
    assert [path.name for path in root.parent.iterdir()] == ["phantom"]


def test_phantom_of_other_settings_is_refused(tmp_path, drawings):
    root = tmp_path / "phantom"
    read(root, "phantom", phantom=PhantomSettings(images=26))
    line = refusal(root, "phantom", phantom=PhantomSettings(images=28))
    assert f"{root}: found a phantom of images 26, seed 0, expected a phantom of images 28, seed 0" in line
    assert "delete it" in line
    assert json.loads((root / "phantom.json").read_text()) == {"images": 26, "seed": 0}


def test_folder_that_is_no_phantom_is_refused(tmp_path, drawings):
    touch(tmp_path, "thesis.tex")
    assert "found no phantom.json" in refusal(tmp_path, "phantom")
    assert not drawings


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
    assert "class Covid-19 → abnormal: 1 images" in notes
    assert "1 images left out: in no class folder" in notes
    assert "folder __MACOSX left out: not a split" in notes


def test_class_folders_without_splits_come_sorted(tmp_path):
    touch(tmp_path, "sick/z.png", "sick/b.png", "Healthy/y.png", "Healthy/.hidden/x.png")
    table, notes = read(tmp_path, "folder")
    assert table["image_id"].tolist() == ["Healthy/y.png", "sick/b.png", "sick/z.png"]
    assert table["label"].tolist() == [0, 1, 1]
    assert table["split"].isna().all()
    assert notes == ["class Healthy → normal: 1 images", "class sick → abnormal: 2 images"]


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
    assert list(table.columns) == list(COLUMNS)


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
    np.savez(path, **arrays(val_labels=np.array(["a", "b", "c"])))
    assert "val_labels: found <U1 labels, expected an array of integers" in refusal(path, "medmnist")
    np.savez(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x93NUMPY", b"\x93RUMPY"))
    assert f"{path}: damaged .npz" in refusal(path, "medmnist")
