"""A data set that was moved or copied together with its stores: recognised by its content, not by where it lies.

A store's description names the folder of its images. If no store names today's folder, one that says the same of
another folder may be this data set's. Then some of its rows are read again, and each must be what it was.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.images import read_fitted
from data.refusal import UnreadableImage
from data.settings import DataSettings
from data.store import DIGITS, file_of
from data.store_integrity import facts_of, pixel_digest, read_description
from data.writing import read_csv, read_json

PLACES = ("root", "archive", "image_ids_and_paths")  # of a description: what moving changes
LOOKED_AT = 1000  # files whose sizes are compared
READ = 8  # files that are read again


def moved_store(
    stores: Path, settings: DataSettings, table: pd.DataFrame, description: Mapping[str, Any], roots: Sequence[str]
) -> Path | None:
    """The finished store of these very images, made when they lay elsewhere; None if there is none.

    roots: the folders where they lie today, with which the paths of the table begin.
    """
    for path in sorted(stores.glob(f"{settings.source}-*/store.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):  # a damaged store, or none of ours
            other = facts_of(read_json(path))
            if _says_the_same(other, facts_of(dict(description)), table, roots):
                read_description(path.parent)
                if _is_the_same(path.parent, settings, table):
                    return path.parent
    return None


def _says_the_same(
    other: Mapping[str, Any], mine: Mapping[str, Any], table: pd.DataFrame, roots: Sequence[str]
) -> bool:
    """Whether two descriptions differ only in where the images lie."""
    then = {name: value for name, value in other.items() if name not in PLACES}
    now = {name: value for name, value in mine.items() if name not in PLACES}
    if then != now:
        return False
    if other["image_ids_and_paths"] == mine["image_ids_and_paths"]:
        return True

    # several data sets are described by whole paths: are these the same with the roots of then put for today's?
    before = other["root"]
    if not isinstance(before, list) or len(before) != len(roots):
        return False
    paths = table["path"].tolist()
    for root, there in zip(roots, before, strict=True):
        paths = [there + path.removeprefix(root) if path.startswith(f"{root}/") else path for path in paths]
    return bool(other["image_ids_and_paths"] == digest_of(table["image_id"], paths))


def digest_of(image_ids: Iterable[str], paths: Iterable[str]) -> str:
    """A digest of which images a store holds, and where they lie."""
    lines = sorted(f"{image_id}\t{path}" for image_id, path in zip(image_ids, paths, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_the_same(folder: Path, settings: DataSettings, table: pd.DataFrame) -> bool:
    """Whether today's files are those the store was made of: by the sizes of many, and the content of some."""
    places = dict(zip(table["image_id"], table["path"], strict=True))
    rows = list(read_csv(folder / "index.csv"))
    chosen = np.random.default_rng().permutation(len(rows))[:LOOKED_AT].tolist()
    for number in chosen:
        row = rows[number]
        if file_of(places[row["image_id"]]).stat().st_size != int(row["bytes"]):
            return False
    return bool(chosen) and all(_reads_the_same(rows[number], places, settings) for number in chosen[:READ])


def _reads_the_same(row: Mapping[str, str], places: Mapping[str, str], settings: DataSettings) -> bool:
    content = hashlib.sha256()
    try:
        image = read_fitted(
            places[row["image_id"]], settings.image_size, settings.resize, settings.tone, content.update
        )
    except UnreadableImage:
        return False
    return content.hexdigest()[:DIGITS] == row["digest"] and pixel_digest(image) == row["pixels"]
