"""The warnings above every number: leaks, contamination, tests opened too often, too few cases. Most serious first."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from classify.cases import FEW
from classify.comparison import Comparison, FailedRow, Line
from data.labels import words

WARNING = "warning: "  # how the audit begins its own
# of a class's cases: with half of them one patient's, 95 % intervals held the truth in 80 to 90 of 100 draws
MOST = 0.5
CHOSEN_ON = "epochs and thresholds were chosen on them"


def warnings(comparison: Comparison) -> tuple[str, ...]:
    """One line for each warning; () if there is none."""
    lines = [
        *_leaks(comparison),
        *_contamination(comparison),
        *_openings(comparison),
        *_failed(comparison),
        *_few_cases(comparison),
        *_one_patient(comparison),
        *_shared_pretrainings(comparison),
        *_unknown(comparison),
    ]
    return tuple(dict.fromkeys(lines))


def _leaks(comparison: Comparison) -> Iterator[str]:
    """Warnings of the runs' leak audits: the tested split first, and leaks between splits before pretrainings."""
    tested = f" {comparison.config.compare.split} images"
    found = [line for line in _audited(comparison) if line.startswith(WARNING)]
    found.sort(key=lambda line: ("these very weights" not in line, tested not in line, "served pretraining" in line))
    for line in found:
        said = line.removeprefix(WARNING)
        rows = _rows_with(comparison, line)
        if "served pretraining" in said and comparison.config.compare.split == "validate":
            yield _seen_before(said, rows)
        else:
            yield f"Leak: {said}{rows}."


def _seen_before(said: str, rows: str = "") -> str:
    why = "a pretraining's best epoch is chosen on validation images, never on test images"
    return f"Seen before: {said}{rows}, without labels: {why}."


def _contamination(comparison: Comparison) -> Iterator[str]:
    """Cases that a row's pretraining has seen, unless its audit says so; and weights that saw unknown images."""
    audited = _audited(comparison)
    for line in comparison.lines:
        for evaluation in line.evaluations:
            seen = evaluation.summary.get("pretrained_on", 0)
            told = any("served pretraining" in said for said in comparison.facts.audits.get(evaluation.run.name, ()))
            if seen and not told and comparison.config.compare.split == "validate":
                yield _seen_before(f"{seen:,} images that {line.name} is evaluated on served its pretraining")
            elif seen and not told:
                yield f"Leak: {seen:,} images that {line.name} is tested on served its pretraining."

    # what foreign weights have seen is not known, and no audit can tell
    foreign = [line.name for line in comparison.lines if _seen_elsewhere(comparison, line.name)]
    if foreign:
        yield (
            f"Weights of another program had seen unknown images, perhaps the tested ones: "
            f"{', '.join(dict.fromkeys(foreign))}."
        )
    if any(line.startswith("images were not compared") for line in audited):
        yield "Not checked: whether images are in two splits. This needs a store (data.store=stores)."


def _seen_elsewhere(comparison: Comparison, name: str) -> bool:
    for line in comparison.lines:
        if line.name == name:
            return any(evaluation.summary.get("seen_elsewhere", False) for evaluation in line.evaluations)
    return False


def _openings(comparison: Comparison) -> Iterator[str]:
    """Test opened by checkpoints other than these rows', or by these more than once: it is a validation split then."""
    if comparison.config.compare.split != "test":
        return

    own = {evaluation.summary["origin"].get("checkpoint") for evaluation in comparison.evaluations}
    times = Counter(str(opening["checkpoint"]) for opening in comparison.facts.openings)
    others = {checkpoint: count for checkpoint, count in times.items() if checkpoint not in own}
    again = {checkpoint: count for checkpoint, count in times.items() if checkpoint in own and count > 1}

    if others:
        times_opened = _counted(sum(others.values()), "time")
        yield (
            f"Test was opened {times_opened} by {_counted(len(others), 'checkpoint')} not in this table: their results "
            "may have shaped this table."
        )
    if again:
        most = f"{max(again.values()):,} times at most"
        yield f"Test was opened more than once by {_counted(len(again), 'checkpoint')} of this table ({most})."


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _failed(comparison: Comparison) -> Iterator[str]:
    """Which trainings did not finish; their row shows only the others, and a budget without any has no table."""
    for line in comparison.lines:
        if line.failed:
            total = len(line.failed) + len(line.evaluations)
            yield f"Failed: {len(line.failed)} of {total} trainings of {_with_labels(comparison, line)}."
    for row in comparison.failed_rows:
        yield f"Failed: all trainings of {_with_labels(comparison, row)}."


