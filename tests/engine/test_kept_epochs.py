"""Weights that are kept, and runs that begin from them: one long run has several ends."""

from pathlib import Path

import pytest
import torch
from stage_runs import Runner, Stop, assert_same
from tiny_world import ONE_EPOCH, succeed, tiny_config, write_table

from data.errors import UserError
from data.loader import open_data
from mae import load_checkpoint
from mae.engine import loop
from mae.engine.checkpoint import Checkpoint, NotSaved
from mae.engine.schedule import Schedule, warmup_constant
from mae.pretrain import pretrain

CONSTANT = {"pretrain__optimizer__schedule": "constant"}  # the warm-up is half an epoch
WHOLE = ("kind", "weights", "optimizer", "state")


@pytest.fixture
def run(place, opened, tmp_path):
    return Runner("mae", place, opened, None)


def assert_same_ends(one: Path, two: Path, name: str = "last.pt") -> None:
    a, b = load_checkpoint(one / name), load_checkpoint(two / name)
    for part in (*WHOLE, "meta", "progress"):
        assert_same(getattr(a, part), getattr(b, part), part)


# ---------------------------------------------------------------- the rate


def test_a_constant_rate_does_not_depend_on_how_long_the_run_is_until_it_cools_down():
    long = Schedule(31, 2, peak=0.7, floor=0.1, cooldown_epochs=0)
    short = Schedule(7, 2, peak=0.7, floor=0.1, cooldown_epochs=3)
    assert [long.at(step, 5) for step in range(4 * 5 + 1)] == [short.at(step, 5) for step in range(4 * 5 + 1)]
    assert [long.at(step, 5) for step in range(10, 31 * 5)] == [0.7] * 145


