"""A folder that one command at a time may work in, also on file systems without locks."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from data.errors import UserError
from data.writing import read_json

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

FILES = ("lock", "lock.held")  # files that are in a folder only because it is held
SECONDS = 0.5  # between two looks at another's file
SETTLE = 0.2  # after that nobody is still about to remove a dead holder's file


@contextmanager
def locked(folder: Path, busy: str, wait: bool) -> Iterator[None]:
    """Hold the folder. Where another command does, print `busy` and wait, or raise it as UserError.

    The system's lock ends with its holder. Where it is refused (some network file systems answer ENOLCK or ENOSYS),
    a file with the holder's machine and process stands in for it.
    """
    # a link is not followed: in a stranger's folder it may lead to any file
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with os.fdopen(lock, "w", encoding="utf-8") as file:
        if _system_lock(file, busy, wait):
            yield
            return
    with _file_lock(folder / "lock.held", busy, wait):
        yield


def _system_lock(file: IO[str], busy: str, wait: bool) -> bool:
    """Whether the system has given its lock, which closing the file gives back."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(busy, wait)
    except OSError:
        return False
    else:
        return True

    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _say(busy: str, wait: bool) -> None:
    if not wait:
        raise UserError(busy)
    print(busy, file=sys.stderr, flush=True)


@contextmanager
def _file_lock(path: Path, busy: str, wait: bool) -> Iterator[None]:
    own = {"host": socket.gethostname(), "process": os.getpid()}
    told = False

    while not _take(path, own):
        holder = _holder(path)
        if _is_dead(holder, own):
            path.unlink(missing_ok=True)
            continue
        if not told:
            who = f"process {holder.get('process')} on {holder.get('host')}" if holder else "nobody knows who"
            _say(f"{busy} ({who}; if that has ended, delete {path})", wait)
            told = True
        time.sleep(SECONDS)

    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path, own: dict[str, object]) -> bool:
    """Whether the file is ours now: only one can make it."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(own, file)
    except FileExistsError:
        return False
    time.sleep(SETTLE)  # somebody may have removed ours, taking it for a dead holder's
    return _holder(path) == own


def _holder(path: Path) -> dict[str, object]:
    """Who has made the file; empty while it is written, or when it has just gone."""
    with suppress(OSError, ValueError):
        return dict(read_json(path))
    return {}


def _is_dead(holder: dict[str, object], own: dict[str, object]) -> bool:
    """Whether the holder has ended, which only its own machine can tell."""
    process = holder.get("process")
    if holder.get("host") != own["host"] or not isinstance(process, int):
        return False
    return not lives(process) or process == own["process"]  # our own number: an earlier process had it


def lives(process: int) -> bool:
    """Whether a process of that number runs on this machine; true where the system does not tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or not a process's number
        return True
    return True
