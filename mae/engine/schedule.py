"""The learning rate of every step: warm-up, then half a cosine."""

import math
from dataclasses import dataclass

import torch

from mae.settings import OptimizerSettings


@dataclass(frozen=True)
class Schedule:
    """Learning rates over a run, at the batch size that is used."""

    epochs: int
    warmup_epochs: float | None  # None: a tenth of the epochs
    peak: float
    floor: float

    def at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted over the whole run."""
        warmup = self.epochs / 10 if self.warmup_epochs is None else self.warmup_epochs
        return warmup_cosine(step, warmup * steps_per_epoch, self.epochs * steps_per_epoch, self.peak, self.floor)


def schedule_of(settings: OptimizerSettings, base_lr: float, batch_size: int, epochs: int) -> Schedule:
    """Rates are given for a batch of 256 and scale with the batch (Goyal et al. 2017), as in the MAE paper.

    batch_size: of the batches that are trained on; few training images make smaller ones than the config asks for.
    """
    scale = batch_size / 256
    return Schedule(epochs, settings.warmup_epochs, peak=base_lr * scale, floor=settings.min_lr * scale)


def warmup_cosine(step: int, warmup: float, total: int, peak: float, floor: float = 0.0) -> float:
    """Learning rate at a step: linear up to `peak` over `warmup` steps, then half a cosine to `floor`."""
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
