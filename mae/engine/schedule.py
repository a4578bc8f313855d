"""The learning rate of every step: warm-up, then half a cosine, or a constant rate that cools down at its end."""

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
    cooldown_epochs: float | None = None  # at the end of a constant rate; None: half a cosine

    def at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted over the whole run."""
        warmup = self.epochs / 10 if self.warmup_epochs is None else self.warmup_epochs
        total = self.epochs * steps_per_epoch
        if self.cooldown_epochs is None:
            return warmup_cosine(step, warmup * steps_per_epoch, total, self.peak, self.floor)
        cooldown = self.cooldown_epochs * steps_per_epoch
        return warmup_constant(step, warmup * steps_per_epoch, total, cooldown, self.peak, self.floor)


def schedule_of(settings: OptimizerSettings, base_lr: float, batch_size: int, epochs: int) -> Schedule:
    """Rates are given for a batch of 256 and scale with the batch (Goyal et al. 2017), as in the MAE paper.

    batch_size: of the batches that are trained on. With few training images they are smaller than the config's.
    """
    scale = batch_size / 256
    cooldown = settings.cooldown_epochs if settings.schedule == "constant" else None
    return Schedule(
        epochs, settings.warmup_epochs, peak=base_lr * scale, floor=settings.min_lr * scale, cooldown_epochs=cooldown
    )


def warmup_cosine(step: int, warmup: float, total: int, peak: float, floor: float = 0.0) -> float:
    """Learning rate at a step: linear up to `peak` over `warmup` steps, then half a cosine to `floor`.

    A warm-up of less than a step is skipped: otherwise the only step of a short run would have a rate of 0.
    """
    warmup = warmup if warmup >= 1 else 0.0
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


def warmup_constant(step: int, warmup: float, total: int, cooldown: float, peak: float, floor: float = 0.0) -> float:
    """Linear up to `peak` over `warmup` steps, `peak`, then linear to `floor` over the last `cooldown` steps.

    Before the cooldown, the rate does not depend on the length of the run (Hägele et al. 2024), so one run has many
    possible ends.
    """
    warmup = warmup if warmup >= 1 else 0.0
    if step < warmup:
        return peak * step / warmup
    left = max(total - step, 0)
    if left >= cooldown:
        return peak
    return floor + (peak - floor) * left / cooldown


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
