"""Whole runs on a device: batches on their way to it, interrupted and resumed, probed, shared by two ranks."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkout import WORLDS
from forked import Forked
from stage_runs import Runner, Stop, assert_same_runs
from tiny_world import tiny_config

from data.loader import Batch, Data, Loader
from mae import load_checkpoint
from mae.engine.checkpoint import load_weights
from mae.engine.prefetch import _copying_stream, on_device, read_ahead
from mae.engine.tracker import read_metrics
from mae.model import mae_from
from mae.pretrain import pretrain
from mae.probe import probe

# ---------------------------------------------------------------- batches


def test_batches_arrive_whole_and_in_order(device, place, opened):
    loader = Loader(opened, opened.split("train"), 5, seed=1)
    expected = list(loader.epoch(2, 1))
    arrived = []
    for batch, moved in on_device(loader.epoch(2, 1), device):
        assert all(part.device.type == device.type for part in moved)
        assert device.type == "cpu" or all(part.is_pinned() for part in batch)  # else a copy would wait
        arrived.append((batch, [part.cpu() for part in moved]))
    assert len(arrived) == len(expected) == 7
    for (batch, moved), wanted in zip(arrived, expected, strict=True):
        assert all(one.equal(two) for one, two in zip(batch, wanted, strict=True))
        assert all(one.equal(two) for one, two in zip(moved, wanted, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_batches_are_not_overwritten_while_they_are_worked_on(place, opened):
    """Work on each batch takes far longer than copying those that follow."""
    loader = Loader(opened, opened.split("train"), 5, seed=1)
    sums = []
    weights = torch.randn(4096, 4096, device="cuda")
    for _, moved in on_device(loader.epoch(0), torch.device("cuda")):
        for _ in range(20):
            weights = torch.tanh(weights @ weights)
        sums.append(moved.images.sum() + 0 * weights.sum().nan_to_num().long())
    assert [int(one) for one in sums] == [int(batch.images.sum()) for batch in loader.epoch(0)]


@pytest.fixture
def pretended_gpu(monkeypatch) -> Iterator[list[str]]:
    """What is asked of a GPU that is not there, by code that copies batches to it: pinning, and setting the device."""
    asked: list[str] = []
    _copying_stream.cache_clear()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda number: asked.append(f"GPU {number}"), raising=False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append("pin") or tensor)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    yield asked
    _copying_stream.cache_clear()


@pytest.mark.parametrize(("name", "number"), [("cuda", 2), ("cuda:1", 1)])
def test_a_reader_gets_its_gpu_by_number_and_pins_what_it_reads(name, number, pretended_gpu, opened):
    """`device: auto` means `cuda`, and torch gives a GPU to a thread only by its number."""
    loader = Loader(opened, opened.split("train"), 5, seed=1)
    arrived = [batch for batch, _ in on_device(loader.epoch(2), torch.device(name))]
    assert pretended_gpu == [f"GPU {number}"] + ["pin"] * 3 * len(loader)
    assert all(one.images.equal(two.images) for one, two in zip(arrived, loader.epoch(2), strict=True))


def test_all_epochs_are_copied_on_one_stream_of_their_gpu(pretended_gpu, opened, monkeypatch):
    """Memory that was allocated for one stream is never reused for another, and torch has 32 of them."""
    made: list[int] = []
    ours = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda number: made.append(number) or ours)
    loader = Loader(opened, opened.split("train"), 5, seed=1)
    for epoch in range(3):
        for name in ("cuda", "cuda:1", "cuda:2"):  # the second is the current one
            assert len(list(on_device(loader.epoch(epoch), torch.device(name)))) == len(loader)
    assert made == [2, 1]


def test_a_cpu_reads_without_a_gpu_that_is_there(pretended_gpu, opened):
    """It may be full, or another program's alone."""
    loader = Loader(opened, opened.split("train"), 5, seed=1)
    assert len(list(on_device(loader.epoch(), torch.device("cpu")))) == len(loader)
    assert pretended_gpu == []


def test_a_reader_is_so_far_ahead_and_no_further():
    read = []

    def source():
        for number in range(7):
            read.append(number)
            yield number

    ahead = read_ahead(source(), 2)
    assert next(ahead) == 0
    until = time.monotonic() + 10
    while len(read) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert read == [0, 1, 2]
    assert list(ahead) == [1, 2, 3, 4, 5, 6]


def test_a_reader_that_is_left_lets_go_of_its_source():
    ended = []

    def source():
        try:
            yield from range(100)
        finally:
            ended.append(True)

    ahead = read_ahead(source(), 2)
    next(ahead)
    ahead.close()
    assert ended == [True]


def test_an_error_of_the_source_arrives_after_what_was_read():
    def source():
        yield 1
        raise KeyError("gone")

    ahead = read_ahead(source(), 3)
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="gone"):
        next(ahead)


# ---------------------------------------------------------------- runs

TOLD = {"engine__deterministic": True, "engine__log_every": 2}


@pytest.mark.parametrize("kind", ["mae", "full"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, device, place, opened, tmp_path, monkeypatch):
    begun = pretrain(tiny_config(place, pretrain__epochs=1, run=str(tmp_path / "begun")), opened) / "last.pt"
    runner = Runner(kind, place, opened, begun)
    changed = TOLD | {"device": device.type}
    whole = runner(tmp_path / "whole", **changed)
    with monkeypatch.context() as patch:
        runner.stopping(patch, 2 * runner.steps + 4)
        with pytest.raises(Stop):
            runner(tmp_path / "parts", engine__save_minutes=1e-9, **changed)
    runner(tmp_path / "parts", **changed)
    assert_same_runs(whole, tmp_path / "parts")


def test_a_run_on_a_device_learns_what_one_on_a_cpu_does(device, place, opened, tmp_path):
    still = {"pretrain__augment__enabled": False, "pretrain__optimizer__base_lr": 5e-3}
    folders = {}
    for name in ("cpu", device.type):
        folders[name] = pretrain(tiny_config(place, device=name, run=str(tmp_path / name), **still), opened)
    one, two = ([row["validate/loss"] for row in rows_of(folder)] for folder in (folders["cpu"], folders[device.type]))
    assert one == pytest.approx(two, rel=2e-3)
    assert one[-1] < one[0]


def rows_of(folder: Path) -> list[dict]:
    return [row for row in read_metrics(folder) if "validate/loss" in row]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_probe_finds_the_same_on_a_device(precision, device, place, opened: Data):
    folder = pretrain(tiny_config(place, run=str(place / "probed"), pretrain__epochs=1), opened)
    checkpoint = load_checkpoint(folder / "last.pt")
    model = mae_from(checkpoint.config.model, checkpoint.config.data.image_size).eval()
    load_weights(model, checkpoint)
    train, held_out = (Loader(opened, opened.split(name), 7) for name in ("train", "validate"))
    with torch.no_grad():
        expected = probe(model.double().encoder, train, held_out, torch.device("cpu"), "fp32")
        found = probe(model.float().to(device).encoder, train, held_out, device, precision)
    assert found.keys() == expected.keys() and len(found) == 2
    for name, area in expected.items():
        assert found[name] == pytest.approx(area, abs=0.1 if precision == "bf16" else 1e-3)


# ---------------------------------------------------------------- two ranks


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_on_one_device_compute_what_one_does(device, tmp_path):
    """By gloo, with which two processes can share a GPU; NCCL needs a GPU each. Batch statistics are shared on CUDA."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = WORLDS / "two_ranks_on_a_device.py"
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(Forked(script, device.type, **place))
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    assert os.environ.get("RANK") is None
