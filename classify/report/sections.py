"""What a comparison says, section by section, as words and tables: comparison.md and the console are made from them.

The page (report.html) shows the same sections, with figures beside them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from classify.comparison import Comparison
from classify.report.checklist import PLACES, answers, open_items, summary_text
from classify.report.checklist_facts import checklist_facts
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
from data.characteristics import FEWEST
from data.characteristics import shown as shown_counts
from data.labels import words
from data.sources import SPLITS

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
    yield data_section(comparison)
    yield checklist_section(comparison)


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


# ---------------------------------------------------------------- data and guidelines


def data_section(comparison: Comparison) -> Section:
    """Which images there are, what became of their labels, and who is in each split."""
    made = comparison.facts
    negative, positive = words(comparison.config.data.target)
    known = checklist_facts(comparison)
    texts = [f"{known['preprocessing']}.", f"Splits: {known['partitions']}.", f"Disjoint: {known['disjoint']}."]

    # spectrum: whom the numbers are about, and whom they are not
    total = sum(row["images"] for row in made.splits)
    unknown = sum(row["unknown"] for row in made.splits)
    if unknown:
        texts.append(
            f"Label unknown: {unknown:,} of {total:,} images ({100 * unknown / total:.0f} %). No classifier was "
            f"trained or tested on them, so the numbers are about images that could be called {negative} or {positive}."
        )

    tables = []
    if made.splits:
        tables.append(Table(tuple(_split_row(row, negative, positive) for row in made.splits), "Images by split."))
    if made.label_policy:
        tables.append(Table(tuple(_policy_row(row) for row in made.label_policy), "Where labels come from."))
    left_out = [{"Left out": str(row["reason"]), "Images": f"{row['images']:,}"} for row in made.left_out]
    if made.unreadable:
        left_out.append({"Left out": "cannot be read", "Images": f"{made.unreadable:,}"})
    if left_out:
        tables.append(Table(tuple(left_out)))
    if made.people:
        tables.append(Table(tuple(_people_row(row) for row in made.people), _of_people(comparison)))
    return Section("data", "Data", tuple(texts), tuple(tables), listing="\n".join([*made.notes, made.summary]))


def _split_row(row: Mapping[str, Any], negative: str, positive: str) -> dict[str, str]:
    counts = {"Images": row["images"], "Patients": row["patients"]}
    counts |= {negative: row["normal"], positive: row["abnormal"], "unknown": row["unknown"]}
    return {"Split": str(row["split"])} | {name: f"{count:,}" for name, count in counts.items()}


def _policy_row(row: Mapping[str, Any]) -> dict[str, str]:
    counts = {"Images": row["images"]} | {split: row[split] for split in SPLITS}
    shown = {name: f"{count:,}" for name, count in counts.items()}
    return {"Label rule": str(row["rule"]), "Became": str(row["became"]), **shown}


def _people_row(row: Mapping[str, Any]) -> dict[str, str]:
    return {"Group": f"{row['column']}: {row['value']}"} | {
        split: shown_counts(row["splits"][split]) for split in SPLITS if split in row["splits"]
    }


def _of_people(comparison: Comparison) -> str:
    text = (
        "Images, of so many patients." if comparison.facts.patients_known else "Images, of as many patients or fewer."
    )
    withheld = any(counts is None for row in comparison.facts.people for counts in row["splits"].values())
    if withheld:
        text += (
            f" Counts of fewer than {FEWEST} patients of credentialed data are withheld, and one more where it tells."
        )
    return text


def checklist_section(comparison: Comparison) -> Section:
    """Two reporting guidelines: what is open for the author, then what is answered."""
    found = answers(checklist_facts(comparison), comparison.config.report.checklist)
    still_open = tuple({"Open": item.item, "Topic": item.topic, "Asks for": item.asks} for item in open_items(found))
    answered = []
    for each in found:
        if each.text is not None:
            by = "author" if each.by_author else "this report"
            item = each.item
            where = PLACES[item.where] if item.where and not each.by_author else "–"
            row = {"Item": item.item, "Asks for": item.asks, "Answer": each.text, "By": by, "More in": where}
            answered.append(row)
    tables = []
    if still_open:
        tables.append(Table(still_open, "For the author to answer: report.checklist={'CLAIM 5': …}."))
    tables.append(Table(tuple(answered)))
    return Section("checklist", "Reporting checklist: CLAIM 2024 and TRIPOD+AI", (summary_text(found),), tuple(tables))


def checklist_text(comparison: Comparison) -> str:
    """checklist.md."""
    section = checklist_section(comparison)
    return "\n\n".join([f"# {plain(comparison.config.run)}", _section_text(section)])
