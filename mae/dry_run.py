"""mae-pretrain --dry-run: what a pretraining would cost on this machine. Writes nothing and keeps no weights."""

import os
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.config import expand
from data.errors import UserError
from data.image_files import ImageFiles
from data.loader import Batch, Data
from data.manifest import Manifest, open_manifest
from data.preparation import describe_store, finished_store
from data.settings import DataSettings, Size, height_and_width
from data.store import ImageStore
from mae.cost import step_flops, step_memory
from mae.engine.console import duration
from mae.engine.memory import keep_freed_memory
from mae.engine.optim import autocast
from mae.engine.run import training_device
from mae.engine.stage import AnyStage
from mae.engine.update import Update
from mae.masking import random_masking
from mae.model import MaskedAutoencoder, mae_from
from mae.pretrain import pretrain_stage
from mae.settings import MAEConfig
from mae.transformer import configure_blocks

STEPS = 5  # timed,
SECONDS = 60  # but no further one after so long
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """What the settings alone tell."""

    encoder: int  # parameters
    decoder: int
    patches: int  # of an image, and so on
    kept: int
    predicted: int
    flops: int  # both passes of a training step
    weights: int  # bytes, and so on
    states: int  # of AdamW and, where there is one, the average of weights
    passing: int  # activations and gradients at their most

    @property
    def memory(self) -> int:
        return self.weights + self.states + self.passing


def dry_run(config: MAEConfig) -> str:
    """The report of a resolved config. Nothing is prepared, no run begun, no weight changed."""
    device = training_device(config)
    cost = pretraining_cost(config)
    lines = _counted(config, cost)

    # a step that does not fit would end in swapping, or in a killed process
    memory = _physical_memory()
    if device.type == "cpu" and cost.memory > memory:
        lines.append(f"speed        not measured: the step needs more than this machine's {_gb(memory)}")
    else:
        lines += _timed(config, cost, device)
    return "\n".join(lines)


# ---------------------------------------------------------------- counted


