"""Who is counted: the labelled images of a split, label budgets, and what a unit is."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from classify.settings import ClassifyConfig
from data.errors import UserError
from data.labels import words
from data.loader import Data
from data.manifest import Manifest, digest, sample_patients


@dataclass(frozen=True)
class LabelledSplits:
    train: pd.DataFrame
    validate: pd.DataFrame

    def fingerprint(self) -> str:
        """16 hexadecimal digits of what is trained on, and chosen by."""
        return digest(pd.concat([self.train, self.validate]), "image_id", "split", "label")


def labelled_splits(data: Data, sample: int | None, split_seed: int, draw: int = 0) -> LabelledSplits:
    """The images with a label, the training ones cut to a budget of `sample`; both classes are needed.

    `draw` tells which of the budget's random subsets.
    """
    target = data.manifest.target
    train = data.split("train")
    if sample:
        train = label_budget(train, sample, _seed_of(split_seed, draw))
    return LabelledSplits(
        train=labelled_rows(train, "train", target),
        validate=labelled_rows(data.split("validate"), "validate", target),
    )


def label_budget(train: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Rows of whole patients until `count` labelled images are together, of both classes wherever there are two.

    A draw that met one class alone begins with the first patient of the other, so that smaller budgets stay part of
    larger ones.
    """
    place = "finetune.sample"
    drawn = sample_patients(train, count, seed, place)
    classes = set(drawn["label"].dropna())
    missing = sorted(set(train["label"].dropna()) - classes)
    if len(classes) > 1 or not missing:
        return drawn

    # the first of the other class, then the others in their order
    others = train["patient_id"].isin(train.loc[train["label"] == missing[0], "patient_id"])
    first = sample_patients(train[others], 1, seed, place)
    rest = train[~train["patient_id"].isin(first["patient_id"])]
    left = max(count - int(first["label"].notna().sum()), 1)
    drawn = sample_patients(rest, min(left, int(rest["label"].notna().sum())), seed, place)
    return train[train.index.isin(first.index.union(drawn.index))]


def _seed_of(split_seed: int, draw: int) -> int:
    """The seed of a budget's subset; the first is drawn as `data.sample` draws."""
    if draw == 0:
        return split_seed
    return int.from_bytes(hashlib.blake2b(f"{split_seed}/draw/{draw}".encode(), digest_size=8).digest())


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


# ---------------------------------------------------------------- units


def study_numbers(table: pd.DataFrame, patients_known: bool) -> np.ndarray:
    """(n) whole numbers that tell the table's studies apart, in order of first appearance.

    A study is a patient's: many data sets count the studies of each patient anew. An image that stands for an unknown
    patient says nothing of whose study it is, so there the study's own id has to be enough.
    """
    patient = table["patient_id"]
    if not patients_known:
        patient = patient.mask(patient == table["image_id"], "")

    studies = pd.DataFrame({"patient": patient, "study": table["study_id"]}).groupby(["patient", "study"], sort=False)
    return studies.ngroup().to_numpy()


def undecided_studies(table: pd.DataFrame, patients_known: bool) -> pd.DataFrame:
    """Patient and study id of the studies whose images have different labels: neither normal nor abnormal."""
    studies = table.groupby(study_numbers(table, patients_known))
    undecided = studies["label"].nunique() > 1
    return studies[["patient_id", "study_id"]].first()[undecided]


def check_unit(table: pd.DataFrame, split: str, config: ClassifyConfig, manifest: Manifest) -> None:
    """UserError where studies are to be counted, and images of one have different labels."""
    if config.evaluate.unit == "image":
        return
    undecided = undecided_studies(table, manifest.patients_known)
    if undecided.empty:
        return

    example = ""
    if manifest.may_show(config.report.images):
        patient, study = undecided.iloc[0]
        example = f", such as study {study} of patient {patient}"
    both = " and ".join(words(manifest.target))
    raise UserError(
        f"evaluate.unit: found {len(undecided):,} studies in split {split!r} with {both} images{example}, "
        "expected one label for all images of a study; mend the table, or give evaluate.unit=image"
    )
