"""Laws of resuming: an interrupted run ends as an uninterrupted one does, bit for bit."""

import pytest
import torch
from stage_runs import STAGES, Runner, Stop, assert_same_runs

import mae.pretrain
from mae import load_checkpoint


@pytest.mark.parametrize("runner", STAGES, indirect=True)
def test_resume_equals_no_interruption_bit_for_bit(runner, tmp_path, monkeypatch):
    half = 1 if runner.kind == "resnet18" else 2  # of its epochs; its checkpoints are large
    epochs = {"pretrain__epochs": 2 * half, "finetune__epochs": 2 * half}
    whole = runner(tmp_path / "whole", **epochs)
    with monkeypatch.context() as patch:
        runner.stopping(patch, half * runner.steps + 3)  # in the middle of an epoch
        with pytest.raises(Stop):
            runner(tmp_path / "parts", **epochs)
    assert load_checkpoint(tmp_path / "parts/last.pt").progress["epoch"] == half
    with monkeypatch.context() as patch:
        seen = runner.stopping(patch, 0)
        runner(tmp_path / "parts", **epochs)
    assert seen == sorted(list(range(half, 2 * half)) * runner.steps)
    assert_same_runs(whole, tmp_path / "parts")
    assert load_checkpoint(whole / "last.pt").progress["step"] == 2 * half * runner.steps


def test_a_checkpoint_inside_an_epoch_resumes_exactly(runner, tmp_path, monkeypatch):
    often = {"engine__log_every": 2}
    whole = runner(tmp_path / "whole", **often)
    with monkeypatch.context() as patch:
        runner.stopping(patch, 2 * runner.steps + 4)
        with pytest.raises(Stop):
            runner(tmp_path / "parts", engine__save_minutes=1e-9, **often)
    progress = load_checkpoint(tmp_path / "parts/last.pt").progress
    assert (progress["epoch"], progress["batch"], progress["step"]) == (2, 2, 2 * runner.steps + 2)
    with monkeypatch.context() as patch:
        epochs = runner.stopping(patch, 0)
        runner(tmp_path / "parts", **often)
    assert epochs == [2] * (runner.steps - 2) + [3] * runner.steps
    assert_same_runs(whole, tmp_path / "parts")


def test_many_interruptions_equal_none(opened, place, pretrained, tmp_path, monkeypatch):
    runner = Runner("mae", place, opened, pretrained)
    often = {"engine__log_every": 3}
    whole, starts = runner(tmp_path / "whole", **often), 0
    while True:
        starts += 1
        with monkeypatch.context() as patch:
            runner.stopping(patch, 5)
            try:
                runner(tmp_path / "parts", engine__save_minutes=1e-9, **often)
                break
            except Stop:
                continue
    assert starts > 4
    assert_same_runs(whole, tmp_path / "parts")


def test_a_stop_during_validation_costs_that_epoch_only(opened, place, pretrained, tmp_path, monkeypatch):
    runner = Runner("mae", place, opened, pretrained)
    whole = runner(tmp_path / "whole")
    validate, calls = mae.pretrain.validate, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise Stop
        return validate(*arguments)

    monkeypatch.setattr(mae.pretrain, "validate", interrupted)
    with pytest.raises(Stop):
        runner(tmp_path / "parts")
    runner(tmp_path / "parts")
    assert len(calls) == 5
    assert_same_runs(whole, tmp_path / "parts")


def test_one_seed_gives_one_run_and_another_seed_another(runner, tmp_path):
    epochs = {"pretrain__epochs": 2, "finetune__epochs": 2}
    runs = [runner(tmp_path / str(number), **epochs) for number in range(2)]
    assert_same_runs(*runs)
    other = load_checkpoint(runner(tmp_path / "other", seed=1, **epochs) / "last.pt").weights
    weights = load_checkpoint(runs[0] / "last.pt").weights
    assert any(not weights[name].equal(other[name]) for name in weights)


def test_training_leaves_the_global_generator_alone(runner, tmp_path):
    before = torch.get_rng_state()
    runner(tmp_path / "run", pretrain__epochs=1, finetune__epochs=1)
    assert torch.get_rng_state().equal(before)


def test_global_generator_does_not_matter(runner, tmp_path):
    epochs = {"pretrain__epochs": 1, "finetune__epochs": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = runner(tmp_path / "one", **epochs)
        torch.manual_seed(2)
        two = runner(tmp_path / "two", **epochs)
    assert_same_runs(one, two)


def test_a_finished_run_is_left_alone(runner, tmp_path, monkeypatch):
    epochs = {"pretrain__epochs": 1, "finetune__epochs": 1}
    runner(tmp_path / "run", **epochs)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    steps = runner.stopping(monkeypatch, 0)
    runner(tmp_path / "run", **epochs)
    assert not steps
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_epochs_may_be_raised(runner, tmp_path, monkeypatch):
    runner(tmp_path / "run", pretrain__epochs=1, finetune__epochs=1)
    steps = runner.stopping(monkeypatch, 0)
    runner(tmp_path / "run", pretrain__epochs=3, finetune__epochs=3)
    assert steps == [1] * runner.steps + [2] * runner.steps
    assert load_checkpoint(tmp_path / "run/last.pt").progress["epoch"] == 3


def test_probe_keeps_the_pretrained_encoder(opened, place, pretrained, tmp_path):
    folder = Runner("linear", place, opened, pretrained)(tmp_path / "run")
    before, after = load_checkpoint(pretrained).weights, load_checkpoint(folder / "last.pt").weights
    encoder = [name for name in before if name.startswith("encoder.")]
    assert encoder
    for name in encoder:
        assert after[name].equal(before[name]), name
