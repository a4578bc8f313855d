"""The grid of a comparison: rows × their pretrainings × label budgets × seeds, and whether it can run."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from classify.cases import labelled_rows, labelled_splits
from classify.finetune import RESUMABLE
from classify.settings import ClassifyConfig, RowSettings
from classify.start import PREPROCESSING, check_fit, resolved
from data.config import UserError, change_config, expand
from data.loader import Data
from data.manifest import digest
from data.settings import DataSettings
from mae.engine.run import Resumable, check_run, training_device
from mae.pretrain import RESUMABLE as PRETRAIN_RESUMABLE
from mae.pretrain import check_model
from mae.weights import resolve


@dataclass(frozen=True)
class Cell:
    """One classifier of the grid: a row at a number of labelled images and a seed."""

    row: int  # number of the table row, over all label budgets
    name: str
    pretraining: str | None
    labelled: int | None
    config: ClassifyConfig  # of stage two; its finetune.run is the cell's folder
    pretrain_config: ClassifyConfig | None


def expand_grid(config: ClassifyConfig) -> Iterator[Cell]:
    """rows × their pretrainings × label budgets × seeds, row by row."""
    grid, row, folders = config.compare, 0, set()
    names = [row.name for row in grid.rows]
    if grid.baseline is not None and grid.baseline not in names:
        raise UserError(f"compare.baseline: found {grid.baseline!r}, expected a row's name: {', '.join(names)}")
    if not grid.rows:
        raise UserError(
            "compare.rows: found none, expected rows such as {name: ResNet-18, set: {finetune.model: resnet18}}"
        )
    for labelled in grid.labelled:
        for settings in grid.rows:
            for pretraining in settings.pretraining or (None,):
                for seed in grid.seeds:
                    cell = _cell(config, settings, row, pretraining, labelled, seed)
                    if cell.config.finetune.run in folders:
                        raise UserError(f"compare.rows: found two rows for {cell.config.finetune.run}; name them apart")
                    folders.add(cell.config.finetune.run)
                    yield cell
                row += 1


def _cell(
    config: ClassifyConfig, row: RowSettings, number: int, pretraining: str | None, labelled: int | None, seed: int
) -> Cell:
    stage_one, pretrain_config = {}, None
    if pretraining is not None:
        if pretraining not in config.compare.pretrainings:
            known = ", ".join(config.compare.pretrainings) or "none"
            raise UserError(
                f"compare.rows: found pretraining {pretraining!r}, expected one of compare.pretrainings: {known}"
            )
        stage_one = config.compare.pretrainings[pretraining]
        folder = f"{config.run}/pretrain-{pretraining}-seed{seed}"
        own = stage_one | {"run": folder, "seed": seed}
        pretrain_config = resolve(change_config(config, own, "compare.pretrainings"))
    changes = {"finetune.sample": labelled} if labelled else {}
    changed = change_config(config, stage_one | changes | row.set | {"seed": seed}, f"compare.rows: {row.name}")
    parts = [_slug(row.name), pretraining, None if changed.finetune.augment.enabled else "plain"]
    parts += [f"n{labelled}" if labelled else None, f"seed{seed}"]
    run = f"{config.run}/{'-'.join(part for part in parts if part)}"
    stage_two = resolved(change_config(changed, {"finetune.run": run}, "compare.rows"))
    return Cell(number, row.name, pretraining, labelled, stage_two, pretrain_config)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# ---------------------------------------------------------------- checks


def check_grid(config: ClassifyConfig, cells: list[Cell], data_of: Callable[[DataSettings], Data]) -> None:
    """Raise UserError for what a cell would complain of, or make the rows incomparable, before any training."""
    tested = set()
    for cell in cells:
        data = data_of(cell.config.data)
        check_fit(cell.config, None)
        training_device(cell.config)
        labelled_splits(data, cell.config.finetune.sample, cell.config.data.split_seed)
        table = labelled_rows(data.split(config.compare.split), config.compare.split, cell.config.data.target)
        tested.add(digest(table, "image_id", "patient_id", "label"))
        if len(tested) > 1:
            what = f"other {config.compare.split} images or labels than the rows before it"
            raise UserError(f"compare.rows: {cell.name}: found {what}, expected the same cases in every row")
        if cell.pretrain_config:
            settings = cell.pretrain_config
            check_model(settings.model, settings.pretrain, settings.data.image_size)
            if cell.pretrain_config.pretrain.select == "probe":  # a comparison owes nothing to labels before stage two
                raise UserError("pretrain.select: found probe, expected reconstruction in a comparison")
            _check_pretrained(cell)
            _check_folder(cell.pretrain_config, cell.pretrain_config.run, PRETRAIN_RESUMABLE)
        _check_folder(cell.config, cell.config.finetune.run, RESUMABLE)


def _check_pretrained(cell: Cell) -> None:
    """A row's settings may not contradict the pretraining whose weights it starts from."""
    model = cell.config.finetune.model
    if model != "vit":
        raise UserError(f"compare.rows: {cell.name}: found {model}, expected vit with a pretraining")
    then, now = cell.pretrain_config, cell.config
    pairs = [(f"data.{name}", getattr(then.data, name), getattr(now.data, name)) for name in PREPROCESSING]
    pairs += [("model", then.model, now.model), ("pretrain", then.pretrain, now.pretrain)]
    for name, before, after in pairs:
        if before != after:
            raise UserError(f"compare.rows: {cell.name}: found {name} changed, expected it as its pretraining has it")


def _check_folder(config: ClassifyConfig, run: str, resumable: Resumable) -> None:
    """A grid continues only runs of its very settings, epochs included: its rows must stay comparable."""
    check_run(Path(expand(run, "run")), config, resumable, same_epochs=True)
