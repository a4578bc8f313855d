"""Results as text: the table's columns, its rows, and what its numbers are."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from classify.comparison import Comparison, Line, describe, train_images_of
from classify.evaluate import Evaluation
from classify.metrics import HEADLINE, Interval
from classify.report.numbers import show, show_number, show_p, show_share, show_threshold
from classify.settings import PLURALS
from data.config import expand
from data.errors import ESCAPED, UserError, printable
from data.labels import words
from data.privacy import terms

COLUMNS = ("Model", "Augmentation", "% Masking", "Accuracy", "Precision", "F1", "Recall", "AUC")
METRICS = dict(zip(COLUMNS[3:], ("accuracy", "precision", "f1", "recall", "auc"), strict=True))
assert set(METRICS.values()) == set(HEADLINE)
FLATTERING = (
    "These are validation images. Epochs and thresholds were chosen on them too, so the numbers are too optimistic."
)
UNKNOWN_WEIGHTS = (
    "Weights of another program were used. Whether they were made from credentialed data is not known here."
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
    described = describe(evaluation.config, _is_pretrained(evaluation))
    if summary["split"] == "validate":
        described["Model"] += " (on validation)"
    return table_row(described, intervals)


def _is_pretrained(evaluation: Evaluation) -> bool:
    """Whether a pretraining made what it began from, and not the file or folder that `model.init` names."""
    begun_from = evaluation.summary["meta"]["pretrained_from"]
    init = evaluation.config.model.init
    if begun_from and init is not None:
        with suppress(UserError):  # a variable that is not set on this machine
            return not Path(begun_from).is_relative_to(expand(init, "model.init"))
    return bool(begun_from)


def evaluation_text(evaluations: list[Evaluation]) -> str:
    """What mae-evaluate prints: a table of the runs, and what each was evaluated on."""
    parts = [markdown([evaluation_row(evaluation) for evaluation in evaluations])]
    for evaluation in evaluations:
        split = evaluation.summary["split"]
        count = case_count(evaluation.summary)
        parts.append(f"{evaluation.path}: split {split}: {count}; threshold {show_threshold(evaluation.threshold)}")
    if any(evaluation.summary["split"] == "validate" for evaluation in evaluations):
        parts.append(FLATTERING)
    credentialed = {name for evaluation in evaluations for name in evaluation.summary.get("credentialed", ())}
    if credentialed:
        parts.append(plain(terms(credentialed)))
    return "\n".join(parts)


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


# what would make the line a list or a quotation: up to the sign that begins it
BEGINS = re.compile(r"^(\s*\d{1,9}(?=[.)](?:\s|$))|\s*(?=>|[+-](?:\s|$)))")


def plain(text: str) -> str:
    """One line of text that Markdown shows as it is, whatever names are in it."""
    return BEGINS.sub(r"\1\\", MARKUP.sub(r"\\\g<0>", printable(text, longest=ESCAPED * len(text))))


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as an aligned Markdown table, in the first row's order of columns; names in them are text, never markup."""
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


def task(target: str | None) -> str:
    """What is told apart: `normal against abnormal`, or `Pneumonia: positive against negative`."""
    negative, positive = words(target)
    if target is None:
        return f"{negative} against {positive}"
    return f"{target}: {positive} against {negative}"


def heading(comparison: Comparison, labelled: int | None) -> str:
    """What a table's rows were trained on, and the split they were tested on, if it is not test."""
    images = images_of(comparison, labelled)
    text = f"{images} labelled training images"

    # two budgets can come to the same number of images
    if [images_of(comparison, other) for other in comparison.budgets].count(images) > 1:
        text += of_which(labelled)
    if comparison.config.compare.split == "validate":
        text += ", tested on validation images"
    return text


def of_which(labelled: int | None) -> str:
    """What tells a budget from another one that came to as many images."""
    return " (all)" if labelled is None else f" (a sample of {labelled:,})"


def images_of(comparison: Comparison, labelled: int | None) -> str:
    """How many labelled images the trainings of a budget had: `100`, or `90 to 100` where rows or draws differ."""
    counts = train_images_of(comparison.lines_of(labelled))
    if not counts:  # only rows that are files
        return "all" if labelled is None else f"{labelled:,}"
    return counts_text(counts)


def counts_text(counts: list[int]) -> str:
    """`100` where all are the same, else the fewest and the most: `90 to 100`."""
    if min(counts) == max(counts):
        return f"{counts[0]:,}"
    return f"{min(counts):,} to {max(counts):,}"


def summary_of_all(comparison: Comparison) -> dict[str, Any]:
    """The summary of a whole comparison: the row that has seen most of the split in pretraining counts for all."""
    evaluations = list(comparison.evaluations)
    seen = max(evaluation.summary["pretrained_on"] for evaluation in evaluations)
    return evaluations[0].summary | {"pretrained_on": seen, "seen_elsewhere": comparison.seen_elsewhere}


def table_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """The rows of a label budget's table; rows without a finished training come last and say so."""
    for line in comparison.lines_of(labelled):
        yield table_row(line.described, line.intervals)
    for failed in comparison.failed_rows:
        if failed.labelled == labelled:
            yield failed.described | dict.fromkeys(METRICS, "failed")


def caption(comparison: Comparison, labelled: int | None) -> str:
    """What the table's numbers are, in a few sentences."""
    config = comparison.config
    lines = comparison.lines_of(labelled)
    positive = words(config.data.target)[1]

    summary = summary_of_all(comparison)
    return (
        f"Split {config.compare.split}: {case_count(summary)}; {show_share(lines[0].labels.mean())} {positive}. "
        f"In brackets: {100 * config.evaluate.level:g} % intervals clustered by {independent(comparison)}, for the "
        f"AUC by DeLong's method on the logit scale, for the other metrics by score intervals. {_of_trainings(lines)}. "
        f"Best epoch and threshold were chosen on validation{_but_for(lines)}."
        f"{_own_images(comparison, labelled)}{_notes(lines)}"
    )


