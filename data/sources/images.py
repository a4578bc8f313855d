"""A folder of radiographs without labels, at any depth, for pretraining: JPEG, PNG and DICOM files.

A DICOM file needs no ending. Hidden files and folders are passed over, files of other kinds counted.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from data.config import UserError
from data.settings import DataSettings
from data.sources import manifest_table, require_folder

ENDINGS = {".jpg", ".jpeg", ".jpe", ".png", ".dcm", ".dicom"}
DIRECTORY = "DICOMDIR"  # a table of contents, and by its bytes a DICOM file


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image, sorted by `image_id`, the path below root; no labels, patients, splits or views.

    Raises UserError where there are none.
    """
    require_folder(root)
    names = sorted(_files(root))
    images = [name for name in names if _is_image(root, name)]
    others = len(names) - len(images)
    if not images:
        raise UserError(f"data.root: {root}: found no images among {others:,} files, expected JPEG, PNG or DICOM files")
    notes = [f"{len(images):,} images without labels, for pretraining"]
    if others:
        notes.append(f"{others:,} files passed over: no images")
    table = pd.DataFrame({"image_id": images, "path": [f"{root}/{name}" for name in images]})
    return manifest_table(table, settings.source), notes


def _files(root: Path) -> Iterator[str]:
    """Every file below root but hidden ones (macOS's `._a.jpg`), as a path from there."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = f"{place}/".removeprefix(f"{root}/")
        yield from (below + name for name in names if not name.startswith("."))


def _is_image(root: Path, path: str) -> bool:
    name = path.rpartition("/")[2]
    _, dot, ending = name.rpartition(".")
    return dot + ending.lower() in ENDINGS or (name != DIRECTORY and _says_dicom(root / path))


def _says_dicom(path: Path) -> bool:
    """DICM after the preamble; a file that cannot be opened does not say so."""
    try:
        if not path.is_file():  # a pipe would hang
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
