"""--launch: one command starts several ranks on this machine, and ends as they do."""

import os
import signal
import sys
import time
from argparse import Namespace

import pytest
import torch
from real_processes import start, start_forked
from tiny_world import World, make_world

from data.errors import UserError
from mae import load_checkpoint
from mae.cli import launch_ranks
from mae.engine.launch import _environment, ranks_to_launch, run_ranks, without_launch
from mae.engine.run import environment

SAYS = "import os, sys; sys.exit({code} if os.environ['RANK'] == '{rank}' else 0)"


def ranks_of(*codes: str) -> list[list[str]]:
    return [[sys.executable, "-S", "-c", code] for code in codes]


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize(("ranks", "threads"), [(1, 7), (2, 3), (3, 2), (7, 1), (11, 1)])
def test_ranks_share_the_cores_that_the_process_may_use(ranks, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(100, 107)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _environment(0, ranks, 5)["OMP_NUM_THREADS"] == str(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _environment(0, ranks, 5)["OMP_NUM_THREADS"] == "5"


def test_a_number_is_a_number_of_processes_and_auto_one_a_gpu(monkeypatch):
    assert ranks_to_launch("2", "cpu") == 2
    assert ranks_to_launch("auto", "cpu") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert ranks_to_launch("auto", "auto") == 3
    assert ranks_to_launch("2", "cuda") == 2
    assert ranks_to_launch("auto", "cpu") == 1
    with pytest.raises(UserError, match="found 5 with 3 GPUs"):
        ranks_to_launch("5", "auto")


def test_without_a_gpu_auto_is_the_plain_command(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks_to_launch("auto", "auto") == 1
    assert ranks_to_launch("3", "auto") == 3
    with pytest.raises(UserError, match="found 3 with 0 GPUs"):
        ranks_to_launch("3", "cuda")


def test_a_dry_run_says_that_it_looks_at_one_process(capsys):
    for asked, said in (("4", "for one process with the whole batch; 4 would share it"), ("1", ""), (None, "")):
        launch_ranks(Namespace(launch=asked, dry_run=True), [], "mae.cli", "pretrain", "cpu")
        assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="found 'many', expected auto or a number"):
        launch_ranks(Namespace(launch="many", dry_run=True), [], "mae.cli", "pretrain", "cpu")


@pytest.mark.parametrize("asked", ["0", "-1", "many", "1.5", "", "²"])
def test_what_is_no_number_is_one_line(asked):
    with pytest.raises(UserError, match=r"--launch: found .*, expected auto or a number") as caught:
        ranks_to_launch(asked, "cpu")
    assert "\n" not in str(caught.value)


def test_a_device_of_one_process_and_a_launch_inside_torchrun_are_refused(monkeypatch):
    with pytest.raises(UserError, match="found device=cuda:1"):
        ranks_to_launch("2", "cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="found --launch and WORLD_SIZE=2"):
        ranks_to_launch("2", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(UserError, match="found WORLD_SIZE='x', expected a whole number"):
        ranks_to_launch("2", "cpu")


@pytest.mark.parametrize("given", [["--launch", "2"], ["--launch=auto"], []])
def test_the_ranks_are_told_all_but_that(given):
    assert without_launch(["--config", "demo", *given, "run=--launch.d"]) == ["--config", "demo", "run=--launch.d"]


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("code", [0, 1, 2, 75])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_exit_code_is_that_of_the_rank_which_fails(code, rank):
    assert run_ranks(ranks_of(*[SAYS.format(code=code, rank=rank)] * 2)) == code


def test_a_rank_that_is_killed_is_named(capfd):
    kill = "import os, signal; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)"
    assert run_ranks(ranks_of(kill, kill)) == 1
    assert "error: rank 1: its process was killed by signal 9; out of memory?" in capfd.readouterr().err


def test_ranks_that_do_not_notice_a_failure_are_ended(monkeypatch):
    monkeypatch.setattr("mae.engine.launch.PATIENCE", 0.5)
    waits = "import os, sys, time; os.environ['RANK'] == '0' and sys.exit(3); time.sleep(60)"
    start = time.monotonic()
    assert run_ranks(ranks_of(waits, waits)) == 3
    assert time.monotonic() - start < 20


def test_ranks_know_who_they_are(tmp_path):
    tell = f"""
import os, pathlib
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
pathlib.Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(" ".join(os.environ[name] for name in names))
"""
    assert run_ranks(ranks_of(tell, tell, tell)) == 0
    told = [(tmp_path / rank).read_text().split() for rank in "012"]
    assert [line[:5] for line in told] == [[rank, rank, "3", "3", "127.0.0.1"] for rank in "012"]
    assert len({line[5] for line in told}) == 1 and 0 < int(told[0][5]) < 2**16


# ---------------------------------------------------------------- whole commands


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("launched"))


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_train_by_one_command_and_a_signal_ends_both_after_a_saved_step(world, tmp_path):
    run = tmp_path / "run"
    words = ["--launch", "2", "--config", world.config, f"run={run}", "pretrain.epochs=500", "pretrain.batch_size=8"]
    process = start_forked("pretrain", *words, "engine.log_every=1", "data.workers=1")  # its ranks are new interpreters
    until = time.monotonic() + 150
    while not (run / "last.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM" in errors or "another rank's signal" in errors
    assert errors.count("which is saved") == 1

    progress = load_checkpoint(run / "last.pt").progress
    assert 0 < progress["epoch"] < 500
    written = (run / "environment.json").read_text()
    assert '"ranks": 2' in written
    assert environment()["ranks"] == 1


def test_a_mistake_is_answered_once_before_any_rank_begins(world):
    process = start("pretrain", "--launch", "2", "--config", world.config, "pretrain.epochs=none")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    [line] = errors.splitlines()
    assert line.startswith("error: ")
