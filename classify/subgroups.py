"""How a row does among groups of cases: by view, sex, age, or any column that its predictions carry.

Exploratory: no group was declared as a contrast. For each column the largest gap in AUC is shown. Its p-value is
adjusted for all pairs of groups in all columns of the row (Holm).
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from classify.comparison import Line
from classify.metrics import Difference, Interval, group_difference, holm, metric_intervals
from data.errors import UserError, did_you_mean

USUAL = ("view", "sex", "age")  # columns that are looked at unless others are asked for
LEAST = 10  # cases of each class that a group needs to be computed, and cases that a value needs to be a group
AGES = (18, 40, 60, 80)  # years at which a group of ages begins
VALUES = 30  # most groups that text values make, the most frequent ones: all of their pairs are tested
MOST = 10  # distinct numbers of a column; up to so many, each is a group
UNKNOWN = "unknown"
NUMBER = r"-?[0-9]+(\.[0-9]*)?"  # `²` is a digit too, and no number
METRICS = ("auc", "recall", "specificity")
OF_CASES = ("image_id", "patient_id", "study_id", "label", "logit", "score", "calibrated", "predicted")


@dataclass(frozen=True)
class Subgroup:
    """The cases of one value of a column."""

    column: str
    value: str
    n: int
    positives: int
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # {} where it is too small to be computed


@dataclass(frozen=True)
class Gap:
    """The two groups of a column whose AUCs are furthest apart."""

    column: str
    high: str
    low: str
    difference: Difference
    p_holm: float


@dataclass(frozen=True)
class Breakdown:
    """A row's groups, column by column."""

    groups: tuple[Subgroup, ...] = ()
    gaps: tuple[Gap, ...] = ()


def columns_of(line: Line, wished: Sequence[str] | None) -> list[str]:
    """The columns to look at: those of `wished` that the predictions have, or the usual ones with two known values."""
    predictions = line.evaluations[0].predictions
    if wished is not None:
        return [column for column in dict.fromkeys(wished) if column in predictions and column not in OF_CASES]
    return [column for column in USUAL if column in predictions and predictions[column].nunique() > 1]


def check_columns(wished: Sequence[str] | None, known: Collection[str]) -> None:
    """UserError if a column of `wished` is not in the manifest."""
    for column in wished or ():
        if column in known and column not in OF_CASES:
            continue
        offered = [name for name in known if name not in (*OF_CASES, "path", "split", "own_id")]
        hint = did_you_mean(column, offered)
        raise UserError(f"report.subgroups: found {column!r}, expected columns of the data: {', '.join(offered)}{hint}")


def breakdown(line: Line, columns: Sequence[str]) -> Breakdown:
    """The row's groups of these columns, and the largest gap of each."""
    predictions = line.evaluations[0].predictions
    groups = []
    pairs: list[Gap] = []
    for column in columns:
        values = values_of(predictions[column])
        members = {value: (values == value).to_numpy() for value in _ordered(values)}
        for value, inside in members.items():
            groups.append(_group(line, column, value, inside))

        computed = [group.value for group in groups if group.column == column and group.intervals]
        known = [value for value in computed if not _is_rest(value)]
        for a, b in combinations(known, 2):
            pairs.append(_gap(line, column, (a, members[a]), (b, members[b])))
    return Breakdown(tuple(groups), tuple(_largest(pairs)))


def computed_groups(line: Line, column: str) -> list[str]:
    """The column's groups that `breakdown` computes, without those whose cases have no value in common."""
    values = values_of(line.evaluations[0].predictions[column])
    groups = [value for value in _ordered(values) if not _is_rest(value)]
    return [value for value in groups if _is_enough(line.labels[(values == value).to_numpy()])]


def _is_enough(labels: np.ndarray) -> bool:
    """Whether a group of cases with these labels has enough of each class."""
    positives = int(labels.sum())
    return min(positives, len(labels) - positives) >= LEAST