def pretraining_cost(config: MAEConfig) -> Cost:
    """Counted from the model that the config describes, on tensors without values; `compile` is left out."""
    settings = config.pretrain
    with torch.device("meta"):
        model = _model(config)
        keep, masked = random_masking(torch.empty(1, model.patches), settings.mask_ratio)

    # of the masked patches, all are predicted or as many as are asked for
    predicted = masked.shape[1]
    if settings.predict_ratio is not None:
        predicted = min(max(int(model.patches * settings.predict_ratio), 1), predicted)

    # AdamW has two moments of each parameter; an average of the weights is one more
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in model.parameters())
    copies = 3 if settings.optimizer.ema else 2

    part = max(settings.batch_size // settings.optimizer.accumulate, 1)  # images worked through at once
    return Cost(
        encoder=_size(model.encoder),
        decoder=_size(model.decoder),
        patches=model.patches,
        kept=keep.shape[1],
        predicted=predicted,
        flops=pretraining_flops(config),
        weights=weights,
        states=trained * copies,
        passing=step_memory(lambda: _step(config, part)) - weights,
    )


def pretraining_flops(config: MAEConfig) -> int:
    """Operations of a training step for an image: `pretraining_cost` without the memory, which takes longer."""
    return step_flops(lambda: _step(config, 1))


def _model(config: MAEConfig) -> MaskedAutoencoder:
    model = mae_from(config.model, config.data.image_size)
    configure_blocks(model, compiled=False, recompute=config.activation_checkpointing)
    return model


def _step(config: MAEConfig, images: int) -> Callable[[], Tensor]:
    """The loss of a training step; augmentation multiplies no matrices and keeps nothing."""
    settings = config.pretrain
    model = _model(config)
    pixels = torch.empty(images, config.model.in_channels, *height_and_width(config.data.image_size))

    def loss() -> Tensor:
        with autocast(CPU, config.precision):
            return model(pixels, settings.mask_ratio, None, settings.predict_ratio).loss

    return loss


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _counted(config: MAEConfig, cost: Cost) -> list[str]:
    """The lines on what the settings alone tell."""
    settings = config.pretrain
    again = ", activations computed twice" if config.activation_checkpointing else ""
    moments = "AdamW and the average of weights" if settings.optimizer.ema else "AdamW"

    return [
        f"parameters   encoder {cost.encoder:,}, decoder {cost.decoder:,} ({config.model.decoder})",
        f"patches      {cost.patches} an image: {cost.kept} kept, {cost.predicted} predicted",
        f"arithmetic   {cost.flops / 1e9:,.3g} GFLOPs an image, forward and backward{again}",
        f"memory       {_gb(cost.memory)} in a step of {settings.batch_size} images ({config.precision}): weights "
        f"{_gb(cost.weights)}, {moments} {_gb(cost.states)}, activations and gradients {_gb(cost.passing)}",
    ]


# ---------------------------------------------------------------- timed


class _RandomImages:
    """Stands in for the store of images that are not prepared."""

    fingerprint = "random"
    unreadable: frozenset[int] = frozenset()

    def __init__(self, count: int, size: Size):
        shape = (count, *height_and_width(size))
        self.index: dict[str, int] = {}
        self.images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)  # n h w

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        return np.arange(len(self.images))

    def digests(self) -> dict[int, str]:
        return {}

    def pixel_digests(self, rows: np.ndarray) -> dict[int, str]:
        return {}

    def read(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        for rows in batches:
            yield self.images[rows]  # b h w


def random_data(count: int, size: Size) -> Data:
    """Images of noise, every second of them abnormal, for training and for validation."""
    # every image is a patient and a study of its own
    names = np.arange(count).astype(str)
    table = pd.DataFrame({"image_id": names, "patient_id": names, "study_id": names, "label": np.arange(count) % 2.0})
    table = pd.concat([table.assign(split=split) for split in ("train", "validate")], ignore_index=True)
    return Data(Manifest(table, (), credentialed=False), _RandomImages(count, size))


def prepared_data(settings: DataSettings) -> tuple[Data | None, int | None]:
    """The config's images where they are prepared or need not be, and how many serve training where that is known."""
    try:
        roots = [Path(expand(source.root, "data.root")) for source in settings.each_source().values()]
        if not all(root.exists() for root in roots):  # the phantom would be drawn
            return None, None
        manifest = open_manifest(settings)
        files = ImageFiles(settings, manifest) if settings.store is False else None
    except UserError:
        return None, None
    if files is not None:
        return Data(manifest, files), len(manifest.of_split("train"))

    # a store is never made here, only found
    folder = finished_store(settings, describe_store(settings, manifest.table))
    if folder is None:
        return None, len(manifest.of_split("train"))
    data = Data(manifest, ImageStore(folder))
    return data, len(data.split("train"))


def _timed(config: MAEConfig, cost: Cost, device: torch.device) -> list[str]:
    """The lines on what only real steps tell."""
    settings = config.pretrain
    # a step takes as long on noise
    data, images = prepared_data(config.data)
    source = "the config's images"
    if data is None:
        data = random_data(settings.batch_size, config.data.image_size)
        source = "random images, as the config's are not prepared"

    # a step of the run itself
    keep_freed_memory()
    stage = pretrain_stage(config, data, device)
    size = stage.batches.batch_size
    seconds = statistics.median(step_seconds(stage))
    speed = (
        f"speed        {size / seconds:,.1f} images/s, {size * cost.flops / seconds / 1e9:,.0f} GFLOP/s, "
        f"{seconds:.3g} s a step on {device} with {torch.get_num_threads()} threads; {source}"
    )
    if images is None:
        return [speed, "whole run    not known: the images are not there; see data.root"]

    steps = settings.epochs * max(images // settings.batch_size, 1)
    whole_run = (
        f"whole run    {duration(steps * seconds)}: {settings.epochs:,} epochs of {images:,} images, {steps:,} "
        "steps; validation comes on top"
    )
    return [speed, whole_run]


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


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
