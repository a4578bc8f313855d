"""Who is counted: the labelled images of a split, label budgets, and what a unit is."""

from dataclasses import dataclass
from typing import get_args

import pandas as pd

from classify.settings import Unit
from data.config import UserError
from data.labels import words
from data.loader import Data
from data.manifest import digest, sample_patients

UNITS: tuple[Unit, ...] = get_args(Unit)


@dataclass(frozen=True)
class LabelledSplits:
    train: pd.DataFrame
    validate: pd.DataFrame

    def fingerprint(self) -> str:
        """16 hexadecimal digits of what is trained on, and chosen by."""
        return digest(pd.concat([self.train, self.validate]), "image_id", "split", "label")


def labelled_splits(data: Data, sample: int | None, split_seed: int) -> LabelledSplits:
    """The images with a label, the training ones cut to a budget of `sample`; both classes are needed."""
    target = data.manifest.target
    train = data.split("train")
    if sample:
        train = sample_patients(train, sample, split_seed, "finetune.sample")
    return LabelledSplits(
        train=labelled_rows(train, "train", target),
        validate=labelled_rows(data.split("validate"), "validate", target),
    )


def labelled_rows(table: pd.DataFrame, split: str, target: str | None) -> pd.DataFrame:
    """The rows with a label; UserError unless both classes are there."""
    known = table[table["label"].notna()]
    if known.empty:
        raise UserError(f"data: found no labelled image among {len(table)} in split {split!r}, expected some")

    if known["label"].nunique() < 2:
        names = words(target)
        found = names[int(known["label"].iloc[0])]
        raise UserError(
            f"data: found only {found} images ({len(known):,}) in split {split!r}, expected {' and '.join(names)}"
        )
    return known
