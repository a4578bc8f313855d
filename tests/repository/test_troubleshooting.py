"""Every message that docs/troubleshooting.md explains is one that the code can say."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from checkout import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `(.+?)` \|", PAGE, re.M)
GAP = "…"  # on the page the user's own values, in the code the values filled in


@cache
def texts() -> tuple[str, ...]:
    """Every text of our code, with a gap for each value that is put into it."""
    paths = [path for room in ("data", "mae", "classify") for path in (ROOT / room).rglob("*.py")]
    return tuple(text for path in paths for text in texts_of(path.read_text(encoding="utf-8")))


def texts_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def pieces(message: str) -> list[str]:
    """The words of a message that are always the same."""
    found = [piece.strip(" ,;:.") for piece in message.split(GAP)]
    return [piece for piece in found if piece]


def says(text: str, words: list[str]) -> bool:
    """Whether a text has all these words, in their order."""
    place = 0
    for piece in words:
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_stands_in_the_code(message):
    words = pieces(message)
    assert sum(map(len, words)) >= 10
    assert any(says(text, words) for text in texts()), words


def test_the_page_explains_many_messages_each_once():
    assert len(MESSAGES) >= 40
    assert len(set(MESSAGES)) == len(MESSAGES)


def test_words_that_no_message_has_are_noticed():
    assert not any(says(text, ["found a phantom of", "two words that nobody wrote"]) for text in texts())
