"""Stores of a data set that grows: rows that an earlier store read in the same way are copied, not decoded again.

A store under construction says in `plan.json` what it will hold, so that a later one can take over its rows too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.store import DONE, SCRATCH, Decoded, StoreWriter, stamp_of
from data.store_integrity import open_images, pixel_digest, read_description, read_index
from data.writing import read_csv, read_json, write_json

ALIKE = ("source", "root", "archive", "image_size", "resize", "tone", "reader_version")  # of a description
BLOCK = 512  # rows copied at a time
PLAN = "plan.json"


def take_over(writer: StoreWriter, description: dict[str, Any]) -> Iterator[tuple[Path, int]]:
    """Copy rows of this store's images from other stores beside it; yields each folder that has some, and how many.

    A row is copied only if its file still has the same path, size and times, and its pixels are those that were
    written. Rejected files are not taken over: they may have been mended. Nor is a store older than stamps or digests
    of pixels: to get these, files must be read again.
    """
    _plan(writer, description)
    for folder in sorted(writer.folder.parent.iterdir()):
        if folder == writer.folder or not _is_alike(folder, description):
            continue
        copied = _copy(writer, folder)
        if copied:
            yield folder, copied


def forget_plan(folder: Path) -> None:
    """Remove the plan: a finished store needs none."""
    (folder / PLAN).unlink(missing_ok=True)


def _plan(writer: StoreWriter, description: dict[str, Any]) -> None:
    write_json(writer.folder / PLAN, description, indent=None)


def _is_alike(folder: Path, description: dict[str, Any]) -> bool:
    other = _json_or_none(folder / "store.json") or _json_or_none(folder / PLAN) or {}
    return all(key in other and other[key] == description[key] for key in ALIKE)


def _json_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _copy(writer: StoreWriter, folder: Path) -> int:
    """Copy the rows of files that nobody has touched since; returns how many."""
    try:
        held, source = _held(folder)
    except (OSError, ValueError, KeyError):  # changed, incomplete, being finished just now, or older than digests
        return 0

    # a row is recognised by its file, not by the id that a table gives it
    found = {}
    for row in writer.todo().tolist():
        stamp = stamp_of(writer.paths[row])
        if stamp and stamp in held:  # a missing file has no stamp
            found[row] = held[stamp]

    # in blocks, so that few images are in memory at a time
    images = np.load(writer.images, mmap_mode="r+")
    rows = list(found)
    copied = 0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        copies = source[[found[row].row for row in block]]
        images[block] = copies
        for row, copy in zip(block, copies, strict=True):
            file = found[row]
            if pixel_digest(copy) == file.pixels:  # else it is decoded
                writer.note(*Decoded(row, file.bytes, file.digest, file.stamp, file.pixels))
                copied += 1
    return copied


class _File(NamedTuple):
    """A file in a store: its row, and by what it is recognised."""

    row: int
    bytes: int
    digest: str
    stamp: str
    pixels: str


def _held(folder: Path) -> tuple[dict[str, _File], np.ndarray]:
    """The files of a store, finished or not, by their stamps, and its images."""
    held: dict[str, _File] = {}
    if (folder / "store.json").is_file():
        description = read_description(folder)
        images = open_images(folder, description)
        read_index(folder, description, len(images))
        for line in read_csv(folder / "index.csv"):
            if line["stamp"]:
                held[line["stamp"]] = _File(
                    int(line["row"]), int(line["bytes"]), line["digest"], line["stamp"], line["pixels"]
                )
        return held, images

    # under construction
    state, sizes, digests, stamps, pixels = (np.load(folder / name, mmap_mode="r") for name in SCRATCH)
    for row in np.flatnonzero(state == DONE).tolist():
        stamp = stamps[row].decode()
        held[stamp] = _File(row, int(sizes[row]), digests[row].decode(), stamp, pixels[row].decode())
    return held, np.load(folder / "images.partial.npy", mmap_mode="r")
