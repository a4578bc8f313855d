"""What users can mend themselves. Light: commands import it before anything else."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LONGEST = 2000  # characters of a message: a damaged table may hold a field of megabytes
ESCAPED = 10  # characters that one may become
MASKED = 40  # characters of a text whose shape alone is told
_withheld: ContextVar[bool] = ContextVar("withheld", default=False)


class UserError(ValueError):
    """A mistake the user can mend: one line, `place: found X, expected Y`; commands exit with 2.

    What it quotes of files is made printable and short, so that it stays a line and tells a terminal nothing.
    """

    def __init__(self, message: str):
        super().__init__(printable(_shortened(message), longest=ESCAPED * LONGEST))


class NotFinite(UserError):
    """Numbers that are none any more, and so no metric. A training goes on: later weights may do better."""

    def __init__(self, found: str):
        super().__init__(
            f"{found}; precision=fp32 helps where numbers grow too large, a lower base_lr where weights do"
        )


class Diverged(UserError):
    """A training that cannot go on, or has nothing to show, as its numbers are not finite: so it would every time."""


def printable(text: object, longest: int = 200) -> str:
    """A stranger's name as it may stand in a line: nothing in it ends the line or moves the cursor, and it is short."""
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)
    return shown if len(shown) <= longest else shown[:longest] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """How a line ends that refuses a name: with the known one that is spelt most alike, whatever its case; or ""."""
    spelt = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), spelt, n=1)
    return f"; did you mean {spelt[near[0]]}?" if near else ""


@contextmanager
def withholding(secret: bool) -> Iterator[None]:
    """While it lasts, nothing is `quoted` where that is secret: neither tables' values nor the paths of files."""
    before = _withheld.set(secret)
    try:
        yield
    finally:
        _withheld.reset(before)


def quoted(text: object, instead: str | None = None) -> str:
    """What a table or a file's name says, as a message may say it: of credentialed data `instead`, or the shape alone.

    The shape of `50414267.0` is `00000000.0`, which is enough to see that a spreadsheet was at work.
    """
    if not _withheld.get():
        return str(text)
    if instead is not None:
        return instead
    shape = re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", str(text)))
    return shape[:MASKED]


def _shortened(text: str) -> str:
    """Without its middle, if it is long: how it begins and ends says what is wrong."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 1
    return f"{text[:half]}…{text[-half:]}"
