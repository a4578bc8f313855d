"""Curves of the rows: ROC, precision and recall, reliability, decision curve, and AUC by number of labels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from classify.comparison import Line
from classify.metrics import Curve, DecisionCurve, Interval, precision_recall_band, reliability_band, roc_band
from classify.report.figures import PAPER, Row, axes_of
from classify.style import GREY

SIDE = 4.2  # inches
TICKS = np.linspace(0, 1, 6)
BAND = 0.13  # opacity
MARKER_EVERY = 12  # points of a decision curve


def roc(rows: Sequence[Row]) -> Figure:
    """ROC curves with bands, means over seeds; the marker is the threshold chosen on validation."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for row in rows:
        _curve(axes, _of(row.line, roc_band), row)

    # markers lie above all curves
    for row in rows:
        _markers(axes, _operating_points(row.line), row)
    axes.set(xlabel="1 − specificity", ylabel="Sensitivity (recall)")
    return figure


def precision_recall(rows: Sequence[Row]) -> Figure:
    """Precision against recall with bands and the thresholds' points; dashed: the precision of calling all positive."""
    figure, axes = _square()
    axes.axhline(float(rows[0].line.labels.mean()), color=GREY, linewidth=0.8, linestyle="--")
    for row in rows:
        _curve(axes, _of(row.line, precision_recall_band), row)
    for row in rows:
        _markers(axes, _recall_and_precision(row.line), row)
    axes.set(xlabel="Recall (sensitivity)", ylabel="Precision")
    return figure


def _of(line: Line, band: Callable[[np.ndarray, np.ndarray, np.ndarray, float], Curve]) -> Curve:
    return band(line.labels, line.logits, line.patients, line.evaluations[0].config.evaluate.level)


def _square() -> tuple[Figure, Axes]:
    figure, [axes] = axes_of(SIDE, SIDE)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xticks=TICKS, yticks=TICKS)
    return figure, axes


def _curve(axes: Axes, curve: Curve, row: Row) -> None:
    axes.fill_between(curve.x, curve.low, curve.high, color=row.colour, alpha=BAND, linewidth=0)
    axes.plot(curve.x, curve.y, color=row.colour, linewidth=1.8)


def _markers(axes: Axes, points: np.ndarray, row: Row) -> None:
    """Points (2 s) of a row's seeds."""
    x, y = points
    axes.plot(x, y, row.marker, color=row.colour, mec=PAPER, markersize=8, clip_on=False, linestyle="none")


def _operating_points(line: Line) -> np.ndarray:
    """1 - specificity and sensitivity (2 s) at each seed's threshold."""
    predicted = line.scores >= line.thresholds[:, None]  # s n
    return np.stack([predicted[:, line.labels == label].mean(axis=1) for label in (0, 1)])


def _recall_and_precision(line: Line) -> np.ndarray:
    """Recall and precision (2 s) at the thresholds of the seeds that call any case positive."""
    predicted = line.scores >= line.thresholds[:, None]  # s n
    predicted = predicted[predicted.any(axis=1)]
    hits = (predicted & (line.labels == 1)).sum(axis=1)
    return np.stack([hits / (line.labels == 1).sum(), hits / predicted.sum(axis=1)])


class Scored(NamedTuple):
    """A row with scores (s n) that claim to be probabilities."""

    row: Row
    scores: np.ndarray


def reliability(rows: Sequence[Scored], positive: str, axis: str) -> Figure:
    """Share of `positive` against mean score in equal-width bins, with bands; marker areas show the counts."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for row, scores in rows:
        level = row.line.evaluations[0].config.evaluate.level
        curve = reliability_band(row.line.labels, scores, row.line.patients, level=level)
        axes.fill_between(curve.x, curve.low, curve.high, color=row.colour, alpha=BAND, linewidth=0)
        axes.plot(curve.x, curve.y, color=row.colour, linewidth=1.2)
        area = 8 + 140 * curve.count / curve.count.sum()
        axes.scatter(curve.x, curve.y, area, color=row.colour, marker=row.marker, alpha=0.85, clip_on=False)
    axes.set(xlabel=axis, ylabel=f"Share {positive}")
    return figure


def decisions(curves: Sequence[tuple[Row, DecisionCurve]]) -> Figure:
    """Net benefit by threshold probability: of each row, of treating all, of treating none."""
    figure, [axes] = axes_of(SIDE, 3.6)
    first = curves[0][1]
    axes.plot(first.thresholds, first.treat_all, color=GREY, linewidth=1, linestyle="--")
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    highest = max(float(first.treat_all.max()), 0.01)
    for row, curve in curves:
        axes.fill_between(curve.thresholds, curve.low, curve.high, color=row.colour, alpha=BAND, linewidth=0)
        # rows of one colour differ by their markers, which stand apart where curves lie together
        at = (row.place % MARKER_EVERY, MARKER_EVERY)
        axes.plot(curve.thresholds, curve.net_benefit, f"-{row.marker}", color=row.colour, markevery=at, linewidth=1.6)
        highest = max(highest, float(np.nanmax(curve.net_benefit)))
    axes.set(xlim=(0, 1), ylim=(-0.15 * highest, 1.1 * highest), xticks=TICKS)
    axes.set(xlabel="Threshold probability", ylabel="Net benefit")
    return figure


class Efficiency(NamedTuple):
    """A row's AUC by the number of labelled images it was trained on."""

    row: Row
    images: Sequence[float]  # means over its trainings
    aucs: Sequence[Interval]


def label_efficiency(rows: Sequence[Efficiency], limits: tuple[float, float]) -> Figure:
    """AUC against labelled training images, on a logarithmic axis, with bands."""
    figure, [axes] = axes_of(SIDE, 3.6)
    for row, images, aucs in rows:
        low, high = np.array([auc.interval for auc in aucs]).T
        estimates = [auc.estimate for auc in aucs]
        if len(images) > 1:
            axes.fill_between(images, low, high, color=row.colour, alpha=BAND, linewidth=0)
        axes.plot(images, estimates, color=row.colour, marker=row.marker, markersize=6, linewidth=1.6)

    axes.set_xscale("log")
    ticks = sorted({count for each in rows for count in each.images})
    axes.xaxis.set_major_locator(FixedLocator(_apart(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set(ylim=limits, xlabel="Labelled training images", ylabel="AUC")
    return figure


def _apart(ticks: Sequence[float]) -> list[float]:
    """The ticks that are far enough apart to be read on a logarithmic axis."""
    least = (ticks[-1] / ticks[0]) ** (1 / 7) if len(ticks) > 7 else 1.0
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if tick >= kept[-1] * max(least, 1.15):
            kept.append(tick)
    return kept
