"""ImageStore: decoded radiographs in one memory-mapped array, shared by every run that reads them alike.

A store folder holds `images.npy` (uint8, n h w), `index.csv` (image_id, row, bytes, digest and stamp of the file,
digest of the row's pixels), `rejected.csv` (image_id, path, reason; and the plugins of then, if another one would help)
and, written last, `store.json`. Labels and splits are not in it: they are joined at run time, so another label policy
needs no new decoding.
"""

import csv
import errno
import hashlib
import math
import os
import re
import shutil
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data.checksums import Published, hasher
from data.errors import UserError
from data.images import read_fitted
from data.refusal import LacksPlugin, NotNow, UnreadableImage, may_pass, trouble
from data.settings import Resize, Size, Tone, height_and_width
from data.store_integrity import (
    FILES,
    PIXEL_DIGEST,
    check_all,
    check_sample,
    open_images,
    pixel_digest,
    read_description,
    read_index,
    written_files,
)
from data.writing import as_cell, flush_to_disk, read_csv, replacing, write_csv, write_json, write_text

DONE, REJECTED, KILLER = 1, 2, 3  # states of a row while the store is being written; 0: not yet decoded
STAMP_DIGITS = 16
SCRATCH = ("state.npy", "bytes.npy", "digests.npy", "stamps.npy", "pixels.npy")  # of a store under construction
INDEX = ("image_id", "row", "bytes", "digest", "stamp", "pixels")
REJECTIONS = ("image_id", "path", "reason", "plugins")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ZEROS = 2**24  # bytes written at a time where room cannot be reserved
DIGITS = 32  # of a file's SHA-256, in hex: 128 bits tell any two files apart, in half the index
Asked = tuple[int, str, Published | None]  # row; path; what a list of checksums says of the file


class Decoded(NamedTuple):
    """What came of a row: of its file the size, digest and stamp, of its pixels the digest; or why it is rejected."""

    row: int
    bytes: int = 0
    digest: str = ""
    stamp: str = ""
    pixels: str = ""
    reason: str | None = None


class Postponed(str):
    """A reason that may pass: the file is not rejected for it."""


class ForWantOfPlugin(str):
    """A reason that holds as long as the plugins that decode DICOM stay the same."""

    plugins: str

    def __new__(cls, reason: str, plugins: str = "") -> "ForWantOfPlugin":
        made = super().__new__(cls, reason)
        made.plugins = plugins
        return made


