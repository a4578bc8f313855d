"""The training loop of both stages. It knows no task: a `Stage` brings model, step and validation."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from data.config import Root, UserError
from mae.engine.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from mae.engine.optim import autocast, set_learning_rate, warmup_cosine
from mae.engine.tracker import Progress, Tracker

LOG_EVERY = 20  # steps between two looks at the device


class Batches(Protocol):
    batch_size: int

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int): ...


class Validation(NamedTuple):
    metrics: dict[str, float]
    score: float  # the higher, the better: picks best.pt
    meta: dict[str, Any]  # what the checkpoint should know of it, such as a threshold


@dataclass(frozen=True)
class Stage:
    """What a stage gives the loop."""

    kind: str  # of its checkpoints
    config: Root
    device: torch.device
    model: nn.Module  # on the device
    optimizer: torch.optim.Optimizer
    batches: Batches
    step: Callable[[nn.Module, Any, int], Tensor]  # (model, batch, epoch) → loss
    validate: Callable[[nn.Module], Validation]
    epochs: int
    warmup_epochs: float | None  # None: a tenth of the epochs
    peak_lr: float
    min_lr: float
    clip_grad: float | None = None
    validate_every: int = 1
    save_minutes: float = 10.0
    meta: dict[str, Any] = field(default_factory=dict)
    show: Callable[[nn.Module, SummaryWriter, int], None] = lambda model, board, step: None  # pictures

    def learning_rate(self, step: int) -> float:
        n = len(self.batches)
        warmup = self.epochs / 10 if self.warmup_epochs is None else self.warmup_epochs
        return warmup_cosine(step, warmup * n, self.epochs * n, self.peak_lr, self.min_lr)


@dataclass
class Position:
    """Where a run stands: all that resuming needs besides weights and optimizer."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # updates made
    loss_sum: float = 0.0  # of this epoch's batches so far
    best: float = -math.inf


def fit(stage: Stage, folder: Path) -> None:
    """Train until `stage.epochs`, continuing from the folder's last.pt where there is one.

    Random draws are functions of (seed, epoch, image), so weights, optimizer and `Position` are the
    whole state: a resumed run equals an uninterrupted one. Raises UserError if loss or gradient is not finite.
    """
    position = _resume(stage, folder / "last.pt")
    if position.epoch >= stage.epochs:
        return
    tracker = Tracker(folder, position.step)
    batch_size, total = stage.batches.batch_size, stage.epochs * len(stage.batches)
    progress = Progress(folder.name, total * batch_size, position.step * batch_size)
    try:
        while position.epoch < stage.epochs:
            _train_epoch(stage, folder, position, tracker, progress)
            _end_epoch(stage, folder, position, tracker, progress)
    finally:
        progress.close()
        tracker.close()


def _train_epoch(stage: Stage, folder: Path, position: Position, tracker: Tracker, progress: Progress) -> None:
    stage.model.train()
    saved = since = time.monotonic()
    window: list[tuple[Tensor, Tensor]] = []  # losses and gradient norms nobody has looked at yet
    for batch in stage.batches.epoch(position.epoch, position.batch):
        set_learning_rate(stage.optimizer, stage.learning_rate(position.step))
        window.append(_update(stage, batch.to(stage.device), position.epoch))
        position.step += 1
        position.batch += 1
        progress.advance(stage.batches.batch_size)
        if len(window) == LOG_EVERY or position.batch == len(stage.batches):
            logs = _look(window, folder, position)
            now = time.monotonic()
            logs["train/learning_rate"] = stage.learning_rate(position.step - 1)
            logs["train/images_per_second"] = len(window) * stage.batches.batch_size / (now - since)
            tracker.scalars(position.step, logs)
            progress.show(epoch=position.epoch + 1, loss=f"{logs['train/loss']:.4f}")
            window, since = [], now
            if now - saved > 60 * stage.save_minutes and position.batch < len(stage.batches):
                _save(stage, folder / "last.pt", position)
                saved = now


def _look(window: list[tuple[Tensor, Tensor]], folder: Path, position: Position) -> dict[str, float]:
    """Mean loss and gradient norm of the last steps: the only point that waits for the device."""
    loss, norm = (torch.stack(part).mean().item() for part in zip(*window, strict=True))
    if not math.isfinite(loss + norm):  # a bad gradient has spoilt the weights before the loss shows it
        raise UserError(
            f"{folder}: loss or gradient is not finite at step {position.step}; the checkpoint before it is kept; "
            "start another run (run=…) with a lower base_lr, a clip_grad or precision=fp32"
        )
    position.loss_sum += loss * len(window)
    return {"train/loss": loss, "train/gradient_norm": norm}


def _update(stage: Stage, batch: Any, epoch: int) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns loss and gradient norm, both still on the device."""
    with autocast(stage.device, stage.config.precision):
        loss = stage.step(stage.model, batch, epoch)
    stage.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, stage.clip_grad or math.inf)
    stage.optimizer.step()
    return loss.detach(), norm.detach()


def _end_epoch(stage: Stage, folder: Path, position: Position, tracker: Tracker, progress: Progress) -> None:
    train_loss = position.loss_sum / len(stage.batches)
    position.epoch, position.batch, position.loss_sum = position.epoch + 1, 0, 0.0
    if position.epoch % stage.validate_every and position.epoch < stage.epochs:
        _save(stage, folder / "last.pt", position)
        return
    validation = evaluating(stage.model, stage.validate)
    tracker.scalars(position.step, {"epoch": position.epoch, "epoch/train_loss": train_loss, **validation.metrics})
    evaluating(stage.model, lambda model: stage.show(model, tracker.board, position.step))
    if validation.score > position.best:
        position.best = validation.score
        _save(stage, folder / "best.pt", position, validation.meta, optimizer=False)
    _save(stage, folder / "last.pt", position, validation.meta)
    numbers = " ".join(f"{name} {value:.4f}" for name, value in validation.metrics.items())
    progress.line(f"{folder.name}: epoch {position.epoch}/{stage.epochs} train/loss {train_loss:.4f} {numbers}")


def evaluating(model: nn.Module, look: Callable[[nn.Module], Any]) -> Any:
    """`look(model)` in evaluation mode and without gradients; the modes are left as found."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return look(model.eval())
    finally:
        for module, mode in modes.items():
            module.training = mode


def _save(
    stage: Stage, path: Path, position: Position, meta: dict[str, Any] | None = None, optimizer: bool = True
) -> None:
    checkpoint = Checkpoint(
        kind=stage.kind,
        settings=stage.config.model_dump(mode="json"),
        weights=stage.model.state_dict(),
        meta={**stage.meta, **(meta or {})},
        optimizer=stage.optimizer.state_dict() if optimizer else None,
        progress=asdict(position),
    )
    save_checkpoint(checkpoint, path)


def _resume(stage: Stage, path: Path) -> Position:
    if not path.exists():
        return Position()
    checkpoint = load_checkpoint(path, stage.kind)
    load_weights(stage.model, checkpoint)
    stage.optimizer.load_state_dict(checkpoint.optimizer)
    return Position(**checkpoint.progress)
