"""What a comparison says, section by section, as words and tables: comparison.md and the console are made from them.

The page (report.html) shows the same sections, with figures beside them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from classify.comparison import Comparison
from classify.report.calibrations import calibration_caption, calibration_rows
from classify.report.checklist import PLACES, answers, open_items, summary_text
from classify.report.checklist_facts import checklist_facts
from classify.report.costs import COSTS, DIFFERENCES, TUNING, cost_rows, difference_rows, tuning_rows
from classify.report.facts import facts, notices
from classify.report.heatmaps import heatmap_rows, heatmap_texts
from classify.report.labels import EFFICIENCY, efficiency_rows
from classify.report.mistakes import MISTAKES, are_shown, mistake_rows, withheld_cases
from classify.report.numbers import show_share
from classify.report.operating import (
    DECISIONS,
    confusion_caption,
    confusion_rows,
    decision_rows,
    operating_caption,
    operating_rows,
    predictive_caption,
    predictive_rows,
)
from classify.report.reconstructions import missing, panels, withheld
from classify.report.runs import run_rows
from classify.report.stage_one import STAGE_ONE, stage_one_rows
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
from classify.report.verdict import answer, largest_budget, verdict
from classify.report.warnings import warnings
from data.characteristics import FEWEST
from data.characteristics import shown as shown_counts
from data.config import print_config
from data.labels import words
from data.sources import SPLITS
from mae.reconstruct import CAPTION

NOT_A_DEVICE = "Not a medical device."


@dataclass(frozen=True)
class Table:
    rows: tuple[dict[str, str], ...]  # all with the same columns
    caption: str = ""
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, the texts and tables under it, and last the conclusion from the tables."""

    anchor: str  # its name in the page
    heading: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    conclusion: str = ""
    listing: str = ""  # text in columns

    @property
    def has_words(self) -> bool:
        """Whether anything stands under its heading."""
        return bool(self.texts or self.tables or self.conclusion or self.listing)


def sections(comparison: Comparison) -> list[Section]:
    """All that is said of a comparison, in order."""
    return [*first_sections(comparison), *_further_sections(comparison)]


def first_sections(comparison: Comparison) -> Iterator[Section]:
    """The answer, the warnings and notices, and the tables of each label budget."""
    said = answer(comparison)
    yield Section("answer", said.question, said.sentences)
    against = (*warnings(comparison), *notices(comparison))
    if against:
        yield Section("warnings", "Before any number", against)

    for number, labelled in enumerate(comparison.budgets):
        tables = [Table(tuple(table_rows(comparison, labelled)), caption(comparison, labelled))]
        contrasts = tuple(contrast_rows(comparison, labelled))
        if contrasts:
            of_all = contrast_caption(comparison) if number == 0 else ""  # the same for all budgets
            tables.append(Table(contrasts, of_all))
        yield Section(
            anchor="results" if number == 0 else f"results-{number + 1}",
            heading=heading(comparison, labelled),
            tables=tuple(tables),
            conclusion=verdict(comparison, labelled),
        )


def _further_sections(comparison: Comparison) -> Iterator[Section]:
    """The sections behind the answer, in the order of the page; empty ones are left out."""
    sections = [
        _curves(comparison),
        _calibration(comparison),
        _label_efficiency(comparison),
        _subgroups(comparison),
        _operating(comparison),
        Section("training", "Training curves", (TRAINING_CURVES,)),
        Section("reconstructions", "Reconstructions", tuple(_reconstructions(comparison)), _stage_one(comparison)),
        _mistakes(comparison),
        _heatmaps(comparison),
        Section("audit", "Leak audit and contamination", audit_lines(comparison)),
        data_section(comparison),
        _costs(comparison),
        Section("ledger", "Who opened the test split", tables=_tables(("", opening_rows(comparison), ""))),
        Section("runs", "Runs and settings", tables=_tables(("", run_rows(comparison), ""))),
        checklist_section(comparison),
        _again(comparison),
    ]
    for section in sections:
        if section.has_words:
            yield section


TRAINING_CURVES = (
    "Dotted: training, measured while weights change, with the augmentation, label smoothing and stochastic depth in "
    "force. Solid: validation, without these, so the two need not meet. The ring marks the epoch that was kept."
)


