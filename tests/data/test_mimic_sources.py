"""Laws of reading MIMIC-CXR: the JPEG tree, its phantom and the DICOM tree."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkout import SHARED
from mimic_tree import FINDINGS, build_mimic_tree, folders, write_mimic_csv
from public_trees import build_mimic_dicom_tree
from source_files import SICK, read, refusal, rewrite, touch

import data.phantom
import data.sources.phantom
from data.errors import UserError
from data.settings import DataSettings, PhantomSettings
from data.sources import COLUMNS, read_source


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


@pytest.mark.parametrize("kind", ["metadata", "split", "chexpert"])
def test_a_folder_of_a_csvs_name_does_not_hide_its_archive(tree, kind):
    table = pd.read_csv(tree / f"mimic-cxr-2.0.0-{kind}.csv")
    before, _ = read(tree, "mimic-cxr-jpg")
    (tree / f"mimic-cxr-2.0.0-{kind}.csv").unlink()
    (tree / f"mimic-cxr-2.0.0-{kind}.csv").mkdir()
    write_mimic_csv(tree, kind, table, compress=True)
    pd.testing.assert_frame_equal(read(tree, "mimic-cxr-jpg")[0], before)


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
        ("chexpert", {"Edema": 2}, "row 2: column Edema: found 2, expected 1, 0, -1 or blank"),
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


@pytest.mark.parametrize("kind", ["split", "chexpert", "negbio"])
def test_a_table_that_gives_images_to_other_patients_is_refused(tree, kind):
    path = tree / f"mimic-cxr-2.0.0-{kind}.csv"
    rewrite(path, lambda table: table.assign(subject_id=table["subject_id"].to_numpy()[::-1]))  # sorted alone
    with pytest.raises(UserError, match=r"row 2: found another subject_id than the images' table has for this \w+_id"):
        read_source(DataSettings(source="mimic-cxr-jpg", root=str(tree), labeler="agreement"), tree)


def test_a_study_of_two_patients_is_refused(tree):
    path = tree / "mimic-cxr-2.0.0-metadata.csv"
    rewrite(path, lambda table: table.assign(study_id=table["study_id"].iloc[0]))
    assert "found studies of several patients (1), expected each to be of one" in refusal(tree, "mimic-cxr-jpg")


def test_damaged_mimic_csv_is_refused(tree):
    for content in (b"", b"\x1f\x8b\x08\x00garbage", b"\xff\xfe\x00\x01", b'a,b\n"unclosed'):
        (tree / "mimic-cxr-3.0.0-metadata.csv.gz").write_bytes(content)
        line = refusal(tree, "mimic-cxr-jpg")
        assert re.search(
            r"mimic-cxr-3.0.0-metadata.csv.gz: (not a readable CSV|found (another encoding|columns a, b))", line
        )


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


# ---------------------------------------------------------------- MIMIC-CXR, DICOM


def test_mimic_dicom_takes_labels_views_and_splits_from_the_jpg_csvs(tmp_path):
    metadata = build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK, views=("PA", None, "LATERAL"))
    table, notes = read(tmp_path / "dicom", "mimic-cxr-dicom", labels_root=str(tmp_path / "jpg"))
    assert list(table.columns) == [*COLUMNS, *FINDINGS, "rule"]
    assert table["image_id"].tolist() == metadata["dicom_id"].tolist()
    assert table["path"].map(lambda path: path.endswith(".dcm") and Path(path).is_file()).all()
    assert table["view"].fillna("").tolist() == ["PA", "", "LATERAL"] * 14
    assert table["label"].fillna(-1).tolist() == [{True: 1, False: 0, None: -1}[sick] for sick in SICK]
    assert table["split"].value_counts().to_dict() == {"train": 30, "test": 8, "validate": 4}
    assert "cxr-record-list.csv.gz: 42 images, 42 studies, 21 patients" in notes


def test_mimic_dicom_csvs_may_lie_beside_the_files(tmp_path):
    build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK)
    elsewhere, _ = read(tmp_path / "dicom", "mimic-cxr-dicom", labels_root=str(tmp_path / "jpg"))
    for path in (tmp_path / "jpg").glob("*.csv"):
        shutil.copy(path, tmp_path / "dicom")
    beside, _ = read(tmp_path / "dicom", "mimic-cxr-dicom")
    pd.testing.assert_frame_equal(beside, elsewhere)


def test_mimic_dicom_alone_has_patients_and_says_what_it_lacks(tmp_path):
    build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK)
    table, notes = read(tmp_path / "dicom", "mimic-cxr-dicom")
    assert len(table) == 42 and table["patient_id"].nunique() == 21
    assert table[["view", "split", "label"]].isna().all(axis=None)
    told = "\n".join(notes)
    assert "views are unknown, laterals are among the images" in told
    assert "these splits are not the official ones" in told and "there are no labels" in told


@pytest.mark.parametrize(("kind", "needed"), [("metadata", False), ("split", True), ("chexpert", True)])
def test_mimic_dicom_labels_root_must_hold_split_and_labels(tmp_path, kind, needed):
    build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK)
    (tmp_path / "jpg" / f"mimic-cxr-2.0.0-{kind}.csv").unlink()
    settings = {"source": "mimic-cxr-dicom", "labels_root": str(tmp_path / "jpg")}
    if needed:
        assert f"{tmp_path / 'jpg'}: found no mimic-cxr-*-{kind}.csv" in refusal(tmp_path / "dicom", **settings)
    else:
        table, notes = read(tmp_path / "dicom", **settings)
        assert table["view"].isna().all() and table["label"].notna().any()
        assert any("views are unknown" in note for note in notes)


def test_mimic_dicom_needs_its_record_list_and_an_existing_labels_root(tmp_path):
    build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK)
    line = refusal(tmp_path / "dicom", "mimic-cxr-dicom", labels_root=str(tmp_path / "gone"))
    assert line == f"data.labels_root: {tmp_path / 'gone'}: no such folder"
    (tmp_path / "dicom" / "cxr-record-list.csv.gz").unlink()
    assert "found no cxr-record-list.csv[.gz]" in refusal(tmp_path / "dicom", "mimic-cxr-dicom")


def test_radiologists_test_set_without_no_finding_calls_the_unmarked_normal(tmp_path):
    build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK)
    settings = {"source": "mimic-cxr-dicom", "labels_root": str(tmp_path / "jpg")}
    test = read(tmp_path / "dicom", **settings)[0].query("split == 'test'")
    readings = test[["study_id"]].assign(**{"Airspace Opacity": [1, -1, 0, np.nan] * 2, "Support Devices": 1})
    write_mimic_csv(tmp_path / "jpg", "test-set-labeled", readings, version="2.1.0")
    table, notes = read(tmp_path / "dicom", **settings)
    assert table.query("split == 'test'")["label"].fillna(-1).tolist() == [1, -1, 0, 0] * 2
    assert "radiologists: No Finding is 1 → normal: 4 studies" in notes
    line = refusal(tmp_path / "dicom", **settings, target="Fracture")
    assert "expected Fracture, which is data.target" in line


def test_agreement_on_a_target_is_of_its_labels(tmp_path):
    """One labeler states it and the other says nothing: that is neither agreement nor absence."""
    build_mimic_dicom_tree(tmp_path / "dicom", tmp_path / "jpg", SICK)
    rewrite(tmp_path / "jpg/mimic-cxr-2.0.0-negbio.csv", lambda table: table.assign(Pneumonia=np.nan))
    settings = {"source": "mimic-cxr-dicom", "labels_root": str(tmp_path / "jpg"), "target": "Pneumonia"}
    table, notes = read(tmp_path / "dicom", labeler="agreement", **settings)
    assert table["label"].fillna(-1).tolist() == [{True: -1, False: 0, None: -1}[sick] for sick in SICK]
    assert "agreement: one negative, one positive → unknown: 18 studies" in notes
