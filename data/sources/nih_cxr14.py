"""NIH ChestX-ray14, as its authors lay it out.

    Data_Entry_2017.csv or Data_Entry_2017_v2020.csv   train_val_list.txt   test_list.txt
    images/00000001_000.png, or images_001/images/00000001_000.png to images_012/…

Every finding is named or absent, none uncertain. The official lists hold no validation part.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import UserError, quoted
from data.labels import NIH_FINDINGS, judge, tally
from data.places import require_folder
from data.settings import DataSettings
from data.sex_and_age import people_columns, read_people
from data.sources import LeftOut, csv_columns, manifest_table, read_csv, read_lines, require_filled

LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
COLUMNS = {"Image Index": "image_id", "Patient ID": "patient_id", "View Position": "view"}
WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image of the newest CSV, `image_id` its file name; official splits where both lists are there.

    Raises UserError for a missing CSV or column, one list without the other, and a finding that is not official.
    """
    require_folder(root)
    path = max((path for path in root.glob("Data_Entry_2017*.csv") if path.is_file()), default=None)
    if path is None:
        raise UserError(f"{root}: found no Data_Entry_2017*.csv, expected it here; get it from {WHERE}")
    people = people_columns(csv_columns(path))
    table = read_csv(path, [*COLUMNS, "Finding Labels"], optional=["Follow-up #", *people], words=people)
    require_filled(table, ["Image Index", "Patient ID", "Finding Labels"], path)
    images, about_people = read_people(table.rename(columns=COLUMNS | people))
    if "Follow-up #" in images:
        images["study_id"] = images["patient_id"] + "/" + images["Follow-up #"]
    findings = _read_findings(images["Finding Labels"], path)
    label, rule = judge(findings, settings.uncertain, settings.target)
    notes = [f"{path.name}: {len(images):,} images, {images['patient_id'].nunique():,} patients"]
    notes += [f"{text}: {count:,} images" for text, count in tally(rule).items()]
    notes += about_people
    images = images.assign(path=_paths(images["image_id"], root), label=label, rule=rule)
    images, more = _with_splits(pd.concat([images, findings], axis=1), root)
    return manifest_table(images, settings.source, NIH_FINDINGS), notes + more


def _read_findings(lists: pd.Series, path: Path) -> pd.DataFrame:
    """`Effusion|Mass` → 1 in these columns, 0 in the others."""
    kinds, number = np.unique(lists.to_numpy(object), return_inverse=True)
    named = [set(kind.split("|")) for kind in kinds]
    for kind, names in zip(kinds, named, strict=True):
        if strange := names - {*NIH_FINDINGS}:
            row = (lists == kind).to_numpy().argmax() + 2
            expected = f"some of {', '.join(NIH_FINDINGS)}"
            found = repr(quoted(sorted(strange)[0]))
            raise UserError(f"{path}: row {row}: found finding {found}, expected {expected}")
    marks = np.array([[name in names for name in NIH_FINDINGS] for names in named], np.float32)
    marks = marks.reshape(len(kinds), len(NIH_FINDINGS))  # also where there is no row
    return pd.DataFrame(marks[number], index=lists.index, columns=list(NIH_FINDINGS))


def _paths(names: pd.Series, root: Path) -> pd.Series:
    """Where each image lies; one that is not found is expected in `images/`."""
    folders = [root / "images", *sorted(root.glob("images_*")), *sorted(root.glob("images_*/images"))]
    places = {entry.name: str(folder) for folder in folders if folder.is_dir() for entry in os.scandir(folder)}
    default = str(root / "images")
    return names.map(lambda name: f"{places.get(name, default)}/{name}")


def _with_splits(images: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[str]]:
    there = [name for name in LISTS.values() if (root / name).is_file()]
    if not there:
        return images, [f"no {' and '.join(LISTS.values())}: these splits are not the official ones"]
    if len(there) < len(LISTS):
        raise UserError(f"{root}: found {there[0]} alone, expected {' and '.join(LISTS.values())}, or neither")

    # which list names an image
    names = {split: read_lines(root / file) for split, file in LISTS.items()}
    both = len(set.intersection(*map(set, names.values())))
    if both:
        raise UserError(f"{root}: found {both:,} images both in {' and in '.join(there)}, expected each in one")
    listed = {name: split for split, of_split in names.items() for name in of_split}
    images = images.assign(split=images["image_id"].map(listed))
    known = images["split"].notna()
    notes: list[str] = []
    unknown = len(listed) - int(known.sum())
    if unknown:  # one of the tables may be cut short
        notes.append(f"{' and '.join(there)}: {unknown:,} images that no other table lists")
    if not known.all():
        notes.append(LeftOut(int((~known).sum()), "in neither list of a split"))
    return images[known], notes
