"""Sex and age are read in the spellings that tables have, and what says neither is unknown, never a guess."""

import numpy as np
import pandas as pd
import pytest
from checkout import SHARED
from public_trees import build_chexpert_tree, build_nih_tree
from source_files import read, rewrite

from data.sex_and_age import find_column, people_columns, read_age, read_people, read_sex


@pytest.mark.parametrize(
    ("word", "meaning"),
    [("F", "F"), ("female", "F"), ("Weiblich", "F"), (" M ", "M"), ("MALE", "M"), ("männlich", "M")],
)
def test_words_for_a_sex_are_read_in_any_case(word, meaning):
    assert read_sex(pd.Series([word])).tolist() == [meaning]


@pytest.mark.parametrize("word", ["", "U", "O", "other", "1", "0", "divers", "fm", None])
def test_other_words_are_no_sex(word):
    assert read_sex(pd.Series([word, "F"])).isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("058Y", 58),
        ("058", 58),
        ("58", 58),
        ("58.5", 58.5),
        ("58,5", 58.5),
        ("58 years", 58),
        ("7M", 7 / 12),
        ("007m", 7 / 12),
        ("3W", 21 / 365.25),
        ("12D", 12 / 365.25),
        ("90+", 90),
        ("85 or more", 85),
        ("90 years and over", 90),
        ("> 89", 89),
        ("0", 0),
        ("120", 120),
    ],
)
def test_ages_are_years(text, years):
    assert read_age(pd.Series([text]))[0] == pytest.approx(years)


@pytest.mark.parametrize("text", ["411Y", "121", "-3", "old", "Y", "58Q", "1980-05-06", "", "nan", None])
def test_what_is_no_age_is_unknown(text):
    assert read_age(pd.Series([text, "7"])).isna().tolist() == [True, False]


def test_what_is_not_understood_is_counted_and_what_claims_nothing_is_not():
    table = pd.DataFrame({"sex": ["F", "X", "unknown", None, "M"], "age": ["411Y", "7", "nan", None, "old"]})
    read, notes = read_people(table)
    assert read["sex"].fillna("").tolist() == ["F", "", "", "", "M"]
    assert read["age"].fillna(-1).tolist() == [-1, 7, -1, -1, -1]
    assert notes == [
        "sex: neither F nor M in 1 rows: unknown",
        "age: no age of up to 120 years in 2 rows: unknown",
    ]


def test_columns_are_found_by_their_letters_and_the_plainest_name_goes_first():
    assert people_columns(["Patient Age", "Patient Gender"]) == {"Patient Gender": "sex", "Patient Age": "age"}
    assert people_columns(["GENDER", "sex", "Age_Years"]) == {"sex": "sex", "Age_Years": "age"}
    assert people_columns(["stage", "sexual_history", "page"]) == {}
    assert find_column(["Sex", "sex"], ("sex",)) == "sex"


# ---------------------------------------------------------------- of data sets


@pytest.mark.parametrize(("name", "version"), [("Patient Gender", ""), ("Patient Sex", "_v2020")])
def test_chestxray14_says_sex_and_age(tmp_path, name, version):
    table = build_nih_tree(tmp_path, ["No Finding", "Mass"] * 5, version=version, images=False)
    said = table.assign(**{"Patient Age": ["058Y", "411Y"] * 5, "Patient Gender": ["M", "F"] * 5})
    comma = "," if not version else ""
    text = said.rename(columns={"Patient Gender": name}).to_csv(index=False).replace("\n", f"{comma}\n")
    (tmp_path / f"Data_Entry_2017{version}.csv").write_text(text)
    images, notes = read(tmp_path, "nih-cxr14")
    assert images["sex"].tolist() == ["M", "F"] * 5
    assert images["age"].fillna(-1).tolist() == [58, -1] * 5 and images["age"].dtype == np.float64
    assert "age: no age of up to 120 years in 5 rows: unknown" in notes


def test_chestxray14_may_end_its_header_alone_with_a_comma(tmp_path):
    table = build_nih_tree(tmp_path, ["No Finding", "Mass"] * 5, images=False)
    plain, _ = read(tmp_path, "nih-cxr14")
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    header, rows = path.read_text().split("\n", 1)
    path.write_text(f"{header},\n{rows}")
    found, _ = read(tmp_path, "nih-cxr14")
    pd.testing.assert_frame_equal(found, plain)
    assert len(found) == len(table)


def test_chexpert_says_sex_and_age(tmp_path):
    folder = build_chexpert_tree(tmp_path, images=False)
    rewrite(folder / "valid.csv", lambda table: table.assign(Sex="Unknown", Age=41))
    images, notes = read(folder, "chexpert")
    assert images.groupby("split")["sex"].agg(lambda sex: set(sex.dropna())).to_dict() == {
        "train": {"F"},
        "validate": set(),
    }
    assert images.groupby("split")["age"].unique().map(list).to_dict() == {"train": [68], "validate": [41]}
    assert not [note for note in notes if note.startswith(("sex", "age"))]


def test_chexpert_without_these_columns_has_neither(tmp_path):
    folder = build_chexpert_tree(tmp_path, images=False)
    for name in ("train.csv", "valid.csv"):
        rewrite(folder / name, lambda table: table.drop(columns=["Sex", "Age"]))
    images, _ = read(folder, "chexpert")
    assert not {"sex", "age"} & set(images)


@pytest.mark.skipif(not (SHARED / "nih").is_dir(), reason="needs ../shared/data/nih")
def test_real_radiographs_keep_what_their_table_says():
    images, _ = read(SHARED / "nih", "table")
    table = pd.read_csv(SHARED / "nih/manifest.csv")
    assert images["sex"].tolist() == table["sex"].tolist() and set(images["sex"]) == {"F", "M"}
    assert images["age"].tolist() == table["age"].tolist()
    assert images["follow_up"].tolist() == table["follow_up"].astype(str).tolist()
