"""Published lists of checksums, such as PhysioNet's SHA256SUMS.txt: what they say of the files of a data set.

A list lies in the data set's folder, in one directly below it, or in the one above it. Its lines are `digest  path`, as
sha256sum and PhysioNet write them, or `SHA256 (path) = digest`. The algorithm is told by the digest's length.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from data.config import expand
from data.errors import quoted
from data.files_on_disk import exist
from data.settings import DataSettings

NAMES = re.compile(
    r"(.*[-_.])?(sha-?(1|224|256|384|512)|md5)(-?sums?)?(\.txt)?|(.*[-_.])?checksums?(\.txt|\.sha256|\.md5)?",
    re.IGNORECASE,
)
ALGORITHMS = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}  # by hex digits
LINE = re.compile(r"(\\?)([0-9a-f]{32,128})(?:[ \t]+\*?(.+))?", re.IGNORECASE)
BSD_LINE = re.compile(r"(\\?)(?:SHA-?\d+|MD5) ?\((.+)\) ?= ?([0-9a-f]{32,128})", re.IGNORECASE)
LONGEST = 2**14  # characters of a line
TABLES = (".csv", ".csv.gz", ".tsv", ".txt", ".npz")
SHOWN = 12  # hex digits of a digest in a message


class Published(NamedTuple):
    """What a list says of a file."""

    algorithm: str  # of hashlib
    digest: str  # hexadecimal, lower case
    name: str  # of the list
    line: int

    @property
    def where(self) -> str:
        return f"{self.name} line {self.line}"

    def agrees(self, digest: str) -> bool:
        """Whether a digest, or its first digits, is the published one."""
        return self.digest.startswith(digest)

    def difference(self, digest: str) -> str:
        """The two of them in words."""
        kind = self.algorithm.upper()
        return f"found {kind} {digest[:SHOWN]}…, expected {self.digest[:SHOWN]}… by {self.where}"


@dataclass
class Listing:
    """One list: what it says, by absolute path, and what is odd about it."""

    path: Path
    files: dict[str, Published] = field(default_factory=dict)
    folder: str = ""  # of the list, to which its paths are relative
    disputed: set[str] = field(default_factory=set)  # files that it lists twice, differently
    warnings: list[str] = field(default_factory=list)


def read_listings(settings: DataSettings) -> list[Listing]:
    """The lists beside all data sets of the settings, with their entries for files of these data sets."""
    listings: dict[Path, Listing] = {}
    for source in settings.each_source().values():
        folders = [expand(source.root, "data.root")]
        if source.labels_root is not None:
            folders.append(expand(source.labels_root, "data.labels_root"))
        for folder in folders:
            for listing in _beside(Path(absolute(folder))):
                listings.setdefault(listing.path, listing).files.update(listing.files)
    return list(listings.values())


def _beside(root: Path) -> Iterator[Listing]:
    """The lists in a data set's folder, in those below it, and in the one above it; for an archive those beside it."""
    inside = f"{root}/"
    for folder in (root.parent, root, *_folders(root)):
        for path in _lists(folder):
            listing = _read(path)
            about_us = {file: said for file, said in listing.files.items() if f"{file}/".startswith(inside)}
            if about_us or folder != root.parent or root.is_file():  # one above may list other data sets alone
                listing.files = about_us
                yield listing


def _folders(root: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(place for place in root.iterdir() if place.is_dir())
    return []


def _lists(folder: Path) -> list[Path]:
    with suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if NAMES.fullmatch(name))  # noqa: PTH208
        return [folder / name for name in names if (folder / name).is_file()]
    return []


# ---------------------------------------------------------------- one list


def _read(path: Path) -> Listing:
    listing = Listing(path, folder=str(path.parent))
    odd: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(_lines(file), start=1):
                trouble = _note(listing, number, line)
                if trouble:
                    odd.append(f"line {number}: {trouble}")
    except OSError as error:
        odd.append(f"found {(error.strerror or str(error)).lower()}, expected a list of checksums")
    for disputed in listing.disputed:
        del listing.files[disputed]
    if odd:
        more = f" ({len(odd):,} such lines)" if len(odd) > 1 else ""
        listing.warnings.append(f"{path}: {odd[0]}{more}; not compared")
    return listing


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST):
        yield line.strip()


def _note(listing: Listing, number: int, line: str) -> str | None:
    """Take a line in; returns what is wrong with it."""
    if not line or line.startswith(("#", ";", "-----")):  # comments, a signature's frame
        return None
    if match := LINE.fullmatch(line):
        escaped, digest, name = match.groups()
        name = name or listing.path.stem  # `images.zip.sha256` may hold a digest alone
    elif match := BSD_LINE.fullmatch(line):
        escaped, name, digest = match.groups()
    else:
        return f"found {quoted(ascii(line[:40]), 'something else')}, expected a digest and a path"
    if len(digest) not in ALGORITHMS:
        return f"found a digest of {len(digest)} digits, expected one of {', '.join(ALGORITHMS.values())}"

    said = Published(ALGORITHMS[len(digest)], digest.lower(), listing.path.name, number)
    file = _named(listing.folder, name, bool(escaped))
    before = listing.files.setdefault(file, said)
    if before.digest != said.digest:
        listing.disputed.add(file)
        return f"found another digest of a file than in line {before.line}, expected one for each"
    return None


def _named(folder: str, name: str, escaped: bool) -> str:
    """The absolute path that a list means. A plain text and no Path: there may be a million."""
    if escaped:  # as sha256sum writes odd names
        name = name.replace("\\n", "\n").replace("\\\\", "\\")
    else:
        name = name.replace("\\", "/")  # lists made on Windows
    if not name.startswith("/"):
        name = f"{folder}/{name}"
    return os.path.normpath(name)


def absolute(path: str) -> str:
    """How a path is written in `Listing.files`."""
    return os.path.abspath(path)  # noqa: PTH100


# ---------------------------------------------------------------- compared


def published_digests(listings: Iterable[Listing]) -> dict[str, Published]:
    """What is published of each file, by absolute path; SHA-256 if there is a choice, as it is computed anyway."""
    files: dict[str, Published] = {}
    for listing in listings:
        for path, said in listing.files.items():
            if path not in files or said.algorithm == "sha256":
                files[path] = said
    return files


def differing_tables(listings: Iterable[Listing]) -> list[str]:
    """A line for each table beside its list that differs from what was published."""
    lines = []
    for listing in listings:
        for path, said in listing.files.items():
            if not path.endswith(TABLES) or Path(path).parent != listing.path.parent:
                continue
            with suppress(OSError):  # it is not there, or not for us to read
                digest = _digest(Path(path), said.algorithm)
                if not said.agrees(digest):
                    lines.append(f"{path}: {said.difference(digest)}; a damaged download, or changed since")
    return lines


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hasher(algorithm)).hexdigest()


def hasher(algorithm: str) -> "hashlib._Hash":
    """A hasher of hashlib's, for telling files apart: it need not be hard to forge."""
    return hashlib.new(algorithm, usedforsecurity=False)


def summary(listing: Listing, images: Iterable[str], differing: int) -> str:
    """What came of a list, in a line. images: the absolute paths of all that were read."""
    images = set(images)
    compared = len(images & listing.files.keys())
    if not compared:
        return f"{listing.path}: none of the {len(images):,} images is among its {len(listing.files):,} files"

    others = [path for path in listing.files if path not in images]
    absent = int((~exist(others)).sum())
    return (
        f"{listing.path.name}: {compared:,} images compared, {differing:,} differ; "
        f"{len(images) - compared:,} images are not listed, {absent:,} listed files are not on disk"
    )
