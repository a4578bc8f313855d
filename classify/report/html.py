"""report.html: a comparison in one self-contained file, without network, scripts or identifiers of patients."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from classify.comparison import Comparison
from classify.report.budgets import budgets_of
from classify.report.facts import facts, notices
from classify.report.heatmaps import picture
from classify.report.mistakes import strips
from classify.report.pictures import figures_of
from classify.report.reconstructions import panels
from classify.report.sections import sections
from classify.report.tables import task
from classify.report.verdict import answer
from classify.report.warnings import warnings
from classify.style import COLOURS

FIRST_SCREEN = 620  # letters of warnings that a small screen has room for, beside the answer
IN_HEADER = ("answer", "warnings")  # sections that stand above all others


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
    symbols = {row.name: row for budget in budgets for row in budget.rows}
    failed = [row.name for row in comparison.failed_rows]
    shown = panels(comparison)
    against = warnings(comparison)
    first = first_warnings(against)

    # in the order of the page
    return environment.get_template("report.html").render(
        config=comparison.config,
        task=task(comparison.config.data.target),
        evaluated=dict(facts(comparison))["Evaluated"],
        colours=COLOURS,
        warnings=against[:first],
        answer=answer(comparison),
        further=[*against[first:], *notices(comparison, shown or ())],
        unsaid=len(against) - first,
        sections=[section for section in sections(comparison) if section.anchor not in IN_HEADER],
        figures=figures_of(comparison),
        symbols=symbols,
        is_interval=is_interval,
        said=with_names_apart([*symbols, *failed]),
        panels=shown,
        strips=strips(comparison),
        looks=picture(comparison),
    )


def first_warnings(lines: tuple[str, ...]) -> int:
    """How many warnings the first screen has room for: one at least."""
    letters = 0
    for number, line in enumerate(lines):
        letters += len(line)
        if number and letters > FIRST_SCREEN:
            return number
    return len(lines)


def is_interval(cell: str) -> bool:
    """Whether a cell is an estimate with its interval, which the page puts below the estimate."""
    return re.fullmatch(r"\S+ \[\S+ \S+\]", cell) is not None


def with_names_apart(names: list[str]) -> Callable[[str], Markup]:
    """Text → HTML that isolates right-to-left names, so that the numbers beside them stay as they are."""
    from_the_right = [name for name in dict.fromkeys(names) if _is_from_the_right(name)]
    if not from_the_right:
        return lambda text: escape(text)
    longest_first = sorted(map(str, map(escape, from_the_right)), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return lambda text: Markup(pattern.sub(r"<bdi>\g<0></bdi>", str(escape(text))))


def _is_from_the_right(name: str) -> bool:
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
