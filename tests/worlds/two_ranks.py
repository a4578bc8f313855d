"""What torchrun runs for test_distributed.py: `two_ranks.py WHAT FOLDER`, the same in every rank.

Starting two ranks takes far longer than what they do here, so one start does all the work that ends well.
"""

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny_world import tiny_config

import classify.dashboard
from classify.cases import labelled_splits
from classify.finetune import finetune_stage
from data.errors import UserError
from data.loader import Loader, open_data
from mae.engine import distributed
from mae.engine.loop import fit
from mae.pretrain import pretrain_stage

CPU = torch.device("cpu")
BATCHES = {"pretrain__batch_size": 10, "finetune__batch_size": 10, "pretrain__epochs": 5, "finetune__epochs": 5}

classify.dashboard.raster = lambda *_: np.zeros((2, 3, 3), np.uint8)  # drawing takes longer than training


def stage_of(kind: str, place: Path, dtype: torch.dtype, **changed):
    """20 steps of a stage, its model in `dtype`."""
    config = tiny_config(place, **BATCHES, **changed)
    data = open_data(config.data)
    if kind == "mae":
        stage = pretrain_stage(config, data, CPU)
    else:
        stage = finetune_stage(
            config, data, labelled_splits(data, config.finetune.sample, config.data.split_seed), CPU, None
        )
    stage.model.to(dtype)
    return stage


def together(folder: Path) -> None:
    """All the work of two ranks that ends well."""
    parts = {"pretrain__optimizer__accumulate": 5, "finetune__optimizer__accumulate": 5}
    sorts = {"64": (torch.float64, {}), "64-parts": (torch.float64, parts), "32": (torch.float32, {})}
    cases = {f"{kind}-{name}": (kind, *sort) for kind in ("mae", "vit") for name, sort in sorts.items()}
    for name, (kind, dtype, changed) in cases.items():
        if os.environ["RANK"] == str(len(name) % 2):  # the ranks share this work too
            fit(stage_of(kind, folder, dtype, **changed), folder / f"alone-{name}")

    with distributed.process_group(CPU):
        # each run once more, by both ranks, for comparison with the single run: its weights, metrics and best score
        for name, (kind, dtype, changed) in cases.items():
            fit(stage_of(kind, folder, dtype, **changed), folder / f"shared-{name}")
        fit(stage_of("mae", folder, torch.float64), folder / "begun-alone")  # two ranks go on where one has stopped
        coverage(folder)
        skip(folder)
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert not [name for name in names if "gloo" in name]  # a gloo thread alive at the end may abort the process


def coverage(folder: Path) -> None:
    """Every image of an ordered epoch is seen once, whatever the number, and comes back in order."""
    data = open_data(tiny_config(folder).data)
    whole = data.split("train")
    for n in (1, 2, 3, 5, 7):
        loader = Loader(data, whole.iloc[:n], 2, share=distributed.shard())
        parts = [batch.numbers for batch in loader.epoch()]
        numbers = torch.cat([torch.empty(0, dtype=torch.int64), *parts])
        together = distributed.all_gather_rows(numbers)
        assert together.tolist() == whole["row"].iloc[:n].tolist(), n
        assert distributed.all_reduce_sum(torch.tensor(float(len(numbers)))) == n
    assert distributed.any_rank(distributed.rank() == 1, CPU)
    assert not distributed.any_rank(False, CPU)
    (folder / f"covered-{os.environ['RANK']}").touch()


def skip(folder: Path) -> None:
    """A NaN in one rank's share skips the update in all ranks, and is named."""

    def spoilt(model, batch, epoch):
        return step(model, batch, epoch) * (float("nan") if distributed.rank() == 1 and epoch == 1 else 1.0)

    stage = stage_of("mae", folder, torch.float32)
    step = stage.step
    fit(replace(stage, step=spoilt), folder / "skipped")
    sums = distributed.all_gather_objects(
        [weight.double().sum().item() for weight in stage.model.state_dict().values()]
    )
    assert sums[0] == sums[1]


def lose_one(folder: Path) -> None:
    """Rank 1 dies in the middle."""

    def dying(model, batch, epoch):
        if distributed.rank() == 1 and epoch == 2:
            (folder / "died").touch()
            os._exit(3)
        return step(model, batch, epoch)

    with distributed.process_group(CPU):
        stage = stage_of("mae", folder, torch.float32)
        step = stage.step
        fit(replace(stage, step=dying), folder / "lost")


def fail(folder: Path) -> None:
    """A rank fails by itself, and what its traceback held is freed while gloo's thread waits for Python's lock."""
    distributed.launched = lambda: True
    sys.setswitchinterval(60)  # seconds: the lock is kept until something gives it up
    with suppress(UserError), distributed.process_group(CPU):
        held = [distributed.Replica(torch.nn.Linear(2, 3)), torch.distributed.group.WORLD]
        raise RuntimeError("gloo has lost a rank")

    work = held.pop().allreduce([torch.ones(3)])
    del work  # so that gloo's thread frees it, for which it needs the lock
    ctypes.PyDLL(None).usleep(300_000)  # which this call keeps
    held.clear()
    (folder / "failed").touch()


if __name__ == "__main__":
    {f.__name__: f for f in (together, lose_one, fail)}[sys.argv[1]](Path(sys.argv[2]))
