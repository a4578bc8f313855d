"""Laws of the stages as commands: what each needs, reads and leaves behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluated_runs import check_evaluated, snapshot, weights_equal
from PIL import Image
from tiny_world import MODEL, ONE_SEED, SETTINGS, World, edit_table, make_world, other_split, succeed, write_table

from classify.cases import labelled_splits
from classify.cli import compare, evaluate, finetune
from classify.report.tables import COLUMNS
from data.config import load_config
from data.loader import open_data
from mae import load_checkpoint
from mae.cli import pretrain
from mae.engine.checkpoint import HASHES

# ---------------------------------------------------------------- stage two


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["finetune.mode=linear"], "MAE, linear probe"),
        (["finetune.pool=cls", "finetune.sample=10"], "MAE"),
        (["finetune.augment.enabled=false", "evaluate.unit=study"], "MAE"),
    ],
)
def test_finetune_needs_nothing_but_a_checkpoint(world, settings, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the checkpoint knows where the data are
    succeed(finetune, "--checkpoint", world.pretrained, f"finetune.run={tmp_path}/run", *settings)
    printed = succeed(evaluate, tmp_path / "run")
    assert f"| {name} " in printed
    check_evaluated(tmp_path / "run", printed, 10)


@pytest.mark.parametrize(("model", "name"), [("resnet18", "ResNet-18"), ("vit", "ViT")])
def test_finetune_from_a_config_alone(world, model, name, tmp_path):
    stem = ["finetune.stem=imagenet"]  # quicker
    printed = succeed(finetune, "--config", world.config, f"finetune.model={model}", *stem, f"run={tmp_path}/x")
    folder = Path(next(line for line in printed.splitlines() if line.startswith("next: ")).split()[-1])
    assert folder == tmp_path / f"x-{model}"
    printed = succeed(evaluate, folder, world.classifier)
    assert f"| {name} " in printed and "| MAE " in printed
    check_evaluated(folder, printed, 10)


def test_finetune_takes_a_config_and_a_checkpoint(world, tmp_path):
    words = ["--config", world.config, "--checkpoint", world.pretrained, f"finetune.run={tmp_path}/run"]
    succeed(finetune, *words)
    assert (
        load_checkpoint(tmp_path / "run/best.pt").config.pretrain == load_checkpoint(world.pretrained).config.pretrain
    )


def test_runs_are_named_after_the_pretraining(world, tmp_path, monkeypatch):
    shutil.copytree(world.pretrained.parent, tmp_path / "stage one")
    monkeypatch.chdir(tmp_path / "stage one")
    succeed(finetune, "--config", world.config, "--checkpoint", "last.pt")
    assert (tmp_path / "stage one-full/best.pt").is_file()


def test_a_run_folder_holds_what_made_it(world):
    for run in (world.pretrained.parent, world.classifier):
        assert {"config.yaml", "environment.json", "metrics.jsonl", "last.pt", "best.pt"} <= {
            p.name for p in run.iterdir()
        }
        assert list(run.glob("events.out.tfevents.*"))
        assert load_config(run / "config.yaml") == load_checkpoint(run / "last.pt").config


def test_finetune_samples_are_nested(world):
    data = open_data(load_config(world.config).data)
    drawn = []
    for count in (4, 12, 24, 40):
        train = labelled_splits(data, load_config(world.config, [f"finetune.sample={count}"]).finetune.sample, 0).train
        assert count <= len(train) <= count + 1  # whole patients of two images
        drawn.append(set(train["image_id"]))
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]
    assert len(drawn[3]) == 40


# ---------------------------------------------------------------- laws


def relabel(world: World, name: str, change: Callable[[pd.DataFrame], pd.Series]) -> str:
    """Write the world's table with other labels beside it; returns the override that reads it."""
    return edit_table(world, name, lambda table: table.assign(label=change(table)))


def flip_tests(table: pd.DataFrame) -> pd.Series:
    """Labels, flipped for the test images."""
    return table["label"].where(table["split"] != "test", 1 - table["label"])


def test_pretraining_does_not_read_labels(world, tmp_path):
    shuffled = relabel(world, "shuffled", lambda table: 1 - table["label"].sample(frac=1, random_state=0).to_numpy())
    blank = relabel(world, "blank", lambda table: None)
    for name, labels in (("shuffled", shuffled), ("blank", blank)):
        succeed(pretrain, "--config", world.config, labels, f"run={tmp_path}/{name}")
        assert weights_equal(tmp_path / name / "last.pt", world.pretrained)


def plain(meta: dict) -> dict:
    """Comparable, and without the places where the data lay."""
    return meta | {name: meta[name].tolist() for name in HASHES} | {"data_sets": None}


def test_training_does_not_see_test_labels(world, tmp_path):
    flipped = relabel(world, "flipped", flip_tests)
    succeed(finetune, "--checkpoint", world.pretrained, flipped, f"finetune.run={tmp_path}/run")
    ours, theirs = load_checkpoint(world.classifier / "best.pt"), load_checkpoint(tmp_path / "run/best.pt")
    assert weights_equal(world.classifier / "best.pt", tmp_path / "run/best.pt")
    assert plain(ours.meta) == plain(theirs.meta)


def test_training_does_not_see_test_pixels(tmp_path):
    metas = []
    for name in ("first", "second"):
        other = make_world(tmp_path / name)
        table = pd.read_csv(other.images / "manifest.csv")
        for path in table.loc[table["split"] == "test", "path"] if name == "second" else []:
            other_pixels = 255 - np.asarray(Image.open(other.images / path))
            Image.fromarray(other_pixels).save(other.images / path)
        succeed(pretrain, "--config", other.config)
        succeed(finetune, "--checkpoint", other.pretrained)
        metas.append(plain(load_checkpoint(other.classifier / "best.pt").meta) | {"pretrained_from": None})
    assert metas[0] == metas[1]
    for run in ("runs/mae/last.pt", "runs/mae/best.pt", "runs/mae-full/best.pt"):
        assert weights_equal(tmp_path / "first" / run, tmp_path / "second" / run)


