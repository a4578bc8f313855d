"""What mae-compare and mae-evaluate say of the split, and what a row of a grid may have of its own."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_world import (
    ONE_EPOCH,
    SETTINGS,
    make_world,
    mistake,
    other_split,
    places,
    radiograph,
    succeed,
    write_config,
    write_table,
)

from classify.cli import compare, evaluate, finetune


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
        assert "These are validation images. Epochs and thresholds were chosen on them too" in text
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
    assert "so the numbers are too optimistic" in said

    said = succeed(evaluate, run, *world.data)
    assert "predictions/test.csv: split test: n = 10 images" in said
    assert "optimistic" not in said
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


# ---------------------------------------------------------------- leaks first


def write_class_folders(root: Path, copied: int) -> None:
    """Images by split and class; the first `copied` test images are copies of training files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 12), ("test", 12)):
        for number in range(count):
            kind = ("NORMAL", "PNEUMONIA")[number % 2]
            path = root / split / kind / f"{split}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(radiograph(number % 2 == 1, rng)).save(path)
            if split == "test" and number < copied:
                shutil.copy(root / "train" / kind / f"train-{number}.png", path)


def everywhere(folder: Path, said: str) -> list[str]:
    """Console, comparison.md and report.html, each up to the first table, and the JSON's warnings."""
    markdown = (folder / "comparison.md").read_text()
    page = (folder / "report.html").read_text()
    written = json.loads((folder / "comparison.json").read_text())
    return [
        said.partition("| Model")[0],
        markdown.partition("| Model")[0],
        re.sub("<[^>]*>", "", page.partition("<table")[0]),
        " ".join(written["warnings"]),
    ]


def test_copies_of_training_images_stand_above_the_table_everywhere(tmp_path):
    write_class_folders(tmp_path / "images", copied=6)
    settings = SETTINGS | ONE_EPOCH | places(tmp_path, "grid") | {"data.source": "folder"}
    config = write_config(tmp_path / "config.yaml", settings)
    said = succeed(compare, "--config", config, "compare={split: test, seeds: [0], rows: [{name: A}]}")
    for text in everywhere(tmp_path / "grid", said):
        assert "Leak: 6 of 12 test images stand in train too (same file 6)." in text
        assert "Few cases: 6 normal and 6 abnormal in split test" in text
        assert text.index("Leak: ") < text.index("Few cases: ")


def test_a_pretraining_that_saw_the_test_images_is_named_first(tmp_path):
    write_table(tmp_path / "images")
    shutil.copytree(tmp_path / "images", tmp_path / "again")
    other_split(pd.read_csv(tmp_path / "again/manifest.csv")).to_csv(tmp_path / "again/manifest.csv", index=False)
    config = write_config(tmp_path / "config.yaml", SETTINGS | ONE_EPOCH | places(tmp_path, "grid"))
    back = f"{{data.root: {tmp_path}/images}}"
    rows = f"[{{name: MAE, pretraining: [again], set: {back}}}, {{name: ViT}}]"
    pretrainings = f"{{again: {{data.root: {tmp_path}/again}}}}"
    words = f"compare={{split: test, seeds: [0], pretrainings: {pretrainings}, rows: {rows}}}"
    said = succeed(compare, "--config", config, words)
    for text in everywhere(tmp_path / "grid", said):
        assert "Leak: 10 of the 10 images predicted served pretraining" in text
        assert "(rows: MAE)" in text
        assert text.index("Leak: ") < text.index("Few cases: ")


def test_a_test_split_that_others_opened_is_said_above_the_numbers(tmp_path):
    world = make_world(tmp_path)
    succeed(finetune, "--config", world.config, f"finetune.run={tmp_path}/earlier")
    succeed(evaluate, tmp_path / "earlier", "--split", "test")
    grid = "compare={split: test, seeds: [0], rows: [{name: A}, {name: B, set: {finetune.drop_path: 0.3}}]}"
    words = ["--config", world.config, f"run={tmp_path}/grid", grid]
    for _ in range(2):
        said = succeed(compare, *words)
        for text in everywhere(tmp_path / "grid", said):
            assert "Test was opened 1 time by 1 checkpoint not in this table" in text
    assert "Who opened the test split" in (tmp_path / "grid/comparison.md").read_text()
    written = json.loads((tmp_path / "grid/comparison.json").read_text())
    assert [opening["run"] for opening in written["openings"]] == ["earlier", "a-seed0", "b-seed0"]
    assert str(tmp_path) not in json.dumps(written["openings"])


def test_one_seed_says_of_what_it_speaks(world, tmp_path):
    grid = (
        "compare={split: test, seeds: [0], pretrainings: {m: {}}, rows: [{name: MAE, pretraining: [m]}, {name: ViT}]}"
    )
    said = succeed(compare, "--config", world.config, f"run={tmp_path}/grid", grid)
    for text in everywhere(tmp_path / "grid", said)[:3]:
        assert "Does pretraining help?" in text
        assert "for these two trained models (a single training says nothing about the methods)" in text
    assert "A side has only one training: this is about these trained models" in said


def test_a_contrast_of_no_row_is_one_line_before_anything_is_trained(world, tmp_path):
    grid = "compare={rows: [{name: Random ViT}, {name: B}], contrasts: [[Random Vit, B]]}"
    line = mistake(compare, "--config", world.config, f"run={tmp_path}/grid", grid, keep=world.root)
    assert line.startswith("error: compare.contrasts.0.a: found 'Random Vit', expected a row's name: Random ViT; B")
    assert line.endswith("did you mean Random ViT?")
    assert not (tmp_path / "grid").exists()


def test_a_subgroup_of_no_column_is_one_line_before_anything_is_trained(world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/grid", "compare.rows=[{name: A}]", "report.subgroups=[gender]"]
    assert "report.subgroups: found 'gender', expected columns of the data: " in mistake(
        compare, *words, keep=world.root
    )
    assert not (tmp_path / "grid").exists()