def test_the_cool_down_is_a_straight_line_to_the_floor():
    rates = [warmup_constant(step, 2, 20, 5, 0.7, 0.2) for step in range(21)]
    assert rates[:3] == [0, 0.35, 0.7]
    assert rates[15:] == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert warmup_constant(33, 2, 20, 5, 0.7, 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pretrain.optimizer.cooldown_epochs": 2}, "cooldown_epochs: found 2 with schedule cosine"),
        ({"pretrain.optimizer.warmup_epochs": None, "pretrain.optimizer.schedule": "constant"}, "found null with"),
        (
            {"pretrain.optimizer.schedule": "constant", "pretrain.optimizer.cooldown_epochs": 3.7},
            "at most the 4 epochs",
        ),
        ({"pretrain.keep_epochs": [2, 5]}, "keep_epochs: found 5, expected at most the 4 epochs"),
        ({"pretrain.continue_from": "x.pt"}, "continue_from: found it with optimizer.schedule = cosine"),
        ({"finetune.optimizer.cooldown_epochs": 1}, "finetune.optimizer.cooldown_epochs: found 1 with schedule cosine"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(tmp_path, wrong, said):
    with pytest.raises(UserError) as caught:
        tiny_config(tmp_path, **wrong)
    assert said in str(caught.value)


def test_a_constant_run_that_is_continued_equals_one_begun_as_long(run, tmp_path):
    run(tmp_path / "parts", pretrain__epochs=2, **CONSTANT)
    run(tmp_path / "parts", pretrain__epochs=3, **CONSTANT)
    run(tmp_path / "whole", pretrain__epochs=3, **CONSTANT)
    assert_same_ends(tmp_path / "parts", tmp_path / "whole")


# ---------------------------------------------------------------- weights that stay


def test_kept_weights_are_those_of_a_run_that_stopped_there(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", pretrain__keep_epochs=[1, 3])
    assert sorted(path.name for path in whole.glob("epoch*")) == ["epoch001.pt", "epoch003.pt"]
    with monkeypatch.context() as patch:
        run.stopping(patch, 3 * run.steps + 2)
        with pytest.raises(Stop):
            run(tmp_path / "stopped")
    kept, stood = load_checkpoint(whole / "epoch003.pt"), load_checkpoint(tmp_path / "stopped/last.pt")
    for part in (*WHOLE, "meta", "progress"):
        assert_same(getattr(kept, part), getattr(stood, part), part)
    assert kept.epoch == 3


def test_keeping_changes_nothing_of_the_run(run, tmp_path):
    for name, changed in (("kept", {"pretrain__keep_epochs": [1, 2]}), ("not", {})):
        run(tmp_path / name, pretrain__epochs=2, **changed)
    assert_same_ends(tmp_path / "kept", tmp_path / "not")
    assert_same_ends(tmp_path / "kept", tmp_path / "not", "best.pt")


def test_a_kept_epoch_is_validated(run, tmp_path):
    folder = run(tmp_path / "run", pretrain__keep_epochs=[2], pretrain__validate_every=3)
    assert load_checkpoint(folder / "epoch002.pt").fact("validate_loss") > 0


def test_an_interrupted_run_keeps_the_same_weights(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", pretrain__keep_epochs=[1, 2])
    for call in (run.steps + 3, run.steps - 1):
        with monkeypatch.context() as patch:
            run.stopping(patch, call)
            with pytest.raises(Stop):
                run(tmp_path / "parts", pretrain__keep_epochs=[1, 2])
    run(tmp_path / "parts", pretrain__keep_epochs=[1, 2])
    for name in ("epoch001.pt", "epoch002.pt", "last.pt", "best.pt"):
        assert_same_ends(whole, tmp_path / "parts", name)


def test_a_run_never_stands_beyond_weights_that_the_disk_did_not_take(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", pretrain__keep_epochs=[2])
    save, full = loop.save_checkpoint, [True]

    def saving(checkpoint, path, previous=None):
        full[0] = full[0] and checkpoint.epoch < 3
        if full[0] and path.name == "epoch002.pt":
            raise NotSaved("full")
        if path.name == "last.pt":
            assert checkpoint.epoch < 2 or (path.parent / "epoch002.pt").exists()
        save(checkpoint, path, previous)

    monkeypatch.setattr(loop, "save_checkpoint", saving)
    parts = run(tmp_path / "parts", pretrain__keep_epochs=[2])
    for name in ("epoch002.pt", "last.pt"):
        assert_same_ends(whole, parts, name)


def test_a_finished_run_misses_what_it_kept(run, tmp_path):
    folder = run(tmp_path / "run", pretrain__epochs=2, pretrain__keep_epochs=[1])
    run(tmp_path / "run", pretrain__epochs=2, pretrain__keep_epochs=[1])
    (folder / "epoch001.pt").unlink()
    with pytest.raises(UserError, match=r"epoch001\.pt: found no weights of epoch 1.*take 1 out of pretrain\.keep_"):
        run(folder, pretrain__epochs=2, pretrain__keep_epochs=[1])
    run(folder, pretrain__epochs=2)
    (folder / "epoch001.pt").write_bytes((folder / "last.pt").read_bytes())
    with pytest.raises(UserError, match=r"found no weights of epoch 1"):
        run(folder, pretrain__epochs=2, pretrain__keep_epochs=[1])


def test_kept_weights_are_a_checkpoint_like_any_other(tmp_path):
    from classify.cli import evaluate, export, finetune

    write_table(tmp_path / "images")
    own = {key.replace(".", "__"): value for key, value in ONE_EPOCH.items()} | {"pretrain__epochs": 2}
    config = tiny_config(tmp_path, run=str(tmp_path / "mae"), **own, pretrain__keep_epochs=[1])
    pretrain(config, open_data(config.data))
    kept = tmp_path / "mae/epoch001.pt"
    succeed(finetune, "--checkpoint", kept)
    succeed(evaluate, tmp_path / "mae-epoch001-full")
    succeed(export, "--checkpoint", kept, "--out", tmp_path / "out")
    again = tiny_config(tmp_path, run=str(tmp_path / "again"), **own, model__init=str(kept))
    pretrain(again, open_data(again.data))


# ---------------------------------------------------------------- another end


@pytest.fixture
def long(run, tmp_path) -> Path:
    return run(tmp_path / "long", **CONSTANT, pretrain__keep_epochs=[1, 2])


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_branch_equals_a_run_that_had_cooled_down_there(run, tmp_path, average):
    own = CONSTANT | {"pretrain__optimizer__ema": average}
    long = run(tmp_path / "long", **own, pretrain__keep_epochs=[2])
    cooling = own | {"pretrain__epochs": 3, "pretrain__optimizer__cooldown_epochs": 1}
    whole = load_checkpoint(run(tmp_path / "whole", **cooling) / "last.pt")
    branch = load_checkpoint(run(tmp_path / "b", **cooling, pretrain__continue_from=f"{long}/epoch002.pt") / "last.pt")
    for part in WHOLE:
        assert_same(getattr(whole, part), getattr(branch, part), part)
    assert_same(whole.meta, branch.meta)
    assert {**whole.progress, "best": 0} == {**branch.progress, "best": 0}
    other = load_checkpoint(long / "last.pt").weights
    assert any(not other[name].equal(weight) for name, weight in whole.weights.items())


def test_an_interrupted_branch_equals_a_whole_one(run, long, tmp_path, monkeypatch):
    own = CONSTANT | {"pretrain__continue_from": f"{long}/epoch001.pt", "pretrain__optimizer__cooldown_epochs": 1.5}
    whole = run(tmp_path / "whole", pretrain__epochs=3, **own)
    for call in (3, run.steps + 2):  # before the first checkpoint, and after
        with monkeypatch.context() as patch:
            epochs = run.stopping(patch, call)
            with pytest.raises(Stop):
                run(tmp_path / "parts", pretrain__epochs=3, **own)
        assert epochs[0] == 1
    (long / "epoch001.pt").unlink()  # not needed any more
    run(tmp_path / "parts", pretrain__epochs=3, **own)
    for name in ("last.pt", "best.pt"):
        assert_same_ends(whole, tmp_path / "parts", name)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 7}, "found a run made with seed = 0, expected 7"),
        ({"pretrain__mask_ratio": 0.5}, "made with pretrain.mask_ratio = 0.75, expected 0.5"),
        ({"pretrain__optimizer__warmup_epochs": 0.2}, "warmup_epochs = 0.5, expected 0.2"),
        ({"data__uncertain": "positive"}, "data.uncertain = unknown"),
        ({"pretrain__epochs": 2}, "before this one cools down"),
        (
            {"pretrain__optimizer__cooldown_epochs": 2},
            "after epoch 2, expected some from before this one cools down, at",
        ),
        ({"pretrain__keep_epochs": [2]}, "pretrain.keep_epochs: found 2, expected epochs after 2"),
    ],
)
def test_what_would_not_be_the_same_run_is_refused(run, long, tmp_path, changed, said):
    own = CONSTANT | {"pretrain__epochs": 3, "pretrain__continue_from": f"{long}/epoch002.pt"} | changed
    with pytest.raises(UserError) as caught:
        run(tmp_path / "branch", **own)
    assert said in str(caught.value)
    assert not (tmp_path / "branch").exists()


def test_weights_that_have_begun_to_cool_down_or_lack_the_optimizer_are_refused(run, tmp_path):
    cooled = run(tmp_path / "cooled", **CONSTANT, pretrain__keep_epochs=[3], pretrain__optimizer__cooldown_epochs=2)
    with pytest.raises(UserError, match="before its run cools down, at epoch 2"):
        run(tmp_path / "one", **CONSTANT, pretrain__continue_from=f"{cooled}/epoch003.pt", pretrain__epochs=7)
    plain = run(tmp_path / "plain", **CONSTANT, pretrain__epochs=1)
    with pytest.raises(UserError, match="found no state of the optimizer"):
        run(tmp_path / "two", **CONSTANT, pretrain__continue_from=str(plain), pretrain__epochs=7)


def test_a_run_that_has_cooled_down_is_not_made_longer(run, tmp_path):
    own = CONSTANT | {"pretrain__epochs": 3, "pretrain__optimizer__cooldown_epochs": 1.5}
    run(tmp_path / "one", **own)
    with pytest.raises(UserError, match=r"cooling down since epoch 1.5, expected one .* pretrain.epochs = 4; let"):
        run(tmp_path / "one", **own | {"pretrain__epochs": 4})
    run(tmp_path / "two", **CONSTANT | {"pretrain__epochs": 2})  # which never cools down
    assert load_checkpoint(run(tmp_path / "two", **CONSTANT | {"pretrain__epochs": 3}) / "last.pt").epoch == 3


@pytest.mark.parametrize("cooldown", [1, 1.5, 2.75])
def test_a_cool_down_may_begin_inside_an_epoch_or_be_stopped_there(run, tmp_path, monkeypatch, cooldown):
    own = CONSTANT | {"pretrain__epochs": 3, "pretrain__optimizer__cooldown_epochs": cooldown}
    own |= {"pretrain__optimizer__warmup_epochs": 0.125}
    begins = int((3 - cooldown) * run.steps)
    for name, last in (("cooling", begins + 2), ("not", begins - 1)):
        with monkeypatch.context() as patch:
            run.stopping(patch, last + 1)
            with pytest.raises(Stop):
                run(tmp_path / name, **own, engine__save_steps=last)
        assert load_checkpoint(tmp_path / name / "last.pt").progress["step"] == last

    branching = own | {"pretrain__optimizer__cooldown_epochs": 0, "pretrain__epochs": 4}
    with pytest.raises(UserError, match=f"cooling down since epoch {3 - cooldown:g}, expected one"):
        run(tmp_path / "cooling", **own | {"pretrain__epochs": 4})
    with pytest.raises(UserError, match=f"before its run cools down, at epoch {3 - cooldown:g}$"):
        run(tmp_path / "branch", **branching, pretrain__continue_from=f"{tmp_path}/cooling/last.pt")
    if begins > run.steps:  # in its first epoch a run does not know how long epochs are
        assert load_checkpoint(run(tmp_path / "not", **own | {"pretrain__epochs": 4}) / "last.pt").epoch == 4


@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_how_far_a_run_has_come_is_told_by_its_steps(epoch, steps):
    for batch in range(steps + 1):
        progress = {"epoch": epoch, "batch": batch, "step": epoch * steps + batch}
        found = Checkpoint("mae", {}, {}, progress=progress).trained
        assert found == pytest.approx(epoch + batch / steps if epoch else int(batch > 0))


def test_other_images_are_refused(run, long, tmp_path):
    write_table(tmp_path / "images", seed=5)
    changed = CONSTANT | {"pretrain__continue_from": f"{long}/epoch002.pt", "data__root": str(tmp_path / "images")}
    config = tiny_config(tmp_path, run=str(tmp_path / "branch"), **changed)
    with pytest.raises(UserError, match="found a run on other images"):
        pretrain(config, open_data(config.data))


def test_a_batch_of_auto_is_that_of_the_other_run(run, long, tmp_path):
    own = CONSTANT | {"pretrain__continue_from": f"{long}/epoch002.pt", "pretrain__batch_size": "auto"}
    branch = load_checkpoint(run(tmp_path / "branch", pretrain__epochs=3, **own) / "last.pt")
    assert branch.config.pretrain.batch_size == 5
    assert torch.is_tensor(branch.optimizer["state"][0]["exp_avg"])
