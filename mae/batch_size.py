"""`batch_size: auto` → a number: a batch that is good for learning from this many images and fits the memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch

from data.config import change_config
from data.errors import UserError
from mae.engine import distributed
from mae.engine.machine import free_memory
from mae.engine.run import settings_of_run
from mae.recipes import good_batch
from mae.settings import MAEConfig

Kind = TypeVar("Kind", bound=MAEConfig)
StageName = Literal["pretrain", "finetune"]
Needs = Callable[[int], int]  # images of a step that one process works through at once → bytes
SHARE = {"cuda": 0.85, "cpu": 0.7}  # of the free memory: some is lost between tensors, and other programs may want more


def with_batch_size(
    config: Kind, stage: StageName, images: int, folder: Path, device: torch.device, needs: Needs
) -> Kind:
    """The config with auto replaced by a number: the one of the run in the folder or, for a new run, one chosen now.

    With several ranks, the first one chooses for all. Raises UserError if even the smallest batch does not fit.
    """
    section = getattr(config, stage)
    if section.batch_size != "auto":
        return config

    def choose() -> int:
        number = batch_of_run(folder, stage)
        if number is None:
            parts = distributed.world_size() * section.optimizer.accumulate
            number = chosen_batch(stage, images, parts, device, needs)
            print(f"{stage}.batch_size: auto → {number}, for {images:,} training images and the memory that is free")
        return number

    return change_config(config, {f"{stage}.batch_size": distributed.told_to_all(choose)})


def batch_of_run(folder: Path, stage: StageName) -> int | None:
    """The batch size that the folder's run began this stage with; None if it records none."""
    made = settings_of_run(folder)
    section = made.get(stage) if made else None
    number = section.get("batch_size") if isinstance(section, dict) else None
    return number if isinstance(number, int) else None


def chosen_batch(stage: StageName, images: int, parts: int, device: torch.device, needs: Needs) -> int:
    """A power of two times `parts` (ranks times accumulate): no more than is good for learning or fits.

    With many parts it may exceed what is good for learning: each part gets an image, or two if there are so many.
    """
    most = good_batch(stage, images)
    part = 1  # images that one process works through at once
    while 2 * part * parts <= most:
        part *= 2

    # counting a step's memory is exact and quick, so sizes are tried from the largest down
    free = int(SHARE.get(device.type, 0.7) * free_memory(device))
    smallest = 2 if images >= 2 * parts else 1
    part = max(part, smallest)
    while (needed := needs(part)) > free:
        if part == smallest:
            raise UserError(
                f"{stage}.batch_size: found {free / 1e9:.2f} GB of memory free for training on {device}, expected "
                f"{needed / 1e9:.2f} GB for {part * parts} images; free some, or take a smaller model or image_size"
            )
        part //= 2
    return part * parts
