"""What a reader must know of a comparison before any number, and how it was made."""

from collections.abc import Iterator, Sequence

from classify.comparison import Comparison
from classify.report.budgets import Budget
from classify.report.reconstructions import Panel, panels
from classify.report.tables import FLATTERING, UNKNOWN_WEIGHTS, case_count, summary_of_all, units_of
from data.labels import words
from data.privacy import terms
from data.settings import height_and_width
from mae.engine.run import commit


def notices(comparison: Comparison, shown: Sequence[Panel] | None = None) -> Iterator[str]:
    """What a reader must know before any number. shown: the radiographs that stand in the report, if they are drawn."""
    config = comparison.config

    if config.data.source == "phantom":
        yield "The radiographs are synthetic: the numbers show that the software works and say nothing about patients."

    if config.compare.split == "validate":
        yield f"{FLATTERING} compare.split=test opens the test split."

    credentialed = comparison.credentialed
    if credentialed:
        notice = terms(credentialed)
        if shown is None:
            shown = panels(comparison) or ()
        private = sorted({name for panel in shown for name in panel.credentialed})
        if private:
            notice += f" It shows radiographs of {', '.join(private)}."
        yield notice
    if comparison.seen_elsewhere:
        yield UNKNOWN_WEIGHTS


def facts(comparison: Comparison, budgets: list[Budget]) -> Iterator[tuple[str, str]]:
    """How the report was made, term by term."""
    config = comparison.config
    line = comparison.lines[0]
    summary = line.evaluations[0].summary
    yield "Run", config.run

    # the cases
    height, width = height_and_width(config.data.image_size)
    yield "Source", f"{config.data.source}, {height} × {width} pixels ({config.data.resize})"
    yield "Split", config.compare.split
    yield "Evaluated", case_count(summary_of_all(comparison))
    positive = words(config.data.target)[1]
    yield "Prevalence", f"{100 * line.labels.mean():.1f} % {positive} ({int(line.labels.sum()):,})"

    # training and statistics
    yield "Labelled for training", "; ".join(f"{budget.images} images" for budget in budgets)
    yield "Training seeds", ", ".join(map(str, config.compare.seeds))
    whom = "patients" if summary["patients_known"] else units_of(summary)
    level = f"{100 * config.evaluate.level:g} %"
    yield "Intervals", f"{level}, bootstrap of {whom}, {config.evaluate.replicates:,} replicates"

    # the code and the data
    yield "Commit", commit() or "not known (installed package)"
    commits = _commits(comparison)
    if commits and commits != [commit()]:
        yield "Commit of the predictions", ", ".join(commits)
    manifest = comparison.data.manifest.fingerprint()
    store = comparison.data.store.fingerprint[:16]
    yield "Data fingerprint", f"manifest {manifest}, store {store}"


def _commits(comparison: Comparison) -> list[str]:
    """The commits that made the predictions, where they are known."""
    found = set()
    for line in comparison.lines:
        for evaluation in line.evaluations:
            if evaluation.summary["commit"]:
                found.add(str(evaluation.summary["commit"]))
    return sorted(found)
