"""The training loop of both stages. It knows no task: a `Stage` brings model, step and validation."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from data.config import Root, UserError
from mae.engine import distributed
from mae.engine.checkpoint import (
    Checkpoint,
    NotSaved,
    check_weights,
    latest_checkpoint,
    save_checkpoint,
)
from mae.engine.describe import describe_run, end_session, write_hyperparameters
from mae.engine.memory import keep_freed_memory
from mae.engine.optim import set_learning_rate, warmup_cosine
from mae.engine.signals import Stopped, listening
from mae.engine.tracker import Progress, Tracker
from mae.engine.update import Update


class Batches(Protocol):
    batch_size: int

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int): ...


class Validation(NamedTuple):
    metrics: dict[str, float]
    score: float  # the higher, the better: picks best.pt
    meta: dict[str, Any]  # what the checkpoint should know of it, such as a threshold
    details: Any = None  # what the stage's own `show` draws


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
    validate: Callable[[nn.Module, int], Validation]  # (model, epochs done)
    epochs: int
    warmup_epochs: float | None  # None: a tenth of the epochs
    peak_lr: float
    min_lr: float
    clip_grad: float | None = None
    accumulate: int = 1  # parts each batch is worked through in
    ema: float | None = None  # decay of the average of weights that is validated and kept
    validate_every: int = 1
    meta: dict[str, Any] = field(default_factory=dict)
    name_images: Callable[[Any], list[str]] = lambda batch: []  # ids of a batch's images
    show: Callable[[nn.Module, Validation, SummaryWriter, int], None] = lambda *_: None  # (…, board, step): pictures
    hyperparameters: dict[str, float | str] = field(default_factory=dict)  # what tells its runs apart

    def learning_rate(self, step: int) -> float:
        n = len(self.batches)
        warmup = self.epochs / 10 if self.warmup_epochs is None else self.warmup_epochs
        return warmup_cosine(step, warmup * n, self.epochs * n, self.peak_lr, self.min_lr)


@dataclass
class Position:
    """Where a run stands: all that resuming needs besides weights and optimizer."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # updates made or skipped
    loss_sum: float = 0.0  # of this epoch's finite batches so far
    loss_count: int = 0  # how many those are
    skipped: int = 0  # updates skipped in all
    skipped_in_a_row: int = 0
    best: float = -math.inf


def fit(stage: Stage, folder: Path) -> None:
    """Train until `stage.epochs`, continuing from the folder's last.pt where there is one.

    Random draws are functions of (seed, epoch, image), so weights, optimizer and `Position` are the whole
    state: a resumed run equals an uninterrupted one. SIGTERM, SIGUSR1 and Ctrl-C end it after a saved step, with
    `Stopped`. Raises UserError where too many updates in a row were not finite.
    """
    _check_batch(stage)
    keep_freed_memory()
    run = _Run(stage, folder)
    try:
        with listening() as signals:
            while run.position.epoch < stage.epochs:
                run.train_epoch(signals)
                run.end_epoch()
                run.stop_if(signals)
            run.finish()
    finally:
        run.close()


def _check_batch(stage: Stage) -> None:
    parts = distributed.ranks() * stage.accumulate
    if stage.batches.batch_size % parts:
        raise UserError(
            f"batch_size: found {stage.batches.batch_size} (or that few training images), expected a multiple of "
            f"{parts}: {distributed.ranks()} ranks times accumulate={stage.accumulate}"
        )


