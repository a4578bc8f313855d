"""Laws of CheXpert and ChestX-ray14: what each reads, and its one line."""

from pathlib import Path

import pandas as pd
import pytest
from public_trees import build_chexpert_tree, build_nih_tree, write_chexpert_csv
from source_files import read, refusal, rewrite, touch

from data.labels import FINDINGS, NIH_FINDINGS
from data.sources import COLUMNS

LISTS = ["No Finding", "Effusion", "Mass|Nodule", "No Finding", "Pleural_Thickening|Hernia"] * 4  # 20 of 10 patients


# ---------------------------------------------------------------- CheXpert


@pytest.mark.parametrize("name", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
@pytest.mark.parametrize("inside", [True, False])
def test_chexpert_is_read_from_its_folder_or_the_one_above(tmp_path, name, inside):
    folder = build_chexpert_tree(tmp_path, name)
    table, notes = read(folder if inside else tmp_path, "chexpert")
    assert list(table.columns) == [*COLUMNS, "sex", "age", *FINDINGS, "rule"]
    assert table["image_id"][0] == "train/patient00001/study1/view1_frontal.jpg"
    assert table["path"].map(lambda path: Path(path).is_file()).all()
    assert table.groupby("split")["patient_id"].nunique().to_dict() == {"train": 15, "validate": 5}
    assert table["patient_id"].nunique() == 20 and table["study_id"].nunique() == 40
    assert table["view"].tolist() == ["AP", "LATERAL", "PA"] * 20
    assert "train.csv: 45 images" in notes and "valid.csv: 15 images" in notes


def test_chexpert_labels_follow_the_policy(tmp_path):
    folder = build_chexpert_tree(tmp_path, images=False)
    table, notes = read(folder, "chexpert")
    number = table["patient_id"].str.removeprefix("patient").astype(int)
    assert (table["label"] == (number % 3 == 0)).all()
    assert "a finding is 1 → abnormal: 18 images" in notes
    target = read(folder, "chexpert", target="Pleural Effusion", uncertain="positive")[0]
    assert (target["label"] == (number % 3 == 0)).all()
    assert (target["rule"] == "Pleural Effusion is -1 → positive").sum() == 18


@pytest.mark.parametrize("prefix", ["test", "CheXpert-v1.0/test"])
def test_chexpert_test_labels_need_neither_views_nor_no_finding(tmp_path, prefix):
    folder = build_chexpert_tree(tmp_path, images=False)
    rows = [
        {"Path": f"{prefix}/patient64741/study1/view1_frontal.jpg", "Edema": 1, "Fracture": 0},
        {"Path": f"{prefix}/patient64742/study1/view2_lateral.jpg", "Edema": 0, "Fracture": 0},
        {"Path": f"{prefix}/patient64743/study1/view1_frontal.jpg", "Edema": 0, "Fracture": 0},
    ]
    pd.DataFrame(rows).to_csv(folder / "test_labels.csv", index=False)
    test = read(folder, "chexpert")[0].query("split == 'test'")
    assert test["image_id"].tolist()[0] == "test/patient64741/study1/view1_frontal.jpg"
    assert test["view"].tolist() == ["FRONTAL", "LATERAL", "FRONTAL"]
    assert test["label"].tolist() == [1, 0, 0]


def test_chexpert_test_csv_goes_before_test_labels(tmp_path):
    folder = build_chexpert_tree(tmp_path, images=False)
    about = {"Frontal/Lateral": "Frontal", "AP/PA": "PA", "No Finding": 1}
    write_chexpert_csv(folder / "test.csv", [{"Path": "CheXpert-v1.0/test/patient1/study1/view1_frontal.jpg", **about}])
    touch(folder, "test_labels.csv")
    assert read(folder, "chexpert")[0].query("split == 'test'")["view"].tolist() == ["PA"]


def test_chexpert_without_csv_or_in_two_copies_is_refused(tmp_path):
    assert f"{tmp_path}: found no train.csv, expected CheXpert's folder" in refusal(tmp_path, "chexpert")
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        build_chexpert_tree(tmp_path, name, images=False)
    assert "found several CheXperts" in refusal(tmp_path, "chexpert")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Edema": 3}, "row 2: column Edema: found 3, expected 1, 0, -1 or blank"),
        ({"Path": "a.jpg"}, "row 2: found no patient and study in Path, expected …/patient00001/study1/…"),
        ({"Path": None}, "row 2: found no Path, expected one in every row"),
    ],
)
def test_unofficial_chexpert_value_is_refused(tmp_path, change, expected):
    folder = build_chexpert_tree(tmp_path, images=False)
    rewrite(folder / "valid.csv", lambda table: table.assign(**change))
    assert refusal(folder, "chexpert") == f"{folder / 'valid.csv'}: {expected}"


