"""The training loop of both stages. It knows no task: a `Stage` brings model, step and validation."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data.errors import LONGEST, Diverged, NotFinite, UserError, printable
from data.privacy import data_sets
from data.signals import Stopped, noting_signals
from mae.engine import distributed
from mae.engine.checkpoint import (
    Checkpoint,
    NotSaved,
    check_finished,
    check_weights,
    expect_finite,
    identity,
    kept_name,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mae.engine.checkpoint_file import stands_somewhere
from mae.engine.console import duration
from mae.engine.hparams import describe_run, end_session, write_hyperparameters
from mae.engine.memory import keep_freed_memory
from mae.engine.optim import load_optimizer
from mae.engine.overfit import is_reached
from mae.engine.prefetch import on_device
from mae.engine.schedule import set_learning_rate
from mae.engine.stage import AnyStage, Batch, Validation
from mae.engine.tracker import Progress, Tracker
from mae.engine.update import Update

Seen = TypeVar("Seen")


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

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.batch = 0
        self.loss_sum = 0.0
        self.loss_count = 0


def fit(stage: AnyStage, folder: Path, begin: Callable[[], None] = lambda: None) -> None:
    """Train until `stage.epochs` or the stage's goal, continuing from the folder's last.pt where there is one.

    begin: called when last.pt, if any, has been read and fits, before anything is written.

    Random draws are functions of (seed, epoch, image), so weights, optimizer and `Position` are the whole state: a
    resumed run equals an uninterrupted one. The signals of data/signals.py, such as SIGTERM and Ctrl-C, end it after a
    saved step, with `Stopped`. Raises UserError where too many updates in a row, or all of them, were not finite.
    """
    _check_batch(stage)
    keep_freed_memory()
    run = _Run(stage, folder, begin)
    try:
        with noting_signals() as signals:
            while run.position.epoch < stage.epochs and not run.reached:
                run.train_epoch(signals)
                run.end_epoch()
                run.stop_if(signals)
            run.expect_updates()
            run.finish()
    finally:
        run.close()


def _check_batch(stage: AnyStage) -> None:
    """UserError if the batch cannot be divided equally among ranks and accumulated parts."""
    size = stage.batches.batch_size
    accumulate = stage.settings.accumulate
    ranks = distributed.world_size()
    parts = ranks * accumulate
    found = f"batch_size: found {size} (or that few training images)"
    if size % parts:
        raise UserError(f"{found}, expected a multiple of {parts}: {ranks} ranks times accumulate={accumulate}")

    # one image has no variance; ranks share their batch statistics
    normalises = any(isinstance(module, distributed.BATCH_NORMS) for module in stage.model.modules())
    if normalises and size < 2 * accumulate:
        raise UserError(
            f"{found}, expected at least {2 * accumulate} for batch normalisation: 2 images in each part, "
            f"accumulate={accumulate}"
        )


class _Run:
    """A stage on its way through a run folder."""

    def __init__(self, stage: AnyStage, folder: Path, begin: Callable[[], None]):
        self.stage = stage
        self.folder = folder
        self.settings = stage.config.engine
        self.update = Update(stage)
        self.reached = False  # the goal of a stage that has one
        self.position = self._resume()
        begin()
        self.pending: list[tuple[Tensor, Batch]] = []  # updates not looked at yet, with what names their images
        self.validated: dict[str, Any] = {}  # facts of the validation at this step, for last.pt
        self.saved = replace(self.position)  # where last.pt stands
        self.owed: dict[str, Checkpoint] = {}  # by file: weights to keep that the disk has not taken yet
        self.written: dict[str, tuple[int, ...]] = {}  # by file: its identity after this process wrote it
        self.watch = _Watch()
        self.pace = _Pace(self.position.step)
        self.data_sets = sorted(data_sets(stage.config.data))  # as they are now: links and variables may change

        # one rank writes for all
        writes = distributed.is_main()
        self.tracker = Tracker(folder, self.position.step, enabled=writes, kind=stage.kind)
        self.tracker.draw(lambda board: write_hyperparameters(folder, stage.hyperparameters))
        self.tracker.draw(lambda board: describe_run(board, stage.config, self.position.step))

        # the bar counts images over the whole run
        size = stage.batches.batch_size
        total = stage.epochs * len(stage.batches)
        self.progress = Progress(folder.name, images=total * size, done=self.position.step * size, enabled=writes)

    def train_epoch(self, signals: list[str]) -> None:
        """Train from the current batch to the end of the epoch; save and stop in between when that is due."""
        stage = self.stage
        position = self.position
        save_steps = self.settings.save_steps
        stage.model.train()
        self.watch.begin()
        self.validated = {}
        with closing(on_device(stage.batches.epoch(position.epoch, position.batch), stage.device)) as batches:
            for batch, moved in self.watch.waiting(batches):
                set_learning_rate(stage.optimizer, stage.learning_rate(position.step))
                self.pending.append((self.update(moved, position.epoch), batch.without_images()))
                position.step += 1
                position.batch += 1
                self.progress.advance(stage.batches.batch_size)

                # several ranks must look at the same steps, so a signal to one of them waits for the next look
                ended = position.batch == len(stage.batches)
                save_due = save_steps is not None and position.step % save_steps == 0
                stop_due = bool(signals) and distributed.world_size() == 1
                if not (ended or save_due or stop_due or len(self.pending) == self.settings.log_every):
                    continue

                # at the end, `end_epoch` saves; a run that stops before its validation resumes with it
                self._look()
                if not ended and (save_due or self.watch.since_saved() > 60 * self.settings.save_minutes):
                    self._save_last()
                self.stop_if(signals)

    def _look(self) -> None:
        """Log the pending updates: the only point that waits for the device."""
        stage = self.stage
        position = self.position
        numbers = torch.stack([numbers for numbers, _ in self.pending]).cpu().double()  # k 3
        losses, norms, bad = numbers.unbind(1)  # each k
        good = bad == 0

        # means are over the updates that were made
        logs: dict[str, float] = {}
        if bad.any():
            logs["train/skipped_updates"] = self._report_skipped(bad.tolist())
        if good.any():
            logs["train/loss"] = losses[good].mean().item()
            logs["train/gradient_norm"] = norms[good].mean().item()
        position.loss_sum += losses[good].sum().item()
        position.loss_count += int(good.sum())

        # what there is to see, on the board, the bar and the console
        logs["train/learning_rate"] = stage.learning_rate(position.step - 1)
        logs |= self.watch.look(len(self.pending) * stage.batches.batch_size, stage.device)
        self.tracker.scalars(position.step, logs)
        self.progress.show(epoch=position.epoch + 1, loss=f"{logs.get('train/loss', math.nan):.4f}")
        if self.settings.verbose:
            self.progress.line(f"{self.folder.name}: step {position.step} {_numbers(logs)}")
        self.pending = []

    def _report_skipped(self, bad: list[float]) -> float:
        """Name the images of skipped updates among the pending ones; returns how many were skipped so far.

        Raises UserError after too many in a row.
        """
        position = self.position
        first = position.step - len(bad) + 1
        for step, (skipped, (_, batch)) in enumerate(zip(bad, self.pending, strict=True), start=first):
            if not skipped:
                position.skipped_in_a_row = 0
                continue
            position.skipped += 1
            position.skipped_in_a_row += 1

            # every rank had a share of the batch
            shares = distributed.all_gather_objects(self.stage.name_images(batch))
            names = [name for share in shares for name in share]
            self.tracker.note(step, skipped_images=names)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            shown = printable(", ".join(names[:5]), LONGEST)
            what = f"loss or gradient is not finite at step {step} (images {shown}{more})"
            if position.skipped_in_a_row >= self.settings.skip_limit:
                kept = "no checkpoint was written yet"
                if stands_somewhere(self.folder):
                    kept = "the last good checkpoint there, last.pt, is kept"
                raise Diverged(
                    f"{self.folder}: {what}, {position.skipped_in_a_row} updates in a row; {kept}; start another run "
                    "(run=…) with lower base_lr, clip_grad or precision=fp32"
                )
            self.progress.say(f"warning: {self.folder.name}: {what}: update skipped")
        return float(position.skipped)

    def expect_updates(self) -> None:
        """Raise UserError where the weights are still those that the run began with: all updates were skipped."""
        steps = self.position.step
        if steps and self.position.skipped == steps:
            raise Diverged(
                f"{self.folder}: found loss or gradient not finite at all {steps} steps, so nothing was learnt; "
                "start another run (run=…) with lower base_lr, clip_grad or precision=fp32"
            )

    def end_epoch(self) -> None:
        """Validate, save and show, as far as each is due after this epoch."""
        stage = self.stage
        position = self.position
        epoch = position.epoch + 1
        train_loss = math.nan
        if position.loss_count:
            train_loss = position.loss_sum / position.loss_count
        if not stage.validates_after(epoch):
            position.begin_epoch(epoch)
            if stage.goal is None or self.watch.since_saved() > 60 * self.settings.save_minutes:
                self._save_last()
            return

        validation = self._validate(epoch)
        position.begin_epoch(epoch)
        self.validated = validation.meta
        if stage.goal is not None:
            self.validated = self.validated | self._goal(stage.goal, train_loss, validation)
        metrics = {"train/loss": train_loss, **validation.metrics}
        self.tracker.begin_again(position.step)  # in case a full disk has closed the board
        self.tracker.scalars(position.step, {"epoch": epoch, "epoch/train_loss": train_loss, **validation.metrics})
        pace = self.pace.text(position.step, stage.epochs * len(stage.batches), stage.batches.batch_size)
        self.progress.line(f"{self.folder.name}: epoch {epoch}/{stage.epochs} {_numbers(metrics)}; {pace}")

        # best.pt first: last.pt tells a resumed run what the best is
        if validation.score > position.best:
            position.best = validation.score
            self.tracker.best(position.step, validation.metrics)
            self._save(self._checkpoint(), "best.pt")
        if epoch in stage.keep_epochs:
            self._save(self._resumable(), kept_name(epoch))
        self._save_last()

        # pictures come last: one that fails costs nothing but itself
        model = self.update.kept
        due = epoch % self.settings.pictures_every == 0 or epoch == stage.epochs
        if due and math.isfinite(validation.score):
            self.tracker.draw(
                lambda board: evaluating(model, lambda model: stage.show(model, validation, board, position.step))
            )

    def _goal(self, goal: float, train_loss: float, validation: Validation) -> dict[str, Any]:
        """How far from its goal the stage is, for its checkpoint."""
        self.reached = is_reached(goal, train_loss, validation.metrics)
        loss = validation.metrics.get("validate/loss", math.nan)
        numbers = {"goal": goal, "train_loss": train_loss, "loss": loss}
        finite = {name: number if math.isfinite(number) else sys.float_info.max for name, number in numbers.items()}
        return {"overfit": {"reached": self.reached, **finite}}

    def _validate(self, epoch: int) -> Validation:
        """Validate the weights that are handed on; if that fails, save what was learned."""
        try:
            return evaluating(self.update.kept, lambda model: self.stage.validate(model, epoch))
        except NotFinite as error:
            self.progress.say(f"warning: {self.folder.name}: after epoch {epoch}, no candidate for best.pt: {error}")
            return Validation({}, -math.inf, {})
        except Exception:
            self._save_last()
            raise

    def stop_if(self, signals: list[str]) -> None:
        """End the run after a signal to any rank, its checkpoint written."""
        position = self.position
        if position.epoch == self.stage.epochs:
            return
        if not distributed.any_rank(bool(signals), self.stage.device):
            return

        if self.saved != position:  # at an epoch's end it is written already
            self._save_last()
        distributed.barrier()  # a rank that ends before the first one has saved may have it killed by torchrun
        name = signals[0] if signals else "another rank's signal"
        stands = "which is saved; the same command goes on from it"
        if self.saved != position:
            stands = f"which could not be saved; the same command goes on from step {self.saved.step}"
        raise Stopped(
            f"{self.folder}: stopped by {name} at step {position.step}, {stands}", speaks=distributed.is_main()
        )

    def finish(self) -> None:
        """All ranks meet at the end. Raises UserError unless both checkpoints are there, and whole."""
        self.tracker.draw(end_session)
        distributed.barrier()
        if not distributed.is_main():
            return

        # last attempt to write what the disk has not taken so far
        if self.owed or self.saved != self.position:
            self._save_last()
        if self.owed or self.saved != self.position:
            raise UserError(
                f"{self.folder}: found no way to write the last checkpoints (warnings say why), so the run is not "
                f"finished; mend that and give the same command again: it goes on from step {self.saved.step}"
            )

        last = self.folder / "last.pt"
        if self._stands_as_written("last.pt", "best.pt"):
            written = self._resumable()  # its weights were checked when they were written
            expect_finite({"state": written.state, "optimizer": written.optimizer}, last)
        else:
            check_finished(self.folder, load_checkpoint(last, self.stage.kind))
        with suppress(OSError):  # the checkpoint before the last is not needed any more
            (self.folder / "previous.pt").unlink(missing_ok=True)

    def close(self) -> None:
        self.progress.close()
        self.tracker.close()

    def _save(self, checkpoint: Checkpoint, name: str) -> None:
        """Write weights to keep. If the disk does not take them, they stay in memory until it does."""
        self.owed.pop(name, None)
        if distributed.is_main() and not self._write(checkpoint, name):
            self.owed[name] = replace(
                checkpoint,
                weights=_copied(checkpoint.weights),
                optimizer=_copied(checkpoint.optimizer),
                state=_copied(checkpoint.state),
            )

    def _save_last(self) -> None:
        """Write last.pt, after what is still owed.

        last.pt never gets ahead of a best.pt that is not written: a run resumed from it would have lost that best.pt.
        """
        self.watch.saved()
        if not distributed.is_main():
            self.saved = replace(self.position)
            return
        for name, checkpoint in list(self.owed.items()):
            if not self._write(checkpoint, name):
                return
            del self.owed[name]

        if self._write(self._resumable(), "last.pt", previous=self.folder / "previous.pt"):
            self.saved = replace(self.position)

    def _resumable(self) -> Checkpoint:
        """The run as it stands, with what resuming needs."""
        optimizer = self.stage.optimizer.state_dict()
        return replace(self._checkpoint(), optimizer=optimizer, state=self.update.state_dict())

    def _checkpoint(self) -> Checkpoint:
        """The run as it stands, without what only resuming needs."""
        stage = self.stage
        return Checkpoint(
            kind=stage.kind,
            settings=stage.config.model_dump(mode="json"),
            weights=self.update.kept.state_dict(),
            meta={**stage.meta, "data_sets": self.data_sets, **self.validated},
            progress=asdict(self.position),
        )

    def _write(self, checkpoint: Checkpoint, name: str, previous: Path | None = None) -> bool:
        """Whether the checkpoint was written; if not, say so and go on."""
        try:
            save_checkpoint(checkpoint, self.folder / name, previous)
        except NotSaved as error:
            self.progress.say(f"warning: {error}; the one before is kept and training goes on")
            return False
        with suppress(OSError):  # then the file is read again at the end
            self.written[name] = identity(self.folder / name)
        return True

    def _stands_as_written(self, *names: str) -> bool:
        """Whether this process wrote the files and nobody touched them since: reading them would tell nothing more."""
        with suppress(OSError):
            return all(self.written.get(name) == identity(self.folder / name) for name in names)
        return False

    def _resume(self) -> Position:
        checkpoint = latest_checkpoint(self.folder, self.stage.kind)
        branches_off = checkpoint is None
        if checkpoint is None:
            checkpoint = self.stage.branch_of
        if checkpoint is None:
            return Position()

        # weights first: those of another model are refused with one line
        check_weights(self.update.kept, checkpoint)
        try:
            self.update.load_state_dict(checkpoint.weights, checkpoint.state)
        except Exception:  # a missing part, or one of another shape, raises many kinds of error
            raise UserError(
                f"{checkpoint.place}: found no state of this run (an average, a scaler), expected what it had saved"
            ) from None
        load_optimizer(self.stage.optimizer, checkpoint.optimizer, checkpoint.place)
        self.reached = self.stage.goal is not None and bool(checkpoint.meta.get("overfit", {}).get("reached"))
        position = _position(checkpoint)
        if branches_off:  # the best weights so far stand in another folder
            position.best = -math.inf
        return position


def _copied(content: Any) -> Any:
    """The same content, its tensors copied to the CPU: training changes the originals."""
    if isinstance(content, dict):
        copied = content.copy()  # of the same kind
        for name, part in content.items():
            copied[name] = _copied(part)
        return copied
    if isinstance(content, list | tuple):
        return type(content)(_copied(part) for part in content)
    return content.detach().cpu().clone() if isinstance(content, Tensor) else content


def _position(checkpoint: Checkpoint) -> Position:
    """Where the run stood; UserError where the checkpoint does not say it."""
    known = asdict(Position())
    for name, value in checkpoint.progress.items():
        if type(value) is not type(known.get(name)) or (isinstance(value, int) and value < 0):
            raise UserError(
                f"{checkpoint.place}: found {printable(value)} for progress.{name}, expected where a run of this "
                "version stands"
            )
    return Position(**checkpoint.progress)


class _Watch:
    """Where the time goes between two looks at the device."""

    def __init__(self) -> None:
        self.last_saved = time.monotonic()
        self.begin()

    def begin(self) -> None:
        """Time from here on: what came before, such as a validation, was no training."""
        self.since = time.monotonic()
        self.waited = 0.0  # for data, seconds

    def waiting(self, batches: Iterable[Seen]) -> Iterator[Seen]:
        """The batches; the time spent waiting for each is added up."""
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
        # the clock starts anew at each look
        now = time.monotonic()
        elapsed = now - self.since
        waited = self.waited
        self.since = now
        self.waited = 0.0
        return {
            "train/images_per_second": images / elapsed,
            "train/data_wait_share": waited / elapsed,
            "train/peak_memory_gb": peak_memory(device) / 1e9,
        }

    def saved(self) -> None:
        self.last_saved = time.monotonic()

    def since_saved(self) -> float:
        return time.monotonic() - self.last_saved


class _Pace:
    """How fast a run goes since it began or was resumed, including all that is done after epochs."""

    def __init__(self, step: int):
        self.first = step
        self.began = time.monotonic()

    def text(self, step: int, steps: int, batch_size: int) -> str:
        """Images a second, and how long the rest takes."""
        done = max(step - self.first, 1)
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = f"{done * batch_size / seconds:,.0f} images/s"
        return f"{rate}, {duration((steps - step) * seconds / done)} left"


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numbers(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items() if math.isfinite(value))


def evaluating(model: nn.Module, look: Callable[[nn.Module], Seen]) -> Seen:
    """`look(model)` in evaluation mode and without gradients; the modes are left as found."""
    # parts may be in different modes: a frozen encoder stays in evaluation mode while its head trains
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return look(model.eval())
    finally:
        for module, mode in modes.items():
            module.training = mode
