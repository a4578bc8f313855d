"""The tutorial can be followed: its commands run, in small, and print what it says they print, numbers aside."""

import re

import pytest
from checkout import ROOT
from documented_commands import MAINS, Ran, commands_of, run_in_small, write_what_readers_have

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|text)\n(.*?)```", PAGE, re.S)
GAP = "…"


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> list[tuple[str, str, list[Ran]]]:
    """Every block of the page, and what the latest block of commands had run by then."""
    root = tmp_path_factory.mktemp("reader")
    write_what_readers_have(root)
    found = []
    ran: list[Ran] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for kind, block in BLOCKS:
            if kind == "bash":
                ran = run_in_small(commands_of(block), root, patch)
            found.append((kind, block, ran))
    return found


def plain(text: str) -> str:
    """A line without its numbers and its spacing."""
    return " ".join(re.sub(r"\d[\d,.]*|\.\d+", "N", text).split())


def stands_in(line: str, printed: str) -> bool:
    """Whether a line was printed, but for what the page leaves out."""
    pieces = [re.escape(plain(piece)) for piece in line.split(GAP)]
    return re.search(".*".join(pieces), printed) is not None


def test_it_takes_the_reader_through_most_commands(followed):
    names = {command.name for _, _, ran in followed for command in ran}
    assert names == set(MAINS) - {"mae-reconstruct", "mae-report"}


def test_what_it_says_is_printed_is_printed(followed):
    missing = []
    for kind, block, ran in followed:
        if kind == "text":
            printed = "\n".join(plain(line) for command in ran for line in command.printed.splitlines())
            missing += [line for line in block.splitlines() if not stands_in(line, printed)]
    assert not missing


def test_a_line_that_is_not_printed_is_noticed():
    assert stands_in("train  4,128 of … images", "train N of all images")
    assert not stands_in("train 4,128 of … pictures", "train N of all images")