class ImageReader(Protocol):
    """What training asks of a store, or of whatever stands in for one."""

    fingerprint: str
    index: dict[str, int]  # image_id → row

    @property
    def unreadable(self) -> AbstractSet[int]:
        """Rows met so far whose file has no image."""
        ...

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Rows (n) int64 of the images; -1 where there is none."""
        ...

    def digests(self) -> dict[int, str]:
        """row → digest of the file's bytes; empty where nobody has read the files before."""
        ...

    def pixel_digests(self, rows: np.ndarray) -> dict[int, str]:
        """row → digest of its pixels, of these rows; those that cannot be read are left out."""
        ...

    def read(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Images (b h w) uint8 of each batch of rows, in order."""
        ...


class ImageStore:
    """A finished store, opened read-only: `images` (n h w) uint8, `index` image_id → row."""

    def __init__(self, folder: str | Path, sampled: bool = True):
        """Raises UserError if the folder holds no finished store, or one that is not what was written.

        sampled: compares some rows' pixels too, and all of a small store; `verify` compares everything.
        """
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        self.fingerprint: str = self.description["fingerprint"]
        self.images = open_images(self.folder, self.description)
        self.file = os.open(self.folder / "images.npy", os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)
        self.unreadable: AbstractSet[int] = frozenset()  # such files have no row here

        index = read_index(self.folder, self.description, len(self.images))
        self.index = dict(zip(index.image_ids, index.rows, strict=True))
        if sampled:
            check_sample(self.folder, self.images, index)

    @property
    def vouched(self) -> bool:
        """Whether the store has digests that reveal changes; one that is older than digests has none."""
        return FILES in self.description

    def verify(self) -> None:
        """Compare everything with what was written; UserError naming the first rows that differ."""
        check_all(self.folder, self.description, self.images)

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Rows (n) int64 of the images; -1 where an image was rejected or is not in the store."""
        return np.fromiter((self.index.get(image_id, -1) for image_id in image_ids), np.int64)

    def read(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Images (b h w) uint8 of each batch of rows, in order; the next batch's are asked of the disk meanwhile."""
        coming = iter(batches)
        rows = next(coming, None)
        while rows is not None:
            following = next(coming, None)
            if following is not None:
                self._ask_for(following)
            yield self.images[rows]
            rows = following

    def _ask_for(self, rows: np.ndarray) -> None:
        """Have the system read the rows into memory, without waiting for it; a hint, if it takes hints."""
        if not hasattr(os, "posix_fadvise"):
            return
        start = self.images.offset
        size = self.images[0].nbytes
        with suppress(OSError):  # a file system that takes no hints
            for row in np.sort(rows).tolist():
                os.posix_fadvise(self.file, start + row * size, size, os.POSIX_FADV_WILLNEED)

    def digests(self) -> dict[int, str]:
        """row → digest of the file's bytes (MedMNIST: of the image's); empty for a store older than digests."""
        return {int(line["row"]): line["digest"] for line in read_csv(self.folder / "index.csv") if "digest" in line}

    def pixel_digests(self, rows: np.ndarray) -> dict[int, str]:
        """row → digest of its pixels, of these rows."""
        index = read_index(self.folder, self.description, len(self.images))
        if index.pixels is None:  # the store is older than they are
            return {row: pixel_digest(self.images[row]) for row in rows.tolist()}
        wanted = set(rows.tolist())
        return {row: digest for row, digest in zip(index.rows, index.pixels, strict=True) if row in wanted}


class StoreWriter:
    """A store under construction: rows are decoded in any order, by any process, and survive a kill."""

    def __init__(
        self,
        folder: Path,
        image_ids: Sequence[str],
        paths: Sequence[str],
        size: Size,
        published: Sequence[Published | None],
    ):
        self.folder = folder
        self.image_ids = image_ids
        self.paths = paths
        self.published = published  # what a list of checksums says of each file
        self.images = folder / "images.partial.npy"
        n = len(image_ids)

        # killed between the last two steps of `finish`: all is decoded, under the last name already
        named = folder / "images.npy"
        if named.exists() and not self.images.exists():
            named.replace(self.images)

        # a new store, or one that was begun by a version without one of these files
        arrays = [folder / name for name in SCRATCH] + [self.images]
        if not all(path.exists() for path in arrays):
            write_text(folder / "rejected.partial.csv", ",".join(REJECTIONS) + "\n")
            _allocate(folder / "state.npy", (n,))
            _allocate(folder / "bytes.npy", (n,), np.int64)
            _allocate(folder / "digests.npy", (n,), f"S{DIGITS}")
            _allocate(folder / "stamps.npy", (n,), f"S{STAMP_DIGITS}")
            _allocate(folder / "pixels.npy", (n,), f"S{PIXEL_DIGEST}")
            _allocate(self.images, (n, *height_and_width(size)))

        self.state = np.load(folder / "state.npy", mmap_mode="r+")  # n
        self.bytes = np.load(folder / "bytes.npy", mmap_mode="r+")  # n
        self.digests = np.load(folder / "digests.npy", mmap_mode="r+")  # n
        self.stamps = np.load(folder / "stamps.npy", mmap_mode="r+")  # n
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r+")  # n

    def todo(self) -> np.ndarray:
        return np.flatnonzero(self.state == 0)

    def killers(self) -> np.ndarray:
        """Rows that killed every process which read them, in an earlier attempt."""
        return np.flatnonzero(self.state == KILLER)

    def suspect(self, row: int) -> None:
        """Record that each process that reads this row is killed: the next attempt gives it a process of its own."""
        self.state[row] = KILLER

    def doubt(self) -> None:
        """Have rows decoded again that may not be what they should.

        These are rows whose pixels did not reach the disk before a power cut. And rows whose file is not the published
        one, as they were taken over or are older than the list; told by SHA-256 alone, which is remembered.
        """
        images = np.load(self.images, mmap_mode="r")
        for row in np.flatnonzero(self.state == DONE).tolist():
            if pixel_digest(images[row]) != self.pixels[row].decode():
                self.state[row] = 0
            published = self.published[row]
            if published and published.algorithm == "sha256" and not published.agrees(self.digests[row].decode()):
                self.state[row] = 0

    @property
    def rejected(self) -> int:
        return len(self.rejected_rows())

    def rejected_rows(self) -> list[int]:
        return np.flatnonzero(self.state == REJECTED).tolist()

    def note(self, row: int, size: int, digest: str, stamp: str, pixels: str, reason: str | None) -> None:
        """Record that a row is decoded, or why it cannot be; nothing if it is postponed. See `Decoded`."""
        if isinstance(reason, Postponed):
            return
        self.bytes[row] = size
        self.digests[row] = digest
        self.stamps[row] = stamp
        self.pixels[row] = pixels
        if reason:
            with (self.folder / "rejected.partial.csv").open("a", newline="", encoding="utf-8") as file:
                plugins = reason.plugins if isinstance(reason, ForWantOfPlugin) else ""
                cells = [self.image_ids[row], self.paths[row], reason, plugins]
                csv.writer(file).writerow([as_cell(str(cell)) for cell in cells])
        self.state[row] = REJECTED if reason else DONE

    def finish(self, description: dict[str, Any]) -> None:
        """Turn what was written into a store that `ImageStore` opens; `store.json` comes last."""
        write_csv(self.folder / "index.csv", INDEX, self._index_lines())
        write_csv(self.folder / "rejected.csv", REJECTIONS, self._rejected_lines())
        with self.images.open("r+b") as file:
            flush_to_disk(file)
        self.images.replace(self.folder / "images.npy")
        write_json(self.folder / "store.json", {**description, FILES: written_files(self.folder)})
        for scratch in (*SCRATCH, "rejected.partial.csv"):
            (self.folder / scratch).unlink()

    def _index_lines(self) -> Iterator[tuple[str, int, int, str, str, str]]:
        for row in np.flatnonzero(self.state == DONE).tolist():
            yield (
                self.image_ids[row],
                row,
                int(self.bytes[row]),
                self.digests[row].decode(),
                self.stamps[row].decode(),
                self.pixels[row].decode(),
            )

    def reasons(self) -> dict[str, str]:
        """image_id → why it is rejected."""
        return {image_id: reason for image_id, _, reason, _ in self._rejected_lines()}

    def lacking(self) -> dict[int, str]:
        """Rejected row → the plugins that were there, if it was for want of another."""
        lines = self._rejections()
        found = {}
        for row in self.rejected_rows():
            plugins = lines[self.image_ids[row]]["plugins"]
            if plugins:
                found[row] = plugins
        return found

    def try_again(self, rows: Iterable[int]) -> None:
        """Have rejected rows decoded again."""
        self.state[list(rows)] = 0

    def _rejections(self) -> dict[str, dict[str, str]]:
        """image_id → its line of the table, the last of several."""
        return {line["image_id"]: line for line in read_csv(self.folder / "rejected.partial.csv")}

    def _rejected_lines(self) -> Iterator[tuple[str, str, str, str]]:
        lines = self._rejections()
        for row in self.rejected_rows():
            line = lines[self.image_ids[row]]
            yield self.image_ids[row], self.paths[row], line["reason"], line["plugins"]


def _allocate(path: Path, shape: tuple[int, ...], dtype: type | str = np.uint8) -> None:
    """An array file of zeros that appears only when it is complete; UserError where the disk is too small for it."""
    with replacing(path) as temporary:
        try:
            make_array(temporary, shape, dtype)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            needed = math.prod(shape) * np.dtype(dtype).itemsize
            raise UserError(
                f"{path.parent}: found {free / 1e9:.2f} GB free, expected {needed / 1e9:.2f} GB for a store "
                f"({error.strerror or error}); make room, or give data.store=/elsewhere"
            ) from None


def make_array(path: Path, shape: tuple[int, ...], dtype: type | str = np.uint8) -> None:
    """An array file of zeros, with room on the disk for all of it; OSError that names it where there is none."""
    try:
        np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
        _reserve(path)
    except OSError as error:
        error.filename = str(path)
        raise


def _reserve(path: Path) -> None:
    """Have the disk keep room for all of a sparse file: else it would end in a bus error when the disk fills up."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # macOS has no such call, NFS and others may refuse it
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
        else:
            return

        # zeros that are written take up their room; the header stays as it is
        file.seek(np.load(path, mmap_mode="r").offset)
        while file.tell() < size:
            file.write(bytes(min(ZEROS, size - file.tell())))
        flush_to_disk(file)


def decode_rows(images: str, jobs: Sequence[Asked], size: Size, resize: Resize, tone: Tone) -> list[Decoded]:
    """Decode jobs into the array file; returns what `StoreWriter.note` takes."""
    try:
        array = np.load(images, mmap_mode="r+")
    except (OSError, MemoryError) as error:
        if not may_pass(error):
            raise
        reason = Postponed(f"{images}: found {trouble(error)}, expected to write there")
        return [Decoded(row, reason=reason) for row, *_ in jobs]
    return [_decode(array, row, path, published, size, resize, tone) for row, path, published in jobs]


def _decode(
    array: np.ndarray, row: int, path: str, published: Published | None, size: Size, resize: Resize, tone: Tone
) -> Decoded:
    content = _Content(published)
    try:
        before = stamp_of(path)  # a file that changes while it is read is another one afterwards
        image = read_fitted(path, size, resize, tone, content.note)
        array[row] = image
        size_of_file = file_of(path).stat().st_size
    except NotNow as error:
        return Decoded(row, reason=Postponed(error))
    except UnreadableImage as error:
        reason = "; ".join([str(error), *content.differences()])
        if isinstance(error, LacksPlugin):
            reason = ForWantOfPlugin(reason, error.plugins)
        return Decoded(row, reason=reason)
    except (OSError, MemoryError) as error:  # it went away just now
        reason = f"{path}: found {trouble(error)}, expected a readable image file"
        return Decoded(row, reason=Postponed(reason) if may_pass(error) else reason)

    for difference in content.differences():  # it can be read, but is not what was published
        return Decoded(row, reason=f"{path}: {difference}")
    return Decoded(row, size_of_file, content.sha256.hexdigest()[:DIGITS], before, pixel_digest(image))


class _Content:
    """A file's bytes as they are read: their digest, and whether it is the published one."""

    def __init__(self, published: Published | None):
        self.published = published
        self.sha256 = hashlib.sha256()
        self.compared = self.sha256
        if published and published.algorithm != "sha256":
            self.compared = hasher(published.algorithm)
        self.noted = False

    def note(self, content: bytes) -> None:
        self.noted = True
        self.sha256.update(content)
        if self.compared is not self.sha256:
            self.compared.update(content)

    def differences(self) -> list[str]:
        """None, or what differs."""
        digest = self.compared.hexdigest()
        if not self.published or not self.noted or self.published.agrees(digest):
            return []
        return [self.published.difference(digest)]


def stamp_of(path: str) -> str:
    """16 hexadecimal digits that stay the same as long as nobody touches the file: of its path, size and times.

    "" where there is no such file.
    """
    try:
        status = os.stat(file_of(path))  # noqa: PTH116 (for hundreds of thousands of files)
    except OSError:
        return ""
    facts = f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ctime_ns}"
    return hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:STAMP_DIGITS]


def file_of(path: str) -> Path:
    """The file itself; of an archive's member the archive."""
    return Path(re.sub(r"(\.npz)#.*", r"\1", path))
