"""Reading that kills its process, as the kernel does when memory runs out: once for a file, or always.

A module of its own, because the processes that read import it.
"""

import os
import signal
from pathlib import Path

from data.image_files import read_some
from data.store import decode_rows

ALWAYS, ONCE = b"kills always", b"kills once"


def read_or_die(images, chunk, *how):
    """`decode_rows`, killed by a file that ends in one of these words; after `ONCE`, a trace beside it says so."""
    for _, path, *_ in chunk:
        die_of(path)
    return decode_rows(images, chunk, *how)


def read_some_or_die(place, start, paths, *how):
    """`read_some`, likewise."""
    for path in paths:
        die_of(path)
    return read_some(place, start, paths, *how)


def die_of(path: str) -> None:
    content = Path(path).read_bytes()
    trace = Path(f"{path}.killed")
    if content.endswith(ALWAYS) or (content.endswith(ONCE) and not trace.exists()):
        trace.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die() -> None:
    """A process that begins with this ends at once."""
    os._exit(1)


def double_or_die(number: int) -> int:
    """7 kills."""
    if number == 7:
        os._exit(1)
    return 2 * number
