"""Checkpoints: weights together with their config, written so that a kill never leaves half of one."""

import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.config import UserError, make_config, with_new_names
from data.writing import flush_to_disk, replacing
from mae.settings import MAEConfig

FORMAT = "mae-cxr 1"


@dataclass(frozen=True)
class Checkpoint:
    """What a run hands on. `kind` is mae or classifier; `meta` what the kind needs besides (threshold, …)."""

    kind: str
    settings: dict[str, Any]  # the config as plain values
    weights: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)  # what else resuming needs: weights under an average, …
    place: str = "checkpoint"

    @cached_property
    def config(self) -> MAEConfig:
        """The config the weights were made with, settings of earlier versions under their names of today."""
        config = make_config(with_new_names(self.settings), self.place)
        assert isinstance(config, MAEConfig)
        return config


class NotSaved(Exception):
    """A checkpoint could not be written, say for a full disk; what was there before still is."""


def save_checkpoint(checkpoint: Checkpoint, path: Path, previous: Path | None = None) -> None:
    """Write under a temporary name, flush to disk, then rename over the one before, or that one to `previous`.

    Raises NotSaved where the disk does not take it.
    """
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                torch.save({"format": FORMAT, **_shallow(checkpoint)}, file)
                flush_to_disk(file)

            # between these two renames there is only `previous`, and `latest_checkpoint` finds it
            if previous and path.exists():
                path.replace(previous)
    except (OSError, RuntimeError) as error:  # the latter: what torch makes of a short write
        raise NotSaved(f"{path}: not written ({str(error).splitlines()[0]})") from None


def latest_checkpoint(folder: Path, kind: str | None = None) -> Checkpoint | None:
    """Where a run stands: its last.pt, else its previous.pt, with a warning; None where it has neither."""
    last = folder / "last.pt"
    previous = folder / "previous.pt"
    if not previous.exists():
        return load_checkpoint(last, kind) if last.exists() else None

    # an unfinished run has both, and a power cut may have left only the older one whole
    try:
        return load_checkpoint(last, kind)
    except UserError as error:
        print(f"warning: {error}; going on from {previous}", file=sys.stderr)
        return load_checkpoint(previous, kind)


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is written: every field but the place. Unlike asdict, this copies no weights."""
    written = [part.name for part in fields(checkpoint) if part.name != "place"]
    return {name: getattr(checkpoint, name) for name in written}


def load_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Read a checkpoint to CPU, tensors and plain values only (`weights_only`).

    Raises UserError if the file is missing, is no checkpoint of this project, or is of another kind.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a checkpoint (.pt)")
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected a checkpoint (.pt)")

    # what torch raises for a file that is damaged or not its own has many names
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise UserError(
            f"{path}: found an unreadable or foreign file, expected a checkpoint of mae-pretrain or mae-finetune"
        ) from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise UserError(f"{path}: found a torch file of another program, expected a checkpoint ({FORMAT})")

    checkpoint = Checkpoint(**raw, place=str(path))
    if kind and checkpoint.kind != kind:
        raise UserError(f"{path}: found a checkpoint of kind {checkpoint.kind}, expected {kind}")
    return checkpoint


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copy all weights into the model; UserError naming the first that does not fit."""
    check_weights(model, checkpoint)
    model.load_state_dict(checkpoint.weights)


def check_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """UserError naming the first weight that does not fit the model."""
    # names and shapes say all: a missing or a superfluous weight has no partner
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{checkpoint.place}: {name}: found {found.get(name, 'nothing')}, "
                f"expected {wanted.get(name, 'nothing')}; the config describes a model of another size"
            )
    expect_finite(checkpoint.weights, checkpoint.place)


def expect_finite(tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """UserError naming the first tensor that holds NaN or infinity: no number that comes of it means anything."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            continue
        if not tensor.isfinite().all():
            raise UserError(f"{place}: {name}: found NaN or infinity, expected finite numbers")
