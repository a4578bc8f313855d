"""Runs of each stage by its real function, interrupted where a test asks for it, and the comparison of two runs."""

from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config

import classify.finetune
import mae.pretrain
from classify.finetune import finetune
from data.loader import Data
from mae import load_checkpoint
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain

CPU = torch.device("cpu")
PRETRAIN_STEPS, FINETUNE_STEPS = 40 // 5, 40 // 7  # per epoch


class Stop(Exception):
    """What interrupts a run."""


@pytest.fixture(scope="module")
def pretrained(place, opened) -> Path:
    return pretrain(tiny_config(place, pretrain__epochs=1), opened) / "last.pt"


OF_THE_MACHINE = {"train/images_per_second", "train/data_wait_share", "train/peak_memory_gb"}
STAGES = {
    "mae": {},
    "full": {"finetune__mode": "full", "finetune__drop_path": 0.5},
    "linear": {"finetune__mode": "linear"},
    "resnet18": {"finetune__model": "resnet18", "finetune__stem": "imagenet"},
    "random": {"finetune__mode": "full", "finetune__augment__enabled": False},
}


@pytest.fixture(params=["mae", "full", "linear"])
def runner(request, place, opened, pretrained) -> "Runner":
    return Runner(request.param, place, opened, pretrained)


class Runner:
    """runner(folder, **changed) → folder, by the real function of a stage."""

    def __init__(self, kind: str, place: Path, opened: Data, pretrained: Path):
        self.kind, self.place, self.opened = kind, place, opened
        self.checkpoint = pretrained if kind in ("full", "linear") else None
        self.room, self.step = (
            (mae.pretrain, "pretrain_step") if kind == "mae" else (classify.finetune, "finetune_step")
        )
        self.steps = PRETRAIN_STEPS if kind == "mae" else FINETUNE_STEPS

    def __call__(self, folder: Path, **changed) -> Path:
        changed = STAGES[self.kind] | changed
        if self.kind == "mae":
            return pretrain(tiny_config(self.place, run=str(folder), **changed), self.opened)
        return finetune(tiny_config(self.place, finetune__run=str(folder), **changed), self.checkpoint, self.opened)

    def stopping(self, monkeypatch, call: int) -> list[int]:
        """Let the n-th training step raise; returns the epochs of the steps so far."""
        step, epochs = getattr(self.room, self.step), []

        def interrupted(model, batch, epoch, settings, seed):
            epochs.append(epoch)
            if len(epochs) == call:
                raise Stop
            return step(model, batch, epoch, settings, seed)

        monkeypatch.setattr(self.room, self.step, interrupted)
        return epochs


def assert_same(one, two, place: str = "") -> None:
    """Bit for bit, tensors and plain values alike."""
    assert type(one) is type(two), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, place
        assert one.equal(two), place
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), place
        for key in one:
            assert_same(one[key], two[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), place
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{place}[{number}]")
    else:
        assert one == two, place


def assert_same_runs(one: Path, two: Path) -> None:
    for name in ("last.pt", "best.pt"):
        a, b = load_checkpoint(one / name), load_checkpoint(two / name)
        for part in ("kind", "weights", "optimizer", "progress", "meta", "state"):
            assert_same(getattr(a, part), getattr(b, part), f"{name} {part}")
    logs = [
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in read_metrics(folder)]
        for folder in (one, two)
    ]
    assert logs[0] == logs[1]
