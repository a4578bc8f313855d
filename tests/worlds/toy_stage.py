"""A stage of a few numbers: what the loop does can be followed by hand."""

import math

import torch
from stage_runs import CPU
from torch import nn

from classify.settings import ClassifyConfig
from mae.engine.optim import adamw, parameter_groups
from mae.engine.schedule import Schedule
from mae.engine.stage import Stage, Validation
from mae.settings import OptimizerSettings


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head, self.frozen = nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Dropout(0.5).eval()

    def forward(self, x):
        return self.head(self.norm(x))


class ToyBatch:
    def __init__(self, number: int):
        self.x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))

    def without_images(self):
        return self

    def to(self, device):
        return self


class ToyBatches:
    batch_size = 4

    def __len__(self):
        return 5

    def epoch(self, epoch, start):
        return (ToyBatch(10 * epoch + number) for number in range(start, 5))


def toy_stage(config: ClassifyConfig, scores=(), step=None, settings=None, schedule=None, **changed) -> Stage:
    """A stage with given validation scores, one per epoch; settings and schedule: what differs from the defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Toy()
    scores = iter(scores)

    def validate(model, epoch):
        assert not model.training
        return Validation({"validate/score": (score := next(scores, 0.0))}, score, {"of": score})

    return Stage(
        **{
            "kind": "toy",
            "config": config,
            "device": CPU,
            "model": model,
            "optimizer": adamw(parameter_groups(model.named_parameters(), 0.0), (0.9, 0.999)),
            "settings": OptimizerSettings(**(settings or {})),
            "schedule": Schedule(**{"epochs": 4, "warmup_epochs": 1, "peak": 0.1, "floor": 0.01, **(schedule or {})}),
            "batches": ToyBatches(),
            "step": step or (lambda model, batch, epoch: model(batch.x).square().mean()),
            "validate": validate,
        }
        | changed
    )


def spoiling(kind: str, wanted):
    """A step whose loss or gradient is not finite in the wanted calls (counted from 1)."""
    calls = []

    def step(model, batch, epoch):
        calls.append(epoch)
        loss = model(batch.x).square().mean()
        if len(calls) not in wanted:
            return loss
        return loss * math.nan if kind == "loss" else loss + (loss * 0).sqrt()  # adds 0, with an infinite slope

    return step
