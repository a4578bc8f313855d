"""Flags that both stages of training share: --resume, --verbose, --deterministic, --overfit."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_world import World, call, files, mistake, succeed

from classify.cli import finetune
from data.config import load_config
from data.loader import open_data
from mae import load_checkpoint
from mae.cli import pretrain
from mae.engine.tracker import read_metrics

# enough for a model of these sizes to learn eight images by heart
LEARN = {
    "pretrain": [
        "pretrain.epochs=300",
        "pretrain.optimizer.base_lr=0.1",
        "model.width=48",
        "model.decoder_width=32",
        "pretrain.validate_every=50",
    ],
    "finetune": ["finetune.epochs=30", "finetune.optimizer.base_lr=1"],
}


def losses(run: Path) -> list[float]:
    return [row["epoch/train_loss"] for row in read_metrics(run) if "epoch/train_loss" in row]


def tracked(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run) if "train/loss" in row]


def test_overfitting_drives_the_reconstruction_loss_down(world: World, tmp_path):
    printed = succeed(pretrain, "--config", world.config, "--overfit", 8, *LEARN["pretrain"], f"run={tmp_path}/mae")
    run = tmp_path / "mae-overfit8"
    assert "overfit: trains and validates on the same 8 images" in printed
    assert tracked(run)[-1] < 0.5 * tracked(run)[0]
    assert not (tmp_path / "mae").exists()
    assert len(load_checkpoint(run / "last.pt").meta["seen"]) == 2 * 8  # an id and a content of each image


def test_overfitting_drives_the_classifiers_loss_to_the_floor(world: World, tmp_path):
    before = files(world.root)
    printed = succeed(
        finetune, "--checkpoint", world.pretrained, "--overfit", 8, *LEARN["finetune"], f"finetune.run={tmp_path}/full"
    )
    run = tmp_path / "full-overfit8"
    assert "overfit: trains and validates on the same 8 images" in printed
    assert losses(run)[-1] < 0.1 * losses(run)[0]
    best = load_checkpoint(run / "best.pt")
    assert best.meta["validate_auc"] == 1
    assert best.meta["train_images"] == 8
    assert files(world.root) == before


def test_overfitting_takes_both_classes_in_turn(world: World):
    data = open_data(load_config(world.config).data)
    whole = data.split("train")
    few = data.overfit(5, labelled=True)
    labels = few.split("train")["label"].tolist()
    assert sorted(labels[:2]) == sorted(labels[2:4]) == [0, 1]
    assert len(labels) == 5
    pd.testing.assert_frame_equal(few.split("train").drop(columns="split"), few.split("validate").drop(columns="split"))
    assert few.split("train")["image_id"].isin(whole["image_id"]).all()
    assert data.overfit(5).split("train")["image_id"].tolist() == whole["image_id"].tolist()[:5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overfit", "1"], "--overfit: found 1, expected at least 2 images"),
        (["--overfit", "x"], "argument --overfit: invalid int value: 'x'"),
        (["--overfit", "999"], "--overfit: found 999, expected at most the 40 "),
    ],
)
@pytest.mark.parametrize("main", [pretrain, finetune])
def test_too_many_or_too_few_images_to_overfit(main, words, message, world: World, tmp_path):
    line = mistake(main, "--config", world.config, *words, f"run={tmp_path}/run", keep=world.root)
    assert line.startswith(f"error: command line: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("main", [pretrain, finetune])
def test_resume_insists_on_a_checkpoint(main, world: World, tmp_path):
    places = [f"run={tmp_path}/run", f"finetune.run={tmp_path}/run"]
    line = mistake(main, "--config", world.config, "--resume", *places, keep=world.root)
    assert line.startswith(f"error: {tmp_path}/run: found no last.pt, expected one with --resume")
    succeed(main, "--config", world.config, *places)
    epochs = ["pretrain.epochs=2", "finetune.epochs=2"]
    succeed(main, "--config", world.config, "--resume", *places, *epochs)
    assert load_checkpoint(tmp_path / "run/last.pt").progress["epoch"] == 2


def test_verbose_and_deterministic_are_settings(world: World, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/run", "engine.log_every=1"]
    try:
        outcome = call(pretrain, *words, "--verbose", "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert outcome.code == 0, outcome.err
    assert "run: step 1 train/loss" in outcome.err
    engine = load_checkpoint(tmp_path / "run/last.pt").config.engine
    assert engine.verbose and engine.deterministic
    [start] = json.loads((tmp_path / "run/environment.json").read_text())["starts"]
    assert start["deterministic"] is True
    assert start["device"] == "cpu"


def test_an_override_beats_a_flag(world: World):
    printed = succeed(pretrain, "--config", world.config, "--verbose", "--print-config", "engine.verbose=false")
    assert "  verbose: false" in printed
    assert "  verbose: true" in succeed(finetune, "--checkpoint", world.pretrained, "--verbose", "--print-config")
