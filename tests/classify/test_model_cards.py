"""Laws of model cards: front matter is YAML whatever rows are called, and names in the text are text."""

import re

import pytest
import yaml

from classify.report.model_card import INTENDED, Card, model_card

NASTY = [
    "plain",
    "a: b",
    "--- # x",
    "'\"{}[]",
    "<b>&amp;</b>",
    "x\n---\ny",
    "| a | b |",
    "![x](http://a.b/c.png)",
    "ü 🩻",
]


def front_of(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text[4 : text.index("\n---\n", 4)])


@pytest.mark.parametrize("name", NASTY)
def test_names_are_values_in_the_front_and_text_below(name):
    text = model_card(Card(name, f"{name}: positive against negative", {"license": "other", "license_name": name}))
    front = front_of(text)
    assert set(front) <= {"license", "license_name", "library_name", "pipeline_tag", "tags"}
    card = Card(name, "t", source="table", split="test", metrics={"auc": 0.73456, "f1": float("nan")})
    [index] = front_of(model_card(card))["model-index"]
    assert index["name"] == name
    assert index["results"][0]["metrics"] == [{"type": "roc_auc", "value": 0.7346}]

    body = text[text.index("\n---\n", 4) + 5 :]
    heading = body.splitlines()[0]
    assert heading.startswith("# ")
    assert not re.search(r"(?<!\\)[|`]|(?<!\\)<(?=[a-z/])|(?<!\\)\]\(", heading)


def test_nothing_measured_gives_no_index_and_empty_sections_no_heading():
    text = model_card(Card("a", "t", metrics={"auc": float("nan")}, sections=(("Data", ()), ("Use", (INTENDED,)))))
    assert "model-index" not in front_of(text)
    assert "## Data" not in text and "## Use" in text
    assert "Not a medical device" in text
