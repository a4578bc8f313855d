"""The report's figures, as inline SVG by matplotlib's object API: no clock, no global state, no markup of users'.

Names stand in the HTML around a figure, or as text the SVG writer escapes. A row of the table keeps
its colour and marker through every figure.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator
from sklearn.metrics import roc_curve

from classify.comparison import Line
from classify.metrics import reliability_curve
from classify.style import COLOURS, GREY, INK, MARKERS, STYLE

PIXELS_PER_INCH = 100  # how large an inch of figure is shown, at most
FPR = np.linspace(0, 1, 201)  # where ROC curves of several seeds are averaged


@dataclass(frozen=True)
class Row:
    """A line of the comparison, with the name, colour and marker it has throughout the report."""

    name: str
    place: int  # among the rows of its label budget
    line: Line

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]

    @property
    def marker(self) -> str:
        return list(MARKERS)[self.place % len(MARKERS)]

    @property
    def symbol(self) -> str:
        return MARKERS[self.marker]

    @property
    def has_both_classes(self) -> bool:
        return len(np.unique(self.line.labels)) == 2


def svg(label: str, draw: Callable[..., Figure], *arguments: Any) -> Markup:
    """The drawing as an `<svg>` that shrinks with the page; `label` says what it shows and is unique in a page."""
    buffer = StringIO()
    with rc_context(STYLE | {"svg.hashsalt": label}):
        figure = draw(*arguments)
        figure.savefig(buffer, format="svg", metadata={"Date": None})

    # no clock, no version, no ids that another figure of the page has too
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)

    # the file's own header goes, and its size: the page's style gives one
    body = text[text.index("<svg") :]
    body = re.sub(r' (width|height)="[^"]*"', "", body, count=2)
    width = figure.get_size_inches()[0] * PIXELS_PER_INCH
    attributes = f'role="img" aria-label="{escape(label)}" style="max-width:{width:.0f}px"'
    return Markup(body.replace("<svg", f"<svg {attributes}", 1))


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


# ---------------------------------------------------------------- scores


def auc_limits(rows: Iterable[Row]) -> tuple[float, float]:
    """Limits of an AUC axis that holds every interval and is at least 0.1 wide."""
    ends = []
    for row in rows:
        ends += [end for end in row.line.intervals["auc"].interval if np.isfinite(end)]
    if not ends:
        ends = [0.0, 1.0]

    # a little air on both sides, but hardly any above 1, where nothing is
    high = min(max(ends) + 0.01, 1.005)
    low = min(min(ends) - 0.01, high - 0.1)
    return low, high


def forest(rows: Sequence[Row], limits: tuple[float, float]) -> Figure:
    """AUC and interval of every row under its name."""
    figure, [axes] = _axes(5.6, 0.6 + 0.48 * len(rows))

    # behind the rows: chance, where the axis reaches it
    if limits[0] < 0.5:
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")

    # from the bottom up, so that the first row is the highest
    for height, row in enumerate(reversed(rows)):
        auc = row.line.intervals["auc"]
        axes.plot(auc.interval, [height, height], color=row.colour, linewidth=2, solid_capstyle="butt")
        axes.plot([auc.estimate], [height], row.marker, color=row.colour, markersize=7)

        name = row.name
        if len(name) > 60:
            name = name[:59] + "…"
        axes.annotate(name, (0, height + 0.33), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)

    axes.set(xlim=limits, ylim=(-0.45, len(rows) - 0.4), yticks=[], xlabel="AUC")
    axes.spines["left"].set_visible(False)
    return figure


def roc(rows: Sequence[Row]) -> Figure:
    """ROC curves, each seed thin and their mean thick; the marker is the threshold chosen on validation."""
    figure, [axes] = _axes(4.4, 4.4)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")

    # each seed's curve, and the mean of several
    for row in rows:
        several = len(row.line.scores) > 1
        curves = []
        for logits in row.line.logits:
            x, y, _ = roc_curve(row.line.labels, logits, drop_intermediate=True)
            axes.plot(x, y, color=row.colour, linewidth=0.6 if several else 1.6)
            curves.append(np.interp(FPR, x, y))
        if several:
            axes.plot(FPR, np.mean(curves, axis=0), color=row.colour, linewidth=2)

    # markers lie above all curves
    for row in rows:
        axes.plot(*_operating_points(row.line), row.marker, color=row.colour, mec="white", markersize=8, clip_on=False)

    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xticks=np.linspace(0, 1, 6))
    axes.set(xlabel="1 − specificity", ylabel="Sensitivity (recall)", yticks=np.linspace(0, 1, 6))
    return figure


def _operating_points(line: Line) -> np.ndarray:
    """1 - specificity and sensitivity (2 s) at each seed's threshold."""
    predicted = line.scores >= line.thresholds[:, None]  # s n
    return np.stack([predicted[:, line.labels == label].mean(axis=1) for label in (0, 1)])