def _group(line: Line, column: str, value: str, inside: np.ndarray) -> Subgroup:
    labels = line.labels[inside]
    group = Subgroup(column, value, len(labels), positives=int(labels.sum()))
    if not _is_enough(labels):
        return group

    intervals = metric_intervals(
        labels,
        line.scores[:, inside],
        names=METRICS,
        thresholds=line.thresholds,
        groups=line.patients[inside],
        level=line.evaluations[0].config.evaluate.level,
        logits=line.logits[:, inside],
    )
    return replace(group, intervals=intervals)


def _gap(line: Line, column: str, a: tuple[str, np.ndarray], b: tuple[str, np.ndarray]) -> Gap:
    """The higher group minus the lower one."""
    found = _difference(line, a[1], b[1])
    if found.estimate < 0:
        a, b = b, a
        found = _difference(line, a[1], b[1])
    return Gap(column, a[0], b[0], found, np.nan)


def _difference(line: Line, in_a: np.ndarray, in_b: np.ndarray) -> Difference:
    return group_difference(
        line.labels,
        line.scores,
        in_a,
        in_b,
        groups=line.patients,
        level=line.evaluations[0].config.evaluate.level,
        logits=line.logits,
    )


def _largest(pairs: Sequence[Gap]) -> Iterator[Gap]:
    """Each column's largest gap, adjusted for all pairs."""
    if not pairs:
        return
    adjusted = holm([pair.difference.p_value for pair in pairs])
    pairs = [replace(pair, p_holm=float(p)) for pair, p in zip(pairs, adjusted, strict=True)]
    for column in dict.fromkeys(pair.column for pair in pairs):
        of_column = [pair for pair in pairs if pair.column == column]
        yield max(of_column, key=lambda pair: pair.difference.estimate)


# ---------------------------------------------------------------- values


def values_of(column: pd.Series) -> pd.Series:
    """The group of each case, as text: ages and other numbers in ranges, rare values together."""
    if column.name == "age":
        return _ranges(pd.to_numeric(column, errors="coerce"), AGES)
    if is_numeric_dtype(column) and column.nunique() > MOST:
        quarters = np.unique(np.nanquantile(column, [0.25, 0.5, 0.75], method="higher"))  # values that occur
        return _ranges(column, tuple(float(edge) for edge in quarters))

    values = pd.Series([_as_text(value) for value in column], index=column.index, dtype=object)
    counts = values[values != UNKNOWN].value_counts()
    least = LEAST
    if len(counts) > VALUES:
        least = max(LEAST, int(counts.iloc[VALUES]) + 1)
    rare = counts.index[counts < least]
    return values.where(~values.isin(rare), f"values of fewer than {least} cases")


def _is_rest(value: str) -> bool:
    """Whether a group is what is left over: its cases have no value in common."""
    return value == UNKNOWN or value.startswith("values of fewer than")


def _as_text(value: Any) -> str:
    if pd.isna(value) or value == "":
        return UNKNOWN
    return number_text(value) if isinstance(value, float) else str(value)


def number_text(value: float) -> str:
    """`54`, `0.5`, `10000033`: all digits, as different numbers must not become one text."""
    return np.format_float_positional(value, trim="-")


def _ranges(numbers: pd.Series, edges: Sequence[float]) -> pd.Series:
    """`under 18`, `18 to 40` (40 is in the next), …, `80 and above`."""
    ends = [number_text(edge) for edge in edges]
    names = [f"under {ends[0]}"]
    names += [f"{low} to under {high}" for low, high in pairwise(ends)]
    names += [f"{ends[-1]} and above"]
    places = np.searchsorted(edges, numbers.to_numpy(), side="right")
    ranges = pd.Series([names[place] for place in places], index=numbers.index)
    return ranges.where(numbers.notna(), UNKNOWN)


def _ordered(values: pd.Series) -> list[str]:
    """Ranges in the order of their numbers, other values by their letters, and last what is left over."""

    def place(value: str) -> tuple[bool, float, str]:
        first = value.removeprefix("under ").split(" ")[0]
        number = float(first) if re.fullmatch(NUMBER, first) else 0.0
        return _is_rest(value), number - value.startswith("under "), value

    return sorted(values.unique(), key=place)
