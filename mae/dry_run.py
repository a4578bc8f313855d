"""mae-pretrain --dry-run: what a pretraining would cost on this machine. Writes nothing and keeps no weights."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.config import UserError, expand
from data.files import ImageFiles
from data.loader import Batch, Data
from data.manifest import Manifest, open_manifest
from data.preparation import describe_store, stores_folder
from data.settings import DataSettings, Size, height_and_width
from data.store import ImageStore
from mae.cost import step_flops, step_memory
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

STEPS, SECONDS = 5, 60  # timed: so many steps, but no further one after so long
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
    device, cost = training_device(config), pretraining_cost(config)
    counted, memory = _counted(config, cost), _physical_memory()
    if device.type == "cpu" and cost.memory > memory:
        return "\n".join(
            [*counted, f"speed        not measured: the step needs more than this machine's {_gb(memory)}"]
        )
    data, images = prepared_data(config.data)
    return "\n".join([*counted, *_timed(config, cost, device, data, images)])


# ---------------------------------------------------------------- counted


def pretraining_cost(config: MAEConfig) -> Cost:
    """Counted from the model that the config describes, on tensors without values; `compile` is left out."""
    settings = config.pretrain
    with torch.device("meta"):
        model = _model(config)
        keep, masked = random_masking(torch.empty(1, model.patches), settings.mask_ratio)
    part = max(settings.batch_size // settings.optimizer.accumulate, 1)
    weights, trained = (sum(t.nbytes for t in tensors) for tensors in (model.state_dict().values(), model.parameters()))
    predicted = masked.shape[1]
    if settings.predict_ratio is not None:
        predicted = min(max(int(model.patches * settings.predict_ratio), 1), predicted)
    return Cost(
        encoder=_size(model.encoder),
        decoder=_size(model.decoder),
        patches=model.patches,
        kept=keep.shape[1],
        predicted=predicted,
        flops=step_flops(lambda: _step(config, 1)),
        weights=weights,
        states=trained * (3 if settings.optimizer.ema else 2),
        passing=step_memory(lambda: _step(config, part)) - weights,
    )


def _model(config: MAEConfig) -> MaskedAutoencoder:
    model = mae_from(config.model, config.data.image_size)
    configure_blocks(model, compiled=False, recompute=config.activation_checkpointing)
    return model


def _step(config: MAEConfig, images: int) -> Callable[[], Tensor]:
    """The loss of a training step; augmentation multiplies no matrices and keeps nothing."""
    model, settings = _model(config), config.pretrain
    pixels = torch.empty(images, config.model.in_channels, *height_and_width(config.data.image_size))

    def loss() -> Tensor:
        with autocast(CPU, config.precision):
            return model(pixels, settings.mask_ratio, None, settings.predict_ratio).loss

    return loss


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _counted(config: MAEConfig, cost: Cost) -> list[str]:
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

    unreadable: frozenset[int] = frozenset()

    def __init__(self, count: int, size: Size):
        shape = (count, *height_and_width(size))
        self.images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)  # n h w

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        return np.arange(len(self.images))

    def read(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (self.images[rows] for rows in batches)


def random_data(count: int, size: Size) -> Data:
    """Images of noise, every second of them abnormal, for training and for validation."""
    names = np.arange(count).astype(str)
    table = pd.DataFrame({"image_id": names, "patient_id": names, "study_id": names, "label": np.arange(count) % 2.0})
    table = pd.concat([table.assign(split=split) for split in ("train", "validate")], ignore_index=True)
    return Data(Manifest(table, (), credentialed=False), _RandomImages(count, size))


def prepared_data(settings: DataSettings) -> tuple[Data | None, int | None]:
    """The config's images where they are prepared or need not be, and how many serve training where that is known."""
    try:
        roots = [Path(expand(one.root, "data.root")) for one in settings.each_source().values()]
        if not all(root.exists() for root in roots):  # the phantom would be drawn
            return None, None
        manifest = open_manifest(settings)
        files = ImageFiles(settings, manifest) if settings.store is False else None
    except UserError:
        return None, None
    if files:
        return Data(manifest, files), len(manifest.of_split("train"))
    name = f"*-{describe_store(settings, manifest.table)['fingerprint'][:12]}"
    finished = sorted(stores_folder(settings).glob(f"{name}/store.json"))
    if not finished:
        return None, len(manifest.of_split("train"))
    data = Data(manifest, ImageStore(finished[0].parent))
    return data, len(data.split("train"))


def _timed(config: MAEConfig, cost: Cost, device: torch.device, data: Data | None, images: int | None) -> list[str]:
    keep_freed_memory()
    stage = pretrain_stage(config, data or random_data(config.pretrain.batch_size, config.data.image_size), device)
    size = stage.batches.batch_size
    seconds = statistics.median(step_seconds(stage))
    source = "the config's images" if data else "random images, as the config's are not prepared"
    lines = [
        f"speed        {size / seconds:,.1f} images/s, {size * cost.flops / seconds / 1e9:,.0f} GFLOP/s, "
        f"{seconds:.3g} s a step on {device} with {torch.get_num_threads()} threads; {source}"
    ]
    if images is None:
        return [*lines, "whole run    not known: the images are not there; see data.root"]
    steps = config.pretrain.epochs * max(images // config.pretrain.batch_size, 1)
    return [
        *lines,
        f"whole run    {duration(steps * seconds)}: {config.pretrain.epochs:,} epochs of {images:,} images, {steps:,} "
        "steps; validation comes on top",
    ]


def step_seconds(stage: AnyStage) -> list[float]:
    """Time of real updates at learning rate 0; the first, which also compiles, is not counted."""
    update, taken, start = Update(stage), [], time.monotonic()
    stage.model.train()
    batches = _endless(stage)
    update(next(batches).to(stage.device), 0).cpu()
    while not taken or (len(taken) < STEPS and time.monotonic() - start < SECONDS):
        before = time.perf_counter()
        update(next(batches).to(stage.device), 0).cpu()  # waits for the device
        taken.append(time.perf_counter() - before)
    return taken


def _endless(stage: AnyStage) -> Iterator[Batch]:
    for epoch in count():
        yield from stage.batches.epoch(epoch, 0)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """Two units: 3 days 4 h, 2 h 5 min, 40 s."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, rest = divmod(hours, 24)
    return f"{days} days {rest} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
