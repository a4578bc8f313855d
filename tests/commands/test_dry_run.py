"""A dry run says what a run would cost, refuses what it would refuse, and leaves no trace."""

from pathlib import Path

import pytest
from tiny_world import TINY, World, call, mistake, succeed

from classify.cli import compare, finetune
from data.config import load_config
from mae.cli import pretrain
from mae.dry_run import duration
from mae.pretrain_cost import pretraining_cost


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("precision=bf16", {"passing"}),
        ("activation_checkpointing=true", {"passing", "flops"}),
        ("pretrain.optimizer.ema=0.9", {"states"}),
        ("pretrain.optimizer.accumulate=2", {"passing"}),
        ("model.in_channels=3", {"encoder", "decoder", "flops", "weights", "states", "passing"}),
        ("model.decoder=cross", {"decoder", "flops", "weights", "states", "passing"}),
    ],
)
def test_the_cost_respects_the_setting(setting, changed):
    before, after = (pretraining_cost(load_config("phantom", [*TINY, *more])) for more in ([], [setting]))
    assert {name for name in vars(before) if getattr(before, name) != getattr(after, name)} == changed


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_dry_run_of_prepared_images_writes_nothing(world: World):
    before = files(world.root)
    printed = succeed(pretrain, "--config", world.config, "--dry-run", f"run={world.root}/never")
    assert files(world.root) == before
    for word in ("parameters", "kept", "predicted", "GFLOPs", "memory", "images/s", "the config's images", "whole run"):
        assert word in printed


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_dry_run_without_images_says_so_and_draws_none(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = succeed(stage, "--config", "phantom", "--dry-run", *TINY, f"data.root={tmp_path}/none")
    assert "random images" in printed
    assert "not known" in printed
    assert not files(tmp_path)


def test_dry_run_tells_what_is_wrong_with_images_that_are_there(world: World):
    for stage in (pretrain, finetune, compare):
        words = ["--config", world.config, "--dry-run", "data.sample=9999", "compare.rows=[{name: V}]"]
        line = mistake(stage, *words, keep=world.root)
        assert line.startswith("error: data.sample: found ")


def test_dry_run_refuses_what_a_run_would_refuse(tmp_path):
    outcome = call(pretrain, "--config", "phantom", "--dry-run", *TINY, "pretrain.predict_ratio=0.25")
    assert outcome.code == 2
    assert outcome.err.startswith("error: pretrain.predict_ratio")


@pytest.mark.parametrize("changed", [[], ["finetune.mode=linear"], ["finetune.model=resnet18"]])
def test_dry_run_of_a_fine_tuning_writes_nothing(world: World, changed):
    before = files(world.root)
    printed = succeed(finetune, "--config", world.config, "--dry-run", f"run={world.root}/never", *changed)
    assert files(world.root) == before
    for word in ("are trained", "memory", "images/s", "the config's images", "epochs"):
        assert word in printed


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (80, "80 s"), (7500, "2 h 5 min"), (600, "10 min"), (273600, "3 days 4 h")]
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
