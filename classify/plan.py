"""mae-compare --dry-run: what a grid consists of, how far it is, and how long the rest takes. Writes nothing."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from classify.batch_sizes import with_batch_sizes
from classify.cases import LabelledSplits, budgets_of, labelled_splits, splits_of
from classify.contrasts import candidates, declared, untested
from classify.cost import Spent, finetuning_flops, pretraining_flops_of, spent
from classify.dry_run import VALIDATED, few_of
from classify.extra_rows import check_extra_rows, extra_names
from classify.finetune import finetune_stage
from classify.grid import (
    Cell,
    check_pretrainings,
    check_settings,
    counts_images,
    expand_grid,
    labelled_images,
    left_out,
    trials_of,
    with_choice,
)
from classify.report.checklist import check_answers
from classify.settings import ClassifyConfig, SampleCovers
from classify.subgroups import check_columns
from classify.tuning import kept_choice
from data.config import expand
from data.loader import Data
from data.manifest import open_manifest
from data.settings import DataSettings
from mae.branch import own_epochs
from mae.dry_run import UNKNOWN, part_of, prepared_data, pretraining_images, random_data
from mae.engine.checkpoint import latest_checkpoint
from mae.engine.console import duration
from mae.engine.loop import peak_memory
from mae.engine.run import configure_torch, training_device
from mae.pretrain import pretrain_stage
from mae.rehearsal import looks, rehearse

Kind = tuple[str, int, int]  # what runs of one speed have in common: stage, operations of an image, images of a step


@dataclass(frozen=True)
class _Speed:
    """Seconds of the parts of a training."""

    step: float
    look: float = 0.0  # validation, with pictures and checkpoints; 0 where only steps were logged
    probe: float = 0.0
    ends: float = 0.0  # beginning and end


@dataclass(frozen=True)
class _Run:
    """A training of the grid, as far as it has come."""

    name: str
    stage: str  # pretrain, tune or finetune
    config: ClassifyConfig
    folder: Path
    images: int | None  # to train on; None: they are not there
    epochs: int
    batch_size: int
    flops: int  # of an image
    spared: int = 0  # epochs that another run trains for it

    @property
    def kind(self) -> Kind:
        stage = "pretrain" if self.stage == "pretrain" else "finetune"
        return stage, self.flops, self.batch_size

    @property
    def own_epochs(self) -> int:
        return self.epochs - self.spared

    @property
    def steps(self) -> int:
        """All of its own; if the number of images is not known, one for each epoch."""
        return self.own_epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        return max((self.images or 0) // self.batch_size, 1)

    @property
    def validations(self) -> int:
        if self.stage != "pretrain":
            return looks(self.own_epochs, self.config.finetune.validate_every)
        settings = self.config.pretrain
        return looks(self.own_epochs, settings.validate_every, settings.probe_every)

    @property
    def probes(self) -> int:
        return looks(self.own_epochs, self.config.pretrain.probe_every if self.stage == "pretrain" else None)

    def steps_done(self) -> int:
        """Steps at the last checkpoint; all of them if nothing is left to do."""
        last = latest_checkpoint(self.folder) if self.folder.is_dir() else None
        if last is None:
            return 0
        if last.epoch >= self.epochs:
            return self.steps
        done = int(last.progress.get("step", 0)) - self.spared * self.steps_per_epoch
        return min(done, self.steps - 1)


def plan(config: ClassifyConfig, jobs: int = 1) -> str:
    """The report: a line for each training, then what is left of all. Test images are neither read nor predicted."""
    check_answers(config.report.checklist)
    configure_torch(config)
    datasets = _Datasets()
    images = datasets.labelled(config.data, config.finetune.sample_covers) if counts_images(config.compare) else None
    cells = list(expand_grid(config, images))
    rows = candidates(cells, extra_names(config, cells))
    declared(config, rows)
    for cell in cells:
        check_settings(config, cell)
    check_pretrainings(cells, datasets.prepared)
    data = datasets.prepared(config.data)
    if data is not None:
        check_extra_rows(config, data)
    columns = datasets.columns(config.data)
    if columns is not None:
        check_columns(config.report.subgroups, columns)
    cells = with_batch_sizes(
        cells,
        of_pretraining=lambda config: pretraining_images(config.data, datasets.images(config.data)) or UNKNOWN,
        of_finetuning=lambda config: _learned_from(config, datasets) or UNKNOWN,
    )

    # speeds that were measured by runs of this very grid; the others are measured now
    runs = list(_runs(cells, datasets))
    done = {run.name: run.steps_done() for run in runs}
    logged = [spent(run.folder, run.batch_size) for run in runs]
    speeds = _logged_speeds(runs, logged)
    measured = 0
    for run in runs:
        if run.images and run.kind not in speeds and done[run.name] < run.steps:
            speeds[run.kind] = _measure(run, datasets)
            measured += 1

    # a line each, then the sum
    lines = [*left_out(config, images), *untested(config, rows)]
    left = 0.0
    for run in runs:
        todo = run.steps - done[run.name]
        speed = speeds.get(run.kind, _Speed(0.0))
        seconds = todo * (speed.step + (speed.look * run.validations + speed.probe * run.probes) / run.steps)
        if todo:
            seconds += speed.ends
        left += seconds
        shown = duration(seconds) if todo and run.images else ""
        lines.append(f"{_state(done[run.name], run.steps):8} {shown:>12}  {run.name}")
    memory = max([run.memory for run in logged], default=0.0)
    if measured:
        memory = max(memory, peak_memory(training_device(config)) / 1e9)
    return "\n".join([*lines, "", *_summary(runs, done, left, jobs, measured, memory, datasets)])


def _state(done: int, steps: int) -> str:
    if done >= steps:
        return "done"
    return f"{100 * done // steps} %" if done else "to do"


def _summary(
    runs: list[_Run], done: dict[str, int], left: float, jobs: int, measured: int, memory: float, datasets: "_Datasets"
) -> list[str]:
    counts = {stage: sum(run.stage == stage for run in runs) for stage in ("pretrain", "tune", "finetune")}
    finished = sum(done[run.name] >= run.steps for run in runs)
    begun = sum(0 < done[run.name] < run.steps for run in runs)
    cells = f"{counts['finetune']} cells"
    if counts["tune"]:
        tried = f"{counts['tune']} settings tried on validation"
        cells = f"{tried} (each row's best serves as its first seed), {counts['finetune']} further cells"

    how = "at the speed that runs of this grid have logged"
    if measured:
        how = f"at the speed of steps timed now ({measured} kinds of training)"
        if datasets.drawn:
            how += " on random images, because the config's are not prepared"
    also = "plus evaluation" if measured else "plus validation and evaluation"
    whole = f"{duration(left)} of training, {how}; {also}"
    if not all(run.images for run in runs):
        whole = "not known: the images are not there; see data.root"
    elif jobs > 1:
        whole += f"; with --jobs {jobs} at least {duration(left / jobs)}, if each runs as fast as one alone"
    lines = [
        f"trainings    {len(runs)}: {counts['pretrain']} pretrainings, {cells}; {finished} done, {begun} begun",
        f"left         {whole}",
    ]
    if memory:
        lines.append(f"memory       {memory:.2f} GB at most in one process")
    return lines


# ---------------------------------------------------------------- runs


def _runs(cells: list[Cell], datasets: "_Datasets") -> Iterator[_Run]:
    """All trainings, each once: pretrainings and trials before the first cell that needs them."""
    pretrainings = set()
    rows: dict[int, Cell] = {}
    for cell in cells:
        config = cell.pretrain_config
        if config and config.run not in pretrainings:
            pretrainings.add(config.run)
            yield _pretraining(config, datasets)

        # the first seed's training will be one of its trials
        first = rows.setdefault(cell.row, cell)
        kept = kept_choice(first, datasets.prepared(first.config.data)) if cell.choices else None
        if cell.choices and not kept and cell is first:
            for trial in trials_of(cell):
                yield _finetuning(trial, "tune", datasets)
            continue

        # a tuned cell costs what the first of its settings costs, until one is chosen
        if cell.choices:
            cell = with_choice(cell, kept.setting if kept else cell.choices[0])
        yield _finetuning(cell, "finetune", datasets)


def _pretraining(config: ClassifyConfig, datasets: "_Datasets") -> _Run:
    folder = Path(expand(config.run, "run"))
    images = pretraining_images(config.data, datasets.images(config.data))
    return _Run(
        name=folder.name,
        stage="pretrain",
        config=config,
        folder=folder,
        images=images,
        epochs=config.pretrain.epochs,
        batch_size=min(config.pretrain.batch, images or config.pretrain.batch),
        flops=pretraining_flops_of(config),
        spared=config.pretrain.epochs - own_epochs(config),
    )


def _finetuning(cell: Cell, stage: str, datasets: "_Datasets") -> _Run:
    config = cell.config
    images = _learned_from(config, datasets)
    return _Run(
        name=cell.folder if stage == "finetune" else f"tune/{cell.folder}",
        stage=stage,
        config=config,
        folder=Path(expand(cell.run, "run")),
        images=images,
        epochs=config.finetune.epochs,
        batch_size=min(config.finetune.batch, images or config.finetune.batch),
        flops=finetuning_flops(config),
    )


def _learned_from(config: ClassifyConfig, datasets: "_Datasets") -> int | None:
    """How many images a fine-tuning learns from; None where they are not there."""
    labelled = datasets.labelled(config.data)
    settings = config.finetune
    if settings.sample is None or not labelled:
        return labelled

    everything = datasets.labelled(config.data, settings.sample_covers) or labelled
    of_train, _ = budgets_of(settings.sample, labelled, everything - labelled, settings.sample_covers)
    return min(of_train, labelled)


class _Datasets:
    """The data sets of a grid, as far as they are there: nothing is prepared."""

    def __init__(self) -> None:
        self.found: dict[DataSettings, tuple[Data | None, int | None]] = {}
        self.counts: dict[tuple[DataSettings, SampleCovers], int] = {}
        self.drawn = False  # whether images of noise stand in for some

    def _of(self, settings: DataSettings) -> tuple[Data | None, int | None]:
        if settings not in self.found:
            self.found[settings] = prepared_data(settings)
        return self.found[settings]

    def prepared(self, settings: DataSettings) -> Data | None:
        """The data set, if it and its images without labels can be read."""
        further = settings.of_unlabelled()
        if further is not None and self._of(further)[0] is None:
            return None
        return self._of(settings)[0]

    def columns(self, settings: DataSettings) -> Collection[str] | None:
        """The columns of its manifest; None if it is not there."""
        data, images = self._of(settings)
        if images is None:
            return None
        table = data.manifest.table if data else open_manifest(settings).table
        return [str(name) for name in table.columns]

    def images(self, settings: DataSettings) -> int | None:
        """How many serve training; None where they are not there."""
        return self._of(settings)[1]

    def labelled(self, settings: DataSettings, covers: SampleCovers = "train") -> int | None:
        """How many training images have a label, or how many labelled images a budget counts."""
        data, images = self._of(settings)
        if images is None:
            return None
        if (settings, covers) not in self.counts:
            table = data.everything() if data else open_manifest(settings).table
            self.counts[settings, covers] = labelled_images(table, covers)
        return self.counts[settings, covers]

    def to_time(self, config: ClassifyConfig, images: int) -> Data:
        """The images to take a few steps on."""
        data = self._of(config.data)[0]
        if data is None:
            self.drawn = True
            data = random_data(images, config.data.image_size)
        return data


# ---------------------------------------------------------------- speed


def _logged_speeds(runs: list[_Run], logged: list[Spent]) -> dict[Kind, _Speed]:
    """Seconds of a step, by what runs of each kind have logged."""
    sums: dict[Kind, tuple[float, int]] = {}
    for run, found in zip(runs, logged, strict=True):
        seconds, steps = sums.get(run.kind, (0.0, 0))
        sums[run.kind] = (seconds + found.seconds, steps + found.steps)
    return {kind: _Speed(seconds / steps) for kind, (seconds, steps) in sums.items() if steps}


def _measure(run: _Run, datasets: _Datasets) -> _Speed:
    """Seconds of each part, by doing it once at learning rate 0."""
    config = run.config
    device: torch.device = training_device(config)
    data = datasets.to_time(config, max(run.batch_size, 4))

    # validation takes longer, so only a part of it is run
    if run.stage == "pretrain":
        data, held_out, looked_at = part_of(data, run.batch_size)
        rehearsed = rehearse(pretrain_stage(config, data, device), held_out, config.pretrain.probe_every, looked_at)
    else:
        splits = labelled_splits(data, None, 0) if datasets.drawn else splits_of(data, config)
        some = few_of(splits.validate, max(config.evaluate.batch_size, VALIDATED))
        few = LabelledSplits(train=splits.train, validate=some)
        rehearsed = rehearse(finetune_stage(config, data, few, device, None), len(some) / len(splits.validate))

    look = rehearsed.validate + rehearsed.show + rehearsed.save
    return _Speed(rehearsed.step, look, rehearsed.probe, rehearsed.finish)
