"""Results as text: the table's columns, its rows, and what a comparison says."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from classify.comparison import Comparison, Line, describe, name_of
from classify.evaluate import Evaluation
from classify.metrics import HEADLINE, BootstrapDifference, Interval
from data.errors import ESCAPED, printable
from data.labels import words
from data.privacy import terms

COLUMNS = ("Model", "Augmentation", "% Masking", "Accuracy", "Precision", "F1", "Recall", "AUC")
METRICS = dict(zip(COLUMNS[3:], ("accuracy", "precision", "f1", "recall", "auc"), strict=True))
assert set(METRICS.values()) == set(HEADLINE)
FLATTERING = "These are validation images, on which epochs and thresholds were chosen too, so the numbers flatter."
UNKNOWN_WEIGHTS = (
    "Weights of another program took part: whether they were made from credentialed data is not known here."
)


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
    described = describe(evaluation.config, bool(summary["meta"]["pretrained_from"]))
    if summary["split"] == "validate":
        described["Model"] += " (on validation)"
    return table_row(described, intervals)


def evaluation_text(evaluations: list[Evaluation]) -> str:
    """What mae-evaluate prints: a table of the runs, and what each was evaluated on."""
    parts = [markdown([evaluation_row(evaluation) for evaluation in evaluations])]
    for evaluation in evaluations:
        split = evaluation.summary["split"]
        count = case_count(evaluation.summary)
        parts.append(f"{evaluation.path}: split {split}: {count}; threshold {evaluation.threshold:.3f}")
    if any(evaluation.summary["split"] == "validate" for evaluation in evaluations):
        parts.append(FLATTERING)
    credentialed = {name for evaluation in evaluations for name in evaluation.summary.get("credentialed", ())}
    if credentialed:
        parts.append(plain(terms(credentialed)))
    return "\n".join(parts)


def show(interval: Interval, signed: bool = False) -> str:
    """`.755 [.735, .774]`; signed: `+.012 [-.003, +.027]`."""
    form = "+.3f" if signed else ".3f"
    values = (interval.estimate, *interval.interval)
    estimate, low, high = (format(value, form).replace("0.", ".", 1) for value in values)
    return f"{estimate} [{low}, {high}]"


# what would begin markup in a line of Markdown: code, tables, HTML, links, pictures, emphasis, mathematics, entities,
# headings, mentions, and addresses that become links without brackets
MARKUP = re.compile(
    r"""[\\`|*~$@]
    | <(?=[A-Za-z/!?])
    | \](?=[(\[:])
    | &(?=\#?\w+;)
    | (?<![^\W_])_ | _(?![^\W_])
    | (?<=\w):(?=//) | (?<=\bmailto): | (?<=\bwww)\.
    | ^\# | (?<=\s)\#(?=[\#\s]*$)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def plain(text: str) -> str:
    """A line of text that Markdown shows as it is, whoever chose the names in it, and that stays one line."""
    return MARKUP.sub(r"\\\g<0>", printable(text, longest=ESCAPED * len(text)))


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as an aligned Markdown table, in `COLUMNS` or the rows' own order; names in them are text, never markup."""
    rows = [{plain(column): plain(cell) for column, cell in row.items()} for row in rows]
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
    parts = [f"# {plain(comparison.config.run)}: {plain(task(comparison.config.data.target))}"]
    if comparison.config.compare.split == "validate":
        parts.append(FLATTERING)
    for labelled in comparison.budgets:
        lines = [comparison.lines[number] for number in comparison.numbers(labelled)]
        parts.append(f"## {heading(comparison, labelled)}")

        # the table, and what its numbers are
        parts.append(markdown([table_row(line.described, line.intervals) for line in lines]))
        parts.append(plain(caption(comparison, lines[0])))

        # the tests against the baseline
        if len(lines) > 1:
            parts.append(markdown(list(difference_rows(comparison, labelled))))
            parts.append(plain(verdict(comparison, labelled)))

    if comparison.credentialed:
        parts.append(plain(terms(comparison.credentialed)))
    if comparison.seen_elsewhere:
        parts.append(UNKNOWN_WEIGHTS)
    return "\n\n".join([*parts, "Not a medical device."])


def task(target: str | None) -> str:
    """What is told apart: `normal against abnormal`, or `Pneumonia: positive against negative`."""
    negative, positive = words(target)
    if target is None:
        return f"{negative} against {positive}"
    return f"{target}: {positive} against {negative}"


def heading(comparison: Comparison, labelled: int | None) -> str:
    """What a table's rows were trained on, and on which split they were tested if not on test images."""
    images = images_of(comparison, labelled)
    text = f"{images} labelled training images"

    # two budgets can come to as many images
    if [images_of(comparison, other) for other in comparison.budgets].count(images) > 1:
        text += " (all)" if labelled is None else f" (a sample of {labelled:,})"
    if comparison.config.compare.split == "validate":
        text += ", tested on validation images"
    return text


def images_of(comparison: Comparison, labelled: int | None) -> str:
    """How many labelled images the rows of a budget were trained on: `100`, or `90 to 100` where rows differ."""
    trained_on = [_trained_on(comparison.lines[number]) for number in comparison.numbers(labelled)]
    counts = [count for count in trained_on if count is not None]  # a file of predictions does not say it
    if min(counts) == max(counts):
        return f"{counts[0]:,}"
    return f"{min(counts):,} to {max(counts):,}"


def _trained_on(line: Line) -> int | None:
    return line.evaluations[0].summary["meta"]["train_images"]


def summary_of_all(comparison: Comparison) -> dict[str, Any]:
    """The summary that holds for a whole comparison: the row that has seen most of the split counts for all."""
    evaluations = [evaluation for line in comparison.lines for evaluation in line.evaluations]
    seen = max(evaluation.summary["pretrained_on"] for evaluation in evaluations)
    elsewhere = any(evaluation.summary.get("seen_elsewhere") for evaluation in evaluations)
    return evaluations[0].summary | {"pretrained_on": seen, "seen_elsewhere": elsewhere}


def caption(comparison: Comparison, line: Line) -> str:
    """What the table's numbers are, in a sentence or two."""
    config = comparison.config
    positive = words(config.data.target)[1]

    summary = summary_of_all(comparison)
    resampled = "patients" if summary["patients_known"] else units_of(summary)
    seeds = len(config.compare.seeds)
    training = "1 training seed, so how much training varies is not in them"
    if seeds > 1:
        resampled += " and seeds"
        training = f"{seeds} training seeds, mean shown"
    return (
        f"Split {config.compare.split}: {case_count(summary)}; {100 * line.labels.mean():.0f} % {positive}. "
        f"In brackets {100 * config.evaluate.level:g} % bootstrap intervals, {resampled} resampled; {training}. "
        f"Best epoch and threshold were chosen on validation.{_own_images(comparison, line.labelled)}"
    )


def _own_images(comparison: Comparison, labelled: int | None) -> str:
    """How many images each row was trained on, where rows differ: settings of their own can make them."""
    lines = [comparison.lines[number] for number in comparison.numbers(labelled)]
    lines = [line for line in lines if _trained_on(line) is not None]
    if len({_trained_on(line) for line in lines}) == 1:
        return ""
    rows = [f"{name_of(line)} {_trained_on(line):,}" for line in lines]
    return f" Labelled training images by row: {', '.join(rows)}."


def case_count(summary: dict[str, Any]) -> str:
    """What an evaluation counted: how many, of whom, and how many of them a pretraining had seen."""
    whom = f"of {summary['patients']:,} patients"
    if not summary["patients_known"]:
        whom = "(patients unknown, so taken as independent)"
    seen = ""
    if summary["pretrained_on"]:
        seen = f", {summary['pretrained_on']:,} images of them served pretraining"
    if summary.get("seen_elsewhere"):
        seen += "; weights of another program had seen images that are not known"
    return f"n = {summary['n']:,} {units_of(summary)} {whom}{seen}"


def units_of(summary: dict[str, Any]) -> str:
    """What an evaluation counted."""
    return "images" if summary["unit"] == "image" else "studies"


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
