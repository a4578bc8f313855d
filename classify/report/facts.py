"""What a reader must know of a comparison before any number, and how it was made."""

from collections.abc import Iterator, Sequence

from classify.comparison import Comparison
from classify.report.heatmaps import picture
from classify.report.mistakes import strips
from classify.report.numbers import show_share
from classify.report.reconstructions import Panel, panels
from classify.report.tables import FLATTERING, UNKNOWN_WEIGHTS, case_count, images_of, summary_of_all, units_of
from data.config import shipped_credit
from data.labels import words
from data.privacy import credentialed_sources, terms
from data.settings import height_and_width


def notices(comparison: Comparison, shown: Sequence[Panel] | None = None) -> Iterator[str]:
    """What a reader must know before any number. shown: the report's panels, if the caller already has them."""
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
        of_panels = {name for panel in shown for name in panel.credentialed}
        of_cases = {*credentialed_sources(config.data)} if strips(comparison) or picture(comparison) else set()
        private = sorted(of_panels | of_cases)
        if private:
            notice += f" The report shows radiographs of {', '.join(private)}."
        yield notice
    if comparison.seen_elsewhere:
        yield UNKNOWN_WEIGHTS


def facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """How the report was made, term by term."""
    config = comparison.config
    made = comparison.facts
    yield "Run", config.run

    # the cases
    height, width = height_and_width(config.data.image_size)
    yield "Source", f"{config.data.source}, {height} × {width} pixels ({config.data.resize})"
    for part in config.data.each_source().values():
        if credit := shipped_credit(part.root):
            yield "Images of", credit
    yield "Split", config.compare.split
    summary = summary_of_all(comparison)
    yield "Evaluated", case_count(summary)
    positive = words(config.data.target)[1]
    labels = comparison.lines[0].labels
    yield "Prevalence", f"{show_share(labels.mean(), least=1)} {positive} ({int(labels.sum()):,})"

    # training and statistics
    images = [f"{images_of(comparison, labelled)} images" for labelled in comparison.budgets]
    yield "Labelled for training", "; ".join(images)
    yield "Training seeds", ", ".join(map(str, config.compare.seeds))
    if config.compare.pretraining_seeds is not None:
        yield "Pretraining seeds", ", ".join(map(str, config.compare.pretraining_seeds))
    whom = "patients" if summary["patients_known"] else units_of(summary)
    yield "Intervals", f"{100 * config.evaluate.level:g} %, clustered by {whom}"
    yield "Contrasts", f"{len(comparison.contrasts)}, in {comparison.tests} tests, adjusted by Holm's method"

    # the code and the data
    yield "Commit", made.commit or "not known (installed package)"
    commits = _commits(comparison)
    if commits and commits != [made.commit]:
        yield "Commit of the predictions", ", ".join(commits)
    yield "Data fingerprint", f"manifest {made.manifest}, store {made.store[:16]}"


def _commits(comparison: Comparison) -> list[str]:
    """The commits that made the predictions, where they are known."""
    found = set()
    for evaluation in comparison.evaluations:
        if evaluation.summary["commit"]:
            found.add(str(evaluation.summary["commit"]))
    return sorted(found)