def _with_labels(comparison: Comparison, row: Line | FailedRow) -> str:
    """A row that failed, its label budget where there are several, and why."""
    rows: list[Line | FailedRow] = [*comparison.lines, *comparison.failed_rows]
    labels = ""
    if len({other.labelled for other in rows}) > 1:
        labels = " with all labels" if row.labelled is None else f" with {row.labelled:,} labels"
    return f"{row.name}{labels} ({'; '.join(row.failed)})"


def _few_cases(comparison: Comparison) -> Iterator[str]:
    """Splits with few cases of a class."""
    names = words(comparison.config.data.target)
    counts = {"validate": comparison.facts.classes.get("validate")}
    labels = comparison.lines[0].labels
    counts[comparison.config.compare.split] = (int((labels == 0).sum()), int((labels == 1).sum()))

    for split, found in counts.items():
        if found is None:
            continue
        few = [f"{count:,} {name}" for count, name in zip(found, names, strict=True) if count < FEW]
        if few:
            why = CHOSEN_ON if split == "validate" else "the numbers rest on them"
            yield f"Few cases: {' and '.join(few)} in split {split} (fewer than {FEW}); {why}."

    # a label budget may cover validation too
    left = _left_to_choose_on(comparison)
    few = [f"{count:,} {name}" for name, count in left.items() if count < FEW]
    if few:
        yield (
            f"Few cases: {' and '.join(few)} in split validate as the smallest label budget leaves it (fewer than "
            f"{FEW}); {CHOSEN_ON}."
        )


def _left_to_choose_on(comparison: Comparison) -> dict[str, int]:
    """The fewest validation images of a class that any training was chosen by, where these are not the whole split."""
    whole = comparison.facts.classes.get("validate")
    least: dict[str, int] = {}
    for evaluation in comparison.evaluations:
        cases = evaluation.summary.get("meta", {}).get("validate_cases") or {}  # earlier versions do not say
        for name, count in cases.items():
            least[name] = min(count, least.get(name, count))
    names = words(comparison.config.data.target)
    return {} if whole is None or least == dict(zip(names, whole, strict=True)) else least


def _one_patient(comparison: Comparison) -> Iterator[str]:
    """Classes of which one patient has so many cases that the others cannot tell how much patients vary."""
    first = comparison.lines[0]
    most = []
    for label, name in enumerate(words(comparison.config.data.target)):
        _, cases = np.unique(first.patients[first.labels == label], return_counts=True)
        if len(cases) > 1 and cases.max() > MOST * cases.sum():
            most.append(name)
    if most:
        yield (
            f"One patient has more than half of the {' and of the '.join(most)} cases in split "
            f"{comparison.config.compare.split}: intervals are too narrow, and p-values too small."
        )


def _shared_pretrainings(comparison: Comparison) -> Iterator[str]:
    """Trainings of a row that begin from the same weights: their spread is not that of the method."""
    grid = comparison.config.compare
    count = grid.shared_pretrainings
    if count and any(row.pretraining for row in grid.rows):
        serve = "serves" if count == 1 else "serve"
        yield (
            f"{_counted(count, 'pretraining')} {serve} the {len(grid.seeds)} trainings of each pretrained row: "
            "the intervals do not include, or not fully, how much pretraining varies."
        )


def _unknown(comparison: Comparison) -> Iterator[str]:
    """What is not known: which images a pretraining has seen, and which patients are whose."""
    for line in _audited(comparison):
        if line.startswith("which images "):
            yield f"Not known: {line}{_rows_with(comparison, line)}."
    if not comparison.facts.patients_known:
        yield (
            "Patients are not all known: one may be in two splits, and intervals that take images as independent are "
            "too narrow."
        )


# ---------------------------------------------------------------- what the runs' audits say


def _audited(comparison: Comparison) -> list[str]:
    """The lines of all runs' audits, each once."""
    lines: list[str] = []
    for audit in comparison.facts.audits.values():
        lines += audit
    return list(dict.fromkeys(lines))


def _rows_with(comparison: Comparison, said: str) -> str:
    """The rows whose audit says it, where not all do."""
    names = []
    others = False
    for line in comparison.lines:
        for evaluation in line.evaluations:
            audit = comparison.facts.audits.get(evaluation.run.name, ())
            if said in audit:
                names.append(line.name)
            elif audit:  # a row that was not trained has none
                others = True
    return f" (rows: {', '.join(_each_once(names))})" if others else ""


def _each_once(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
