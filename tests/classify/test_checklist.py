"""Laws of the reporting checklists: only known facts are answered, and open items are asked for by name."""

from string import Formatter

import pytest

from classify.report.checklist import PLACES, Item, answers, check_answers, items, open_items, summary_text
from classify.report.checklist_facts import FACTS, listed
from data.errors import UserError


def test_every_item_stands_there_once_in_order():
    names = [item.item for item in items()]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("CLAIM")] == [f"CLAIM {number}" for number in range(1, 45)]
    assert len(names) - 44 == 52  # of TRIPOD+AI


def test_answers_ask_for_facts_that_there_are_and_name_sections_that_there_are():
    used = {name for item in items() for name in item.facts}
    assert used == set(FACTS)
    assert {item.where for item in items() if item.where} == set(PLACES)
    for item in items():
        assert item.asks and "{" not in item.asks
        assert item.answer or item.where is None


def test_an_item_is_open_until_all_its_facts_are_known():
    known = dict.fromkeys(FACTS, "so it was")
    everything = {answer.item.item: answer.text for answer in answers(known, {})}
    nothing = {answer.item.item: answer.text for answer in answers({}, {})}
    for item in items():
        if item.answer is None:
            assert everything[item.item] is None
        if item.facts:
            assert nothing[item.item] is None
        for name in item.facts:
            [found] = [a for a in answers(known | {name: None}, {}) if a.item == item]
            assert found.text is None

    # a fact may hold braces, for example in the name of a row
    odd = answers(known | {"models": "{source} {0} {"}, {})
    assert odd[0].text == "Deep learning: {source} {0} {."


def test_the_authors_answer_stands_before_ours():
    known = dict.fromkeys(FACTS, "so it was")
    found = {answer.item.item: answer for answer in answers(known, {"CLAIM 5": "{retrospective}", "CLAIM 7": "Boston"})}
    assert found["CLAIM 5"].text == "{retrospective}" and found["CLAIM 5"].by_author
    assert found["CLAIM 7"].text == "Boston" and not found["CLAIM 8"].by_author
    assert "CLAIM 5" not in [item.item for item in open_items(list(found.values()))]


def test_an_answer_to_what_nobody_asks_is_refused():
    check_answers({"CLAIM 5": "retrospective", "TRIPOD+AI 12a": "by hospital"})
    with pytest.raises(UserError, match=r"report.checklist: found 'Claim5', .*did you mean CLAIM 5\?"):
        check_answers({"Claim5": "retrospective"})
    with pytest.raises(UserError, match=r"report\.checklist: CLAIM 5: found no text"):
        check_answers({"CLAIM 5": " "})


def test_the_summary_counts_by_guideline():
    found = answers(dict.fromkeys(FACTS, "so it was"), {})
    by_us = sum(item.answer is not None for item in items() if item.item.startswith("CLAIM"))
    assert by_us == 31
    assert summary_text(found).startswith("31 of 44 CLAIM items are answered, 13 are left to the author. ")


def test_braces_of_answers_are_names_alone():
    for item in items():
        for _, name, spec, conversion in Formatter().parse(item.answer or ""):
            assert not name or (name.isidentifier() and not spec and not conversion)


def test_lists_in_words():
    assert [listed("a"), listed("ab"), listed("abac")] == ["a", "a and b", "a, b and c"]
    assert listed([]) == "" and Item("CLAIM 1", "t", "a").facts == []
