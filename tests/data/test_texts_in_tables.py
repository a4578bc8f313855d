"""A table is read as it is meant: invisible blanks never split a patient, and an id is an id, whatever it says."""

from pathlib import Path

import pandas as pd
import pytest
from mimic_tree import build_mimic_tree
from public_trees import build_chexpert_tree, build_nih_tree
from tiny_world import tiny_config, write_table

from data.errors import UserError
from data.manifest import open_manifest

BLANKS = [" ", "\t", "\u00a0", "\u200b", "\ufeff", "  \u2007"]


def manifest_of(root: Path, table: pd.DataFrame, **options) -> pd.DataFrame:
    table.to_csv(root / "images/manifest.csv", index=False, **options)
    return open_manifest(tiny_config(root).data).table


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    return write_table(tmp_path / "images")


@pytest.mark.parametrize("blank", BLANKS)
def test_blanks_at_either_end_change_nothing(blank, table, tmp_path):
    plain = manifest_of(tmp_path, table)
    texts = table.astype(str)
    odd = texts.index % 2 == 0
    for column in texts:
        texts[column] = texts[column].where(odd, texts[column] + blank)
        texts[column] = texts[column].where(~odd, blank + texts[column])
    texts.columns = [f"{blank}{name}" if number % 2 else f"{name}{blank}" for number, name in enumerate(texts)]
    pd.testing.assert_frame_equal(manifest_of(tmp_path, texts), plain)


def test_a_cell_of_blanks_is_empty(table, tmp_path):
    table["patient_id"] = table["patient_id"].where(table.index != 3, "  \u00a0 ")
    found = manifest_of(tmp_path, table)
    assert found.loc[3, "patient_id"] == found.loc[3, "image_id"]  # the image stands for a patient who is not named


@pytest.mark.parametrize("name", ["NA", "null", "NaN", "None", "n/a", "-nan", "007", "1e5", "True", "#N/A"])
def test_a_patient_may_be_called_anything(name, table, tmp_path):
    who = table["patient_id"].unique()[0]
    table["patient_id"] = table["patient_id"].replace({who: name})
    found = manifest_of(tmp_path, table)
    assert (found["patient_id"] == name).sum() == 2
    assert found["patient_id"].nunique() == 30


def test_one_number_in_two_spellings_is_an_error(table, tmp_path):
    table["patient_id"] = [f"{number // 2}" + (".0" if number % 2 else "") for number in range(60)]
    with pytest.raises(UserError, match=r"manifest\.csv: found patient_id both as \d+ and as \d+\.0, expected one"):
        manifest_of(tmp_path, table)
    table["patient_id"] = [f"{number // 2}.0" for number in range(60)]
    assert manifest_of(tmp_path, table)["patient_id"].nunique() == 30


@pytest.mark.parametrize(("one", "other"), [("7", "7.00"), ("7.0", "7.00"), ('"7,0"', "7"), ("p7", "p7.000")])
def test_a_number_with_any_zeros_behind_its_point_is_one_patient(one, other, table, tmp_path):
    table["patient_id"] = [one.strip('"'), other, "3", "5", "x"] * 12
    with pytest.raises(UserError, match=r"found patient_id both as .* and as .*, expected one spelling"):
        manifest_of(tmp_path, table.drop(columns="split"))


def test_a_uid_that_ends_in_a_zero_is_no_number(table, tmp_path):
    table["patient_id"] = ["1.2.3", "1.2.3.0", "1.2.3.00", "1.2", "2"] * 12
    assert manifest_of(tmp_path, table.drop(columns="split"))["patient_id"].nunique() == 5


@pytest.mark.parametrize(("one", "other"), [("0012", "12"), ("P0012", "p12"), ("ab", "AB")])
def test_ids_that_differ_in_case_or_zeros_are_said(one, other, table, tmp_path):
    table["patient_id"] = [one, other, "102", "12x", "q"] * 12
    manifest_of(tmp_path, table.drop(columns="split"))
    notes = map(str, open_manifest(tiny_config(tmp_path).data).notes)
    both = " and ".join(sorted([one, other]))
    [said] = [note for note in notes if "written in several ways" in note]
    assert said.startswith(f"1 patient_id are written in several ways that differ in case or leading zeros ({both})")