class _Run:
    """A stage on its way through a run folder."""

    def __init__(self, stage: Stage, folder: Path):
        self.stage, self.folder, self.settings = stage, folder, stage.config.engine
        self.update = Update(stage)
        self.position = self._resume()
        if distributed.is_main():
            write_hyperparameters(folder, stage.hyperparameters)
        self.tracker = Tracker(folder, self.position.step, distributed.is_main())
        if self.tracker.board is not None:
            describe_run(self.tracker.board, stage.config, self.position.step)
        size, total = stage.batches.batch_size, stage.epochs * len(stage.batches)
        self.progress = Progress(folder.name, total * size, self.position.step * size, distributed.is_main())
        self.pending: list[tuple[Tensor, Any]] = []  # updates nobody has looked at yet, with their batches
        self.watch = _Watch()

    def train_epoch(self, signals: list[str]) -> None:
        stage, position = self.stage, self.position
        stage.model.train()
        self.watch = _Watch()
        for batch in self.watch.waiting(stage.batches.epoch(position.epoch, position.batch)):
            set_learning_rate(stage.optimizer, stage.learning_rate(position.step))
            self.pending.append((self.update(batch.to(stage.device), position.epoch), batch))
            position.step += 1
            position.batch += 1
            self.progress.advance(stage.batches.batch_size)
            ended = position.batch == len(stage.batches)
            due = bool(self.settings.save_steps) and position.step % self.settings.save_steps == 0
            alone = distributed.ranks() == 1
            if ended or due or len(self.pending) == self.settings.log_every or (signals and alone):
                self._look()
                if not ended and (due or self.watch.since_saved() > 60 * self.settings.save_minutes):
                    self._save_last()
                if not ended:
                    self.stop_if(signals)

    def _look(self) -> None:
        """Log the pending updates: the only point that waits for the device."""
        stage, position, count = self.stage, self.position, len(self.pending)
        losses, norms, bad = torch.stack([numbers for numbers, _ in self.pending]).cpu().double().unbind(1)  # each k
        good = bad == 0
        logs = {"train/loss": losses[good].mean().item(), "train/gradient_norm": norms[good].mean().item()}
        if bad.any():
            logs = self._report_skipped(bad.tolist()) | (logs if good.any() else {})
        position.loss_sum += losses[good].sum().item()
        position.loss_count += int(good.sum())
        logs["train/learning_rate"] = stage.learning_rate(position.step - 1)
        logs |= self.watch.look(count * stage.batches.batch_size, stage.device)
        self.tracker.scalars(position.step, logs)
        self.progress.show(epoch=position.epoch + 1, loss=f"{logs.get('train/loss', math.nan):.4f}")
        if self.settings.verbose:
            self.progress.line(f"{self.folder.name}: step {position.step} {_numbers(logs)}")
        self.pending = []

    def _report_skipped(self, bad: list[float]) -> dict[str, float]:
        """Count the skipped updates among the pending ones and name their images; UserError after too many in a row."""
        position, first = self.position, self.position.step - len(bad) + 1
        for number, (skipped, (_, batch)) in enumerate(zip(bad, self.pending, strict=True)):
            position.skipped_in_a_row = position.skipped_in_a_row + 1 if skipped else 0
            if not skipped:
                continue
            position.skipped += 1
            names = [name for part in distributed.gather(self.stage.name_images(batch)) for name in part]
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            self.tracker.note(first + number, skipped_images=names)
            what = f"loss or gradient is not finite at step {first + number} (images {shown})"
            if position.skipped_in_a_row >= self.settings.skip_limit:
                raise UserError(
                    f"{self.folder}: {what}, {position.skipped_in_a_row} updates in a row; the last good checkpoint "
                    "there, last.pt, is kept; start another run (run=…) with lower base_lr, clip_grad or precision=fp32"
                )
            self.progress.say(f"warning: {self.folder.name}: {what}: update skipped")
        return {"train/skipped_updates": float(position.skipped)}

    def end_epoch(self) -> None:
        stage, position = self.stage, self.position
        train_loss = position.loss_sum / max(position.loss_count, 1)
        position.epoch, position.batch, position.loss_sum, position.loss_count = position.epoch + 1, 0, 0.0, 0
        if position.epoch % stage.validate_every and position.epoch < stage.epochs:
            self._save_last()
            return
        model = self.update.kept
        validation = evaluating(model, lambda model: stage.validate(model, position.epoch))
        logs = {"epoch": position.epoch, "epoch/train_loss": train_loss, **validation.metrics}
        self.tracker.scalars(position.step, logs)
        if self.tracker.board is not None:
            evaluating(model, lambda model: stage.show(model, validation, self.tracker.board, position.step))
        if validation.score > position.best:
            position.best = validation.score
            self.tracker.best(position.step, validation.metrics)
            self._save("best.pt", validation.meta, optimizer=False)
        self._save_last(validation.meta)
        numbers = f"train/loss {train_loss:.4f} {_numbers(validation.metrics)}"
        self.progress.line(f"{self.folder.name}: epoch {position.epoch}/{stage.epochs} {numbers}")

    def stop_if(self, signals: list[str]) -> None:
        """End the run after a signal to any rank, its checkpoint written."""
        position = self.position
        if position.epoch == self.stage.epochs or not distributed.anyone(bool(signals), self.stage.device):
            return
        if position.batch:
            self._save_last()
        raise Stopped(self.folder, signals[0] if signals else "another rank's signal", position.step)

    def finish(self) -> None:
        """All ranks meet at the end; the checkpoint before the last is not needed any more."""
        if distributed.is_main():
            (self.folder / "previous.pt").unlink(missing_ok=True)
            end_session(self.tracker.board)
        distributed.wait()

    def close(self) -> None:
        self.progress.close()
        self.tracker.close()

    def _save_last(self, meta: dict[str, Any] | None = None) -> None:
        self._save("last.pt", meta, previous=self.folder / "previous.pt")
        self.watch.saved()

    def _save(
        self, name: str, meta: dict[str, Any] | None = None, optimizer: bool = True, previous: Path | None = None
    ) -> None:
        if not distributed.is_main():
            return
        stage = self.stage
        checkpoint = Checkpoint(
            kind=stage.kind,
            settings=stage.config.model_dump(mode="json"),
            weights=self.update.kept.state_dict(),
            meta={**stage.meta, **(meta or {})},
            optimizer=stage.optimizer.state_dict() if optimizer else None,
            progress=asdict(self.position),
            state=self.update.state_dict() if optimizer else {},
        )
        try:
            save_checkpoint(checkpoint, self.folder / name, previous)
        except NotSaved as error:
            self.progress.say(f"warning: {error}; the one before is kept and training goes on")

    def _resume(self) -> Position:
        checkpoint = latest_checkpoint(self.folder, self.stage.kind)
        if checkpoint is None:
            return Position()
        check_weights(self.update.kept, checkpoint)
        self.update.load_state_dict(checkpoint.weights, checkpoint.state)
        self.stage.optimizer.load_state_dict(checkpoint.optimizer)
        return Position(**checkpoint.progress)


class _Watch:
    """Where the time goes between two looks at the device."""

    def __init__(self):
        self.since = self.last_saved = time.monotonic()
        self.waited = 0.0  # for data, seconds

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, and how long each let us wait."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def look(self, images: int, device: torch.device) -> dict[str, float]:
        """Images per second, share of time waiting for data and peak memory since the last look."""
        now = time.monotonic()
        elapsed, self.since = now - self.since, now
        waited, self.waited = self.waited, 0.0
        return {
            "train/images_per_second": images / elapsed,
            "train/data_wait_share": waited / elapsed,
            "train/peak_memory_gb": peak_memory(device) / 1e9,
        }

    def saved(self) -> None:
        self.last_saved = time.monotonic()

    def since_saved(self) -> float:
        return time.monotonic() - self.last_saved


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numbers(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def evaluating(model: nn.Module, look: Callable[[nn.Module], Any]) -> Any:
    """`look(model)` in evaluation mode and without gradients; the modes are left as found."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return look(model.eval())
    finally:
        for module, mode in modes.items():
            module.training = mode