def _of_trainings(lines: list[Line]) -> str:
    """How many trainings each row's numbers are means over; ensembles, files and rows with failures may have fewer."""
    counts = {line.name: len(line.evaluations) for line in lines}
    seeds = max(counts.values())
    if seeds == 1:
        return "One training each, so the intervals do not include how much training varies"

    said = [f"Numbers are means over {seeds} training seeds, and the intervals include their spread"]
    for count in sorted(set(counts.values()) - {seeds}):
        names = "; ".join(name for name in counts if counts[name] == count)
        if count == 1:
            said.append(f"Single models, whose intervals do not include how much training varies: {names}")
        else:
            said.append(f"Means over {count} seeds: {names}")
    return ". ".join(said)


def independent(comparison: Comparison) -> str:
    """What is taken as independent of each other: patient, image or study."""
    summary = summary_of_all(comparison)
    return "patient" if summary["patients_known"] else str(summary["unit"])


def independent_ones(comparison: Comparison) -> str:
    """The same, in the plural."""
    summary = summary_of_all(comparison)
    return "patients" if summary["patients_known"] else units_of(summary)


def _but_for(lines: list[Line]) -> str:
    given = given_thresholds(lines)
    return f", except for the threshold of {'; '.join(given)}" if given else ""


def given_thresholds(lines: list[Line]) -> list[str]:
    """Rows whose threshold was not chosen on validation, each with the threshold's origin."""
    given = []
    for line in lines:
        first = line.evaluations[0]
        file = first.summary.get("file")
        if file and not file["threshold"].startswith("chosen on"):
            given.append(f"{line.name} ({file['threshold']})")
        if not file and first.config.finetune.threshold == "half":
            given.append(f"{line.name} (0.5 by finetune.threshold)")
    return given


def _notes(lines: list[Line]) -> str:
    """Notes on single intervals, such as those of an AUC of 1."""
    places: dict[str, list[str]] = {}
    for line in lines:
        for column, name in METRICS.items():
            if note := line.intervals[name].note:
                places.setdefault(note, []).append(f"{line.name}, {column}")
    return "".join(f" {'; '.join(where)}: {note}." for note, where in places.items())


def _own_images(comparison: Comparison, labelled: int | None) -> str:
    """How many images each row was trained on, if rows differ, as their own settings and failures can cause."""
    counts = {line.name: counts_text(line.train_images) for line in comparison.lines_of(labelled) if line.train_images}
    if len(set(counts.values())) == 1:
        return ""
    rows = [f"{name}: {count}" for name, count in counts.items()]
    return f" Labelled training images by row: {'; '.join(rows)}."


def case_count(summary: dict[str, Any]) -> str:
    """What an evaluation counted: images or studies, patients, and images that a pretraining had seen."""
    whom = f"of {summary['patients']:,} patients"
    if not summary["patients_known"]:
        whom = "(patients unknown, so taken as independent)"
    seen = ""
    if summary["pretrained_on"]:
        seen = f", of which {summary['pretrained_on']:,} images served pretraining"
    if summary.get("seen_elsewhere"):
        seen += "; weights of another program had seen unknown images"
    return f"n = {summary['n']:,} {units_of(summary)} {whom}{seen}"


def units_of(summary: dict[str, Any]) -> str:
    """What an evaluation counted."""
    return PLURALS[summary["unit"]]


# ---------------------------------------------------------------- contrasts


def contrast_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """Rows of a label budget's table of contrasts."""
    contrasts = comparison.contrasts_of(labelled)
    margins = any(contrast.declared.margin is not None for contrast in contrasts)

    for contrast in contrasts:
        row = {"Contrast": f"{contrast.a} minus {contrast.b}"}
        if contrast.why_not:
            row |= {"AUC difference": "not computed", "p": "–", "Holm p": "–", "Accuracy difference": "–"}
        else:
            row |= {
                "AUC difference": show(contrast.auc, signed=True),
                "p": show_p(contrast.auc.p_value),
                "Holm p": show_p(contrast.p_holm),
                "Accuracy difference": show(contrast.differences["accuracy"], signed=True),
            }

        # non-inferiority: whether a is worse than b by less than the margin
        if margins:
            row |= {
                "Margin": show_number(contrast.declared.margin),
                "p (inferior)": show_p(contrast.p_margin),
                "Holm p (inferior)": show_p(contrast.p_margin_holm),
            }
        yield row


def contrast_caption(comparison: Comparison) -> str:
    """How the contrasts were tested, and which they are."""
    chosen = "Contrasts follow from the settings: pretrained against random weights, and each row against the baseline"
    if comparison.config.compare.contrasts is not None:
        chosen = "Contrasts were declared in the config (compare.contrasts)"
    level = f"{100 * comparison.config.evaluate.level:g} %"
    tests = "the one test" if comparison.tests == 1 else f"all {comparison.tests} tests"
    return (
        f"{chosen}. Differences are on the same cases, with {level} intervals that are not adjusted. p is two-sided; "
        f"its variance is over {independent_ones(comparison)} and, where there are several, over training seeds. "
        f"Holm p is adjusted for {tests} of this comparison, over all label budgets; a contrast that could not be "
        "computed counts too. Differences in accuracy are described, not tested."
    )
