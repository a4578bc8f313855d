"""Laws of the manifest: no patient in two splits, splits and samples that nothing accidental changes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mimic_tree import build_mimic_tree

from data.config import UserError
from data.manifest import Manifest, open_manifest, sample_patients
from data.settings import DataSettings

PATIENTS = 211


def hospital(seed: int = 0) -> pd.DataFrame:
    """A table of patients with one to four images; a third is abnormal, some labels are unknown."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, PATIENTS)
    patient = np.repeat(np.arange(PATIENTS), images)
    words = np.where(patient % 3 == 0, "abnormal", "normal")
    words[rng.random(len(words)) < 0.1] = ""
    names = [f"{number:04}.png" for number in range(len(patient))]
    return pd.DataFrame({"path": names, "label": words, "patient_id": [f"p{number}" for number in patient]})


def opened(root: Path, table: pd.DataFrame, **settings) -> Manifest:
    table.to_csv(root / "manifest.csv", index=False)
    return open_manifest(DataSettings(source="table", root=str(root), **settings))


def refusal(root: Path, table: pd.DataFrame, **settings) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, table, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def splits(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.table["image_id"], manifest.table["split"], strict=True))


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


# ---------------------------------------------------------------- views


def test_views_are_kept_by_name_and_blank_views_left_out(tmp_path):
    views = ["ap", "LL", "", "PA", "LATERAL", "PA"]
    table = pd.DataFrame({"path": list("abcdef"), "label": "1", "view": views, "split": "train"})
    kept = opened(tmp_path, table)
    assert kept.table["image_id"].tolist() == ["a", "d", "f"]
    assert "views AP, PA: kept 3 of 6 images, 1 without a view left out" in kept.notes
    assert opened(tmp_path, table, views=("LL",)).table["image_id"].tolist() == ["b"]
    assert len(opened(tmp_path, table, views=()).table) == 6


def test_no_image_of_the_views_names_the_views_there_are(tmp_path):
    table = pd.DataFrame({"path": list("abc"), "label": "1", "view": ["LL", "LATERAL", "LL"]})
    line = refusal(tmp_path, table)
    assert line == "data.views: found views LL (2), LATERAL (1), expected some of AP, PA"


# ---------------------------------------------------------------- checks


def test_patient_in_two_splits_is_refused(tmp_path):
    table = hospital().assign(split="train")
    again = table[table["patient_id"].isin(["p9", "p40"])].drop_duplicates("patient_id")
    table = pd.concat([table, again.assign(split="test", path=["again.png", "once more.png"])])
    line = refusal(tmp_path, table)
    assert line == f"{tmp_path}: found patients in two splits (2, such as p9), expected each in one"


def test_confidential_ids_stay_out_of_errors(tmp_path):
    metadata = build_mimic_tree(tmp_path, [None] * 20, [True, False] * 10)
    path = tmp_path / "mimic-cxr-2.0.0-split.csv"
    table = pd.read_csv(path)
    table.loc[0, "split"] = "test"
    table.to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        open_manifest(DataSettings(source="mimic-cxr-jpg", root=str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: found patients in two splits (1), expected each in one"
    assert not any(str(one) in str(caught.value) for one in metadata["subject_id"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": "same"}, "found repeated image_id (2, such as same), expected unique ones"),
        (
            {"split": ["train", "", "test"]},
            "found 1 images without a split, expected one for all images or for none",
        ),
    ],
)
def test_inconsistent_rows_are_refused(tmp_path, change, expected):
    table = pd.DataFrame({"path": list("abc"), "label": "1"}).assign(**change)
    assert refusal(tmp_path, table) == f"{tmp_path}: {expected}"


def test_table_without_rows_is_refused(tmp_path):
    assert refusal(tmp_path, pd.DataFrame({"path": [], "label": []})) == f"{tmp_path}: found no images"


def test_root_is_expanded_from_the_environment(tmp_path, monkeypatch):
    hospital().to_csv(tmp_path / "manifest.csv", index=False)
    settings = DataSettings(source="table", root="${A_ROOT_OF_THIS_TEST}")
    with pytest.raises(UserError, match=r"data\.root: \$\{A_ROOT_OF_THIS_TEST\} is not set"):
        open_manifest(settings)
    monkeypatch.setenv("A_ROOT_OF_THIS_TEST", str(tmp_path))
    assert len(open_manifest(SimpleNamespace(data=settings)).table) == len(hospital())


# ---------------------------------------------------------------- records


def test_summary_counts_every_split(tmp_path):
    rows = [("train", 1)] * 5 + [("train", 0)] * 4 + [("train", "")] * 3 + [("validate", 1)] * 2 + [("test", 0)]
    table = pd.DataFrame(rows, columns=["split", "label"])
    table["path"] = [f"{number}.png" for number in range(15)]
    table["patient_id"] = ["a", "b"] * 6 + ["c", "c", "d"]
    lines = [line.split() for line in opened(tmp_path, table).summary().splitlines()]
    assert lines[0] == ["images", "patients", "normal", "abnormal", "unknown"]
    assert lines[1:] == [
        ["train", "12", "2", "4", "5", "3"],
        ["validate", "2", "1", "0", "2", "0"],
        ["test", "1", "1", "1", "0", "0"],
        ["all", "15", "4", "5", "7", "3"],
    ]


def test_fingerprint_follows_content_not_order(tmp_path):
    table = hospital()
    first = opened(tmp_path, table).fingerprint()
    assert opened(tmp_path, table.iloc[::-1]).fingerprint() == first
    relabelled = table.assign(label=table["label"].mask(table.index == 11, "abnormal"))
    assert table["label"][11] != "abnormal"
    assert (
        len(
            {
                first,
                *(opened(tmp_path, t, split_seed=s).fingerprint() for t, s in ((relabelled, 0), (table, 1))),
            }
        )
        == 3
    )


def test_only_mimic_is_credentialed(tmp_path):
    build_mimic_tree(tmp_path, [None] * 20, [True, False] * 10)
    manifest = open_manifest(DataSettings(source="mimic-cxr-jpg", root=str(tmp_path)))
    assert manifest.credentialed
    assert [len(manifest.of_split(split)) for split in ("train", "validate", "test")] == [14, 2, 4]
    assert not opened(tmp_path, hospital()).credentialed


def test_any_source_can_be_declared_credentialed(tmp_path):
    assert opened(tmp_path, hospital(), credentialed=True).credentialed


def test_patients_are_known_only_where_every_image_has_one(tmp_path):
    table = hospital()
    assert opened(tmp_path, table).patients_known
    assert not opened(tmp_path, table.assign(patient_id=None)).patients_known
