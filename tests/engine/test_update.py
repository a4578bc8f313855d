"""Laws of one update: the average of weights, 16-bit gradients and their scale."""

import pytest
import torch
from stage_runs import Runner, Stop, assert_same, assert_same_runs
from tiny_world import tiny_config
from toy_stage import spoiling, toy_stage

from data.loader import open_data
from mae import load_checkpoint
from mae.engine.loop import fit
from mae.engine.stage import Stage
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain

DECAY, FIRST_SCALE = 0.8, 2.0**16
SORTS = {
    "average": {"pretrain__optimizer__ema": DECAY, "finetune__optimizer__ema": DECAY},
    "fp16": {"precision": "fp16"},
    "both": {"precision": "fp16", "pretrain__optimizer__ema": DECAY, "finetune__optimizer__ema": DECAY},
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("kind", ["mae", "full"])
def test_resume_with_an_average_or_a_scale_is_exact(kind, sort, place, tmp_path, monkeypatch):
    opened = open_data(tiny_config(place).data)
    begun = pretrain(tiny_config(place, pretrain__epochs=1), opened) / "last.pt"
    runner, changed = Runner(kind, place, opened, begun), SORTS[sort] | {"engine__log_every": 2}
    whole = runner(tmp_path / "whole", **changed)
    with monkeypatch.context() as patch:
        runner.stopping(patch, 2 * runner.steps + 4)
        with pytest.raises(Stop):
            runner(tmp_path / "parts", engine__save_minutes=1e-9, **changed)
    assert load_checkpoint(tmp_path / "parts/last.pt").progress["batch"] == 2
    runner(tmp_path / "parts", **changed)
    assert_same_runs(whole, tmp_path / "parts")
    states = [load_checkpoint(folder / "last.pt").state for folder in (whole, tmp_path / "parts")]
    assert states[0]
    assert_same(*states)


def weights_of(stage: Stage) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in stage.model.state_dict().items()}


def test_what_is_validated_and_kept_is_the_average(config, tmp_path):
    after: list[dict[str, torch.Tensor]] = []  # the weights after each update

    def step(model, batch, epoch):
        after.append(weights_of(stage))
        return model(batch.x).square().mean()

    stage = toy_stage(config, [0.0, 1.0, 0.0], step=step, schedule={"epochs": 3}, settings={"ema": DECAY})
    fit(stage, tmp_path)
    after = [*after[1:], weights_of(stage)]
    average, averages = after[0], []
    for weights in after:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name] for name in weights}
        averages.append(average)
    for name, epoch in (("best.pt", 2), ("last.pt", 3)):
        kept, updates = load_checkpoint(tmp_path / name).weights, 5 * epoch
        for parameter, _ in stage.model.named_parameters():
            torch.testing.assert_close(kept[parameter], averages[updates - 1][parameter])
            assert not kept[parameter].equal(after[updates - 1][parameter])
        for buffer, _ in stage.model.named_buffers():  # batch statistics are those of the weights
            assert kept[buffer].equal(after[updates - 1][buffer])
    assert_same(dict(load_checkpoint(tmp_path / "last.pt").state["weights"]), after[-1])


def small_loss(model, batch, epoch) -> torch.Tensor:
    """So small that its gradient times the first scale fits into 16 bits."""
    return model(batch.x).float().square().mean() / 100


def test_fp16_overflow_is_skipped_and_halves_the_scale(place, tmp_path, capsys):
    before = []

    def step(model, batch, epoch):
        before.append(weights_of(stage))
        loss = small_loss(model, batch, epoch)
        return loss * 1e6 if len(before) == 3 else loss  # finite, but its gradient times the scale is not, in 16 bits

    schedule = {"epochs": 1, "peak": 1e-3, "warmup_epochs": 0}
    stage = toy_stage(tiny_config(place, precision="fp16"), step=step, schedule=schedule)
    fit(stage, tmp_path)
    assert_same(before[3], before[2] | {"norm.num_batches_tracked": before[3]["norm.num_batches_tracked"]})
    assert not before[4]["head.weight"].equal(before[3]["head.weight"])
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.progress["skipped"] == 1
    assert last.state["scaler"]["scale"] == FIRST_SCALE / 2
    assert "not finite at step 3" in capsys.readouterr().err


def test_fp16_gradients_are_unscaled_before_they_are_measured(place, tmp_path):
    norms = {}
    for precision in ("fp32", "fp16"):
        config = tiny_config(place, precision=precision, engine__log_every=1)
        fit(toy_stage(config, step=small_loss, schedule={"epochs": 1}), tmp_path / precision)
        norms[precision] = read_metrics(tmp_path / precision)[0]["train/gradient_norm"]
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)
    assert norms["fp16"] != norms["fp32"]


def test_an_update_that_is_skipped_leaves_the_average_of_what_was(config, tmp_path):
    stage = toy_stage(config, step=spoiling("loss", {1}), schedule={"epochs": 1}, settings={"ema": DECAY})
    fit(stage, tmp_path)
    assert all(weight.isfinite().all() for weight in load_checkpoint(tmp_path / "last.pt").weights.values())


def test_tf32_on_a_cpu_is_fp32(place, tmp_path):
    for precision in ("fp32", "tf32"):
        fit(toy_stage(tiny_config(place, precision=precision), schedule={"epochs": 2}), tmp_path / precision)
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("fp32", "tf32"))
    assert_same(one.weights, two.weights)
    assert torch.get_float32_matmul_precision() == "highest"
