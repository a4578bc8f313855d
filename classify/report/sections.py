"""What a comparison says, section by section, as words and tables: comparison.md and the console are made from them.

The page (report.html) shows the same sections, with figures beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from classify.comparison import Comparison
from classify.report.facts import facts, notices
from classify.report.runs import run_rows
from classify.report.subgroup_tables import GAPS, SUBGROUPS, gap_rows, subgroup_rows
from classify.report.tables import (
    caption,
    contrast_caption,
    contrast_rows,
    heading,
    markdown,
    plain,
    table_rows,
    task,
)
from classify.report.verdict import answer, verdict
from classify.report.warnings import warnings

NOT_A_DEVICE = "Not a medical device."


@dataclass(frozen=True)
class Table:
    rows: tuple[dict[str, str], ...]  # all with the same columns
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, what is said under it, tables, and last what the tables come to."""

    anchor: str  # its name in the page
    heading: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    conclusion: str = ""
    listing: str = ""  # text in columns


def sections(comparison: Comparison) -> list[Section]:
    """All that is said of a comparison, in order."""
    return [*first_sections(comparison), *_further_sections(comparison)]


def first_sections(comparison: Comparison) -> Iterator[Section]:
    """The answer, what stands against it, and the tables of each label budget."""
    said = answer(comparison)
    yield Section("answer", said.question, said.sentences)
    against = (*warnings(comparison), *notices(comparison))
    if against:
        yield Section("warnings", "Before any number", against)

    for number, labelled in enumerate(comparison.budgets):
        tables = [Table(tuple(table_rows(comparison, labelled)), caption(comparison, labelled))]
        contrasts = tuple(contrast_rows(comparison, labelled))
        if contrasts:
            tables.append(Table(contrasts, contrast_caption(comparison)))
        yield Section(
            anchor="results" if number == 0 else f"results-{number + 1}",
            heading=heading(comparison, labelled),
            tables=tuple(tables),
            conclusion=verdict(comparison, labelled),
        )


def _further_sections(comparison: Comparison) -> Iterator[Section]:
    """Groups of cases, and how it was all made."""
    groups = tuple(subgroup_rows(comparison))
    if groups:
        tables = [Table(groups, SUBGROUPS)]
        gaps = tuple(gap_rows(comparison))
        if gaps:
            tables.append(Table(gaps, GAPS))
        yield Section("subgroups", "Subgroups", tables=tuple(tables))
    audit = audit_lines(comparison)
    if audit:
        yield Section("audit", "Leak audit", audit)
    if comparison.facts.openings:
        yield Section("ledger", "Who opened the test split", tables=(Table(tuple(opening_rows(comparison))),))
    rows = tuple({"What": term, "Value": value} for term, value in facts(comparison))
    yield Section("facts", "How it was made", tables=(Table(rows),))
    yield Section("runs", "Runs and settings", tables=(Table(tuple(run_rows(comparison))),))
    listing = "\n".join([*comparison.facts.notes, comparison.facts.summary])
    yield Section("data", "Data: what was read, and how many", listing=listing)


def audit_lines(comparison: Comparison) -> tuple[str, ...]:
    """What the runs' leak audits say, each line once."""
    found: list[str] = []
    for lines in comparison.facts.audits.values():
        found += lines
    return tuple(dict.fromkeys(found))


def opening_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """The ledger of the test split: whenever its labels were looked at, and by which weights."""
    own = {evaluation.summary["origin"].get("checkpoint") for evaluation in comparison.evaluations}
    for opening in comparison.facts.openings:
        yield {
            "When": str(opening["time"]),
            "Run": str(opening["run"]),
            "Checkpoint": str(opening["checkpoint"])[:16],
            "Cases": f"{opening['n']:,}",
            "In this table": "yes" if opening["checkpoint"] in own else "no",
        }


# ---------------------------------------------------------------- as text


def comparison_text(comparison: Comparison) -> str:
    """comparison.md: every section."""
    return _text(comparison, sections(comparison))


def printed(comparison: Comparison) -> str:
    """What mae-compare prints: the answer, what stands against it, and the tables."""
    return _text(comparison, list(first_sections(comparison)))


def _text(comparison: Comparison, parts: list[Section]) -> str:
    title = f"# {plain(comparison.config.run)}: {plain(task(comparison.config.data.target))}"
    return "\n\n".join([title, *(_section_text(part) for part in parts), NOT_A_DEVICE])


def _section_text(section: Section) -> str:
    parts = [f"## {plain(section.heading)}"]
    if section.anchor == "answer":
        parts += [plain(text) for text in section.texts]
    elif section.texts:
        parts.append("\n".join(f"- {plain(text)}" for text in section.texts))
    for table in section.tables:
        parts.append(markdown(list(table.rows)))
        if table.caption:
            parts.append(plain(table.caption))
    if section.conclusion:
        parts.append(plain(section.conclusion))
    if section.listing:
        # indented lines are shown as they are, and nothing in them ends the block
        parts.append("\n".join(f"    {line}" for line in section.listing.splitlines()))
    return "\n\n".join(parts)
