"""Class folders, with or without split folders: `train/NORMAL/a.jpeg` or `NORMAL/a.jpeg`.

`normal`, `no_finding`, `healthy`, `0` and `negative` mean normal, any other class abnormal.
"""

from collections import Counter
from pathlib import Path

import pandas as pd

from data.errors import UserError, quoted
from data.places import require_folder
from data.settings import DataSettings
from data.sources import BLANKS, SPLIT_WORDS, manifest_table
from data.sources.found_images import find_images

NORMAL_NAMES = {"normal", "no finding", "healthy", "0", "negative"}
SPLIT_FOLDERS = SPLIT_WORDS | {"training": "train", "testing": "test", "dev": "validate"}


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image below a class folder, sorted by name; no patients, studies or views.

    `image_id` is the path below root. Raises UserError where there are no class folders, and where a class folder
    holds what looks like split or class folders: its layout is another one, and labels would be wrong.
    """
    require_folder(root)
    found = find_images(root)
    has_splits = any(_split_of(folder) for folder in _folders(root))
    rows = []
    left_out: Counter[str] = Counter()
    for image in found.images:
        parts = image.split("/")
        split = _split_of(parts[0]) if has_splits else None
        if has_splits and split is None and len(parts) > 1:
            left_out[f"folder {quoted(parts[0], 'of another name')} left out: not a split"] += 1
            continue
        above = parts[1:] if split else parts  # class folder, any folders below it, name
        if len(above) < 2:
            left_out["in no class folder"] += 1
            continue

        _check_class(root, above[:-1], split)
        row = {"image_id": image, "path": f"{root}/{image}", "split": split}
        rows.append(row | {"label": label(above[0]), "class": above[0]})
    if not rows:
        raise UserError(
            f"data.root: {root}: found no class folders with images, "
            "expected such as NORMAL and PNEUMONIA, or train/NORMAL and train/PNEUMONIA"
        )

    notes = []
    for name, count in Counter(row["class"] for row in rows).items():
        meaning = "abnormal" if label(str(name)) else "normal"
        notes.append(f"class {name} → {meaning}: {count:,} images")
    for reason, count in left_out.items():
        notes.append(reason if reason.startswith("folder") else f"{count:,} images left out: {reason}")
    return manifest_table(pd.DataFrame(rows), settings.source), notes + found.notes()


def label(name: str) -> float:
    """A class folder's name → 0.0 normal, 1.0 abnormal."""
    return float(_plain(name) not in NORMAL_NAMES)


def _plain(name: str) -> str:
    return name.strip(BLANKS).lower().replace("_", " ").replace("-", " ")


def _split_of(name: str) -> str | None:
    return SPLIT_FOLDERS.get(_plain(name))


def _check_class(root: Path, folders: list[str], split: str | None) -> None:
    """UserError where a folder that would be a class, or one below it, is called like a split or a normal class."""
    name, *below = folders
    for inner in below:
        if _split_of(inner) or label(inner) < label(name):  # a split, or normal ones among abnormal ones
            found = quoted(f"{inner} inside {name}", "a class or split inside another folder")
            raise UserError(
                f"data.root: {root}: found {found}, which would be a class; "
                "expected class folders in the root or in split folders, such as train/NORMAL"
            )
    if split and _split_of(name):
        raise UserError(f"data.root: {root}: found split folder {name} inside another, expected class folders there")


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
