"""`batch_size: auto` in a comparison: one number for all rows of a label budget, so that none has an advantage."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from classify.finetune_cost import finetuning_memory
from classify.grid import Cell
from classify.settings import ClassifyConfig
from data.config import change_config, expand
from mae.batch_size import StageName, batch_of_run, chosen_batch
from mae.engine.run import training_device
from mae.pretrain_cost import pretraining_memory

COUNTED = ("device", "precision", "activation_checkpointing", "data", "model", "pretrain", "finetune", "evaluate")
Count = Callable[[ClassifyConfig], int]  # a cell's config → its training images


def with_batch_sizes(cells: list[Cell], of_pretraining: Count, of_finetuning: Count) -> list[Cell]:
    """The cells with numbers where they say auto.

    If a run of the same group was begun with a number, that is taken; else the smallest of the numbers that fit each.
    """
    cells = list(_pretrainings_decided(cells, of_pretraining))
    budgets: dict[int | None, int] = {}
    decided = []
    for cell in cells:
        if cell.config.finetune.batch_size == "auto":
            if cell.labelled not in budgets:
                group = [each for each in cells if each.labelled == cell.labelled and _is_auto(each)]
                budgets[cell.labelled] = _finetuning_batch(group, of_finetuning)
            config = change_config(cell.config, {"finetune.batch_size": budgets[cell.labelled]})
            cell = replace(cell, config=config)
        decided.append(cell)
    return decided


def _is_auto(cell: Cell) -> bool:
    return cell.config.finetune.batch_size == "auto"


def _pretrainings_decided(cells: list[Cell], images: Count) -> Iterator[Cell]:
    pretrainings = {}
    for cell in cells:
        config = cell.pretrain_config
        if config and config.pretrain.batch_size == "auto":
            pretrainings[config.run] = config

    number = 0
    if pretrainings:
        kept = _kept((Path(expand(run, "run")) for run in pretrainings), "pretrain")
        number = kept or min(_fitting(config, "pretrain", images) for config in _different(pretrainings.values()))
    for cell in cells:
        if cell.config.pretrain.batch_size == "auto" and number:  # a row's config says what its pretraining was made of
            changed = change_config(cell.config, {"pretrain.batch_size": number})
            cell = replace(cell, config=changed)
        if cell.pretrain_config and cell.pretrain_config.run in pretrainings:
            changed = change_config(cell.pretrain_config, {"pretrain.batch_size": number})
            cell = replace(cell, pretrain_config=changed)
        yield cell


def _different(configs: Iterable[ClassifyConfig]) -> list[ClassifyConfig]:
    """Those that differ in more than folder, seed and subset: each is counted once."""
    found: dict[str, ClassifyConfig] = {}
    for config in configs:
        settings = config.model_dump(mode="json")
        for name in ("run", "draw"):
            del settings["finetune"][name]
        counted = {name: settings[name] for name in COUNTED}
        found.setdefault(json.dumps(counted, sort_keys=True), config)
    return list(found.values())


def _finetuning_batch(group: list[Cell], images: Count) -> int:
    kept = _kept((Path(expand(cell.run, "run")) for cell in group), "finetune")
    if kept:
        return kept
    return min(_fitting(config, "finetune", images) for config in _different(cell.config for cell in group))


def _fitting(config: ClassifyConfig, stage: StageName, images: Count) -> int:
    """The batch size that is good for learning and fits the memory, for one cell."""
    device = training_device(config)
    memory = pretraining_memory if stage == "pretrain" else finetuning_memory

    def needs(part: int) -> int:
        return memory(config, part, device)

    return chosen_batch(stage, images(config), getattr(config, stage).optimizer.accumulate, device, needs)


def _kept(folders: Iterable[Path], stage: StageName) -> int | None:
    for folder in folders:
        number = batch_of_run(folder, stage)
        if number is not None:
            return number
    return None
