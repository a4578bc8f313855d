"""Class folders, with or without split folders: `train/NORMAL/a.jpeg` or `NORMAL/a.jpeg`.

`normal`, `no_finding`, `healthy`, `0` and `negative` mean normal, any other class abnormal.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from data.config import UserError
from data.settings import DataSettings
from data.sources import SPLIT_WORDS, manifest_table, require_folder

NORMAL_NAMES = {"normal", "no finding", "healthy", "0", "negative"}
IMAGE_ENDINGS = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".dcm", ".dicom"}


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image below a class folder, sorted by name; no patients, studies or views.

    `image_id` is the path below root. Raises UserError where there are no class folders.
    """
    require_folder(root)

    # split folders hold class folders; without any, the root does
    splits = [folder for folder in _folders(root) if folder.name.lower() in SPLIT_WORDS]
    rows: list[dict[str, Any]] = []
    for folder in splits:
        rows += _read_classes(folder, root, SPLIT_WORDS[folder.name.lower()])
    if not splits:
        rows += _read_classes(root, root, None)
    if not rows:
        raise UserError(
            f"data.root: {root}: found no class folders with images, "
            "expected such as NORMAL and PNEUMONIA, or train/NORMAL and train/PNEUMONIA"
        )

    notes = []
    for name, count in Counter(row["class"] for row in rows).items():
        meaning = "abnormal" if label(name) else "normal"
        notes.append(f"class {name} → {meaning}: {count:,} images")
    notes += _left_out(root, splits)
    return manifest_table(pd.DataFrame(rows), settings.source), notes


def label(name: str) -> float:
    """A class folder's name → 0.0 normal, 1.0 abnormal."""
    return float(name.lower().replace("_", " ").replace("-", " ") not in NORMAL_NAMES)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_classes(folder: Path, root: Path, split: str | None) -> Iterator[dict[str, Any]]:
    for class_folder in _folders(folder):
        for path in _images(class_folder):
            image_id = path.relative_to(root).as_posix()
            yield {
                "image_id": image_id,
                "path": str(path),
                "split": split,
                "label": label(class_folder.name),
                "class": class_folder.name,
            }


def _images(folder: Path) -> list[Path]:
    """Every image below a folder, hidden ones (macOS's `._a.jpg`) aside."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_ENDINGS


def _left_out(root: Path, splits: list[Path]) -> list[str]:
    """Notes on images outside class folders, and on folders beside the split folders."""
    loose = sum(_is_image(path.name) for folder in (root, *splits) for path in folder.iterdir() if path.is_file())
    notes = [f"{loose:,} images left out: in no class folder"] if loose else []
    beside = [folder.name for folder in _folders(root) if folder not in splits] if splits else []
    return notes + [f"folder {name} left out: not a split" for name in beside]
