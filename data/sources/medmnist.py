"""A MedMNIST `.npz`: images and labels in one file, official splits, no patients.

Its images are addressed as `file.npz#train_images/17`.
"""

import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import UserError
from data.npz import STACK, holds_images, read_array, read_header
from data.places import require_file
from data.settings import DataSettings
from data.sources import SPLIT_WORDS, manifest_table
from data.stand_ins import ENOUGH, stand_in

PARTS = ("train", "val", "test")
# errors from a damaged archive; the last three if a member is encrypted or packed in another way
DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image, `image_id` such as `train/17`; abnormal where any label column is not zero.

    Reads labels and array headers, no pixels. Raises UserError if `root` is no such file.
    """
    require_file(root)
    if not zipfile.is_zipfile(root):
        with root.open("rb") as file:
            start = file.read(ENOUGH)
        found = stand_in(start) or "no .npz archive"
        if start.startswith(b"PK\x03\x04"):
            found = "an archive that is cut off"
        raise UserError(f"data.root: {root}: found {found}, expected a MedMNIST .npz file")
    try:
        with zipfile.ZipFile(root) as archive:
            _require_keys(archive, root)
            table = pd.concat([_read_part(archive, part, root) for part in PARTS])
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"data.root: {root}: damaged .npz: {' '.join(str(error).split())}") from None
    return manifest_table(table, settings.source), [f"{root.name}: {len(table):,} images; a label but 0 → abnormal"]


def _require_keys(archive: zipfile.ZipFile, root: Path) -> None:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    for key in (f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")):
        if key not in names:
            raise UserError(f"data.root: {root}: found arrays {', '.join(names)}, expected array {key}")


def _read_part(archive: zipfile.ZipFile, part: str, root: Path) -> pd.DataFrame:
    images = _length(archive, f"{part}_images", root)
    labels = _labels(archive, f"{part}_labels", root)
    if images != len(labels):
        raise UserError(f"data.root: {root}: found {len(labels)} {part}_labels, expected {images}, one per image")
    return pd.DataFrame(
        {
            "image_id": [f"{part}/{row}" for row in range(images)],
            "path": [f"{root}#{part}_images/{row}" for row in range(images)],
            "split": SPLIT_WORDS[part],
            "label": labels.reshape(images, labels.size // max(images, 1)).any(axis=1).astype(float),
        }
    )


def _labels(archive: zipfile.ZipFile, key: str, root: Path) -> np.ndarray:
    kind = read_header(archive, key)
    if kind.dtype.kind not in "biu" or not kind.shape:
        raise UserError(f"data.root: {root}: {key}: found {kind.dtype} labels, expected an array of integers")
    return read_array(root, key)


def _length(archive: zipfile.ZipFile, key: str, root: Path) -> int:
    """How many images an array has, from its header alone."""
    header = read_header(archive, key)
    if not holds_images(header):
        raise UserError(f"data.root: {root}: {key}: found {header.dtype} {header.shape}, expected {STACK}")
    return header.shape[0]
