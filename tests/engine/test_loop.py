"""Laws of the loop, with a stage of a few numbers: what is kept, validated, logged and skipped."""

import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from stage_runs import PRETRAIN_STEPS, Stop
from tiny_world import tiny_config
from toy_stage import Toy, spoiling, toy_stage

import mae.engine.loop
import mae.pretrain
from classify.finetune import finetune
from data.errors import UserError
from mae import load_checkpoint
from mae.engine.loop import evaluating, fit
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain
from mae.rehearsal import looks


def test_best_follows_validation(config, tmp_path):
    fit(toy_stage(config, [0.2, 0.7, 0.4, 0.7]), tmp_path)
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert (best.progress["epoch"], best.progress["best"], best.meta["of"]) == (2, 0.7, 0.7)  # the first of equals
    assert (last.progress["epoch"], last.progress["best"], last.meta["of"]) == (4, 0.7, 0.7)
    assert best.optimizer is None


def test_the_last_epoch_is_always_validated(config, tmp_path):
    fit(toy_stage(config, [0.1, 0.2], schedule={"epochs": 5}, validate_every=3), tmp_path)
    assert [row["epoch"] for row in read_metrics(tmp_path) if "epoch" in row] == [3, 5]


@pytest.mark.parametrize("epochs", [1, 5, 7])
@pytest.mark.parametrize("every", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("probe", [None, 1, 2, 3, 5])
def test_a_forecast_counts_as_many_validations_as_a_run_has(config, epochs, every, probe):
    stage = toy_stage(config, schedule={"epochs": epochs}, validate_every=every, probe_every=probe)
    assert looks(epochs, every, probe) == sum(stage.validates_after(epoch) for epoch in range(1, epochs + 1))
    assert looks(epochs, None) == looks(0, every, probe) == 0


def test_a_fine_tuning_is_validated_as_often_as_it_is_told(place, tmp_path):
    config = tiny_config(place, finetune__run=f"{tmp_path}/run", finetune__epochs=5, finetune__validate_every=2)
    run = finetune(config)
    assert [row["epoch"] for row in read_metrics(run) if "epoch" in row] == [2, 4, 5]
    assert load_checkpoint(run / "best.pt").epoch in (2, 4, 5)


@pytest.mark.parametrize(("every", "drawn"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (7, [5])])
def test_pictures_are_drawn_as_often_as_asked_and_at_the_end(place, tmp_path, every, drawn):
    epochs = []

    def show(model, validation, board, step):
        epochs.append(step // 5)

    config = tiny_config(place, engine__pictures_every=every)
    fit(toy_stage(config, schedule={"epochs": 5}, show=show), tmp_path)
    assert epochs == drawn
    assert [row["epoch"] for row in read_metrics(tmp_path) if "epoch" in row] == [1, 2, 3, 4, 5]


def test_modules_are_in_training_mode_after_the_first_validation(config, tmp_path):
    modes = []

    def step(model, batch, epoch):
        modes.append((epoch, model.training, model.norm.training))
        return model(batch.x).square().mean()

    stage = toy_stage(config, step=step)
    stage.model.eval()
    fit(stage, tmp_path)
    assert {mode[1:] for mode in modes} == {(True, True)}
    assert {mode[0] for mode in modes} == {0, 1, 2, 3}
    assert stage.model.norm.num_batches_tracked == 20


def test_evaluation_restores_each_modules_mode():
    model = Toy()
    model.head.eval()
    before = [module.training for module in model.modules()]

    def look(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        return 7

    assert evaluating(model, look) == 7
    assert [module.training for module in model.modules()] == before
    with pytest.raises(Stop):
        evaluating(model, lambda model: (_ for _ in ()).throw(Stop))
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_metrics_show_the_mean_loss_of_an_epoch(place, tmp_path):
    config = tiny_config(place, engine__log_every=2)
    losses = []

    def step(model, batch, epoch):
        losses.append(loss := model(batch.x).square().mean())
        return loss

    fit(toy_stage(config, step=step), tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "train/loss" in row][:3] == [2, 4, 5]
    for epoch, row in enumerate(row for row in rows if "epoch" in row):
        mean = sum(loss.item() for loss in losses[5 * epoch : 5 * epoch + 5]) / 5
        assert row["epoch/train_loss"] == pytest.approx(mean, rel=1e-6)


def test_epochs_that_are_not_saved_add_up_to_one_that_is(place, tmp_path, monkeypatch):
    """A training with a goal saves where it looks, and in between after so many minutes, however short its epochs."""
    seconds = iter(range(10**6))  # each question takes one: fewer than 30 in an epoch
    monkeypatch.setattr(mae.engine.loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    steps = []

    def step(model, batch, epoch):
        steps.append(epoch)
        if epoch == 30:
            raise Stop
        return model(batch.x).square().mean()

    config = tiny_config(place, engine__save_minutes=1)
    with pytest.raises(Stop):
        fit(toy_stage(config, schedule={"epochs": 31}, step=step, goal=0.0), tmp_path)
    assert 16 < load_checkpoint(tmp_path / "last.pt").epoch <= 30


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_updates_that_are_never_finite_stop_and_keep_the_checkpoint(spoil, place, tmp_path):
    config = tiny_config(place, engine__skip_limit=3)
    with pytest.raises(UserError, match=r"at step 3 .*; no checkpoint was written yet; start another run"):
        fit(toy_stage(config, step=spoiling(spoil, range(1, 99))), tmp_path / "at-once")
    with pytest.raises(UserError, match=r"last good checkpoint there, last\.pt, is kept; start another run") as caught:
        fit(toy_stage(config, step=spoiling(spoil, range(11, 99))), tmp_path)
    assert "loss or gradient is not finite at step 13" in str(caught.value)
    assert "3 updates in a row" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = load_checkpoint(tmp_path / "last.pt")
    assert kept.progress["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in kept.weights.values())


def test_a_run_without_any_update_is_no_success(place, tmp_path):
    config = tiny_config(place, engine__skip_limit=99)
    for _ in range(2):  # the same command again is no success either
        with pytest.raises(UserError, match="not finite at all 10 steps, so nothing was learnt"):
            fit(toy_stage(config, schedule={"epochs": 2}, step=spoiling("loss", range(1, 11))), tmp_path)


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped_named_and_leaves_no_trace(spoil, config, tmp_path, capsys):
    stage = toy_stage(config, schedule={"epochs": 1}, step=spoiling(spoil, {3}), name_images=lambda batch: ["bad-one"])
    fit(stage, tmp_path)
    assert "not finite at step 3 (images bad-one): update skipped" in capsys.readouterr().err
    rows = read_metrics(tmp_path)
    assert [row["skipped_images"] for row in rows if "skipped_images" in row] == [["bad-one"]]
    assert rows[-1]["epoch"] == 1
    assert math.isfinite(rows[-1]["epoch/train_loss"])
    assert all(tensor.isfinite().all() for tensor in stage.model.state_dict().values())
    assert load_checkpoint(tmp_path / "last.pt").progress["skipped"] == 1
    assert {state["step"].item() for state in stage.optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("limit", [None, 0.01])
def test_gradients_are_clipped_where_asked(limit, config, tmp_path, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def watched(optimizer, *rest):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(toy_stage(config, settings={"clip_grad": limit}, schedule={"epochs": 1}), tmp_path)
    assert all(norm <= 0.01001 for norm in norms) if limit else max(norms) > 0.05
    assert read_metrics(tmp_path)[0]["train/gradient_norm"] > 0.05  # before clipping


def test_images_are_let_go_before_the_loop_looks_at_their_updates(place, opened, tmp_path, monkeypatch):
    """Of updates that are not looked at yet it keeps what names their images: many batches would fill a memory."""
    step = mae.pretrain.pretrain_step
    images: list[weakref.ref] = []
    alive: list[int] = []

    def watched(model, batch, epoch, settings, seed):
        images.append(weakref.ref(batch.images))
        alive.append(sum(image() is not None for image in images))
        return step(model, batch, epoch, settings, seed)

    monkeypatch.setattr(mae.pretrain, "pretrain_step", watched)
    pretrain(tiny_config(place, run=str(tmp_path / "run"), pretrain__epochs=1, engine__log_every=1000), opened)
    assert len(alive) == PRETRAIN_STEPS > 3
    assert max(alive) <= 2
