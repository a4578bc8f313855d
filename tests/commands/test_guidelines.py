"""Checklist and model cards of a whole comparison: what they say is what was done."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_world import edit_table, make_world, mistake, succeed

from classify.cli import compare
from classify.report.checklist import PLACES

GRID = "compare={pretrainings: {mae: {}}, rows: [{name: 'MAE | a', pretraining: [mae]}, {name: ViT}]}"


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """Two rows on a table of which three training labels are unknown, and the sex is known."""
    world = make_world(tmp_path_factory.mktemp("guidelines"))

    def change(table: pd.DataFrame) -> pd.DataFrame:
        label = table["label"].where(table.index >= 3)
        return table.assign(label=label, sex=np.where(table.index % 3 < 1, "F", "M"))

    with_sex = edit_table(world, "with_sex", change)
    answered = "report.checklist={CLAIM 5: 'retrospective | <b>', TRIPOD+AI 17: waived}"
    succeed(compare, "--config", world.config, with_sex, GRID, answered, f"run={world.root}/grid")
    return world.root / "grid"


def answers_in(text: str) -> dict[str, str]:
    """Item → answer, from the table of answered items."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.replace(r"\|", "¦").strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith(("CLAIM", "TRIPOD")):
            found[cells[0]] = cells[2]
    return found


def test_answers_say_what_was_done(compared):
    text = (compared / "checklist.md").read_text()
    found = answers_in(text)
    assert found["CLAIM 12"].startswith("3 of 60 images have an unknown label")
    assert "pretraining reads no labels, so it uses those" in found["CLAIM 12"]
    assert found["CLAIM 20"] == "By patient: data with a patient in two splits are refused."
    assert "train 40 images of 20 patients" in found["CLAIM 19"]
    assert found["CLAIM 27"] == "No models were combined."
    assert found["CLAIM 32"].startswith("Validation images only, on which epochs and thresholds were chosen too")
    assert "1 seed per row" in found["CLAIM 25"]
    assert "and over seeds" not in found["CLAIM 29"]
    assert found["CLAIM 31"].startswith("Heatmaps of a few cases, the first by id")
    assert found["CLAIM 36"] == "By split: sex; age is not known."
    assert found["CLAIM 5"] == r"retrospective ¦ \<b>"
    assert found["TRIPOD+AI 17"] == "waived"

    # what nobody here can know is asked for, and comes first
    still_open = text[: text.index("| Item")]
    for item in ("CLAIM 7 ", "CLAIM 13 ", "CLAIM 30 ", "TRIPOD+AI 12d "):
        assert f"| {item}" in still_open
        assert item.strip() not in found
    assert "CLAIM 5 " not in still_open
    asked_or_answered = {name for name in [*found, *still_open.replace("|", "\n").split("\n")] if "CLAIM" in name}
    assert len({name.strip() for name in asked_or_answered if name.strip()[6:].isdigit()}) == 44


def test_the_same_stands_in_the_comparison(compared):
    whole = (compared / "comparison.md").read_text()
    assert answers_in(whole) == answers_in((compared / "checklist.md").read_text())
    assert "Label unknown: 3 of 60 images (5 %)" in whole
    data = json.loads((compared / "comparison.json").read_text())["data"]
    assert [row["unknown"] for row in data["splits"]] == [3, 0, 0]
    assert sum(row["images"] for row in data["label_policy"]) == 60
    assert {row["value"] for row in data["people"]} == {"F", "M"}


def test_every_place_that_answers_name_is_on_the_page(compared):
    page = (compared / "report.html").read_text()
    for anchor in PLACES:
        assert anchor == "answer" or f'id="{anchor}"' in page  # the answer stands at the top
    assert "Reporting checklist" in page and "retrospective | &lt;b&gt;" in page


def test_a_card_for_each_trained_row(compared):
    cards = sorted(path.name for path in (compared / "model_cards").iterdir())
    assert cards == ["mae-a.md", "vit.md"]
    mae, vit = [(compared / "model_cards" / name).read_text() for name in cards]
    assert "Pretrained as a masked autoencoder: 1 epoch, 75 % masked." in mae
    assert "Training began from random weights." in vit
    for text in (mae, vit):
        assert "These are validation images" in text
        assert "One training: the numbers are about this model" in text
        assert "Few cases: 6 normal and 4 abnormal" in text
        assert "not to be used in" in text


def test_a_card_of_a_row_that_is_gone_goes_too_and_a_strangers_file_stays(compared, tmp_path):
    from classify.cli import report

    (compared / "model_cards/old.md").write_text((compared / "model_cards/vit.md").read_text())
    (compared / "model_cards/notes.md").write_text("mine")
    succeed(report, compared)
    assert sorted(path.name for path in (compared / "model_cards").iterdir()) == ["mae-a.md", "notes.md", "vit.md"]
    (compared / "model_cards/notes.md").unlink()


def test_answers_to_nothing_are_refused_before_anything_is_trained(world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/grid", "compare.rows=[{name: A}]"]
    for more in ([], ["--dry-run"]):
        line = mistake(compare, *words, "report.checklist={claim 5: x}", *more, keep=tmp_path)
        assert "report.checklist: found 'claim 5', expected items such as" in line
        assert line.endswith("did you mean CLAIM 5?")
    assert not (tmp_path / "grid").exists()