def test_missing_chexpert_column_is_named(tmp_path):
    folder = build_chexpert_tree(tmp_path, images=False)
    rewrite(folder / "train.csv", lambda table: table.drop(columns="Edema"))
    assert refusal(folder, "chexpert").endswith("expected column Edema")


# ---------------------------------------------------------------- NIH ChestX-ray14


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("version", ["", "_v2020"])
def test_nih_rows_are_the_official_files(tmp_path, flat, version):
    build_nih_tree(tmp_path, LISTS, flat, version)
    table, notes = read(tmp_path, "nih-cxr14")
    assert list(table.columns) == [*COLUMNS, "sex", "age", *NIH_FINDINGS, "rule"]
    assert table["image_id"].tolist()[:3] == ["00000001_000.png", "00000001_001.png", "00000002_000.png"]
    assert table["path"].map(lambda path: Path(path).is_file()).all()
    assert table["patient_id"].tolist()[:3] == ["1", "1", "2"] and table["study_id"][1] == "1/1"
    assert table["view"].tolist() == ["PA", "AP"] * 10
    assert table.groupby("split")["patient_id"].unique().map(list).to_dict()["test"] == ["5", "10"]
    assert set(table["split"]) == {"train", "test"}
    assert f"Data_Entry_2017{version}.csv: 20 images, 10 patients" in notes


def test_nih_findings_are_named_or_absent(tmp_path):
    build_nih_tree(tmp_path, LISTS, images=False)
    table, notes = read(tmp_path, "nih-cxr14")
    assert table["label"].tolist() == [0, 1, 1, 0, 1] * 4
    assert table.loc[2, ["Mass", "Nodule", "Effusion", "No Finding"]].tolist() == [1, 1, 0, 0]
    assert "a finding is 1 → abnormal: 12 images" in notes and "No Finding is 1 → normal: 8 images" in notes
    assert read(tmp_path, "nih-cxr14", target="Hernia")[0]["label"].tolist() == [0, 0, 0, 0, 1] * 4


def test_nih_newer_csv_is_read(tmp_path):
    build_nih_tree(tmp_path, LISTS, version="", images=False)
    build_nih_tree(tmp_path, ["Edema"] * 20, images=False)
    assert (read(tmp_path, "nih-cxr14")[0]["Edema"] == 1).all()


def test_nih_without_lists_has_no_splits_and_says_so(tmp_path):
    build_nih_tree(tmp_path, LISTS, images=False)
    (tmp_path / "test_list.txt").unlink()
    expected = "found train_val_list.txt alone, expected train_val_list.txt and test_list.txt, or neither"
    assert refusal(tmp_path, "nih-cxr14") == f"{tmp_path}: {expected}"
    (tmp_path / "train_val_list.txt").unlink()
    table, notes = read(tmp_path, "nih-cxr14")
    assert table["split"].isna().all()
    assert "no train_val_list.txt and test_list.txt: these splits are not the official ones" in notes


def test_nih_image_in_neither_list_is_left_out_and_counted(tmp_path):
    build_nih_tree(tmp_path, LISTS, images=False)
    lines = (tmp_path / "train_val_list.txt").read_text().splitlines()
    (tmp_path / "train_val_list.txt").write_text("\n".join(lines[3:]))
    table, notes = read(tmp_path, "nih-cxr14")
    assert len(table) == 17 and "3 images left out: in neither list of a split" in notes


def test_nih_image_in_both_lists_is_refused(tmp_path):
    build_nih_tree(tmp_path, LISTS)
    train, test = tmp_path / "train_val_list.txt", tmp_path / "test_list.txt"
    shared = train.read_text().split()[:3]
    test.write_text("\n".join([*test.read_text().split(), *shared, shared[0]]))
    line = refusal(tmp_path, "nih-cxr14")
    assert line == (f"{tmp_path}: found 3 images both in train_val_list.txt and in test_list.txt, expected each in one")


def test_a_folder_in_the_place_of_the_newer_csv_is_passed_over(tmp_path):
    build_nih_tree(tmp_path, LISTS)
    before = read(tmp_path, "nih-cxr14")[1]
    (tmp_path / "Data_Entry_2017_v2099.csv").mkdir()
    assert read(tmp_path, "nih-cxr14")[1] == before


def test_unofficial_nih_finding_is_refused(tmp_path):
    build_nih_tree(tmp_path, [*LISTS, "Mass|Cough"], images=False)
    line = refusal(tmp_path, "nih-cxr14")
    assert line.startswith(
        f"{tmp_path / 'Data_Entry_2017_v2020.csv'}: row 22: found finding 'Cough', expected some of "
    )


def test_nih_without_csv_is_refused(tmp_path):
    assert f"{tmp_path}: found no Data_Entry_2017*.csv" in refusal(tmp_path, "nih-cxr14")
