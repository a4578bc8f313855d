"""Real processes, killed and told to stop at random steps: what they end with equals an uninterrupted run."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from real_processes import Process, start, start_forked
from stage_runs import assert_same
from tiny_world import FOUR_EPOCHS, SETTINGS, places, write_config, write_table

from data.errors import UserError
from data.signals import TRY_AGAIN
from mae import load_checkpoint
from mae.engine.checkpoint import Checkpoint, NotSaved, latest_checkpoint, save_checkpoint
from mae.engine.tracker import read_metrics

STEPS = {"pretrain": 6 * 8, "finetune": 6 * 5}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("interruptions")
    write_table(folder / "images")
    settings = SETTINGS | FOUR_EPOCHS | places(folder, "mae")
    settings |= {"pretrain.epochs": 6, "finetune.epochs": 6, "finetune.drop_path": 0.5}
    settings |= {"engine.pictures_every": 3}  # drawing takes longer than all else
    settings |= {"engine.log_every": 1, "engine.save_steps": 2, "pretrain.optimizer.ema": 0.9}
    write_config(folder / "config.yaml", settings)
    return folder


def command(world: Path, stage: str, run: Path) -> list[object]:
    """A stage's command in the folder of a run, to be started."""
    folder = {"pretrain": "run", "finetune": "finetune.run"}[stage]
    return [stage, "--config", world / "config.yaml", f"{folder}={run}"]


def finish(process: Process) -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def interrupt(world: Path, stage: str, run: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """Run until a step is logged, then send the signal; returns exit code and stderr.

    Steps that an earlier run logged do not count: at the very start, the process would not yet handle the signal.
    """
    before = last_change(run)
    process = start_forked(*command(world, stage, run))
    while process.poll() is None and (last_step(run) < step or last_change(run) == before):
        time.sleep(0.002)
    process.send_signal(number)
    return finish(process)


def tear(run: Path, rng: random.Random) -> None:
    """Cut last.pt at random; the checkpoint to resume from is then at most one save interval older."""
    stood, content = load_checkpoint(run / "last.pt").progress["step"], (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(content[: rng.randrange(len(content))])
    assert stood - 2 <= latest_checkpoint(run).progress["step"] < stood


def last_step(run: Path) -> int:
    try:
        return max((row["step"] for row in read_metrics(run)), default=0)
    except ValueError:  # half a line
        return 0


def last_change(run: Path) -> int | None:
    log = run / "metrics.jsonl"
    return log.stat().st_mtime_ns if log.exists() else None


def assert_same_end(one: Path, two: Path) -> None:
    for name in ("last.pt", "best.pt"):
        a, b = load_checkpoint(one / name), load_checkpoint(two / name)
        for part in ("weights", "optimizer", "state"):
            assert_same(getattr(a, part), getattr(b, part), f"{name} {part}")
    rows = [[row for row in read_metrics(run) if "train/loss" in row] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert [row["train/loss"] for row in rows[0]] == [row["train/loss"] for row in rows[1]]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_five_kills_a_torn_file_and_a_signal_equal_no_interruption(world, stage, capsys):
    whole, parts = world / f"{stage}-whole", world / f"{stage}-parts"
    code, errors = finish(start_forked(*command(world, stage, whole)))
    assert code == 0, errors
    rng = random.Random(stage)
    moments = sorted(rng.sample(range(5, STEPS[stage] - 6), 6))
    for number, step in enumerate(moments[:5]):
        code, errors = interrupt(world, stage, parts, step, signal.SIGKILL)
        assert code == -signal.SIGKILL, errors
        if number % 2 == 0:
            tear(parts, rng)
            assert "going on from" in capsys.readouterr().err
    code, errors = interrupt(world, stage, parts, moments[5], signal.SIGTERM)
    assert code == TRY_AGAIN, errors
    assert "stopped by SIGTERM at step" in errors
    assert "Traceback" not in errors
    stopped = load_checkpoint(parts / "last.pt").progress["step"]
    assert f"at step {stopped}, which is saved" in errors
    code, errors = finish(start(*command(world, stage, parts)))  # in a new interpreter, with other hashes
    assert code == 0, errors
    assert_same_end(whole, parts)
    assert not (parts / "previous.pt").exists()


# ---------------------------------------------------------------- torn files, full disks


def test_a_torn_checkpoint_without_another_is_an_error_not_a_new_start(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"half of")
    with pytest.raises(UserError, match="unreadable"):
        latest_checkpoint(tmp_path)


def test_a_full_disk_keeps_what_was_there(monkeypatch, tmp_path):
    checkpoint = Checkpoint("mae", {"seed": 0}, {"weight": torch.ones(2, 3)})
    save_checkpoint(checkpoint, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(NotSaved, match="No space left on device"):
        save_checkpoint(checkpoint, tmp_path / "last.pt", tmp_path / "previous.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before
