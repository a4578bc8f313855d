"""Writing files whole or not at all: nobody ever reads half of one, whenever the writer was killed.

A file is written under a temporary name beside its place, flushed to the disk, and renamed. Text is UTF-8 by name,
whatever the locale says.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Literal

from data.errors import UserError

# the beginning of a cell that a spreadsheet takes for a formula, also with apostrophes before it
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
_for_owner_alone: ContextVar[bool] = ContextVar("for_owner_alone", default=False)  # holds until `restoring_umask` ends


def print_in_any_locale() -> None:
    """From now on print characters that the output's encoding lacks as escapes, such as \\u03b1, and do not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not where a notebook or a test catches what is printed
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, else it is removed.

    shared: several processes may write this file at once, so each gets a temporary name of its own. Otherwise the name
    is always the same, so the next writer overwrites what a killed one left.
    """
    own = f".{os.getpid()}" if shared else ""
    temporary = path.with_name(f"{path.name}{own}.tmp")
    # what a killed writer left may be readable by everybody, and in a stranger's folder it may be a link to any file
    temporary.unlink(missing_ok=True)
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
    """UserError if the folder holds a link to a place outside of it: files would be written there."""
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


def append_line(path: Path, line: str) -> None:
    """Add a line to a growing text, all of it or nothing. Where several may write at once, the caller holds a lock.

    If the umask now keeps others out, a file that they could read before is closed to them too.
    """
    links = getattr(os, "O_NOFOLLOW", 0)  # in a stranger's folder a link may lead to any file
    with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | links, 0o666), "r+b") as file:
        before = file.seek(0, os.SEEK_END)
        _forbid_what_the_umask_does(file)

        # what a killed writer left half written stays a line of its own
        torn = False
        if before:
            file.seek(before - 1)
            torn = file.read(1) != b"\n"
        try:
            file.write((b"\n" if torn else b"") + line.encode("utf-8") + b"\n")
            flush_to_disk(file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file.fileno(), before)
            error.filename = str(path)
            raise


def _forbid_what_the_umask_does(file: IO[bytes]) -> None:
    mask = os.umask(0o077)
    os.umask(mask)
    mode = os.fstat(file.fileno()).st_mode & 0o777
    if mode & mask:
        with suppress(OSError):  # another user's file: its owner decides
            os.fchmod(file.fileno(), mode & ~mask)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows below a header, written as they come: there may be a million. `read_csv` reads them."""
    with replacing(path) as temporary:
        write_rows_of_csv(temporary, columns, rows)


def write_rows_of_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """The same straight to a file that nobody reads yet."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for row in rows:
            table.writerow([as_cell(value) for value in row])
        flush_to_disk(file)


def in_utf8(text: str) -> str:
    """A text in which those bytes of a file's name that are not UTF-8 are written as \\xfc."""
    return os.fsencode(text).decode("utf-8", errors="backslashreplace")


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV that we wrote, as texts by column; OSError where it cannot be opened."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {column: of_cell(text) for column, text in row.items()}


def as_cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it, so that it is shown as text."""
    if isinstance(value, str) and FORMULA.match(value):
        return f"'{value}"
    return value


def of_cell(text: str) -> str:
    """The text from which `as_cell` made this cell."""
    if text and text.startswith("'") and FORMULA.match(text):
        return text[1:]
    return text


def read_text(path: Path) -> str:
    """Text that we wrote."""
    return path.read_text(encoding="utf-8")


def read_first_line(path: Path) -> str:
    """The beginning of the first line of any file, without its end of line."""
    with path.open("rb") as file:
        return file.readline(1000).decode("utf-8", errors="replace").rstrip("\r\n")


def read_json(path: Path) -> Any:
    """JSON that we wrote; ValueError where it is none."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path}: values nested far too deep") from None


# ---------------------------------------------------------------- who may read what is written


@contextmanager
def restoring_umask() -> Iterator[None]:
    """What the block decides about the permissions of new files ends with it. Also a decorator."""
    before = os.umask(0o077)
    os.umask(before)
    decided = _for_owner_alone.set(_for_owner_alone.get())
    try:
        yield
    finally:
        os.umask(before)
        _for_owner_alone.reset(decided)


def keep_private(credentialed: Collection[str], share: Literal["private", "group"]) -> None:
    """If any source is credentialed, make what this process and its children write unreadable to others.

    Whatever the umask was, files become 0600 and folders 0700. Where the group shares them they become 0640 and 0750,
    or 0660 and 0770 if the umask let the group write. Only the umask is changed, so every writer obeys it. The caller
    undoes this with `restoring_umask`.
    """
    if not credentialed:
        return
    if share == "private":
        _for_owner_alone.set(True)
    before = os.umask(0o077)
    if not _for_owner_alone.get():  # the group reads, and writes where it could before
        os.umask(0o007 | before & 0o020)