def _tables(*given: tuple[str, Iterable[dict[str, str]], str]) -> tuple[Table, ...]:
    """Tables, given by title, rows and caption; those without rows are left out."""
    found = []
    for title, rows, caption_of in given:
        rows = tuple(rows)
        if rows:
            found.append(Table(rows, caption_of, title))
    return tuple(found)


def _curves(comparison: Comparison) -> Section:
    positive = words(comparison.config.data.target)[1]
    bands = "With pointwise bands over patients; one training each."
    if len(comparison.config.compare.seeds) > 1:
        bands = "Means over the training seeds, with pointwise bands over patients and seeds; a marker for each seed."
    said = (
        f"{bands} Markers are the operating points at the decision thresholds. Dashed: chance, and the "
        f"precision of calling every case {positive}."
    )
    return Section("roc", "ROC and precision-recall curves", (said,))


def _calibration(comparison: Comparison) -> Section:
    tables = []
    for labelled in comparison.budgets:
        title = heading(comparison, labelled) if len(comparison.budgets) > 1 else ""
        tables.append((title, calibration_rows(comparison, labelled), ""))
    return Section("calibration", "Calibration", (calibration_caption(comparison),), _tables(*tables))


def _label_efficiency(comparison: Comparison) -> Section:
    return Section("labels", "Label efficiency", tables=_tables(("", efficiency_rows(comparison), EFFICIENCY)))


def _subgroups(comparison: Comparison) -> Section:
    tables = _tables(("", subgroup_rows(comparison), SUBGROUPS), ("Largest gaps", gap_rows(comparison), GAPS))
    return Section("subgroups", "Subgroups", tables=tables)


def _operating(comparison: Comparison) -> Section:
    tables = _tables(
        ("", operating_rows(comparison), operating_caption(comparison)),
        ("Confusion", confusion_rows(comparison), confusion_caption(comparison)),
        ("Predictive values", predictive_rows(comparison), predictive_caption(comparison)),
        ("Decision curve", decision_rows(comparison), DECISIONS),
    )
    said: tuple[str, ...] = ()
    if tables and len(comparison.budgets) > 1:
        said = (f"Rows with {heading(comparison, largest_budget(comparison))}.",)
    return Section("operating", "Operating points", said, tables)


def _reconstructions(comparison: Comparison) -> Iterator[str]:
    """What the reader must know about the pictures, or why there are none."""
    if not comparison.pretrainings:
        yield "No row of this comparison is pretrained."
    private = list(withheld(comparison))
    if private:
        wished = comparison.config.report.images
        why = ", because the source is credentialed" if wished is None else ""
        yield (
            f"Images are withheld{why} ({'; '.join(private)}). To show them, set report.images=true in the config that "
            "names these images' data. A report with images of a credentialed source may not be shared."
        )
    lacking = list(missing(comparison))
    if lacking:
        yield f"Left out: {'; '.join(lacking)}."
    if panels(comparison):
        yield f"{CAPTION} The images are spread evenly over the validation split, not picked."


def _stage_one(comparison: Comparison) -> tuple[Table, ...]:
    return _tables(("Stage one, before any fine-tuning", stage_one_rows(comparison), STAGE_ONE))


def _mistakes(comparison: Comparison) -> Section:
    if not are_shown(comparison):
        return Section("mistakes", "Most confident mistakes", (withheld_cases(comparison),))
    return Section("mistakes", "Most confident mistakes", tables=_tables(("", mistake_rows(comparison), MISTAKES)))


def _heatmaps(comparison: Comparison) -> Section:
    texts = tuple(heatmap_texts(comparison))
    return Section("heatmaps", "What the models look at", texts, _tables(("", heatmap_rows(comparison), "")))


def _costs(comparison: Comparison) -> Section:
    given = []
    for labelled in comparison.budgets:
        title = heading(comparison, labelled) if len(comparison.budgets) > 1 else ""
        given.append((title, cost_rows(comparison, labelled), ""))
    tables = _tables(
        *given,
        ("Equal tuning", tuning_rows(comparison), TUNING),
        ("What differs between rows", difference_rows(comparison), DIFFERENCES),
    )
    return Section("costs", "Costs and tuning", (COSTS,), tables)


