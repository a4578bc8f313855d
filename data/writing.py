"""Writing files whole or not at all: nobody ever reads half of one, whenever the writer was killed.

A file is written under a temporary name beside its place, flushed to the disk, and renamed. Text is UTF-8 by name,
whatever the locale says.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from data.errors import UserError


def print_in_any_locale() -> None:
    """From now on what the encoding of the output lacks is printed as an escape, such as \\u03b1, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not where a notebook or a test catches what is printed
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, else it is removed.

    shared: several processes may write this file at once, so each gets a temporary name of its own. Otherwise the name
    is always the same, and what a killed writer left is overwritten by the next.
    """
    own = f".{os.getpid()}" if shared else ""
    temporary = path.with_name(f"{path.name}{own}.tmp")
    if temporary.is_symlink():  # in a stranger's folder, to somebody's file
        temporary.unlink()
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # a disk that became read-only
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write that fails does not say where
            error.filename = str(path)
        raise


@contextmanager
def writing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """A binary file for the new content of `path`."""
    with replacing(path, shared) as temporary, temporary.open("wb") as file:
        yield file
        flush_to_disk(file)


def expect_no_links_out(folder: Path) -> None:
    """UserError where something in the folder is a link to what lies outside: it would be written there."""
    home = folder.resolve()
    for inner, folders, files in os.walk(home):
        for name in (*folders, *files):
            path = Path(inner, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                shown = folder / path.relative_to(home)
                raise UserError(f"{shown}: found a link out of the folder, expected a file or folder of its own")


def flush_to_disk(file: IO[Any]) -> None:
    """What was written survives a power cut from here on."""
    file.flush()
    os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows below a header, written as they come: there may be a million."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
        flush_to_disk(file)


def read_text(path: Path) -> str:
    """Text that we wrote."""
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """JSON that we wrote; ValueError where it is none."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path}: values nested far too deep") from None
