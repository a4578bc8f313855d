"""The rows of each label budget, with the colours and markers they have throughout the page."""

from dataclasses import dataclass

from classify.comparison import Comparison
from classify.report.figures import Row
from classify.report.tables import heading


@dataclass(frozen=True)
class Budget:
    """A label budget: one table, and the figures that go with it."""

    comparison: Comparison
    labelled: int | None
    rows: tuple[Row, ...]

    @property
    def heading(self) -> str:
        return heading(self.comparison, self.labelled)


def budgets_of(comparison: Comparison) -> list[Budget]:
    """The comparison's tables, in its own order; rows of the same name look the same in all of them."""
    places = {name: place for place, name in enumerate(dict.fromkeys(line.name for line in comparison.lines))}
    budgets = []
    for labelled in comparison.budgets:
        rows = [Row(line.name, places[line.name], line) for line in comparison.lines_of(labelled)]
        budgets.append(Budget(comparison, labelled, tuple(rows)))
    return budgets
