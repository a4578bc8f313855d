"""Which figures stand in which section of the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from classify.comparison import Comparison
from classify.report.budgets import Budget, budgets_of
from classify.report.calibrations import are_probabilities, calibrated_scores, is_calibrated
from classify.report.curves import (
    Efficiency,
    Scored,
    decisions,
    label_efficiency,
    precision_recall,
    reliability,
    roc,
)
from classify.report.figures import Row, svg
from classify.report.forests import auc_limits, contrast_forest, forest, group_forest
from classify.report.labels import lines_by_name
from classify.report.numbers import show
from classify.report.operating import decision_curves
from classify.report.subgroup_tables import breakdowns
from classify.report.training import pretrainings, trainings
from classify.report.verdict import largest_budget
from data.labels import words

GROUPS = 40  # bars that a figure of groups may have


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption and heading, and the rows that are in it."""

    caption: str
    drawing: Markup
    legend: tuple[tuple[Row, str], ...] = ()  # a row, and a text beside its name
    heading: str = ""  # above this figure and those that follow
    kind: str = "chart"  # how much room it takes


def figures_of(comparison: Comparison) -> dict[str, list[Figure]]:
    """The figures of each section, by its anchor."""
    budgets = budgets_of(comparison)
    found = {}
    limits = auc_limits(row for budget in budgets for row in budget.rows)  # for all, so that they can be compared
    for number, budget in enumerate(budgets):
        anchor = "results" if number == 0 else f"results-{number + 1}"
        found[anchor] = list(_forests(comparison, budget, limits))

    largest = next(budget for budget in budgets if budget.labelled == largest_budget(comparison))
    found["roc"] = [figure for budget in budgets for figure in _curves(budget, len(budgets) > 1)]
    found["calibration"] = [figure for budget in budgets for figure in _reliability(budget, len(budgets) > 1)]
    found["labels"] = list(_label_efficiency(comparison, budgets, limits))
    found["subgroups"] = list(_groups(comparison, largest))
    found["operating"] = list(_decisions(comparison, largest))
    found["training"] = list(_training(comparison, budgets))
    return found


def _forests(comparison: Comparison, budget: Budget, limits: tuple[float, float]) -> Iterator[Figure]:
    contrasts = [contrast for contrast in comparison.contrasts_of(budget.labelled) if not contrast.why_not]
    told = " The contrasts, not overlap, say whether two rows differ." if contrasts else ""
    drawing = svg(f"AUC with its interval, {budget.heading}", forest, budget.rows, limits)
    yield Figure(f"AUC with its interval.{told}", drawing)
    if contrasts:
        drawing = svg(f"Contrasts of AUC with their intervals, {budget.heading}", contrast_forest, contrasts)
        margin = any(contrast.declared.margin is not None for contrast in contrasts)
        said = " Dotted: the margin of non-inferiority." if margin else ""
        yield Figure(f"Contrasts: differences of AUC with their intervals, not adjusted.{said}", drawing)


def _curves(budget: Budget, several: bool) -> Iterator[Figure]:
    rows = [row for row in budget.rows if row.has_both_classes]
    if not rows:
        return
    heading = budget.heading if several else ""
    legend = tuple((row, f"AUC {show(row.line.intervals['auc'])}") for row in rows)
    yield Figure("ROC", svg(f"ROC curves, {budget.heading}", roc, rows), legend, heading)
    drawing = svg(f"Precision-recall curves, {budget.heading}", precision_recall, rows)
    yield Figure("Precision and recall", drawing, tuple((row, "") for row in rows))


def _reliability(budget: Budget, several: bool) -> Iterator[Figure]:
    positive = words(budget.comparison.config.data.target)[1]
    raw = [Scored(row, row.line.scores) for row in budget.rows if are_probabilities(row.line)]
    if not raw:
        return
    legend = tuple((row, "") for row, _ in raw)
    label = f"Reliability of raw scores, {budget.heading}"
    drawing = svg(label, reliability, raw, positive, "Mean raw score")
    yield Figure("Raw scores", drawing, legend, budget.heading if several else "")

    calibrated = []
    for row, _ in raw:
        scores = calibrated_scores(row.line)
        if is_calibrated(row.line) and scores is not None:
            calibrated.append(Scored(row, scores))
    if calibrated:
        label = f"Reliability of calibrated scores, {budget.heading}"
        drawing = svg(label, reliability, calibrated, positive, "Mean calibrated score")
        yield Figure("Calibrated scores", drawing, tuple((row, "") for row, _ in calibrated))


def _label_efficiency(comparison: Comparison, budgets: list[Budget], limits: tuple[float, float]) -> Iterator[Figure]:
    if len(budgets) < 2:
        return
    rows = {row.name: row for budget in budgets for row in budget.rows}
    curves = []
    for name, lines in lines_by_name(comparison).items():
        aucs = [line.intervals["auc"] for _, line in lines]
        curves.append(Efficiency(rows[name], [images for images, _ in lines], aucs))
    if curves:
        drawing = svg("AUC by the number of labelled training images", label_efficiency, curves, limits)
        yield Figure("AUC with bands over patients and seeds", drawing, tuple((curve.row, "") for curve in curves))


def _groups(comparison: Comparison, largest: Budget) -> Iterator[Figure]:
    rows = {row.name: row for row in largest.rows}
    bars = []
    for line, found in breakdowns(comparison):
        bars += [(rows[line.name], group) for group in found.groups if group.intervals]
    order = list(dict.fromkeys((group.column, group.value) for _, group in bars))
    bars.sort(key=lambda bar: order.index((bar[1].column, bar[1].value)))
    if 0 < len(bars) <= GROUPS:
        yield Figure("AUC of each group with its interval", svg("AUC of groups of cases", group_forest, bars))


def _decisions(comparison: Comparison, largest: Budget) -> Iterator[Figure]:
    rows = {row.name: row for row in largest.rows}
    curves = [(rows[line.name], curve) for line, curve in decision_curves(comparison)]
    if curves:
        drawing = svg("Decision curves", decisions, curves)
        said = "Decision curve. Dashed: acting on all; dotted: acting on none"
        yield Figure(said, drawing, tuple((row, "") for row, _ in curves))


def _training(comparison: Comparison, budgets: list[Budget]) -> Iterator[Figure]:
    first = True
    for run in pretrainings(comparison):
        epochs = f"{run.epochs:g} epoch{'' if run.epochs == 1 else 's'}"
        kept = f"kept: loss {run.kept['validate/loss']:.4f} in epoch {run.kept['epoch']:g}"
        heading = "Stage one: reconstruction loss" if first else ""
        yield Figure(f"{run.name}: {epochs}, {kept}", Markup(run.figure), heading=heading, kind="loss")
        first = False

    first = True
    for training in trainings(budgets):
        seeds = len(training.row.line.evaluations)
        caption = f", {training.budget.heading}" if len(budgets) > 1 else ""
        caption += f": {seeds} seeds" if seeds > 1 else ""
        heading = "Stage two: classifiers" if first else ""
        yield Figure("", Markup(training.figure), ((training.row, caption),), heading, kind="row")
        first = False
