"""`data.where`: rows chosen by what stands in the columns of the manifest."""

import re
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import pandas as pd

from data.errors import UserError, did_you_mean, printable, quoted
from data.settings import DataSettings, Value
from data.sources import LeftOut

NOT_ASKED = ("rule", "study_date")  # needed only until the manifest is made
IDS = ("image_id", "patient_id", "study_id")  # which are texts: 007 is not 7
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")  # 1e5 may be somebody's name
SHOWN = 10  # values that a message lists


def chosen_rows(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """The rows in which every column that `data.where` names has one of its values; and notes.

    Numbers are compared as numbers, whatever their spelling; a blank cell has no value. Raises UserError for a column
    that is not there, and where no row is left.
    """
    notes: list[str] = []
    for column, wanted in settings.where.items():
        _require_column(table, column, settings.source)
        kept = np.zeros(len(table), bool)
        for value in wanted:
            found = table[column].eq(_text(value)).to_numpy() if column in IDS else _equal(table[column], value)
            if not found.any():
                notes.append(f"data.where: no image has {_said(column, [value])}")
            kept |= found

        if not kept.any():
            raise UserError(
                f"data.where: {printable(column)}: found {_values(table[column])} in source {settings.source}, "
                f"expected some of {_listed(wanted)}"
            )
        if not kept.all():
            notes.append(LeftOut(int((~kept).sum()), f"not {_said(column, wanted)} (data.where)"))
        if settings.labelled:
            notes += _emptied(table["split"], table["split"][kept])
        table = table[kept]
    return table, notes


def _emptied(before: pd.Series, after: pd.Series) -> list[str]:
    """Notes on the data set's own splits that have no image left, so that another one is drawn in their place."""
    gone = sorted(set(before.dropna()) - set(after.dropna()))
    return [f"data.where: leaves no image of the data set's own split {printable(str(split))}" for split in gone]


def _require_column(table: pd.DataFrame, column: str, source: str) -> None:
    names = [str(name) for name in table.columns if name not in NOT_ASKED]
    if column not in names:
        unkept = " (columns of free text are not kept)" if source == "table" else ""
        raise UserError(
            f"data.where: found no column {printable(column)} in source {source}, expected one of "
            f"{printable(', '.join(names))}{unkept}{did_you_mean(column, names)}"
        )


def _equal(column: pd.Series, value: Value) -> np.ndarray:
    """(n) bool: which cells say that value."""
    number = _as_number(value)
    if column.dtype.kind == "f":
        return np.zeros(len(column), bool) if number is None else np.asarray(column == float(number))
    texts = pd.Series(column.unique(), dtype=object).dropna()
    same = [text for text in texts if text == value or (number is not None and _as_number(text) == number)]
    return column.isin(same).to_numpy(dtype=bool)


def _as_number(value: Value) -> Decimal | None:
    """Exact: numbers of 17 digits may differ in the last one alone."""
    text = _text(value)
    return Decimal(text) if isinstance(value, float) or NUMBER.fullmatch(text) else None


def _text(value: Value) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _said(column: str, wanted: Iterable[Value]) -> str:
    return printable(f"{column} {_listed(wanted)}")


def _listed(values: Iterable[Value]) -> str:
    return printable(" or ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values))


def _values(column: pd.Series) -> str:
    """The commonest values and their counts, unless the data are confidential."""
    counts = column.value_counts()
    if counts.empty:
        return "nothing"
    shown = ", ".join(f"{value} ({n:,})" for value, n in counts.head(SHOWN).items())
    return quoted(printable(shown + (", …" if len(counts) > SHOWN else "")), f"{len(counts):,} other values")
