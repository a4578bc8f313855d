"""The comparison's tables, one for each label budget, with the figures that go with them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from classify.comparison import Comparison, FailedRow, Line
from classify.metrics import expected_calibration_error
from classify.report.figures import Row, auc_limits, forest, reliability, roc, svg
from classify.report.tables import caption, contrast_caption, contrast_rows, heading, images_of, table_row
from classify.report.verdict import verdict
from data.labels import words


@dataclass(frozen=True)
class ConfusionRow:
    """The cases of one class, counted over the seeds."""

    name: str  # of the class
    counts: tuple[int, int]  # how many were predicted as the one and as the other class
    shares: tuple[float, float]
    right: int  # which of the two predictions is right


@dataclass(frozen=True)
class Budget:
    """A label budget: one table, and the figures that go with it."""

    comparison: Comparison
    labelled: int | None
    rows: tuple[Row, ...]

    @property
    def images(self) -> str:
        return images_of(self.comparison, self.labelled)

    @property
    def heading(self) -> str:
        return heading(self.comparison, self.labelled)

    @property
    def words(self) -> tuple[str, str]:
        return words(self.comparison.config.data.target)

    @property
    def caption(self) -> str:
        return caption(self.comparison, self.labelled)

    @property
    def contrasts(self) -> list[dict[str, str]]:
        return list(contrast_rows(self.comparison, self.labelled))

    @property
    def contrast_caption(self) -> str:
        return contrast_caption(self.comparison)

    @property
    def verdict(self) -> str:
        return verdict(self.comparison, self.labelled)

    @property
    def failed(self) -> list[FailedRow]:
        """The rows of which no training finished."""
        return [row for row in self.comparison.failed_rows if row.labelled == self.labelled]

    @cached_property
    def forest(self) -> str:
        # the same for all budgets, so that their figures can be compared
        limits = auc_limits(row for budget in budgets_of(self.comparison) for row in budget.rows)
        return svg(f"AUC with its interval, {self.heading}", forest, self.rows, limits)

    @cached_property
    def roc(self) -> str | None:
        if not self.rows[0].has_both_classes:
            return None
        return svg(f"ROC curves, {self.heading}", roc, self.rows)

    @cached_property
    def reliability(self) -> str:
        return svg(f"Calibration, {self.heading}", reliability, self.rows, self.words[1])

    def cells(self, row: Row) -> dict[str, str]:
        return table_row(row.line.described, row.line.intervals)

    def calibration_error(self, row: Row) -> float:
        """Mean over the seeds."""
        return float(np.mean([expected_calibration_error(row.line.labels, scores) for scores in row.line.scores]))

    def confusion(self, row: Row) -> list[ConfusionRow]:
        return confusion(row.line, self.words)


def budgets_of(comparison: Comparison) -> list[Budget]:
    """The comparison's tables, in its own order."""
    budgets = []
    for labelled in comparison.budgets:
        rows = [Row(line.name, place, line) for place, line in enumerate(comparison.lines_of(labelled))]
        budgets.append(Budget(comparison, labelled, tuple(rows)))
    return budgets


def confusion(line: Line, names: tuple[str, str]) -> list[ConfusionRow]:
    """For each class, by its name: how many of it were predicted as the one and the other, summed over the seeds."""
    predicted = line.scores >= line.thresholds[:, None]  # s n
    rows = []
    for label, name in enumerate(names):
        of_class = predicted[:, line.labels == label]  # s n_class
        total = of_class.size
        positive = int(of_class.sum())
        counts = (total - positive, positive)
        shares = (counts[0] / max(total, 1), counts[1] / max(total, 1))
        rows.append(ConfusionRow(name, counts, shares, right=label))
    return rows