def test_the_threshold_comes_from_validation(world):
    from classify.metrics import choose_threshold

    succeed(evaluate, world.classifier, "--split", "validate")
    predictions = pd.read_csv(world.classifier / "predictions/validate.csv")
    threshold = load_checkpoint(world.classifier / "best.pt").meta["threshold"]["image"]
    expected = choose_threshold(predictions["label"], predictions["score"])
    assert threshold == pytest.approx(expected, abs=1e-6)


def test_evaluating_again_reads_back_and_new_labels_evaluate_anew(world, tmp_path):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    succeed(evaluate, run, *world.data)
    before = snapshot(run, ".csv", ".json", ".jsonl")
    succeed(evaluate, run, *world.data, "evaluate.replicates=777")  # which changes no file
    assert {path: what for path, what in snapshot(run, ".csv", ".json", ".jsonl").items() if path in before} == before
    flipped = relabel(world, "flipped", flip_tests)
    succeed(evaluate, run, *world.data, flipped)
    after = pd.read_csv(run / "predictions/test.csv")
    assert (
        after["label"] == 1 - pd.read_csv(world.images / "manifest.csv").query("split == 'test'")["label"].to_numpy()
    ).all()


def test_a_classifier_predicts_another_data_set(world, tmp_path):
    write_table(tmp_path / "elsewhere", count=24, seed=1)
    run = shutil.copytree(world.classifier, tmp_path / "run")
    succeed(evaluate, run, *world.data)
    own = [run / "predictions/test.csv", run / "predictions/test.json"]
    before = [path.read_bytes() for path in own]
    succeed(evaluate, run / "best.pt", *world.data, f"data.root={tmp_path}/elsewhere")
    assert [path.read_bytes() for path in own] == before
    (found,) = run.glob("predictions/test-*.csv")
    assert len(pd.read_csv(found)) == 4


def test_test_images_that_served_pretraining_are_counted(world, tmp_path):
    other = edit_table(world, "swapped", other_split)
    succeed(finetune, "--checkpoint", world.pretrained, other, f"finetune.run={tmp_path}/run")
    said = succeed(evaluate, tmp_path / "run")
    summary = json.loads((tmp_path / "run/predictions/test.json").read_text())
    assert summary["pretrained_on"] == summary["n"] > 0
    assert f"of which {summary['n']} images served pretraining" in said
    succeed(evaluate, world.classifier)
    assert json.loads((world.classifier / "predictions/test.json").read_text())["pretrained_on"] == 0


def test_more_epochs_continue_a_run(world, tmp_path):
    run = shutil.copytree(world.pretrained.parent, tmp_path / "mae")
    before = snapshot(run, ".pt")
    succeed(pretrain, "--config", world.config, f"run={run}")
    assert snapshot(run, ".pt") == before
    succeed(pretrain, "--config", world.config, f"run={run}", "pretrain.epochs=2")
    assert load_checkpoint(run / "last.pt").progress["epoch"] == 2


# ---------------------------------------------------------------- mae-compare


GRID = """
compare:
  seeds: [0]
  split: test
  pretrainings: {mae75: {}}
  rows:
    - {name: MAE, pretraining: [mae75], set: {finetune.mode: linear}}
    - {name: Random ViT}
"""


def test_compare_runs_a_grid_once(world, tmp_path):
    config = tmp_path / "grid.yaml"
    config.write_text(world.config.read_text().replace(ONE_SEED, "").replace("evaluate: {split: test}\n", GRID))
    run = tmp_path / "grid"
    printed = succeed(compare, "--config", config, f"run={run}")
    for name in ("comparison.csv", "comparison.md", "comparison.json", "report.html"):
        assert (run / name).stat().st_size
    assert f"{run}/report.html" in printed and f"tensorboard --logdir {run}" in printed
    assert all(f"| {name} " in printed for name in ("MAE", "Random ViT"))
    comparison = pd.read_csv(run / "comparison.csv")
    assert set(COLUMNS[:3]) <= set(comparison) and len(comparison) == 2
    assert len(json.loads((run / "comparison.json").read_text())["rows"]) == 2
    before = {path: value for path, value in snapshot(run, ".pt", ".csv", ".jsonl").items() if path.parent != run}
    assert len([path for path in before if path.name == "test.csv"]) == 2
    succeed(compare, "--config", config, f"run={run}")
    after = {path: value for path, value in snapshot(run, ".pt", ".csv", ".jsonl").items() if path.parent != run}
    assert after == before


# ---------------------------------------------------------------- as installed


def test_commands_as_installed(world, tmp_path):
    commands = Path(sys.executable).parent
    if not (commands / "mae-evaluate").exists():
        pytest.skip("the package is not installed beside this python")
    run = shutil.copytree(world.classifier, tmp_path / "run")
    answer = subprocess.run([commands / "mae-evaluate", run, *world.data], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    check_evaluated(run, answer.stdout, 10)
    answer = subprocess.run(
        [commands / "mae-prepare", "--config", world.config, "sed=1"], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: command line: sed is unknown; did you mean seed?\n"


def test_sizes_of_the_tiny_world(world):
    config = load_checkpoint(world.pretrained).config
    assert {name: getattr(config.model, name) for name in MODEL} == MODEL
    assert config.data.image_size == SETTINGS["data.image_size"]
