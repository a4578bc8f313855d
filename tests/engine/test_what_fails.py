"""Failures beside the training cost none of it: pictures, logs, a validation, numbers that are not finite."""

import math
import shutil
import signal
import socket
import subprocess
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from real_processes import ended, start
from stage_runs import CPU, Stop, assert_same
from tiny_world import call, mistake, tiny_config
from toy_stage import spoiling, toy_stage

import mae.engine.loop
from classify.cases import labelled_splits
from classify.cli import finetune as finetune_command
from classify.finetune import finetune_stage
from data.cli import run_command
from data.errors import NotFinite, UserError
from data.signals import Stopped
from mae import load_checkpoint
from mae.cli import pretrain as pretrain_command
from mae.engine import distributed
from mae.engine.checkpoint import NotSaved, save_checkpoint
from mae.engine.loop import fit
from mae.engine.run import holding, is_finished
from mae.engine.stage import Validation
from mae.engine.tracker import read_metrics
from mae.engine.update import Update
from mae.pretrain import pretrain, pretrain_stage

# ---------------------------------------------------------------- pictures and logs


def test_a_panel_that_fails_is_a_warning(config, tmp_path, capsys):
    def show(model, validation, board, step):
        raise ValueError("Key backend: 'module://matplotlib_inline'\nis not a valid value")

    fit(toy_stage(config, [0.2, 0.7, 0.4], schedule={"epochs": 3}, show=show), tmp_path)
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == errors.count("Key backend") == 1
    assert load_checkpoint(tmp_path / "last.pt").progress["epoch"] == 3
    assert load_checkpoint(tmp_path / "best.pt").progress["epoch"] == 2


def test_what_is_shown_is_saved_already(config, tmp_path):
    def show(model, validation, board, step):
        raise KeyboardInterrupt  # as a kill would

    with pytest.raises(KeyboardInterrupt):
        fit(toy_stage(config, [0.2], schedule={"epochs": 3}, show=show), tmp_path)
    for name in ("last.pt", "best.pt"):
        assert load_checkpoint(tmp_path / name).progress["epoch"] == 1


