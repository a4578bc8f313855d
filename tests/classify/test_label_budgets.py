"""A budget of labels: whole patients, both classes, nested, drawn by its number, of training or of all labels."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from tiny_world import tiny_config, write_table

from classify.cases import labelled_splits, splits_of
from data.config import change_config
from data.errors import UserError
from data.manifest import sample_patients

BOTH = "train_and_validate"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """90 images of 45 patients: 62 to train and 14 to validate; only one validation patient is abnormal."""
    root = tmp_path_factory.mktemp("budgets")
    table = write_table(root / "images", count=90)
    validate = table["split"] == "validate"
    first = table.loc[validate, "patient_id"].iloc[-1]
    rare = table["label"].mask(validate, (table["patient_id"] == first).astype(int))
    table.assign(label=rare).to_csv(root / "images/manifest.csv", index=False)
    return root


def drawn(opened, sample, draw=0, covers="train"):
    splits = labelled_splits(opened, sample, 0, draw, covers)
    return set(splits.train["image_id"]), set(splits.validate["image_id"])


def sizes(opened):
    return [opened.split(name)["label"].count() for name in ("train", "validate")]


def test_a_budget_of_training_labels_leaves_validation_whole(opened):
    train, validate = drawn(opened, 21)
    assert 21 <= len(train) <= 22
    assert len(validate) == sizes(opened)[1]


def test_a_budget_of_all_labels_cuts_both_in_one_share(opened):
    total = sum(sizes(opened))
    for sample in (14, 23, 41, 70):
        train, validate = drawn(opened, sample, covers=BOTH)
        assert sample <= len(train) + len(validate) <= sample + 2  # patients of two images
        for size, whole in zip((len(train), len(validate)), sizes(opened), strict=True):
            assert abs(size - sample * whole / total) <= 2
    assert [len(part) for part in drawn(opened, total, covers=BOTH)] == sizes(opened)


@pytest.mark.parametrize("draw", range(7))
def test_both_splits_have_both_classes_however_rare_one_is(opened, draw):
    for sample in (14, 23, 41):
        splits = labelled_splits(opened, sample, 0, draw, BOTH)
        assert set(splits.validate["label"]) == {0.0, 1.0}
        for split in (splits.train, splits.validate):  # whole patients
            name = split["split"].iloc[0]
            whole = opened.split(name)
            assert len(split) == whole["patient_id"].isin(split["patient_id"]).sum()


@pytest.mark.parametrize("draw", [0, 3])
def test_smaller_budgets_are_parts_of_larger_ones(opened, draw):
    parts = [drawn(opened, sample, draw, BOTH) for sample in (14, 23, 41, 70)]
    for (train, validate), (more_train, more_validate) in pairwise(parts):
        assert train < more_train
        assert validate <= more_validate


def test_draws_differ_and_repeat(opened):
    found = [drawn(opened, 20, draw) for draw in range(5)]
    assert len({frozenset(train) for train, _ in found}) == 5
    assert drawn(opened, 20, 3) == found[3]

    # the first draw is what it always was
    train = opened.split("train")
    assert found[0][0] == set(sample_patients(train, 20, 0)["image_id"])


def test_without_a_budget_all_draws_are_all(opened):
    assert drawn(opened, None, 5, BOTH) == drawn(opened, None)


@pytest.mark.parametrize(
    ("sample", "covers", "message"),
    [
        (63, "train", r"^finetune.sample: found 62 labelled training images, expected at least 63"),
        (77, BOTH, r"^finetune.sample: found 76 labelled training and validation images, expected at least 77"),
        (3, BOTH, r"^finetune.sample: found 3 for training and validation, expected at least 4: both need normal and"),
    ],
)
def test_budgets_that_cannot_be_are_refused(opened, sample, covers, message):
    assert sizes(opened) == [62, 14]
    with pytest.raises(UserError, match=message):
        drawn(opened, sample, covers=covers)


def test_settings_say_which(place, opened):
    changed = {"finetune.sample": 23, "finetune.sample_covers": BOTH, "finetune.draw": 2}
    splits = splits_of(opened, change_config(tiny_config(place), changed))
    assert (set(splits.train["image_id"]), set(splits.validate["image_id"])) == drawn(opened, 23, 2, BOTH)


def test_one_of_each_label_stands_first():
    table = pd.DataFrame({"patient_id": [f"p{n}" for n in range(40)], "label": np.arange(40) == 31})
    table["label"] = table["label"].astype(float)
    for seed in range(5):
        few = sample_patients(table, 2, seed, both_first=True)
        assert set(few["label"]) == {0.0, 1.0} and len(few) == 2
        more = sample_patients(table, 7, seed, both_first=True)
        assert set(few["patient_id"]) < set(more["patient_id"])
        plain = sample_patients(table, 5, seed)
        assert set(plain["patient_id"]) <= set(more["patient_id"])  # the others keep their order
