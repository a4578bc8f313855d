"""Errors that users can mend themselves. Light: commands import it before anything else."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

LONGEST = 2000  # characters of a message: a damaged table may hold a field of megabytes
ESCAPED = 10  # characters that one may become when escaped
MASKED = 40  # characters of a text whose shape alone is told
Given = TypeVar("Given")
Returned = TypeVar("Returned")
_withheld: ContextVar[bool] = ContextVar("withheld", default=False)


class UserError(ValueError):
    """A mistake the user can mend: one line, `place: found X, expected Y`; commands exit with 2.

    What it quotes from files is made printable and short, so that it stays one line and cannot control a terminal.
    """

    def __init__(self, message: str):
        super().__init__(printable(_shortened(message), longest=ESCAPED * LONGEST))


class NotFinite(UserError):
    """Numbers that are not finite, so there is no metric. A training goes on: later weights may do better."""

    def __init__(self, found: str):
        super().__init__(
            f"{found}; precision=fp32 helps where numbers grow too large, a lower base_lr where weights do"
        )


class Diverged(UserError):
    """A training that cannot go on, or has no result, as its numbers are not finite; a rerun would end the same."""


def printable(text: object, longest: int = 200) -> str:
    """A stranger's text made safe to print: short, and nothing in it ends the line or moves the cursor."""
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)
    return shown if len(shown) <= longest else shown[:longest] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a line that refuses a name: the known name spelt most alike, whatever its case; or ""."""
    spelt = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), spelt, n=1)
    return f"; did you mean {spelt[near[0]]}?" if near else ""


@contextmanager
def withholding(secret: bool) -> Iterator[None]:
    """While it lasts, and if `secret`, `quoted` shows neither tables' values nor the paths of files."""
    before = _withheld.set(secret)
    try:
        yield
    finally:
        _withheld.reset(before)


def as_withheld_here(function: Callable[[Given], Returned]) -> Callable[[Given], Returned]:
    """The function as another thread may call it: what is withheld here is withheld there too."""
    secret = _withheld.get()

    def call(given: Given) -> Returned:
        with withholding(secret):
            return function(given)

    return call


def quoted(text: object, instead: str | None = None) -> str:
    """A table's value or a file's name as a message may show it; of credentialed data `instead`, or its shape alone.

    The shape of `50414267.0` is `00000000.0`, which is enough to see that a spreadsheet was at work.
    """
    if not _withheld.get():
        return str(text)
    if instead is not None:
        return instead
    shape = re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", str(text)))
    return shape[:MASKED]


def _shortened(text: str) -> str:
    """A long text without its middle: its beginning and end say what is wrong."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 1
    return f"{text[:half]}…{text[-half:]}"
