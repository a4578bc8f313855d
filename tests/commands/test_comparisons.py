"""What mae-compare and mae-evaluate say of the split, and what a row of a grid may have of its own."""

import json
import shutil

import pandas as pd
import pytest
from tiny_world import mistake, succeed

from classify.cli import compare, evaluate


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[{name: A, set: {evaluate.unit: study}}]", "compare.rows: A: found evaluate.unit, expected it outside, as"),
        ("[{name: A, set: {evaluate: {level: 0.9}}}]", "compare.rows: A: found evaluate.level, expected it outside"),
        ("[{name: A, set: {compare.split: test}}]", "compare.rows: A: found compare.split, expected it outside"),
        ("[{name: A, set: {seed: 3}}]", "compare.rows: A: found seed, expected it outside"),
        ("[{name: A, set: {finetune.run: x}}]", "compare.rows: A: found finetune.run, expected it outside"),
    ],
)
def test_a_row_has_no_way_of_its_own_to_be_evaluated(world, tmp_path, rows, message):
    words = ["--config", world.config, f"run={tmp_path}/grid", f"compare.rows={rows}"]
    assert mistake(compare, *words, keep=world.root).startswith(f"error: {message}")


def test_validation_results_are_marked_wherever_they_stand(world, tmp_path):
    folder = tmp_path / "grid"
    said = succeed(compare, "--config", world.config, f"run={folder}", "compare.rows=[{name: A}]")
    for text in (said, (folder / "comparison.md").read_text(), (folder / "report.html").read_text()):
        assert "These are validation images, on which epochs and thresholds were chosen too" in text
        assert "40 labelled training images, tested on validation images" in text
    assert pd.read_csv(folder / "comparison.csv")["split"].tolist() == ["validate"]
    written = json.loads((folder / "comparison.json").read_text())
    assert (written["split"], written["split_served_selection"]) == ("validate", True)
    assert written["rows"][0]["split"] == "validate"


def test_evaluation_marks_validation_too(world, tmp_path):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    said = succeed(evaluate, run, *world.data, "--split", "validate")
    assert "| MAE (on validation) |" in said
    assert "predictions/validate.csv: split validate: n = 10 images" in said
    assert "so the numbers flatter" in said

    said = succeed(evaluate, run, *world.data)
    assert "predictions/test.csv: split test: n = 10 images" in said
    assert "flatter" not in said
    assert "on validation" not in said


def test_a_finished_comparison_of_every_kind_of_row_is_left_alone(world, tmp_path):
    rows = (
        "compare.rows=[{name: MAE, pretraining: [mae]}, {name: ViT}, {name: ResNet, set: {finetune.model: resnet18}}]"
    )
    words = ["--config", world.config, f"run={tmp_path}/grid", "compare.pretrainings={mae: {}}", rows]
    said = succeed(compare, *words)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("grid/*/*.pt")}
    assert len(before) == 8
    assert succeed(compare, *words).splitlines()[-20:] == said.splitlines()[-20:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("grid/*/*.pt")} == before
