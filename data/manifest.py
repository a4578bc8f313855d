"""Manifest: one row per radiograph, whatever layout it came from; checked, split by patient, sampled."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.config import Root, UserError, expand
from data.settings import DataSettings
from data.sources import SPLITS, read_source

CREDENTIALED = {"mimic-cxr-jpg"}


@dataclass(frozen=True, eq=False)
class Manifest:
    """The radiographs of a run.

    `table` has the columns image_id, path, patient_id, study_id, split (train, validate, test), view,
    label (1.0 abnormal, 0.0 normal, NaN unknown), source, then any findings. Where the layout has no
    patient or study, its image stands for it. `notes` are lines to print. `credentialed` data may
    neither be shown nor shared. `patients_known`: patient_id is a patient's for every image.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]
    credentialed: bool
    patients_known: bool = True

    def of_split(self, split: str) -> pd.DataFrame:
        """The rows of one split, in order; UserError if there are none."""
        assert split in SPLITS, split
        part = self.table[self.table["split"] == split]
        if part.empty:
            sizes = ", ".join(f"{name} {n:,}" for name, n in self.table["split"].value_counts().items())
            raise UserError(f"data: found images in {sizes}, expected some in {split}")
        return part.reset_index(drop=True)

    def summary(self) -> str:
        """Images, patients, and normal, abnormal and unknown images per split, as text."""
        parts = {split: self.table[self.table["split"] == split] for split in SPLITS} | {"all": self.table}
        return pd.DataFrame({name: _count(part) for name, part in parts.items()}).T.map("{:,}".format).to_string()

    def fingerprint(self) -> str:
        """16 hex digits of (image_id, split, label) of all rows, in whatever order they stand."""
        return digest(self.table, "image_id", "split", "label")


def digest(table: pd.DataFrame, *columns: str) -> str:
    """16 hex digits of what stands in these columns, in whatever order the rows stand."""
    rows = table[list(columns)].sort_values(columns[0]).to_csv(index=False, sep="\t")
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def image_hashes(image_ids: Iterable[str]) -> np.ndarray:
    """(n) int64: what a checkpoint remembers of the images it has seen, without naming them."""
    hashes = (hashlib.sha256(image_id.encode()).digest()[:8] for image_id in image_ids)
    return np.fromiter((int.from_bytes(part, "little", signed=True) for part in hashes), np.int64)


def _count(part: pd.DataFrame) -> dict[str, int]:
    label = part["label"]
    return {
        "images": len(part),
        "patients": part["patient_id"].nunique(),
        "normal": int((label == 0).sum()),
        "abnormal": int((label == 1).sum()),
        "unknown": int(label.isna().sum()),
    }


def open_manifest(config: Root | DataSettings) -> Manifest:
    """Config (or its data section) → Manifest: read, checked, views kept, split, sampled.

    Raises UserError, one line naming place, found and expected, for whatever the files lack.
    """
    settings: DataSettings = getattr(config, "data", config)
    root = Path(expand(settings.root, "data.root"))
    credentialed = settings.source in CREDENTIALED if settings.credentialed is None else settings.credentialed
    table, notes = read_source(settings, root)
    patients_known = bool(table["patient_id"].notna().all())
    _check(table, root, credentialed)
    for step in (_name_patients, _keep_views, _split, _sample):
        table, more = step(table, settings)
        notes += more
    return Manifest(table.reset_index(drop=True), tuple(notes), credentialed, patients_known)


# ---------------------------------------------------------------- checks


def _check(table: pd.DataFrame, root: Path, credentialed: bool) -> None:
    if table.empty:
        raise UserError(f"{root}: found no images")
    repeated = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(repeated):
        raise UserError(f"{root}: found repeated image_id{_example(repeated, credentialed)}, expected unique ones")
    blank = int(table["split"].isna().sum())
    if 0 < blank < len(table):
        raise UserError(f"{root}: found {blank:,} images without a split, expected one for all images or for none")
    torn = _torn_patients(table)
    if len(torn):
        raise UserError(f"{root}: found patients in two splits{_example(torn, credentialed)}, expected each in one")


def _torn_patients(table: pd.DataFrame) -> pd.Series:
    pairs = table[["patient_id", "split"]].dropna().drop_duplicates()
    return pairs.loc[pairs["patient_id"].duplicated(), "patient_id"].drop_duplicates()


