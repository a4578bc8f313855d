"""Is a store what was written? Checked cheaply when it is opened, and to the last pixel by `mae-prepare --verify`.

`store.json` has the size of each file of its store and the digests of the tables; `index.csv` has a digest of each
row's pixels. Whatever differs is refused in one line. A store older than these digests is checked by what can be told
without them: sizes, counts, and that all rows are there and all different.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.errors import UserError
from data.settings import height_and_width
from data.writing import of_cell, read_json

TABLES = ("index.csv", "rejected.csv")
FILES = "files"  # in a description: what was written
PIXEL_DIGEST = 16  # hexadecimal digits: 64 bits tell damage from what was written
SMALL = 2**24  # bytes of pixels that are compared whenever a store is opened
SAMPLE = 64  # rows compared of a larger one: with a twentieth of them damaged, it passes once in 27 times
NAMED = 5  # rows in a message


class Index(NamedTuple):
    """What `index.csv` says, in its order; `pixels` is None where the store is older than digests of pixels."""

    image_ids: list[str]
    rows: list[int]
    pixels: list[str] | None


def pixel_digest(image: np.ndarray) -> str:
    """16 hexadecimal digits of a row's pixels, uint8 (h w)."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=PIXEL_DIGEST // 2).hexdigest()


def described(facts: dict[str, Any]) -> dict[str, Any]:
    """What a store holds and how it was read, with the fingerprint that changes with any of it."""
    text = json.dumps(facts, sort_keys=True)
    return {**facts, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def facts_of(description: dict[str, Any]) -> dict[str, Any]:
    """The part of a description that its fingerprint is made of."""
    return {name: value for name, value in description.items() if name not in ("fingerprint", FILES)}


def written_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size of each file of a store, and the digests of its tables, for its description."""
    files: dict[str, dict[str, Any]] = {"images.npy": {"bytes": (folder / "images.npy").stat().st_size}}
    for name in TABLES:
        files[name] = _said_of((folder / name).read_bytes())
    return files


def _said_of(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


# ---------------------------------------------------------------- when a store is opened


def read_description(folder: Path) -> dict[str, Any]:
    """UserError where the folder holds no finished store, or the description is not the one that was written."""
    path = folder / "store.json"
    if not path.is_file():
        raise UserError(f"{folder}: found no store.json, expected a finished store; run mae-prepare")
    try:
        description = read_json(path)
        intact = description == described(facts_of(description)) | _files_of(description)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _refused(path, "no description of a store", "the one that was written") from None
    if not intact:
        raise _refused(path, "a description that does not fit its fingerprint", "the one that was written")
    return description


def _files_of(description: dict[str, Any]) -> dict[str, Any]:
    """The part of a description that old ones do not have; TypeError if it is malformed."""
    if FILES not in description:
        return {}
    files = description[FILES]
    sizes = [files.get(name, {}).get("bytes") for name in ("images.npy", *TABLES)]
    digests = [files.get(name, {}).get("sha256") for name in TABLES]
    if not all(isinstance(size, int) for size in sizes) or not all(isinstance(digest, str) for digest in digests):
        raise TypeError(FILES)
    return {FILES: files}


def open_images(folder: Path, description: dict[str, Any]) -> "np.memmap[Any, Any]":
    """Images (n h w) uint8, memory-mapped; UserError where the array is not as long and as large as described."""
    path = folder / "images.npy"
    if not path.is_file():
        raise _refused(path, "no such file", "the pixels of the store")
    size = path.stat().st_size

    # numpy would read a file that has grown, and gives no useful error for one that has shrunk
    wanted = description.get(FILES, {}).get("images.npy", {}).get("bytes", size)
    if size != wanted:
        raise _refused(path, f"{size:,} bytes", f"{wanted:,}")
    try:
        images: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        end = images.offset + images.nbytes
    except (ValueError, EOFError, AttributeError):
        raise _refused(path, f"no whole array in {size:,} bytes", "the pixels of the store") from None

    shape = images.shape
    if "image_size" in description:
        shape = (description["images"], *height_and_width(description["image_size"]))
    if images.dtype != np.uint8 or images.shape != shape or len(shape) != 3 or not images.flags.c_contiguous:
        raise _refused(path, f"{images.dtype} {images.shape}", f"uint8 {shape}")
    if size != end:
        raise _refused(path, f"{size:,} bytes", f"{end:,}")
    return images


def read_index(folder: Path, description: dict[str, Any], images: int) -> Index:
    """The index of a store of so many images; UserError if it is not what was written, or does not fit them."""
    content = _table(folder, "index.csv", description)
    path = folder / "index.csv"
    try:
        index = _parsed(content)
    except (ValueError, LookupError, csv.Error):
        raise _refused(path, "no readable index", "columns image_id and row") from None
    if (index.pixels is None) == (FILES in description):
        raise _refused(folder / "store.json", "a description and an index of different versions", "those of one store")

    # each image has a row of its own, and each row without an image was rejected
    if len(set(index.image_ids)) < len(index.image_ids) or len(set(index.rows)) < len(index.rows):
        raise _refused(path, "an image or a row twice", "each once")
    if index.rows and not 0 <= min(index.rows) <= max(index.rows) < images:
        raise _refused(path, f"rows {min(index.rows)} to {max(index.rows)}", f"rows of {images:,} images")
    if FILES not in description and "images" in description:
        rejected = sum(1 for _ in _lines(_table(folder, "rejected.csv", description))) - 1
        if len(index.rows) + rejected != images:
            raise _refused(path, f"{len(index.rows):,} rows, and {rejected:,} rejected files", f"{images:,} together")
    return index


def _table(folder: Path, name: str, description: dict[str, Any]) -> bytes:
    """The content of a table; UserError if it is not what was written."""
    path = folder / name
    if not path.is_file():
        raise _refused(path, "no such file", "the table that was written")
    content = path.read_bytes()
    wanted = description.get(FILES, {}).get(name)
    found = _said_of(content)
    if wanted is None or found == wanted:
        return content
    raise _refused(
        path,
        f"{found['bytes']:,} bytes with the digest {found['sha256'][:12]}, so it was changed",
        f"{wanted['bytes']:,} with {wanted['sha256'][:12]}",
    )


def _lines(content: bytes) -> Iterator[list[str]]:
    return csv.reader(TextIOWrapper(BytesIO(content), encoding="utf-8", newline=""))


def _parsed(content: bytes) -> Index:
    """Parse an index; ValueError, LookupError or csv.Error if it is none. A plain loop: there may be a million rows."""
    lines = _lines(content)
    header = next(lines, [])
    image_id = header.index("image_id")
    row = header.index("row")
    pixels = header.index("pixels") if "pixels" in header else None

    index = Index([], [], None if pixels is None else [])
    for line in lines:
        index.image_ids.append(of_cell(line[image_id]))
        index.rows.append(int(line[row]))
        if index.pixels is not None and pixels is not None:
            index.pixels.append(line[pixels])
    return index


def check_sample(folder: Path, images: np.ndarray, index: Index) -> None:
    """UserError if pixels are not what was written; compares all rows of a small store, and some of a large one."""
    if index.pixels is None:
        return
    places = np.arange(len(index.rows))
    if images.nbytes > SMALL:
        places = np.random.default_rng().choice(places, min(SAMPLE, len(places)), replace=False)
    differing = differing_rows(images, index, np.sort(places).tolist())
    if differing:
        found = f"pixels of {len(differing):,} of {len(places):,} rows looked at that were changed"
        raise _refused(
            folder / "images.npy", f"{found} ({_named(differing)})", "none", more="mae-prepare --verify counts all"
        )


def differing_rows(images: np.ndarray, index: Index, places: Sequence[int]) -> list[int]:
    """Rows, among these places of the index, whose pixels are not those that were written."""
    assert index.pixels is not None
    differing = []
    for place in tqdm(places, desc="verify", unit="image", disable=None, delay=2):
        row = index.rows[place]
        if pixel_digest(images[row]) != index.pixels[place]:
            differing.append(row)
    return differing


# ---------------------------------------------------------------- on demand


def check_all(folder: Path, description: dict[str, Any], images: np.ndarray) -> None:
    """Compare everything of a store; UserError naming the first rows that differ, and how many there are."""
    index = read_index(folder, description, len(images))
    _table(folder, "rejected.csv", description)
    if index.pixels is None:
        raise _refused(
            folder / "index.csv",
            "no digests of pixels, as the store is older than they are (sizes and counts are right)",
            "one in each row",
        )

    differing = sorted(differing_rows(images, index, range(len(index.rows))))
    if differing:
        found = f"pixels of {len(differing):,} of {len(index.rows):,} rows that were changed ({_named(differing)})"
        raise _refused(folder / "images.npy", found, "none")


def _named(rows: Sequence[int]) -> str:
    """rows 3, 4, 9, …"""
    more = ", …" if len(rows) > NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:NAMED]))}{more}"


def _refused(path: Path, found: str, expected: str, more: str = "") -> UserError:
    remedy = f"put back what mae-prepare wrote, or delete {path.parent} and run mae-prepare"
    if more:
        remedy = f"{more}; {remedy}"
    return UserError(f"{path}: found {found}, expected {expected}; {remedy}")
