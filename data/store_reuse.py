"""Stores of a data set that grows: what an earlier store read in the same way is copied, not decoded again.

A store under construction says in `plan.json` what it will hold, so that a later one can take over its rows too.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.store import DONE, StoreWriter
from data.writing import read_json, write_json

ALIKE = ("source", "root", "archive", "image_size", "resize", "tone", "reader_version")  # of a description
BLOCK = 512  # rows copied at a time
PLAN = "plan.json"


def take_over(writer: StoreWriter, description: dict[str, Any]) -> Iterator[tuple[Path, int]]:
    """Copy what other stores beside this one hold of its images; yields folder and count, where there are any.

    A file must still have the size it had. Rejected files are not taken over: they may have been mended; nor is
    a store older than digests: reading the files again is what gives them.
    """
    _plan(writer, description)
    for folder in sorted(writer.folder.parent.iterdir()):
        if folder != writer.folder and _is_alike(folder, description) and (copied := _copy(writer, folder)):
            yield folder, copied


def forget_plan(folder: Path) -> None:
    """A finished store needs none."""
    (folder / PLAN).unlink(missing_ok=True)


def _plan(writer: StoreWriter, description: dict[str, Any]) -> None:
    write_json(writer.folder / PLAN, {**description, "image_ids": list(writer.image_ids)}, indent=None)


def _is_alike(folder: Path, description: dict[str, Any]) -> bool:
    other = _json_or_none(folder / "store.json") or _json_or_none(folder / PLAN) or {}
    return all(key in other and other[key] == description[key] for key in ALIKE)


def _json_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _copy(writer: StoreWriter, folder: Path) -> int:
    try:
        held, source = _held(folder)
    except (OSError, ValueError, KeyError):  # incomplete, being finished just now, or older than digests
        return 0

    # a file must still have the size it had
    rows = []
    for row in writer.todo().tolist():
        known = held.get(writer.image_ids[row])
        if known is not None and _size(writer.paths[row]) == known[1]:
            rows.append(row)

    images = np.load(writer.images, mmap_mode="r+")
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        images[block] = source[[held[writer.image_ids[row]][0] for row in block]]
        for row in block:
            writer.note(row, *held[writer.image_ids[row]][1:], None)
    return len(rows)


def _held(folder: Path) -> tuple[dict[str, tuple[int, int, str]], np.ndarray]:
    """image_id → row, bytes and digest of the file, and the images, of a store finished or not."""
    if (folder / "store.json").is_file():
        with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            held = {line["image_id"]: (int(line["row"]), int(line["bytes"]), line["digest"]) for line in lines}
        return held, np.load(folder / "images.npy", mmap_mode="r")

    # under construction: its plan tells which image a row is
    ids = read_json(folder / PLAN)["image_ids"]
    state, sizes, digests = (
        np.load(folder / name, mmap_mode="r") for name in ("state.npy", "bytes.npy", "digests.npy")
    )
    held = {}
    for row in np.flatnonzero(state == DONE).tolist():
        held[ids[row]] = (row, int(sizes[row]), digests[row].decode())
    return held, np.load(folder / "images.partial.npy", mmap_mode="r")


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (for hundreds of thousands of files)
    except OSError:
        return None
