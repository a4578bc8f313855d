"""Whether a folder or a table holds radiographs of a data set whose terms are known, whatever source reads it.

Somebody may point `images` or `folder` at MIMIC-CXR's files, at a part of them or at links to them, or list them in a
table. Its terms still hold. It is recognised by names alone. Only some names are looked at, and no file is opened but
the table.
"""

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from data.stand_ins import opened

LOOKED_AT = 200  # names in a folder
ENTERED = 10  # folders in a folder
MOST = 3000  # names in all
ABOVE = 3  # folders that a part of a data set lies in
BEGINNING = 2**16  # bytes of a table
TABLES = (".csv", ".csv.gz", ".tsv", ".txt")  # endings of files that list images, in lower case
OWN = "phantom.json"  # marks the synthetic tree that is laid out like MIMIC-CXR

# how paths of a data set's files look
PATHS = {
    "MIMIC-CXR": re.compile(r"(^|/)p1\d/p1\d{7}(/|$)|(^|/)mimic-cxr(-jpg)?/|(^|/)[0-9a-f]{8}(-[0-9a-f]{8}){4}(\.|/|$)"),
    "CheXpert": re.compile(r"(^|/)CheXpert-v1\.0[^/]*/|(^|/)patient\d{5}/study\d+/view\d+_(frontal|lateral)\."),
    "BRAX": re.compile(r"(^|/)brax/1\.\d|(^|/)id_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/Study_[\d.]+(/|$)"),
    "VinDr-CXR": re.compile(r"(^|/)vindr-p?cxr/", re.IGNORECASE),  # of children too; its files have digests for names
}
MIMIC_TABLES = re.compile(r"mimic-cxr-[\d.]+-\w[\w-]*\.csv(\.gz)?|cxr-(record|study)-list\.csv(\.gz)?")


def known_data_set(root: Path, table: Path | None = None) -> str | None:
    """The data set of a folder or a table, if its terms forbid passing it on; else None."""
    place = Path(os.path.realpath(root))
    if any((above / OWN).is_file() for above in (place, *place.parents[:ABOVE])):
        return None

    # MIMIC-CXR's tables beside the files, or beside the `files` that the folder is a part of
    for above in (place, *place.parents[:ABOVE]):
        part = place.relative_to(above).parts
        if part[:1] in ((), ("files",)) and any(MIMIC_TABLES.fullmatch(entry.name) for entry in _names(above)):
            return "MIMIC-CXR"

    below = (f"{place.name}/{path}" for path in _paths_below(place))
    for text in (f"{place}/", *_cells(table), *below):
        for name, pattern in PATHS.items():
            if pattern.search(text):
                return name
    return None


def _names(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Some entries of a folder; none if it cannot be listed, which its reader reports."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from islice(entries, LOOKED_AT)


def _paths_below(place: Path) -> Iterator[str]:
    """Paths below the folder, and the targets of links: some of each folder, outer folders first."""
    todo = deque([(str(place), "")])
    left = MOST
    while todo and left > 0:
        folder, above = todo.popleft()
        inner = []
        for entry in _names(folder):
            left -= 1
            path = f"{above}{entry.name}"
            yield path
            with suppress(OSError):
                if entry.is_symlink():
                    yield os.path.realpath(entry.path) + "/"
                if entry.is_dir():
                    inner.append((entry.path, f"{path}/"))
        todo += inner[:ENTERED]


def _cells(table: Path | None) -> list[str]:
    """The cells at the beginning of a table."""
    if table is None:
        return []
    start = b""
    with suppress(OSError, EOFError):
        if table.is_file():
            with opened(table) as file:
                start = file.read(BEGINNING)
    return re.split(r"[,;\t\r\n\"]+", start.decode("utf-8", "replace").replace("\\", "/"))