def test_a_number_that_a_spreadsheet_has_shortened_is_no_id(table, tmp_path):
    table["patient_id"] = "1,23E+12"
    with pytest.raises(UserError, match=r"manifest\.csv: row 2: found patient_id '1,23E\+12', a number that a spread"):
        manifest_of(tmp_path, table)


@pytest.mark.parametrize("detour", ["./{}", "no/../{}", ".//{}", "{root}/{}", "{root}/no/../{}"])
def test_one_file_in_two_spellings_is_in_several_rows(detour, table, tmp_path):
    table.loc[1, "path"] = detour.format(table.loc[0, "path"], root=tmp_path / "images")
    with pytest.raises(UserError, match=r"found 1 files in several rows.*, expected a row for each file"):
        manifest_of(tmp_path, table)


@pytest.mark.parametrize("file", ["metadata", "chexpert"])
def test_mimic_ids_that_went_through_a_spreadsheet_are_an_error(file, tmp_path):
    build_mimic_tree(tmp_path / "mimic", [None] * 6, [True, False] * 3)
    [path] = (tmp_path / "mimic").glob(f"*{file}.csv")
    rows = pd.read_csv(path, dtype=str)
    rows.loc[1, "study_id"] += ".0"
    rows.to_csv(path, index=False)
    config = tiny_config(tmp_path, data__source="mimic-cxr-jpg", data__root=str(tmp_path / "mimic"))
    with pytest.raises(UserError, match=rf"{file}\.csv: row 3: found study_id '\d+\.0', expected digits alone"):
        open_manifest(config.data)


def build_mimic(root: Path) -> None:
    build_mimic_tree(root, [None] * 6, [True, False] * 3)


def build_nih(root: Path) -> None:
    build_nih_tree(root, ["No Finding", "Mass", "Hernia|Mass", "No Finding", "Edema", "Nodule"])


@pytest.mark.parametrize(
    ("source", "build", "csv", "column"),
    [
        (
            "mimic-cxr-jpg",
            build_mimic,
            "*metadata.csv",
            "subject_id",
        ),
        ("chexpert", build_chexpert_tree, "train.csv", "Path"),
        ("nih-cxr14", build_nih, "Data_Entry*.csv", "Patient ID"),
    ],
)
def test_blanks_change_no_patient_of_a_public_layout(source, build, csv, column, tmp_path):
    build(tmp_path / "root")
    config = tiny_config(tmp_path, data__source=source, data__root=str(tmp_path / "root"))
    plain = open_manifest(config.data).table
    [path] = (tmp_path / "root").rglob(csv)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows[column] = [f"{text} " if number % 2 else text for number, text in enumerate(rows[column])]
    rows.to_csv(path, index=False)
    pd.testing.assert_frame_equal(open_manifest(config.data).table, plain)


def test_a_column_that_is_there_twice_is_an_error(table, tmp_path):
    text = table.to_csv(index=False)
    header, rest = text.split("\n", 1)
    path = tmp_path / "images/manifest.csv"
    path.write_text(header.replace("label", " path") + "\n" + rest)
    with pytest.raises(UserError, match=r"manifest\.csv: found column path twice, expected it once"):
        open_manifest(tiny_config(tmp_path).data)


def test_a_comma_at_the_end_of_every_line_shifts_no_column(table, tmp_path):
    plain = manifest_of(tmp_path, table)
    path = tmp_path / "images/manifest.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{line}," for line in lines)]) + "\n")
    pd.testing.assert_frame_equal(open_manifest(tiny_config(tmp_path).data).table, plain)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_one_line(encoding, table, tmp_path):
    table["patient_id"] = "é" + table["patient_id"]
    with pytest.raises(UserError, match=r"manifest\.csv: found another encoding, expected UTF-8") as caught:
        manifest_of(tmp_path, table, encoding=encoding)
    assert "\n" not in str(caught.value)


def test_a_list_in_another_encoding_is_one_line(tmp_path):
    build_nih(tmp_path / "nih")
    (tmp_path / "nih/test_list.txt").write_bytes("Ünïcode.png\n".encode("latin-1"))
    config = tiny_config(tmp_path, data__source="nih-cxr14", data__root=str(tmp_path / "nih"))
    with pytest.raises(UserError, match=r"test_list\.txt: found another encoding, expected UTF-8"):
        open_manifest(config.data)
