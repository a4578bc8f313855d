"""Results as text: the table's columns, its rows, and what a comparison says."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from classify.comparison import Comparison, Line, describe, name_of
from classify.evaluate import Evaluation
from classify.metrics import HEADLINE, BootstrapDifference, Interval
from data.labels import words

COLUMNS = ("Model", "Augmentation", "% Masking", "Accuracy", "Precision", "F1", "Recall", "AUC")
METRICS = dict(zip(COLUMNS[3:], ("accuracy", "precision", "f1", "recall", "auc"), strict=True))
assert set(METRICS.values()) == set(HEADLINE)


def table_row(described: dict[str, str], intervals: dict[str, Interval]) -> dict[str, str]:
    """A row of the table: `.755 [.735, .774]` for every metric."""
    return described | {column: show(intervals[name]) for column, name in METRICS.items()}


def evaluation_row(evaluation: Evaluation) -> dict[str, str]:
    """The table row of one run."""
    summary = evaluation.summary
    intervals = {}
    for name in HEADLINE:
        low, high = summary["intervals"][name]
        intervals[name] = Interval(summary["metrics"][name], (low, high))
    pretrained = bool(summary["meta"]["pretrained_from"])
    return table_row(describe(evaluation.config, pretrained), intervals)


def show(interval: Interval, signed: bool = False) -> str:
    """`.755 [.735, .774]`; signed: `+.012 [-.003, +.027]`."""
    form = "+.3f" if signed else ".3f"
    values = (interval.estimate, *interval.interval)
    estimate, low, high = (format(value, form).replace("0.", ".", 1) for value in values)
    return f"{estimate} [{low}, {high}]"


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as an aligned Markdown table, in `COLUMNS` or the rows' own order."""
    columns = list(rows[0])
    widths = {}
    for column in columns:
        widths[column] = max(len(column), *(len(row[column]) for row in rows))

    # header and rule are rows like all others
    header = {column: column for column in columns}
    rule = {column: "-" * widths[column] for column in columns}
    lines = []
    for row in (header, rule, *rows):
        cells = [row[column].ljust(widths[column]) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- comparison


def comparison_text(comparison: Comparison) -> str:
    """comparison.md: a table per label budget, what its numbers are, and the tests against the baseline."""
    parts = [f"# {comparison.config.run}: {task(comparison.config.data.target)}"]
    for labelled in comparison.config.compare.labelled:
        lines = [comparison.lines[number] for number in comparison.numbers(labelled)]
        images = lines[0].evaluations[0].summary["meta"]["train_images"]
        parts.append(f"## {images:,} labelled training images")

        # the table, and what its numbers are
        parts.append(markdown([table_row(line.described, line.intervals) for line in lines]))
        parts.append(caption(comparison, lines[0]))

        # the tests against the baseline
        if len(lines) > 1:
            parts.append(markdown(list(difference_rows(comparison, labelled))))
            parts.append(verdict(comparison, labelled))

    if comparison.data.manifest.credentialed:
        parts.append("Made from credentialed data: check the data use agreement before sharing any of it.")
    return "\n\n".join([*parts, "Not a medical device."])


def task(target: str | None) -> str:
    """What is told apart: `normal against abnormal`, or `Pneumonia: positive against negative`."""
    negative, positive = words(target)
    if target is None:
        return f"{negative} against {positive}"
    return f"{target}: {positive} against {negative}"


def caption(comparison: Comparison, line: Line) -> str:
    """What the table's numbers are, in a sentence or two."""
    config = comparison.config
    positive = words(config.data.target)[1]

    # rows were pretrained on different images: the row that has seen most of the split counts for all
    evaluations = [evaluation for of_row in comparison.lines for evaluation in of_row.evaluations]
    seen = max(evaluation.summary["pretrained_on"] for evaluation in evaluations)
    elsewhere = any(evaluation.summary.get("seen_elsewhere") for evaluation in evaluations)
    summary = line.evaluations[0].summary | {"pretrained_on": seen, "seen_elsewhere": elsewhere}

    resampled = "patients" if summary["patients_known"] else "images"
    seeds = len(config.compare.seeds)
    training = "1 training seed, so how much training varies is not in them"
    if seeds > 1:
        resampled += " and seeds"
        training = f"{seeds} training seeds, mean shown"
    return (
        f"Split {config.compare.split}: {case_count(summary)}; {100 * line.labels.mean():.0f} % {positive}. "
        f"In brackets {100 * config.evaluate.level:g} % bootstrap intervals, {resampled} resampled; {training}. "
        "Best epoch and threshold were chosen on validation."
    )


def case_count(summary: dict[str, Any]) -> str:
    """What an evaluation counted: how many, of whom, and how many of them a pretraining had seen."""
    units = "images" if summary["unit"] == "image" else "studies"
    whom = f"of {summary['patients']:,} patients"
    if not summary["patients_known"]:
        whom = "(patients unknown, so taken as independent)"
    seen = ""
    if summary["pretrained_on"]:
        seen = f", {summary['pretrained_on']:,} images of them served pretraining"
    if summary.get("seen_elsewhere"):
        seen += "; weights of another program had seen images that are not known"
    return f"n = {summary['n']:,} {units} {whom}{seen}"


def difference_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """Rows of a label budget's table of differences: every line but the baseline."""
    baseline = comparison.baseline(labelled)
    for number in comparison.numbers(labelled):
        if number == baseline:
            continue
        auc = comparison.differences[number]["auc"]
        accuracy = comparison.differences[number]["accuracy"]

        yield {
            "Model": name_of(comparison.lines[number]),
            f"AUC minus {name_of(comparison.lines[baseline])}": show(auc, signed=True),
            "p (AUC)": _p(auc.p_value),
            "Accuracy difference": show(accuracy, signed=True),
            "p (accuracy)": _p(accuracy.p_value),
        }


def _p(value: float) -> str:
    if np.isnan(value):
        return "–"
    if value < 0.001:
        return "< .001"
    return f"{value:.3f}".removeprefix("0")


def verdict(comparison: Comparison, labelled: int | None) -> str:
    """Who wins on AUC, said plainly: better or worse only where the paired interval excludes no difference."""
    lines = [comparison.lines[number] for number in comparison.numbers(labelled)]
    best = max(lines, key=lambda line: line.intervals["auc"].estimate)
    text = f"Highest AUC: {name_of(best)}."

    # every other row against the baseline
    baseline = comparison.baseline(labelled)
    names: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for number in comparison.numbers(labelled):
        if number != baseline:
            outcome = _outcome(comparison.differences[number]["auc"])
            names[outcome].append(f'"{name_of(comparison.lines[number])}"')

    said = [f"{outcome}: {', '.join(of_outcome)}" for outcome, of_outcome in names.items() if of_outcome]
    if not said:
        return text
    against = name_of(comparison.lines[baseline])
    return (
        f"{text} Against {against}, by paired bootstrap of the AUC, not adjusted for several tests: {'; '.join(said)}."
    )


def _outcome(difference: BootstrapDifference) -> str:
    low, high = difference.interval
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "not distinguishable"