def _again(comparison: Comparison) -> Section:
    """How to make every number again."""
    rows = tuple({"What": term, "Value": value} for term, value in facts(comparison))
    commit = comparison.facts.commit
    at = f" at commit {commit}" if commit else ""
    said = (
        "From the predictions alone: run mae-report with the folder of this report. It makes all tables, figures and "
        "tests again, with the same bytes. It needs comparison.json and the predictions beside it, and for the "
        "training curves each run's metrics.jsonl.",
        f"From the beginning: save the settings below as comparison.yaml and run mae-compare --config "
        f"comparison.yaml{at} on the same data, whose fingerprint is below.",
    )
    tables = _tables(("", rows, ""))
    return Section("again", "How to make every number again", said, tables, listing=print_config(comparison.config))


def audit_lines(comparison: Comparison) -> tuple[str, ...]:
    """What the runs' leak audits say, each line once."""
    found: list[str] = []
    for lines in comparison.facts.audits.values():
        found += lines
    return tuple(dict.fromkeys(found))


def opening_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """The ledger of the test split: each time its labels were looked at, and with which weights."""
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
    """What mae-compare prints: the answer, the warnings and notices, and the tables."""
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
        if table.title:
            parts.append(f"### {plain(table.title)}")
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
    texts = [f"{known['preprocessing']}.", f"Splits: {known['partitions']}. {known['disjoint']}."]

    # spectrum: which cases the numbers are about, and which they are not
    total = sum(row["images"] for row in made.splits)
    unknown = sum(row["unknown"] for row in made.splits)
    if unknown:
        texts.append(
            f"Label unknown: {unknown:,} of {total:,} images ({show_share(unknown / total)}). No classifier was "
            f"trained or tested on them, so the numbers hold only for images labelled {negative} or {positive}."
        )

    left_out = [{"Left out": str(row["reason"]), "Images": f"{row['images']:,}"} for row in made.left_out]
    if made.unreadable:
        left_out.append({"Left out": "cannot be read", "Images": f"{made.unreadable:,}"})
    tables = _tables(
        ("", (_split_row(row, negative, positive) for row in made.splits), ""),
        ("Where labels come from", map(_policy_row, made.label_policy), ""),
        ("What is left out", left_out, ""),
        ("Who is in each split", map(_people_row, made.people), _of_people(comparison)),
    )
    return Section("data", "Data", tuple(texts), tables, listing="\n".join([*made.notes, made.summary]))


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
    text = "Images, with patients in brackets."
    if not comparison.facts.patients_known:
        text += " Where no patient is named, an image or a study counts as a patient."
    withheld = any(counts is None for row in comparison.facts.people for counts in row["splits"].values())
    if withheld:
        text += (
            f" Counts of fewer than {FEWEST} patients of credentialed data are withheld, and one more where the total "
            "would reveal them."
        )
    return text


def checklist_section(comparison: Comparison) -> Section:
    """Two reporting guidelines: what is open for the author, then what is answered."""
    found = answers(checklist_facts(comparison), comparison.config.report.checklist)
    still_open = [{"Open": item.item, "Topic": item.topic, "Asks for": item.asks} for item in open_items(found)]
    answered = []
    for each in found:
        if each.text is not None:
            by = "author" if each.by_author else "this report"
            item = each.item
            where = PLACES[item.where] if item.where and not each.by_author else "–"
            row = {"Item": item.item, "Asks for": item.asks, "Answer": each.text, "By": by, "More in": where}
            answered.append(row)
    tables = _tables(
        ("For the author to answer", still_open, "Answers go into report.checklist={CLAIM 5: …}."),
        ("Answered", answered, ""),
    )
    return Section("checklist", "Reporting checklist: CLAIM 2024 and TRIPOD+AI", (summary_text(found),), tables)


def checklist_text(comparison: Comparison) -> str:
    """checklist.md."""
    section = checklist_section(comparison)
    return "\n\n".join([f"# {plain(comparison.config.run)}", _section_text(section)])
