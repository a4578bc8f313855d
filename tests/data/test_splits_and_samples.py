"""Laws of splits and samples: whole patients, their shares, and what they do not depend on."""

import numpy as np
import pandas as pd
import pytest
from hospital import hospital, opened, refusal, splits

from data.errors import UserError
from data.manifest import sample_patients
from data.settings import SourceSettings

# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_patient_stands_in_two_splits(tmp_path, seed):
    table = opened(tmp_path, hospital(), split_seed=seed).table
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(table["split"]) == {"train", "validate", "test"}


def test_splits_hold_their_share_of_each_label(tmp_path):
    table = opened(tmp_path, hospital(), test_fraction=0.2, validate_fraction=0.25).table
    health = table.groupby("patient_id").agg(label=("label", "max"), split=("split", "first"))
    for label in (0, 1):
        patients = health[health["label"] == label]
        assert (patients["split"] == "test").sum() == round(0.2 * len(patients))
        assert (patients["split"] == "validate").sum() == round(0.25 * (patients["split"] != "test").sum())


def test_splits_do_not_depend_on_row_order_but_on_the_seed(tmp_path):
    table = hospital()
    shuffled = table.sample(frac=1, random_state=5)
    first = splits(opened(tmp_path, table))
    assert splits(opened(tmp_path, shuffled)) == first
    assert splits(opened(tmp_path, table, split_seed=1)) != first


def test_official_splits_are_kept(tmp_path):
    table = hospital()
    official = np.where(table["patient_id"].str.endswith("1"), "test", "train")
    official = np.where(table["patient_id"].str.endswith("2"), "val", official)
    manifest = opened(tmp_path, table.assign(split=official))
    assert [*splits(manifest).values()] == pd.Series(official).replace("val", "validate").tolist()
    assert not any("split is given" in note for note in manifest.notes)


@pytest.mark.parametrize("missing", ["validate", "test"])
def test_missing_split_is_carved_from_train_alone(tmp_path, missing):
    table = hospital()
    given = "test" if missing == "validate" else "validate"
    official = np.where(table["patient_id"].str.endswith("1"), given, "train")
    manifest = opened(tmp_path, table.assign(split=official))
    found = pd.Series([*splits(manifest).values()])
    assert (found[official == given] == given).all()
    assert set(found[official == "train"]) == {"train", missing}
    assert any(note.startswith(f"no {missing} split is given") for note in manifest.notes)


def test_data_set_of_test_images_alone_stays_one(tmp_path):
    manifest = opened(tmp_path, hospital().assign(split="test"))
    assert set(manifest.table["split"]) == {"test"}
    with pytest.raises(UserError, match=r"data: found images in test \d+, expected some in train"):
        manifest.of_split("train")


def test_smallest_strata_leave_someone_on_either_side(tmp_path):
    table = pd.DataFrame({"path": list("abcdef"), "label": [0, 0, 0, 1, 1, 1], "patient_id": list("uvwxyz")})
    manifest = opened(tmp_path, table)
    assert manifest.table.groupby("split")["label"].agg(["min", "max"]).to_numpy().tolist() == [[0, 1]] * 3


def test_images_without_patients_split_by_image_and_say_so(tmp_path):
    manifest = opened(tmp_path, hospital().drop(columns="patient_id"))
    assert manifest.table["patient_id"].tolist() == manifest.table["image_id"].tolist()
    assert any(note.startswith("there are no patient ids") for note in manifest.notes)
    table = hospital()
    table.loc[:6, "patient_id"] = None
    assert any(note.startswith("7 images have no patient id") for note in opened(tmp_path, table).notes)


def test_a_study_without_a_patient_stays_whole(tmp_path):
    table = hospital()
    studies = [f"s{number // 3}" for number in range(len(table))]
    manifest = opened(tmp_path, table.drop(columns="patient_id").assign(study_id=studies))
    assert (manifest.table.groupby("study_id")["split"].nunique() == 1).all()
    assert set(manifest.table["split"]) == {"train", "validate", "test"}
    assert any("each such study, or image without one, counts as a patient" in note for note in manifest.notes)
    assert not manifest.patients_known


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "in a mix"])
def test_a_study_without_a_patient_stands_in_one_given_split(mixed, tmp_path):
    table = pd.DataFrame({"path": list("abcdefg"), "label": "0", "study_id": list("1122233"), "split": "train"})
    table.loc[[1, 3], "split"] = "test"
    settings = {"source": "mix", "sources": (SourceSettings(source="table", root=str(tmp_path)),)} if mixed else {}
    said = "manifest.csv: found studies of unnamed patients in two splits (2, such as 1), expected each in one"
    assert refusal(tmp_path, table, **settings).endswith(said)

    # named patients may have studies of one number
    opened(tmp_path, table.assign(patient_id=[f"p{number}" for number in range(7)]), **settings)
    opened(tmp_path, table.assign(split=["test"] * 2 + ["train"] * 5), **settings)


# ---------------------------------------------------------------- samples


def test_sample_takes_whole_patients_of_the_training_split_only(tmp_path):
    whole = opened(tmp_path, hospital()).table
    manifest = opened(tmp_path, hospital(), sample=101)
    train = manifest.of_split("train")
    assert 101 <= train["label"].notna().sum() < 101 + 4
    everything = whole[whole["patient_id"].isin(train["patient_id"])]
    assert train["image_id"].tolist() == everything["image_id"].tolist()
    held_out = whole.loc[whole["split"] != "train", "image_id"].tolist()
    assert manifest.table.loc[manifest.table["split"] != "train", "image_id"].tolist() == held_out
    assert any(note.startswith("sample: ") for note in manifest.notes)


def test_smaller_sample_is_part_of_a_larger_one_even_taken_from_it(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    large, small = sample_patients(train, 173, seed=4), sample_patients(train, 29, seed=4)
    assert set(small["image_id"]) < set(large["image_id"])
    pd.testing.assert_frame_equal(sample_patients(large, 29, seed=4), small)


def test_sample_holds_no_patient_more_than_needed(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    sampled = sample_patients(train, 47, seed=0)
    pd.testing.assert_frame_equal(sample_patients(train, sampled["label"].notna().sum(), seed=0), sampled)


def test_sample_does_not_depend_on_row_order_but_on_the_seed(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    shuffled = train.sample(frac=1, random_state=7)
    first = set(sample_patients(train, 61, seed=0)["image_id"])
    assert set(sample_patients(shuffled, 61, seed=0)["image_id"]) == first
    assert set(sample_patients(train, 61, seed=1)["image_id"]) != first


def test_sampling_ignores_what_the_labels_say(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    flipped = train.assign(label=1 - train["label"])
    assert sample_patients(flipped, 61, seed=0).index.equals(sample_patients(train, 61, seed=0).index)


def test_sample_larger_than_the_labels_names_found_and_wanted(tmp_path):
    labelled = opened(tmp_path, hospital()).of_split("train")["label"].notna().sum()
    line = refusal(tmp_path, hospital(), sample=9_999)
    assert line == f"data.sample: found {labelled} labelled training images, expected at least 9,999"
    assert len(opened(tmp_path, hospital(), sample=int(labelled)).table)
