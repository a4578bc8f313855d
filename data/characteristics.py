"""Who is in each split: counts by sex, age group and view, as tables of characteristics show them.

Counts of a few people can reveal who they are. So for credentialed data, counts of fewer than `FEWEST` patients are
withheld, and so are counts from which such a count could be worked out.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from data.sources import SPLITS

AGES = (18, 40, 60, 80)  # years at which a group begins
COLUMNS = ("sex", "age", "view")
FEWEST = 11  # patients of a count that may be shown
UNKNOWN = "unknown"


def split_counts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """{split, images, patients, normal, abnormal, unknown} of each split that has images; normal is label 0."""
    rows = []
    for split in SPLITS:
        part = table[table["split"] == split]
        if part.empty:
            continue
        label = part["label"]
        rows.append(
            {
                "split": split,
                "images": len(part),
                "patients": int(part["patient_id"].nunique()),
                "normal": int((label == 0).sum()),
                "abnormal": int((label == 1).sum()),
                "unknown": int(label.isna().sum()),
            }
        )
    return rows


def characteristics(table: pd.DataFrame, credentialed: bool) -> list[dict[str, Any]]:
    """{column, value, splits: {split: {images, patients}}} for each known sex, age group and view; withheld is None.

    A patient with images of two ages, or of two views, counts in both groups.
    """
    rows: list[dict[str, Any]] = []
    for column in COLUMNS:
        if column not in table or table[column].isna().all():
            continue
        groups = _groups(table[column])
        of_column = list(_counted(table, groups, column))
        rows += _without_few(of_column) if credentialed else of_column
    return rows


def _counted(table: pd.DataFrame, groups: pd.Series, column: str) -> Iterator[dict[str, Any]]:
    values = [value for value in groups.cat.categories if (groups == value).any()]
    for value in values:
        splits = {}
        for split in SPLITS:
            part = table[(groups == value) & (table["split"] == split)]
            splits[split] = {"images": len(part), "patients": int(part["patient_id"].nunique())}
        yield {"column": column, "value": value, "splits": splits}


def _groups(column: pd.Series) -> pd.Series:
    """A group for each row, as a category in the order in which groups are shown; unknown last."""
    if column.name != "age":
        words = column.astype(object).where(column.notna(), UNKNOWN).map(str)
        known = sorted(set(words) - {UNKNOWN})
        return pd.Series(pd.Categorical(words, [*known, UNKNOWN]), index=column.index)

    names = [f"under {AGES[0]}", *(f"{low} to under {high}" for low, high in pairwise(AGES))]
    names += [f"{AGES[-1]} and above", UNKNOWN]
    places = np.searchsorted(AGES, column.to_numpy(np.float64), side="right")
    places = np.where(column.isna(), len(names) - 1, places)
    return pd.Series(pd.Categorical([names[place] for place in places], names), index=column.index)


def _without_few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A column's groups without counts of few patients; if there is only one such, the next smallest goes too.

    Else it could be worked out from the split's total and the other counts.
    """
    kept = [{**row, "splits": dict(row["splits"])} for row in rows]
    for split in SPLITS:
        there = [row for row in kept if row["splits"][split]["images"]]
        there.sort(key=lambda row: row["splits"][split]["patients"])
        few = [row for row in there if row["splits"][split]["patients"] < FEWEST]
        if len(few) == 1:
            few = there[:2]
        for row in few:
            row["splits"][split] = None
    return kept


def shown(counts: Mapping[str, int] | None) -> str:
    """`1,234 (99)`: images and patients, or what stands there instead."""
    if counts is None:
        return "withheld"
    if not counts["images"]:
        return "–"
    return f"{counts['images']:,} ({counts['patients']:,})"
