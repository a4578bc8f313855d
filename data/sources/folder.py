"""Class folders, with or without split folders: `train/NORMAL/a.jpeg` or `NORMAL/a.jpeg`.

Which are normal is said by `data.normal`, else by their names (`data/class_names.py`); any other class is abnormal.
"""

from collections import Counter
from pathlib import Path

import pandas as pd

from data.class_names import FILLERS, holds_masks, is_of_masks, plain_words, says, told_apart
from data.errors import UserError, quoted
from data.places import require_folder
from data.settings import DataSettings
from data.sources import SPLIT_WORDS, manifest_table
from data.sources.found_images import find_images

SPLIT_FOLDERS = SPLIT_WORDS | {"dev": "validate", "development": "validate", "holdout": "test"}
BESIDE_SPLITS = FILLERS | {"set", "data", "dataset", "split"}  # as in `training_set` and `test_images`


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image below a class folder, sorted by name; no patients, studies or views.

    `image_id` is the path below root. Raises UserError where there are no class folders, and where a class folder
    holds what looks like split or class folders: its layout is another one, and labels would be wrong.
    """
    require_folder(root)
    found = find_images(root)
    has_splits = any(split_of(folder) for folder in _folders(root))
    rows = []
    left_out: Counter[str] = Counter()
    for image in found.images:
        parts = image.split("/")
        split = split_of(parts[0]) if has_splits else None
        if has_splits and split is None and len(parts) > 1:
            left_out[f"folder {quoted(parts[0], 'of another name')} left out: not a split"] += 1
            continue
        above = parts[1:] if split else parts  # class folder, any folders below it, name
        if len(above) < 2:
            left_out["in no class folder"] += 1
            continue

        if is_of_masks(above[0]) or any(holds_masks(folder) for folder in above[1:-1]):
            left_out["in folders of masks"] += 1
            continue
        _check_class(root, above[:-1], split, settings.labelled)
        rows.append({"image_id": image, "path": f"{root}/{image}", "split": split, "class": above[0]})
    if not rows:
        raise UserError(
            f"data.root: {root}: found no class folders with images, "
            "expected such as NORMAL and PNEUMONIA, or train/NORMAL and train/PNEUMONIA"
        )

    # what each class is, reported before anything is trained
    table = pd.DataFrame(rows)
    notes: list[str] = []
    if settings.labelled:
        counts = Counter(str(name) for name in table["class"])
        otherwise = ", or data.source=images if these are no classes"
        classes = told_apart(list(counts), settings.normal, f"data.root: {root}", "class folders", otherwise)
        table["label"] = table["class"].map(classes.label)
        notes.append(classes.note(counts))
    for reason, count in left_out.items():
        notes.append(reason if reason.startswith("folder") else f"{count:,} images left out: {reason}")
    return manifest_table(table, settings.source), notes + found.notes()


def says_normal(name: str) -> bool:
    """Whether a folder's name says that its images are normal, at least if no other name does."""
    return says(name) in ("normal", "by contrast")


def split_of(name: str) -> str | None:
    """The split that a folder's name says: `Training`, `01_train`, `test_images`."""
    words = [word for word in plain_words(name) if word not in BESIDE_SPLITS]
    return SPLIT_FOLDERS.get("".join(words))


def _check_class(root: Path, folders: list[str], split: str | None, labelled: bool) -> None:
    """UserError where a folder that would be a class, or one below it, is called like a split or a normal class."""
    name, *below = folders
    for inner in below:
        mixed = says_normal(inner) and not says_normal(name)  # normal ones among abnormal ones
        if split_of(inner) or (labelled and mixed):
            found = quoted(f"{inner} inside {name}", "a class or split inside another folder")
            raise UserError(
                f"data.root: {root}: found {found}, which would be a class; "
                "expected class folders in the root or in split folders, such as train/NORMAL"
            )
    if split and split_of(name):
        raise UserError(f"data.root: {root}: found split folder {name} inside another, expected class folders there")


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
