"""Columns of a user's own tables that mean nothing to us: kept as texts for subgroups, if they can name any."""

from collections.abc import Collection, Iterable

import pandas as pd

from data.sources import TAKEN

MOST = 64  # columns that are kept
LONGEST = 100  # characters of a text that may name a subgroup
MOST_TEXTS = 1000  # different ones in a column, unless they are numbers: if more, they are names, dates or identifiers
UNNAMED = ("unnamed column ", "Unnamed: ")  # what we, and what pandas, call a column without a name


def further_columns(header: Iterable[str], read: Collection[str]) -> tuple[list[str], list[str]]:
    """The columns of a header that are not among those `read` already, and notes on those left out."""
    found = [name for name in header if name not in read and not name.startswith(UNNAMED)]
    free = [name for name in found if name not in TAKEN]
    notes = [f"column {name} is not kept: the name is taken" for name in found if name in TAKEN]
    if len(free) > MOST:
        notes.append(f"{len(free) - MOST:,} further columns are not kept, only the first {MOST}")
    return free[:MOST], notes


def without_free_text(table: pd.DataFrame, further: Iterable[str]) -> tuple[list[str], list[str]]:
    """Which of these columns can name subgroups, and a note on those that hold names, dates or reports."""
    kept: list[str] = []
    free: list[str] = []
    for name in further:
        if _is_free_text(table[name]):
            free.append(name)
        else:
            kept.append(name)
    if not free:
        return kept, []
    return kept, [f"not kept, as they hold free text or more than {MOST_TEXTS:,} different ones: {', '.join(free)}"]


def _is_free_text(column: pd.Series) -> bool:
    texts = pd.Series(column.dropna().unique(), dtype=object).astype(str)
    if (texts.str.len().gt(LONGEST) | texts.str.contains(r"[\r\n]")).any():
        return True
    if len(texts) <= MOST_TEXTS:
        return False
    return bool(pd.to_numeric(texts, errors="coerce").isna().any())
