"""Forest plots: estimates with intervals under their names, for AUCs, contrasts and groups of cases."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from classify.comparison import Contrast
from classify.report.figures import Row, axes_of, shortened
from classify.style import GREY, INK
from classify.subgroups import Subgroup

WIDTH = 4.2  # inches
LETTERS = 56  # of the longest name that fits


class Bar(NamedTuple):
    """An estimate with its interval."""

    name: str
    estimate: float
    interval: tuple[float, float]
    colour: str = INK
    marker: str = "o"


def auc_limits(rows: Iterable[Row]) -> tuple[float, float]:
    """Limits of an AUC axis that holds every interval and is at least 0.1 wide."""
    return limits_of([_bar(row) for row in rows])


def limits_of(bars: Iterable[Bar], default: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """The same for any estimates up to 1."""
    ends: list[float] = []
    for bar in bars:
        ends += [end for end in (*bar.interval, bar.estimate) if np.isfinite(end)]
    if not ends:
        return default

    # a little space on both sides, but hardly any above 1, where no estimate lies
    high = min(max(ends) + 0.01, 1.005)
    low = min(min(ends) - 0.01, high - 0.1)
    return low, high


def forest(rows: Sequence[Row], limits: tuple[float, float]) -> Figure:
    """AUC and interval of every row under its name."""
    return _forest([_bar(row) for row in rows], limits, "AUC", reference=0.5)


def contrast_forest(contrasts: Sequence[Contrast], flag: str = "AUC difference") -> Figure:
    """Differences of AUC, with the margin of non-inferiority where one was declared."""
    bars = []
    for contrast in contrasts:
        half = LETTERS // 2 - 3
        name = f"{shortened(contrast.a, half)} minus {shortened(contrast.b, half)}"
        bars.append(Bar(name, contrast.auc.estimate, contrast.auc.interval))
    low, high = limits_of([*bars, Bar("", 0.0, (0.0, 0.0))])
    margins = [contrast.declared.margin for contrast in contrasts]
    low = min([low, *(-1.2 * margin for margin in margins if margin is not None)])
    figure = _forest(bars, (low, high), flag, reference=0.0)
    for height, margin in enumerate(reversed(margins)):
        if margin is not None:
            figure.axes[0].plot([-margin] * 2, [height - 0.2, height + 0.2], ":", color=GREY, linewidth=1.4)
    return figure


def group_forest(groups: Sequence[tuple[Row, Subgroup]]) -> Figure:
    """AUC of each group of cases of each row, group by group."""
    bars = []
    for row, group in groups:
        auc = group.intervals["auc"]
        name = f"{group.column} {group.value} · {row.name}"
        bars.append(Bar(name, auc.estimate, auc.interval, row.colour, row.marker))
    return _forest(bars, limits_of(bars), "AUC", reference=0.5, step=0.36)


def _bar(row: Row) -> Bar:
    auc = row.line.intervals["auc"]
    return Bar(row.name, auc.estimate, auc.interval, row.colour, row.marker)


def _forest(
    bars: Sequence[Bar], limits: tuple[float, float], title: str, reference: float, step: float = 0.42
) -> Figure:
    figure, [axes] = axes_of(WIDTH, 0.65 + step * len(bars))

    # behind the rows: chance or no difference, where the axis reaches it
    if limits[0] < reference < limits[1]:
        axes.axvline(reference, color=GREY, linewidth=0.8, linestyle="--")

    # from the bottom up, so that the first is the highest
    for height, bar in enumerate(reversed(bars)):
        _draw(axes, bar, height)

    axes.set(xlim=limits, ylim=(-0.45, len(bars) - 0.3), yticks=[], xlabel=title)
    axes.locator_params(axis="x", nbins=6)
    axes.spines["left"].set_visible(False)
    return figure


def _draw(axes: Axes, bar: Bar, height: int) -> None:
    axes.plot(bar.interval, [height, height], color=bar.colour, linewidth=2, solid_capstyle="butt")
    axes.plot([bar.estimate], [height], bar.marker, color=bar.colour, markersize=6.5)
    name = shortened(bar.name, LETTERS)
    written = axes.annotate(name, (0, height + 0.38), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    written.set_in_layout(False)  # a name that is too wide is cut; the axes do not shrink for it
