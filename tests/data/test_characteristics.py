"""Laws of the table of who is in each split: all count, and small groups of credentialed data cannot be worked out."""

import numpy as np
import pandas as pd
import pytest

from data.characteristics import FEWEST, characteristics, shown, split_counts


def people(**patients: int) -> pd.DataFrame:
    """Two images of each patient, so many patients of each sex, all in train."""
    rows = []
    for sex, count in patients.items():
        for number in range(count):
            row = {"patient_id": f"{sex}{number}", "split": "train", "sex": sex if sex != "nobody" else None}
            rows += [row, row]
    return pd.DataFrame(rows).assign(label=1.0)


def in_train(table: pd.DataFrame, credentialed: bool) -> dict:
    return {row["value"]: row["splits"]["train"] for row in characteristics(table, credentialed)}


def test_every_image_is_in_one_group_of_each_column():
    rng = np.random.default_rng(0)
    n = 700
    table = pd.DataFrame(
        {
            "patient_id": rng.integers(0, 300, n).astype(str),
            "split": rng.choice(["train", "validate", "test"], n),
            "label": rng.choice([0, 1, np.nan], n),
            "sex": rng.choice(["F", "M", None], n),
            "age": rng.choice([0.0, 17.9, 18.0, 39.0, 40.0, 79.5, 80.0, 101.0, np.nan], n),
            "view": rng.choice(["AP", "PA"], n),
        }
    )
    rows = characteristics(table, credentialed=False)
    for column in ("sex", "age", "view"):
        groups = [row for row in rows if row["column"] == column]
        for split in ("train", "validate", "test"):
            assert sum(row["splits"][split]["images"] for row in groups) == (table["split"] == split).sum()
    ages = [row["value"] for row in rows if row["column"] == "age"]
    assert ages == ["under 18", "18 to under 40", "40 to under 60", "60 to under 80", "80 and above", "unknown"]
    young = next(row for row in rows if row["value"] == "under 18")["splits"]["train"]["images"]
    assert young == ((table["age"] < 18) & (table["split"] == "train")).sum()

    for row in split_counts(table):
        assert row["normal"] + row["abnormal"] + row["unknown"] == row["images"]


def test_what_is_not_known_of_anybody_has_no_rows():
    assert characteristics(people(F=2).assign(sex=None, age=np.nan), credentialed=False) == []


@pytest.mark.parametrize(
    ("patients", "told"),
    [
        ({"F": FEWEST, "M": FEWEST}, {"F", "M"}),
        ({"F": 5, "M": 7}, set()),
        ({"F": 5, "M": 70}, set()),  # the total would tell the other count
        ({"F": 5, "M": 70, "nobody": 30}, {"M"}),
        ({"F": 5, "M": 70, "nobody": 3}, {"M"}),
        ({"F": 5}, set()),
    ],
)
def test_few_patients_of_credentialed_data_are_not_told_nor_to_be_worked_out(patients, told):
    found = in_train(people(**patients), credentialed=True)
    assert {name.replace("unknown", "nobody") for name, counts in found.items() if counts is not None} == told
    assert shown(None) == "withheld"
    open_data = in_train(people(**patients), credentialed=False)
    assert sum(counts["patients"] for counts in open_data.values()) == sum(patients.values())


def test_a_group_without_images_tells_nothing_and_is_shown_as_none():
    table = pd.concat([people(F=20), people(M=20).assign(split="test")])
    rows = characteristics(table, credentialed=True)
    assert [row["splits"]["train"] for row in rows] == [{"images": 40, "patients": 20}, {"images": 0, "patients": 0}]
    assert shown(rows[1]["splits"]["train"]) == "–"
