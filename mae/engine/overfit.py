"""--overfit: a training on a few images that goes on until it can say whether the machinery learns them by heart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError
from mae.engine.checkpoint import load_checkpoint

LOOKS = 64  # epochs between validations, after the first, more frequent ones


def looked_at(epoch: int) -> bool:
    """Whether a training on few images is validated after this epoch: at first often, then more and more rarely."""
    return epoch % LOOKS == 0 or epoch & (epoch - 1) == 0


def is_reached(goal: float, train_loss: float, metrics: Mapping[str, float]) -> bool:
    """Whether the images are learnt: in training, and by the validated weights."""
    return train_loss <= goal and metrics.get("validate/loss", train_loss + goal) <= goal


def verdict(folder: Path, images: int) -> tuple[bool, str]:
    """Whether the run has passed, and the line that says so with its numbers."""
    last = load_checkpoint(folder / "last.pt", numbers=False)
    found: Any = last.meta.get("overfit")
    if not isinstance(found, dict):
        raise UserError(f"{last.place}: found no goal of an --overfit run, expected one; remove {folder} and run again")

    passed = bool(found["reached"])
    numbers = f"loss {found['train_loss']:.3g} in training and {found['loss']:.3g} on the same images after it"
    after = f"after {last.progress['step']:,} updates"
    if passed:
        return (
            True,
            f"PASS: {images} images are learnt by heart: {numbers}, {after}; wanted: at most {found['goal']:.3g}",
        )
    return False, (
        f"FAIL: {images} images are not learnt by heart: {numbers}, {after}; wanted: at most {found['goal']:.3g}; look "
        "at images and labels, the learning rate, and what was changed last"
    )
