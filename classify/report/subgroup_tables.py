"""Tables of subgroups, of the rows at the largest label budget."""

from collections.abc import Iterator
from typing import Any

from classify.comparison import Comparison, Line
from classify.report.numbers import show, show_p
from classify.report.verdict import largest_budget
from classify.subgroups import LEAST, METRICS, Breakdown, breakdown, columns_of
from data.labels import words

COLUMNS = {"auc": "AUC", "recall": "Sensitivity", "specificity": "Specificity"}
assert tuple(COLUMNS) == METRICS
SUBGROUPS = (
    "Each group by itself, at the row's own thresholds, at the largest label budget. Groups with fewer than "
    f"{LEAST} cases of a class are listed but not computed."
)
GAPS = (
    "The two groups of a column whose AUCs are furthest apart. Exploratory: no contrast declared them. Holm p is "
    "adjusted for all pairs of groups of all columns of the row; intervals are not adjusted."
)


def breakdowns(comparison: Comparison) -> Iterator[tuple[Line, Breakdown]]:
    """The groups of each row of the largest label budget."""
    for line in comparison.lines_of(largest_budget(comparison)):
        columns = columns_of(line, comparison.config.report.subgroups)
        if columns:
            yield line, breakdown(line, columns)


def subgroup_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """A row for each group of each row."""
    positive = words(comparison.config.data.target)[1]
    for line, found in breakdowns(comparison):
        for group in found.groups:
            row = {"Model": line.name, "Group": f"{group.column}: {group.value}", "n": f"{group.n:,}"}
            row[positive] = f"{group.positives:,}"
            for metric, column in COLUMNS.items():
                row[column] = show(group.intervals[metric]) if group.intervals else "too few"
            yield row


def gap_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """A row for each column's largest gap, of each row."""
    for line, found in breakdowns(comparison):
        for gap in found.gaps:
            yield {
                "Model": line.name,
                "Largest gap": f"{gap.column}: {gap.high} minus {gap.low}",
                "AUC difference": show(gap.difference, signed=True),
                "p": show_p(gap.difference.p_value),
                "Holm p": show_p(gap.p_holm),
            }


def subgroups_as_json(comparison: Comparison) -> list[dict[str, Any]]:
    """What the tables show, for scripts."""
    rows = []
    for line, found in breakdowns(comparison):
        groups = []
        for group in found.groups:
            numbers = {name: [value.estimate, *value.interval] for name, value in group.intervals.items()}
            about = {"column": group.column, "value": group.value, "n": group.n, "positives": group.positives}
            groups.append(about | {"intervals": numbers})
        gaps = []
        for gap in found.gaps:
            difference = [gap.difference.estimate, *gap.difference.interval]
            about = {"column": gap.column, "high": gap.high, "low": gap.low, "difference": difference}
            gaps.append(about | {"p": gap.difference.p_value, "p_holm": gap.p_holm})
        rows.append({"row": line.name, "labelled": line.labelled, "groups": groups, "gaps": gaps})
    return rows
