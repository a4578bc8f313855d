"""What trainings say when they start and when they end: the same form for both stages."""

from collections.abc import Mapping
from pathlib import Path

import torch

from mae.engine import distributed
from mae.engine.checkpoint import Checkpoint
from mae.engine.run import saved_with
from mae.settings import MAEConfig

WIDTH = 12  # letters of the first column


def as_rows(facts: Mapping[str, str]) -> str:
    """A line for each fact, its name first."""
    return "\n".join(f"{name:<{WIDTH}} {text}" for name, text in facts.items())


def start_facts(
    folder: Path, begins: str, device: torch.device, config: MAEConfig, images: str, batch: str
) -> dict[str, str]:
    """The facts that every training prints first; a resumed run also says from where it continues."""
    saved = saved_with(folder)
    if saved:
        begins = f"{folder} after epoch {saved.epoch}, continued; it began from {begins}"
    return {"begins from": begins, "device": device_text(device, config), "images": images, "batch": batch}


def device_text(device: torch.device, config: MAEConfig) -> str:
    """The device by its name, and how it computes."""
    threads = torch.get_num_threads()
    parts = [f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"]
    if device.type == "cuda":
        parts = [f"{torch.cuda.get_device_name(device)} ({device})"]
    if distributed.world_size() > 1:
        parts.append(f"{distributed.world_size()} ranks")
    parts.append(config.precision)
    return ", ".join(parts)


def batch_text(wanted: int, used: int, steps: int) -> str:
    """Images of a step; says so if there are fewer than the config asks for."""
    text = f"{used:,} images, {steps:,} {'step' if steps == 1 else 'steps'} an epoch"
    if used < wanted:
        text += f"; batch_size {wanted:,} is more than the {used:,} training images, so each step takes all of them"
    return text


def ended_text(folder: Path, already: bool) -> str:
    """The first line of an end."""
    return f"already finished, nothing done: {folder}" if already else f"finished: {folder}"


def best_epoch(best: Checkpoint, epochs: int) -> str:
    return f"after epoch {best.epoch:,} of {epochs:,}"


def duration(seconds: float) -> str:
    """Two units: 3 days 4 h, 2 h 5 min, 40 s."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, rest = divmod(hours, 24)
    if days:
        return f"{days} days {rest} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min"
