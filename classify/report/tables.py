"""Results as text: the table's columns, its rows, and what a comparison says."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from classify.comparison import Comparison, Line, describe, name_of
from classify.evaluate import Evaluation
from classify.metrics import HEADLINE, Interval
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
    intervals = {name: Interval(summary["metrics"][name], tuple(summary["intervals"][name])) for name in HEADLINE}
    return table_row(describe(evaluation.config, bool(summary["meta"]["pretrained_from"])), intervals)


def show(interval: Interval, signed: bool = False) -> str:
    """`.755 [.735, .774]`; signed: `+.012 [-.003, +.027]`."""
    values = (interval.estimate, *interval.interval)
    text = [f"{value:{'+' if signed else ''}.3f}".replace("0.", ".", 1) for value in values]
    return f"{text[0]} [{text[1]}, {text[2]}]"


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as an aligned Markdown table, in `COLUMNS` or the rows' own order."""
    columns = list(rows[0])
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    lines = [columns, ["-" * widths[column] for column in columns], *([row[c] for c in columns] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(widths[column]) for cell, column in zip(line, columns, strict=True)) + " |"
        for line in lines
    )


# ---------------------------------------------------------------- comparison


def comparison_text(comparison: Comparison) -> str:
    """comparison.md: a table per label budget, what its numbers are, and the tests against the baseline."""
    parts = [f"# {comparison.config.run}: {task(comparison.config.data.target)}"]
    for labelled in comparison.config.compare.labelled:
        lines = [comparison.lines[number] for number in comparison.numbers(labelled)]
        parts.append(f"## {lines[0].evaluations[0].summary['meta']['train_images']:,} labelled training images")
        parts.append(markdown([table_row(line.described, line.intervals) for line in lines]))
        parts.append(caption(comparison, lines[0]))
        if len(lines) > 1:
            parts.append(markdown(list(difference_rows(comparison, labelled))))
            parts.append(verdict(comparison, labelled))
    if comparison.data.manifest.credentialed:
        parts.append("Made from credentialed data: check the data use agreement before sharing any of it.")
    return "\n\n".join([*parts, "Not a medical device."])


def task(target: str | None) -> str:
    """What is told apart: `normal against abnormal`, or `Pneumonia: positive against negative`."""
    negative, positive = words(target)
    return f"{negative} against {positive}" if target is None else f"{target}: {positive} against {negative}"


def caption(comparison: Comparison, line: Line) -> str:
    """What the table's numbers are, in a sentence or two."""
    config, summary, seeds = comparison.config, line.evaluations[0].summary, len(comparison.config.compare.seeds)
    seen = max(e.summary["pretrained_on"] for each in comparison.lines for e in each.evaluations)
    summary = summary | {"pretrained_on": seen}
    positive = words(config.data.target)[1]
    resampled = "patients" if summary["patients_known"] else "images"
    return (
        f"Split {config.compare.split}: {cases(summary)}; {100 * line.labels.mean():.0f} % {positive}. "
        f"In brackets {100 * config.evaluate.level:g} % bootstrap intervals, {resampled} "
        f"{'and seeds ' if seeds > 1 else ''}resampled; {seeds} training seed{'s' if seeds > 1 else ''}"
        f"{', mean shown' if seeds > 1 else ', so how much training varies is not in them'}. "
        "Best epoch and threshold were chosen on validation."
    )


def cases(summary: dict[str, Any]) -> str:
    """What an evaluation counted: how many, of whom, and how many of them a pretraining had seen."""
    units = "images" if summary["unit"] == "image" else "studies"
    whom = f"of {summary['patients']:,} patients"
    if not summary["patients_known"]:
        whom = "(patients unknown, so taken as independent)"
    seen = f", {summary['pretrained_on']:,} images of them served pretraining" if summary["pretrained_on"] else ""
    return f"n = {summary['n']:,} {units} {whom}{seen}"


def difference_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """Rows of a label budget's table of differences: every line but the baseline."""
    baseline = comparison.baseline(labelled)
    for number in comparison.numbers(labelled):
        if number == baseline:
            continue
        found = comparison.differences[number]
        yield {
            "Model": name_of(comparison.lines[number]),
            f"AUC minus {name_of(comparison.lines[baseline])}": show(found["auc"], True),
            "p (AUC)": _p(found["auc"].p_value),
            "Accuracy difference": show(found["accuracy"], True),
            "p (accuracy)": _p(found["accuracy"].p_value),
        }


def _p(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3f}".removeprefix("0") if value >= 0.001 else "< .001"


def verdict(comparison: Comparison, labelled: int | None) -> str:
    """Who wins on AUC, said plainly: better or worse only where the paired interval excludes no difference."""
    numbers, baseline = comparison.numbers(labelled), comparison.baseline(labelled)
    best = max((comparison.lines[i] for i in numbers), key=lambda line: line.intervals["auc"].estimate)
    text = f"Highest AUC: {name_of(best)}."
    outcome: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for number in numbers:
        if number != baseline:
            low, high = comparison.differences[number]["auc"].interval
            word = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
            outcome[word].append(f'"{name_of(comparison.lines[number])}"')
    said = "; ".join(f"{word}: {', '.join(names)}" for word, names in outcome.items() if names)
    if not said:
        return text
    against = name_of(comparison.lines[baseline])
    return f"{text} Against {against}, by paired bootstrap of the AUC, not adjusted for several tests: {said}."
