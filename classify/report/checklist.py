"""The items of two reporting guidelines, answered as far as a comparison can; the author answers the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter

import yaml

from data.errors import UserError, did_you_mean

# names of the report's sections, by anchor
PLACES = {
    "answer": "answer",
    "results": "results",
    "calibration": "calibration",
    "subgroups": "subgroups",
    "operating": "operating points",
    "training": "training curves",
    "mistakes": "mistakes",
    "data": "data",
    "runs": "runs and settings",
    "again": "how to make it again",
}


@dataclass(frozen=True)
class Item:
    """An item of CLAIM 2024 or TRIPOD+AI."""

    item: str  # CLAIM 4, TRIPOD+AI 12a
    topic: str
    asks: str  # in our own words
    answer: str | None = None  # with facts in {braces}; None: left to the author
    where: str | None = None  # the report's section with the details

    @property
    def facts(self) -> list[str]:
        """Names of the facts that its answer needs."""
        return [name for _, name, _, _ in Formatter().parse(self.answer or "") if name]


@dataclass(frozen=True)
class Answer:
    """An item as the report shows it; without a text it is open."""

    item: Item
    text: str | None
    by_author: bool = False


@cache
def items() -> tuple[Item, ...]:
    """All items, in the order of their guidelines."""
    rows = yaml.safe_load((Path(__file__).parent / "checklist.yaml").read_text(encoding="utf-8"))
    return tuple(Item(**row) for row in rows)


def check_answers(given: Mapping[str, str]) -> None:
    """UserError for an empty answer, and for one to an item that no guideline has."""
    known = [item.item for item in items()]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(
                f"report.checklist: found {name!r}, expected items such as {known[0]} and {known[-1]}{hint}"
            )
        if not given[name].strip():
            raise UserError(f"report.checklist: {name}: found no text, expected an answer; leave the item out")


def answers(facts: Mapping[str, str | None], given: Mapping[str, str]) -> list[Answer]:
    """Every item with its answer: the author's where there is one, else from the facts, else open."""
    found = []
    for item in items():
        if item.item in given:
            found.append(Answer(item, given[item.item], by_author=True))
        elif item.answer and all(facts.get(name) for name in item.facts):
            found.append(Answer(item, item.answer.format_map(facts)))
        else:
            found.append(Answer(item, None))
    return found


def open_items(found: list[Answer]) -> list[Item]:
    """What is left for the author."""
    return [answer.item for answer in found if answer.text is None]


def summary_text(found: list[Answer]) -> str:
    """How far the guidelines are answered, in a sentence each."""
    texts = []
    for guideline in dict.fromkeys(guideline_of(answer.item) for answer in found):
        of_this = [answer for answer in found if guideline_of(answer.item) == guideline]
        answered = sum(answer.text is not None for answer in of_this)
        asked = len(of_this) - answered
        texts.append(f"{answered} of {len(of_this)} {guideline} items are answered, {asked} are left to the author.")
    return " ".join(texts)


def guideline_of(item: Item) -> str:
    """CLAIM or TRIPOD+AI."""
    return item.item.split(" ")[0]