def test_a_board_that_fails_leaves_the_rows(config, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("add_scalar", "add_text", "close"):
        monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{name}", full)
    fit(toy_stage(config, schedule={"epochs": 2}), tmp_path)
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert [row["epoch"] for row in read_metrics(tmp_path) if "epoch" in row] == [1, 2]


def test_a_backend_of_somebody_elses_is_not_asked_for_pictures(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://jupyter_only.backend_inline")
    words = ["--checkpoint", world.pretrained, "--config", world.config]
    code, errors = ended(start("finetune", *words, finetune__run=tmp_path / "run", finetune__sample=10))
    assert (code, "warning" in errors) == (0, False), errors


# ---------------------------------------------------------------- validation


def failing(stage, epoch):
    """The stage with a validation that fails once, after the epoch."""
    validate, failed = stage.validate, []

    def fails(model, done):
        if done == epoch and not failed:
            failed.append(done)
            raise Stop
        return validate(model, done)

    object.__setattr__(stage, "validate", fails)
    return stage


def test_a_validation_that_fails_costs_no_epoch(config, tmp_path):
    scores = [0.2, 0.7, 0.4, 0.6]
    fit(toy_stage(config, scores), tmp_path / "whole")
    with pytest.raises(Stop):
        fit(failing(toy_stage(config, scores), 3), tmp_path / "parts")
    stopped = load_checkpoint(tmp_path / "parts/last.pt").progress
    assert (stopped["epoch"], stopped["batch"], stopped["step"]) == (2, 5, 15)
    trained = []

    def step(model, batch, epoch):
        trained.append(epoch)
        return model(batch.x).square().mean()

    fit(toy_stage(config, scores[2:], step=step), tmp_path / "parts")
    assert trained == [3] * 5
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        assert_same(one.weights, two.weights)
        assert_same(one.meta, two.meta)
        assert_same(one.progress, two.progress)
    rows = [[row for row in read_metrics(tmp_path / run) if "epoch" in row] for run in ("whole", "parts")]
    assert rows[0] == rows[1]


def test_a_validation_without_a_number_is_no_candidate(config, tmp_path, capsys):
    scores = iter([0.3, math.nan, 0.2])

    def validate(model, epoch):
        score = next(scores)
        if math.isnan(score):
            raise NotFinite("here: found 3 scores not finite")
        return Validation({"validate/score": score}, score, {"of": score})

    fit(toy_stage(config, schedule={"epochs": 3}, validate=validate), tmp_path)
    assert "after epoch 2, no candidate for best.pt: here: found 3 scores not finite; " in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "best.pt").progress["epoch"] == 1
    rows = [row for row in read_metrics(tmp_path) if "epoch" in row]
    assert ["validate/score" in row for row in rows] == [True, False, True]


def test_a_run_that_never_had_a_number_says_so_each_time(config, tmp_path):
    def validate(model, epoch):
        raise NotFinite("here: found 3 scores not finite")

    for _ in range(2):  # the same command again is no success either
        with pytest.raises(UserError, match=r"found no validation with finite numbers"):
            fit(toy_stage(config, schedule={"epochs": 2}, validate=validate), tmp_path)


def test_an_epoch_without_a_finite_batch_has_no_loss(place, tmp_path, capsys):
    config = tiny_config(place, engine__skip_limit=99)
    fit(toy_stage(config, schedule={"epochs": 2}, step=spoiling("loss", range(1, 6))), tmp_path)
    rows = [row for row in read_metrics(tmp_path) if "epoch" in row]
    assert ["epoch/train_loss" in row for row in rows] == [False, True]
    first, second = (line for line in capsys.readouterr().err.splitlines() if "epoch " in line)
    assert "train/loss" not in first
    assert "train/loss" in second


# ---------------------------------------------------------------- the batch there really is


def test_the_rate_is_that_of_the_real_batch(place, opened):
    config = tiny_config(place, pretrain__batch_size=4096, finetune__batch_size=4096)
    assert pretrain_stage(config, opened, CPU).schedule.peak == 0.05 * 40 / 256
    splits = labelled_splits(opened, 20, 0)
    stage = finetune_stage(config, opened, splits, CPU, None)
    assert stage.schedule.peak == pytest.approx(5e-4 * len(splits.train) / 256)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_count_by_their_known_labels(parts, place, opened):
    """Numbers by numpy: the mean over all known labels, however they fall into parts."""
    config = tiny_config(
        place, finetune__batch_size=6, finetune__optimizer__accumulate=parts, finetune__label_smoothing=0.0
    )
    stage = finetune_stage(config, opened, labelled_splits(opened, None, 0), CPU, None)
    stage.model.double()
    batch = next(stage.batches.epoch(0, 0))
    labels = torch.tensor([1.0, math.nan, math.nan, 0.0, 1.0, math.nan])
    loss = Update(stage)(batch._replace(labels=labels), 0)[0].item()

    fresh = finetune_stage(config, opened, labelled_splits(opened, None, 0), CPU, None)
    fresh.model.double()
    logits = []
    fresh.model.register_forward_hook(lambda module, inputs, output: logits.append(output.detach()))
    for number in range(6):
        alone = type(batch)(*(part[number : number + 1] for part in batch))
        fresh.step(fresh.model, alone, 0)
    x, y, known = torch.cat(logits).numpy(), labels.numpy(), ~np.isnan(labels.numpy())
    losses = np.log1p(np.exp(-x)) * y + np.log1p(np.exp(x)) * (1 - y)
    assert loss == pytest.approx(losses[known].mean(), abs=1e-6)


def test_parts_too_small_for_batch_statistics(world, tmp_path):
    for words in (["finetune.mode=linear"], ["finetune.model=resnet18"]):
        settings = ["finetune.batch_size=4", "finetune.optimizer.accumulate=4", f"finetune.run={tmp_path}/run"]
        line = mistake(finetune_command, "--config", world.config, *words, *settings, keep=world.root)
        assert line.startswith("error: finetune.batch_size: found 4, expected at least 8 for batch normalisation")
    few = toy_stage(tiny_config(world.root), settings={"accumulate": 4})  # a batch of four, as few images make it
    with pytest.raises(UserError, match="expected at least 8 for batch normalisation"):
        fit(few, tmp_path)


# ---------------------------------------------------------------- two commands, and several ranks


def test_a_run_folder_is_held_by_one(place, opened, tmp_path):
    config = tiny_config(place, run=str(tmp_path / "run"), pretrain__epochs=1)
    with holding(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(UserError, match=r"found another command that trains there, expected none"):
                pretrain(config, opened)
    pretrain(config, opened)
    with holding(tmp_path / "run"):
        pretrain(config, opened)  # a finished run is not trained


RANKS = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"RANK": None}, "found WORLD_SIZE=2 without RANK"),
        ({"MASTER_ADDR": ""}, "found WORLD_SIZE=2 without MASTER_ADDR"),
        ({"MASTER_PORT": None}, "found WORLD_SIZE=2 without MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "found WORLD_SIZE='two', expected a whole number"),
        ({"RANK": "2"}, "found RANK=2, expected 0 to 1"),
        ({"RANK": "1.0"}, "found RANK='1.0', expected a whole number"),
        ({"LOCAL_RANK": "x"}, "found LOCAL_RANK='x', expected a whole number"),
        ({"LOCAL_WORLD_SIZE": "x"}, "found LOCAL_WORLD_SIZE='x', expected a whole number"),
        ({"MASTER_PORT": "70000"}, "found MASTER_PORT=70000, expected 1 to 65535"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "found MASTER_ADDR=no.such.host.invalid"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_first(changed, found, world, tmp_path, monkeypatch):
    for name, value in (RANKS | changed).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    words = ["--config", world.config, f"run={tmp_path}/run", f"data.store={tmp_path}/stores"]
    if "LOCAL_RANK" in changed:
        words.append("device=cuda")
    line = mistake(pretrain_command, *words, keep=world.root)
    assert line.startswith(f"error: environment: {found}")
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_refused_first(world, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for name, value in (RANKS | {"MASTER_PORT": str(taken.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        line = mistake(pretrain_command, "--config", world.config, f"run={tmp_path}/run", keep=world.root)
    assert "Address already in use" in line
    assert not list(tmp_path.iterdir())


def test_ranks_that_never_come_are_one_line(monkeypatch):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    for name, value in (RANKS | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    alone = distributed.process_group(CPU, minutes=0.01)
    with pytest.raises(UserError, match=r"rank 0 of 2 did not meet the others"), alone:
        pytest.fail("alone")


def test_one_process_needs_no_launcher(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    outcome = call(pretrain_command, "--config", world.config, f"run={tmp_path}/run", "--dry-run")
    assert outcome.code == 0, outcome.err


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError(), "machine"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), "machine"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"), "GPU"),
    ],
)
def test_too_little_memory_is_one_line(error, where):
    def fail(argv):
        raise error

    code, _, line = call(partial(run_command, fail))
    assert (code, line) == (
        2,
        f"error: this {where}: found too little memory, expected more; run again with more free\n",
    )


def test_other_errors_of_torch_are_shown_in_full():
    def fail(argv):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        run_command(fail, [])


# ---------------------------------------------------------------- a disk that takes nothing for a while


def failing_writes(monkeypatch, fails) -> list[str]:
    """Let `fails(name, written)` decide which checkpoints the disk refuses; returns the names of all attempts."""
    write, asked = mae.engine.loop.save_checkpoint, []

    def refusing(checkpoint, path, previous=None):
        asked.append(path.name)
        if fails(path.name, len(asked)):
            raise NotSaved(f"{path}: not written (No space left on device)")
        write(checkpoint, path, previous)

    monkeypatch.setattr(mae.engine.loop, "save_checkpoint", refusing)
    return asked


SCORES = [0.2, 0.9, 0.4, 0.3]


def test_a_best_that_was_not_written_is_written_later(config, tmp_path, monkeypatch, capsys):
    fit(toy_stage(config, SCORES), tmp_path / "whole")
    with monkeypatch.context() as patch:
        asked = failing_writes(patch, lambda name, number: 3 <= number <= 4)  # the second epoch's best, twice
        fit(toy_stage(config, SCORES), tmp_path / "parts")
    assert asked[:7] == ["best.pt", "last.pt", "best.pt", "best.pt", "best.pt", "last.pt", "last.pt"]
    assert "No space left on device" in capsys.readouterr().err
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        assert_same(one.weights, two.weights)
        assert_same(one.progress, two.progress)
        assert_same(one.meta, two.meta)


def test_a_run_that_ends_while_the_best_is_owed_finds_it_again(config, tmp_path, monkeypatch):
    fit(toy_stage(config, SCORES), tmp_path / "whole")
    with monkeypatch.context() as patch:
        failing_writes(patch, lambda name, number: number >= 3)
        with pytest.raises(UserError, match=r"the run is not finished; .* it goes on from step 5"):
            fit(toy_stage(config, SCORES), tmp_path / "parts")
    assert not is_finished(tmp_path / "parts", 4)
    fit(toy_stage(config, SCORES[1:]), tmp_path / "parts")
    assert is_finished(tmp_path / "parts", 4)
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        assert_same(one.weights, two.weights)
        assert_same(one.progress, two.progress)


def test_a_run_that_was_stopped_before_its_last_validation_is_not_finished_by_an_old_checkpoint(
    config, tmp_path, monkeypatch
):
    with pytest.raises(Stop):
        fit(failing(toy_stage(config, SCORES), 4), tmp_path)
    with monkeypatch.context() as patch:
        failing_writes(patch, lambda name, number: True)
        with pytest.raises(UserError, match=r"the run is not finished; .* it goes on from step 20"):
            fit(toy_stage(config, SCORES[3:]), tmp_path)
    assert not is_finished(tmp_path, 4)
    fit(toy_stage(config, SCORES[3:]), tmp_path)
    assert is_finished(tmp_path, 4)


def test_a_signal_while_nothing_can_be_written_says_what_is_saved(config, tmp_path, monkeypatch):
    calls = []

    def step(model, batch, epoch):
        calls.append(epoch)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGTERM)
        return model(batch.x).square().mean()

    failing_writes(monkeypatch, lambda name, number: number > 2)
    with pytest.raises(Stopped) as caught:
        fit(toy_stage(config, SCORES, step=step), tmp_path)
    assert "at step 7, which could not be saved; the same command goes on from step 5" in caught.value.line
    assert load_checkpoint(tmp_path / "last.pt").progress["step"] == 5


def test_a_best_of_another_epoch_is_no_success(config, tmp_path):
    fit(toy_stage(config, SCORES), tmp_path)
    best = load_checkpoint(tmp_path / "best.pt")
    save_checkpoint(replace(best, progress=best.progress | {"best": 0.2}), tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"best.pt: found the weights of another epoch than the best one"):
        is_finished(tmp_path, 4)
    (tmp_path / "best.pt").unlink()
    with pytest.raises(UserError, match=r"best.pt: found no such file"):
        fit(toy_stage(config, SCORES), tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_a_disk_that_is_full_for_a_while(config, tmp_path, capsys):
    """The real thing: a file system of its own, filled up between two epochs and emptied after another."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        filling, calls = disk / "filling", []

        def step(model, batch, epoch):
            calls.append(epoch)
            if len(calls) == 6:  # the first step of the best epoch
                filling.write_bytes(bytes(shutil.disk_usage(disk).free))
            if len(calls) == 12:
                filling.unlink()
            return model(batch.x).square().mean()

        fit(toy_stage(config, SCORES, step=step), disk / "run")
        errors = capsys.readouterr().err
        assert "No space left on device" in errors
        assert "Traceback" not in errors
        assert load_checkpoint(disk / "run/best.pt").progress["epoch"] == 2
        assert load_checkpoint(disk / "run/last.pt").progress["epoch"] == 4
        assert [row["epoch"] for row in read_metrics(disk / "run") if "epoch" in row][-1] == 4
    finally:
        subprocess.run(["umount", str(disk)], check=True)
