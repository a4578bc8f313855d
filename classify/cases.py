"""Who is counted: the labelled images of a split, label budgets, and what a unit is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from classify.settings import ClassifyConfig, SampleCovers
from data.errors import UserError
from data.labels import words
from data.loader import Data
from data.manifest import Manifest, digest, sample_patients

FEW = 50  # cases of a class, below which an AUC is hardly more than a guess


@dataclass(frozen=True)
class LabelledSplits:
    train: pd.DataFrame
    validate: pd.DataFrame

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the training and validation images and their labels."""
        return digest(pd.concat([self.train, self.validate]), "image_id", "split", "label")


def splits_of(data: Data, config: ClassifyConfig) -> LabelledSplits:
    """The images that a fine-tuning of this config trains on, and those that it is chosen by."""
    settings = config.finetune
    return labelled_splits(data, settings.sample, config.data.split_seed, settings.draw, settings.sample_covers)


def labelled_splits(
    data: Data, sample: int | None, split_seed: int, draw: int = 0, covers: SampleCovers = "train"
) -> LabelledSplits:
    """The images with a label, cut to a budget of `sample` where one is given; both classes are needed.

    A budget of training images leaves validation whole. A budget that covers both splits cuts both to the same share,
    its own share of all their labels. Within a `draw`, smaller budgets are subsets of larger ones.
    """
    train = data.split("train")
    validate = data.split("validate")
    if sample is not None:
        seed = _seed_of_draw(split_seed, draw)
        budgets = budgets_of(sample, int(train["label"].count()), int(validate["label"].count()), covers)
        train = label_budget(train, budgets[0], seed)
        if covers == "train_and_validate":
            validate = sample_patients(validate, budgets[1], seed, "finetune.sample", both_first=True)

    target = data.manifest.target
    return LabelledSplits(
        train=labelled_rows(train, "train", target),
        validate=labelled_rows(validate, "validate", target),
    )


def label_budget(train: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Rows of whole patients until `count` labelled images are together, of both classes if there are two.

    If a draw meets one class alone, it is made again, beginning with the first patient of the other class. So smaller
    budgets stay subsets of larger ones.
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


def _seed_of_draw(split_seed: int, draw: int) -> int:
    """The seed of a budget's subset; the first draw uses the seed of splits and samples."""
    if draw == 0:
        return split_seed
    digest_of_both = hashlib.blake2b(f"{split_seed}/draw {draw}".encode(), digest_size=8).digest()
    return int.from_bytes(digest_of_both)


def budgets_of(sample: int, train: int, validate: int, covers: SampleCovers) -> tuple[int, int]:
    """How many labelled images of each split a budget leaves; UserError if there are fewer than it needs."""
    total = train + validate
    if covers == "train":
        return sample, validate  # too few are refused where they are drawn
    if sample > total:
        raise UserError(
            f"finetune.sample: found {total:,} labelled training and validation images, expected at least {sample:,}"
        )

    # each split needs at least one image of each class
    of_validate = min(max(round(sample * validate / total), 2), validate)
    if sample - of_validate < 2:
        raise UserError(
            f"finetune.sample: found {sample:,} for training and validation, expected at least {of_validate + 2:,}: "
            "both need normal and abnormal images"
        )
    return sample - of_validate, of_validate


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


# ---------------------------------------------------------------- how many


def few_cases(labels: pd.Series, target: str | None) -> dict[str, int]:
    """The classes with fewer than FEW cases, and how many there are of each; {} where both have enough."""
    counts = {}
    for label, name in enumerate(words(target)):
        count = int((labels == label).sum())
        if count < FEW:
            counts[name] = count
    return counts


def few_text(few: Mapping[str, Mapping[str, int]], units: str = "cases") -> str:
    """A line that warns of splits with `few_cases`; empty if there are none."""
    parts = []
    for split, counts in few.items():
        shown = " and ".join(f"{count:,} {name}" for name, count in counts.items())
        if shown:
            parts.append(f"{split} has {shown} {units}")
    if not parts:
        return ""
    return f"few cases: {', '.join(parts)}; below {FEW} of a class, numbers and what is chosen by them are unsteady"


# ---------------------------------------------------------------- units


def study_numbers(table: pd.DataFrame, patients_known: bool) -> np.ndarray:
    """(n) whole numbers that tell the table's studies apart, in order of first appearance.

    Studies are told apart by patient too, because many data sets number the studies of each patient anew. An image id
    that stands for an unknown patient does not say whose study it is, so there the study's own id has to be enough.
    """
    patient = known_patients(table, patients_known)
    studies = pd.DataFrame({"patient": patient, "study": table["study_id"]}).groupby(["patient", "study"], sort=False)
    return studies.ngroup().to_numpy()


def known_patients(table: pd.DataFrame, patients_known: bool) -> pd.Series:
    """The patients of the table's images as texts; "" where an image id stands for an unknown one."""
    patient = table["patient_id"].astype(str)
    if patients_known:
        return patient
    return patient.mask(patient == table["image_id"], "")


def undecided_studies(table: pd.DataFrame, patients_known: bool) -> pd.DataFrame:
    """Patient and study id of the studies whose images have different labels: neither normal nor abnormal."""
    studies = table.groupby(study_numbers(table, patients_known))
    undecided = studies["label"].nunique() > 1
    return studies[["patient_id", "study_id"]].first()[undecided]


def check_unit(table: pd.DataFrame, split: str, config: ClassifyConfig, manifest: Manifest) -> None:
    """UserError if studies are to be counted, and the images of one have different labels."""
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
