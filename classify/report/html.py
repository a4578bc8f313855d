"""report.html: a comparison in one self-contained file, without network, scripts or identifiers of patients."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from classify.comparison import Comparison
from classify.report.budgets import budgets_of
from classify.report.facts import facts, notices
from classify.report.reconstructions import missing, panels, withheld
from classify.report.runs import run_rows
from classify.report.tables import METRICS, task, units_of
from classify.report.training import pretrainings, trainings
from classify.report.verdict import answer
from classify.report.warnings import warnings
from data.config import print_config
from data.labels import words
from mae.reconstruct import CAPTION


def report_html(comparison: Comparison) -> str:
    """The comparison as one HTML page; the same comparison gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    budgets = budgets_of(comparison)
    target = comparison.config.data.target

    shown = panels(comparison)

    # in the order of the page
    return environment.get_template("report.html").render(
        config=comparison.config,
        task=task(target),
        words=words(target),
        answer=answer(comparison),
        warnings=warnings(comparison),
        notices=list(notices(comparison, shown or ())),
        facts=dict(facts(comparison)),
        units=units_of(next(comparison.evaluations).summary),
        budgets=budgets,
        metrics=list(METRICS),
        pretrainings=list(pretrainings(comparison)),
        trainings=list(trainings(budgets)),
        panels=shown,
        withheld=list(withheld(comparison)),
        missing=list(missing(comparison)),
        panel_caption=CAPTION,
        runs=list(run_rows(comparison)),
        notes=[*comparison.facts.notes, comparison.facts.summary],
        resolved=print_config(comparison.config),
    )
