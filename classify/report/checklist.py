"""The items of two reporting guidelines, answered as far as a comparison can know them; the rest is the author's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter

import yaml

from data.config import nearest
from data.errors import UserError


@dataclass(frozen=True)
class Item:
    """An item of CLAIM 2024 or TRIPOD+AI."""

    item: str  # CLAIM 4, TRIPOD+AI 12a
    topic: str
    asks: str  # in our own words
    answer: str | None = None  # with facts in {braces}; None: the author's
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
    """UserError for an answer to what no guideline asks."""
    known = [item.item for item in items()]
    for name in given:
        if name not in known:
            raise UserError(f"report.checklist: {name!r} is unknown{nearest(name, known)}")


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