def reliability(rows: Sequence[Row], positive: str) -> Figure:
    """Share of the `positive` against mean score in equal-width bins, all seeds together; areas show the counts."""
    figure, [axes] = _axes(4.4, 4.4)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")

    for row in rows:
        seeds = len(row.line.scores)
        curve = reliability_curve(np.tile(row.line.labels, seeds), row.line.scores.ravel(), bins=10)
        x, y = curve.mean_score, curve.positive_rate
        area = 160 * curve.count / curve.count.sum()
        axes.plot(x, y, color=row.colour, linewidth=1)
        axes.scatter(x, y, area, color=row.colour, marker=row.marker, alpha=0.85, clip_on=False)

    axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02), aspect="equal", xticks=np.linspace(0, 1, 6))
    axes.set(xlabel="Mean score", ylabel=f"Share {positive}", yticks=np.linspace(0, 1, 6))
    return figure


# ---------------------------------------------------------------- training

Epoch = dict[str, float]  # a row of metrics.jsonl that ends an epoch


def reconstruction_losses(epochs: Sequence[Epoch]) -> Figure:
    """Training and validation loss of a stage-one run, the epoch with the lowest ringed."""
    figure, [axes] = _axes(3.1, 2.2)
    _losses(axes, epochs, INK)
    best = min(epochs, key=lambda row: row["validate/loss"])
    _ring(axes, best, "validate/loss", INK)
    _finish(axes, "Reconstruction loss")
    return figure


class RunCurves(NamedTuple):
    epochs: Sequence[Epoch]
    kept: Epoch  # the one that best.pt holds


def training_curves(runs: Sequence[RunCurves], colour: str, auc_range: tuple[float, float]) -> Figure:
    """Losses and validation AUC of a row's runs, one per seed, each with the epoch that was kept."""
    figure, [left, right] = _axes(4.8, 2.3, columns=2)
    for number, run in enumerate(runs):
        _losses(left, run.epochs, colour, named=number == 0)
        _ring(left, run.kept, "validate/loss", colour)
        _curve(right, run.epochs, "validate/auc", colour, dash="-")
        _ring(right, run.kept, "validate/auc", colour)

    right.set_ylim(auc_range)
    _finish(left, "Loss")
    _finish(right, "Validation AUC")
    return figure


def _losses(axes: Axes, epochs: Sequence[Epoch], colour: str, named: bool = True) -> None:
    """Training and validation loss; `named` in the legend, once for all seeds."""
    _curve(axes, epochs, "epoch/train_loss", colour, dash=":", label="training" if named else None)
    _curve(axes, epochs, "validate/loss", colour, dash="-", label="validation" if named else None)
    axes.legend(loc="best", handlelength=1.6)


def _curve(axes: Axes, epochs: Sequence[Epoch], name: str, colour: str, dash: str, label: str | None = None) -> None:
    x = [row["epoch"] for row in epochs]
    y = [row[name] for row in epochs]
    marker = "o" if len(epochs) == 1 else None  # a line through one point would not be seen
    axes.plot(x, y, dash, color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)


def _ring(axes: Axes, row: Epoch, name: str, colour: str) -> None:
    axes.plot([row["epoch"]], [row[name]], "o", color=colour, markerfacecolor="white", markersize=6)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("Epoch")
    axes.margins(x=0.05, y=0.12)
    axes.set_xlim(left=0)
    locator = AutoLocator()
    locator.set_params(integer=True)
    axes.xaxis.set_major_locator(locator)
