"""A training in small: each part is done once for real, timed and thrown away, to know what the training costs."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from torch.utils.tensorboard import SummaryWriter

from data.errors import NotFinite
from mae.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mae.engine.loop import evaluating, peak_memory
from mae.engine.memory import keep_freed_memory
from mae.engine.stage import AnyStage, Batch, Validation
from mae.engine.update import Update

Result = TypeVar("Result")
STEPS = 5  # timed,
SECONDS = 20  # but no more after this long
BEST = 0.5  # share of the epochs in which best.pt is written too
WRITTEN = 200e6  # bytes a second, if there is no room to try it


@dataclass(frozen=True)
class Rehearsal:
    """What the parts of a training take, in seconds, and the most memory they took together."""

    start: float  # from the start of the process to the first step
    step: float
    validate: float  # of all validation images
    probe: float  # on top of a validation
    show: float  # pictures
    save: float  # checkpoints after an epoch
    finish: float
    memory: int  # bytes on the device, or in this process

    def whole_run(self, steps: int, validations: int, probes: int = 0) -> float:
        """Seconds of a training with this many steps, from its start to its end."""
        after_epochs = validations * (self.validate + self.show + self.save) + probes * self.probe
        return self.start + steps * self.step + after_epochs + self.finish


def looks(epochs: int, *every: int | None) -> int:
    """How many validations or probes a training has: one after every so many epochs and the last; null: none.

    every: of several numbers, an epoch in which two are due counts once.
    """
    due: set[int] = set()
    for number in every:
        if number and epochs > 0:
            due |= {*range(number, epochs, number), epochs}
    return len(due)


def rehearse(stage: AnyStage, held_out: float = 1.0, probe_every: int | None = None, probed: float = 1.0) -> Rehearsal:
    """Do what a training of this stage does, at learning rate 0 and in a folder that is deleted.

    held_out: the share of the validation images that the stage validates on. probe_every: epochs between validations
    with a probe, which here looks at the share `probed` of its images.
    """
    # if every validation has a probe, nearly all of its time is the probe's
    always_probed = probe_every is not None and (probe_every == 1 or stage.epochs == 1)

    start = seconds_since_start()
    keep_freed_memory()
    step = statistics.median(step_seconds(stage))
    with TemporaryDirectory(prefix="mae-dry-run-") as folder:
        validation, validate = timed(lambda: _validation(stage, 1))
        validate /= held_out

        # the probe's time is that of a validation with it, less that of one without
        probe = 0.0
        if always_probed:
            validate *= held_out / probed
        elif probe_every:
            _, both = timed(lambda: _validation(stage, probe_every))
            probe = max(both - validate * held_out, 0.0) / probed

        # what is written and drawn after an epoch
        show = _show(stage, validation, Path(folder))
        save, finish = _save(stage, validation, Path(folder))
    return Rehearsal(
        start=start,
        step=step,
        validate=validate,
        probe=probe,
        show=show,
        save=save,
        finish=finish,
        memory=peak_memory(stage.device),
    )


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of the work, and its seconds."""
    before = time.perf_counter()
    result = work()
    return result, time.perf_counter() - before


def step_seconds(stage: AnyStage) -> list[float]:
    """Time of real updates at learning rate 0; the first, which also compiles, is not counted."""
    update = Update(stage)
    batches = _endless(stage)
    stage.model.train()

    def timed_step() -> float:
        before = time.perf_counter()
        update(next(batches).to(stage.device), 0).cpu()  # waits for the device
        return time.perf_counter() - before

    # the first is left out
    start = time.monotonic()
    timed_step()
    seconds = [timed_step()]
    while len(seconds) < STEPS and time.monotonic() - start < SECONDS:
        seconds.append(timed_step())
    return seconds


def _endless(stage: AnyStage) -> Iterator[Batch]:
    for epoch in count():
        yield from stage.batches.epoch(epoch, 0)


def _validation(stage: AnyStage, epoch: int) -> Validation | None:
    try:
        return evaluating(stage.model, lambda model: stage.validate(model, epoch))
    except NotFinite:  # a training reports it and goes on
        return None


def _show(stage: AnyStage, validation: Validation | None, folder: Path) -> float:
    if validation is None:
        return 0.0

    def draw() -> None:
        with SummaryWriter(str(folder)) as board:
            evaluating(stage.model, lambda model: stage.show(model, validation, board, 1))

    draw()  # the first call loads the drawing code
    return timed(draw)[1]


def _save(stage: AnyStage, validation: Validation | None, folder: Path) -> tuple[float, float]:
    """Seconds to save after an epoch, and to read best.pt at the end of the run."""
    best = Checkpoint(
        kind=stage.kind,
        settings=stage.config.model_dump(mode="json"),
        weights=stage.model.state_dict(),
        meta={**stage.meta, "data_sets": [], **(validation.meta if validation else {})},
        progress={},
    )
    last = replace(best, optimizer=stage.optimizer.state_dict())
    size = 3 * sum(weight.nbytes for weight in best.weights.values())
    if size > shutil.disk_usage(folder).free / 4:
        return size * (1 + BEST / 3) / WRITTEN, 0.0

    _, saving_best = timed(lambda: save_checkpoint(best, folder / "best.pt"))
    _, saving_last = timed(lambda: save_checkpoint(last, folder / "last.pt"))
    # at its end, a run reads what best.pt says
    _, finishing = timed(lambda: load_checkpoint(folder / "best.pt", stage.kind, numbers=False))
    return saving_last + BEST * saving_best, finishing


def seconds_since_start() -> float:
    """Seconds since this process was started; 0 if the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return up - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
