"""Flags that both stages of training share: --resume, --verbose, --deterministic, --overfit."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny_world import World, call, files, mistake, succeed, tiny_config, write_config
from toy_stage import toy_stage

from classify.cli import finetune
from classify.finetune import learnt_loss as classifiers_goal
from data.config import load_config
from data.loader import Loader, open_data
from mae import build_mae, load_checkpoint
from mae.cli import pretrain
from mae.engine.overfit import is_reached
from mae.engine.tracker import read_metrics
from mae.patches import patchify
from mae.pretrain import learnt_loss

# enough for a model of these sizes to learn eight images by heart
LEARN = {
    "pretrain": [
        "pretrain.mask_ratio=0.5",
        "pretrain.optimizer.base_lr=0.1",
        "model.width=48",
        "model.decoder_width=32",
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
    assert "PASS: 8 images are learnt by heart: loss " in printed
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


@pytest.mark.parametrize(("main", "section"), [(pretrain, "pretrain"), (finetune, "finetune")])
def test_overfitting_has_a_schedule_of_its_own(main, section, tmp_path):
    optimizer = {"schedule": "constant", "warmup_epochs": 2, "cooldown_epochs": 3}
    config = write_config(tmp_path / "c.yaml", {"data.source": "phantom", f"{section}.optimizer": optimizer})
    if main is pretrain:
        with config.open("a") as file:
            file.write("  continue_from: other/epoch005.pt\n  keep_epochs: [5]\n")
    found = yaml.safe_load(succeed(main, "--config", config, "--overfit", 7, "--print-config"))[section]
    assert (found["optimizer"]["schedule"], found["optimizer"]["cooldown_epochs"]) == ("cosine", 0)
    assert found["optimizer"]["warmup_epochs"] is None
    assert not found.get("continue_from") and not found.get("keep_epochs")


def test_a_classifier_that_overfits_sees_the_same_in_every_epoch(tmp_path):
    drawn = {"drop_path": 0.3, "drop_patches": 0.5, "label_smoothing": 0.1}
    config = write_config(tmp_path / "c.yaml", {"data.source": "phantom", "finetune": drawn})
    found = yaml.safe_load(succeed(finetune, "--config", config, "--overfit", 7, "--print-config"))["finetune"]
    assert {name: found[name] for name in drawn} == dict.fromkeys(drawn, 0.0)
    assert not found["augment"]["enabled"]


@pytest.mark.parametrize("main", [pretrain, finetune])
def test_overfitting_that_fails_says_so_with_exit_code_1(main, world: World, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/x", f"finetune.run={tmp_path}/x"]
    short = ["pretrain.epochs=3", "finetune.epochs=3"]
    outcome = call(main, *words, "--overfit", 8, *short)
    assert outcome.code == 1
    [line] = [line for line in outcome.out.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert line.startswith("FAIL: 8 images are not learnt by heart: loss ")
    assert "after 3 updates; wanted: at most " in line
    assert "next:" not in outcome.out  # a check of the machinery is no run to continue from


def test_overfitting_that_has_passed_passes_at_once_again(world: World, tmp_path):
    words = ["--checkpoint", world.pretrained, "--overfit", 8, *LEARN["finetune"], f"finetune.run={tmp_path}/full"]
    first = succeed(finetune, *words)
    steps = load_checkpoint(tmp_path / "full-overfit8/last.pt").progress["step"]
    assert steps < 30  # it ended before its last epoch
    [line] = [line for line in first.splitlines() if line.startswith("PASS: 8 images are learnt by heart: loss ")]
    assert f"after {steps} updates; wanted: at most 0.05" in line
    assert line in succeed(finetune, *words).splitlines()
    assert load_checkpoint(tmp_path / "full-overfit8/last.pt").progress["step"] == steps


def test_overfitting_ends_only_when_training_and_validation_have_learnt():
    assert is_reached(0.5, 0.5, {"validate/loss": 0.5})
    assert not is_reached(0.5, 0.51, {"validate/loss": 0.1})
    assert not is_reached(0.5, 0.1, {"validate/loss": 0.51})
    assert not is_reached(0.5, 0.1, {})
    assert not is_reached(0.5, math.nan, {"validate/loss": 0.1})


def test_whoever_sees_no_patch_does_not_pass(opened):
    """Without seeing a patch, the best guess is its mean over the images: twice the wanted loss."""
    few = opened.overfit(7)
    model = build_mae("vit_tiny_patch16", image_size=12, patch_size=4, width=12, depth=1, heads=3)
    batch = next(Loader(few, few.split("train"), 7).epoch())
    patches = patchify(model.encoder.standardize(batch.images), 4)
    patches = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    blind = (patches - patches.mean(0)).square().mean().item()
    assert learnt_loss(model, few) == pytest.approx(blind / 2, rel=1e-5)


def test_images_that_are_all_the_same_leave_a_goal_that_can_be_reached(opened):
    one = opened.split("train").head(1).drop(columns="row")
    table = pd.concat([one.assign(split="train"), one.assign(split="validate")], ignore_index=True)
    same = replace(opened, manifest=replace(opened.manifest, table=table))
    model = build_mae("vit_tiny_patch16", image_size=12, patch_size=4, width=12, depth=1, heads=3)
    assert 0.01 < learnt_loss(model, same) < 0.05


def test_the_classifiers_goal_is_above_its_floor():
    assert classifiers_goal(0.0) == pytest.approx(0.05)
    floor = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert classifiers_goal(0.2) == pytest.approx(floor + 0.05)


def test_a_training_without_a_goal_is_validated_as_its_settings_say(place):
    stage = toy_stage(tiny_config(place), [0.1], schedule={"epochs": 7}, validate_every=3)
    assert [epoch for epoch in range(1, 8) if stage.validates_after(epoch)] == [3, 6, 7]
    few = replace(stage, goal=0.5, schedule=replace(stage.schedule, epochs=150))
    assert [epoch for epoch in range(1, 151) if few.validates_after(epoch)] == [1, 2, 4, 8, 16, 32, 64, 128, 150]


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