def _example(ids: pd.Series, credentialed: bool) -> str:
    """How many, and the first unless ids are confidential."""
    return f" ({len(ids):,})" if credentialed else f" ({len(ids):,}, such as {ids.iloc[0]})"


# ---------------------------------------------------------------- steps


def _name_patients(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """Let an image stand for a patient or a study that is not named."""
    anonymous = table["patient_id"].isna()
    named = {column: table[column].fillna(table["image_id"]) for column in ("patient_id", "study_id")}
    if not anonymous.any():
        return table.assign(**named), []
    which = "there are no patient ids" if anonymous.all() else f"{anonymous.sum():,} images have no patient id"
    return table.assign(**named), [f"{which}: each such image counts as a patient, who may stand in two splits"]


def _keep_views(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    view = table["view"].map(str.upper, na_action="ignore")
    if not settings.views or view.isna().all():
        return table, []
    kept = view.isin([name.upper() for name in settings.views])  # in MIMIC laterals are among those without a view
    wanted = ", ".join(settings.views)
    if not kept.any():
        found = ", ".join(f"{name} ({n:,})" for name, n in view.value_counts().items())
        raise UserError(f"data.views: found views {found}, expected some of {wanted}")
    blank = int(view.isna().sum())
    note = f"views {wanted}: kept {kept.sum():,} of {len(table):,} images, {blank:,} without a view left out"
    return table[kept], [note]


def _split(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """The official splits; what they lack is carved from train, test before validate."""
    given = set(table["split"].dropna())
    if not given:
        table, given = table.assign(split="train"), {"train"}
    if "train" not in given:  # a data set to test on
        return table, []
    notes = []
    fractions = {"test": settings.test_fraction, "validate": settings.validate_fraction}
    for split in [name for name in fractions if name not in given]:
        table = _carve(table, split, fractions[split], settings.split_seed)
        notes.append(f"no {split} split is given: drawn {fractions[split]:.0%} of the training patients of each label")
    return table, notes


def _carve(table: pd.DataFrame, split: str, fraction: float, seed: int) -> pd.DataFrame:
    """Move a fraction of the training patients to `split`, of the normal, abnormal and unknown alike."""
    train = table["split"] == "train"
    health = table[train].groupby("patient_id")["label"].max().fillna(-1)  # one abnormal image: abnormal
    health = health.iloc[np.argsort(_lots(health.index, seed, split))]
    size = health.groupby(health).transform("size")
    wanted = (fraction * size).round().clip(lower=1).clip(upper=size - 1)  # someone of each kind on either side
    moved = health.index[health.groupby(health).cumcount() < wanted]
    return table.assign(split=table["split"].mask(train & table["patient_id"].isin(moved), split).astype(object))


def _sample(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    if settings.sample is None:
        return table, []
    train = table["split"] == "train"
    sampled = sample_patients(table[train], settings.sample, settings.split_seed)
    patients = sampled["patient_id"].nunique()
    note = f"sample: {len(sampled):,} of {train.sum():,} training images, of {patients:,} patients"
    return table[~train | table.index.isin(sampled.index)], [note]


def sample_patients(table: pd.DataFrame, count: int, seed: int, place: str = "data.sample") -> pd.DataFrame:
    """Rows of whole patients, drawn regardless of labels, until `count` labelled images are together.

    The order of the draw depends on `seed` and patient ids alone, so a smaller sample is part of a
    larger one. Rows keep their order and index. UserError, naming `place`, if too few are labelled.
    """
    labelled = table["label"].notna()
    if labelled.sum() < count:
        raise UserError(f"{place}: found {labelled.sum():,} labelled training images, expected at least {count:,}")
    images = labelled.groupby(table["patient_id"]).sum()
    images = images.iloc[np.argsort(_lots(images.index, seed, "sample"))]
    enough = int(np.searchsorted(images.cumsum(), count)) + 1
    return table[table["patient_id"].isin(images.index[:enough])]


def _lots(ids: Iterable[str], seed: int, purpose: str) -> np.ndarray:
    """A random number per id that nothing else in the table can change."""
    digests = (hashlib.blake2b(f"{seed}/{purpose}/{one}".encode(), digest_size=8).digest() for one in ids)
    return np.frombuffer(b"".join(digests), np.uint64)
