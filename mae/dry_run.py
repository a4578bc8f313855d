"""mae-pretrain --dry-run: what a pretraining would cost on this machine. Writes nothing and keeps no weights."""

import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from data.config import expand
from data.environment import usable_cores
from data.errors import UserError
from data.image_files import ImageFiles
from data.images import read_fitted
from data.loader import Data
from data.manifest import Manifest, open_manifest
from data.preparation import finished_store, known_as
from data.refusal import UnreadableImage
from data.settings import DataSettings, Size, height_and_width
from data.store import ImageStore
from mae.batch_size import with_batch_size
from mae.branch import own_epochs
from mae.engine.console import duration
from mae.engine.machine import free_memory, memory_in_use
from mae.engine.run import training_device
from mae.pretrain import pretrain_stage
from mae.pretrain_cost import Cost, pretraining_cost, pretraining_memory
from mae.rehearsal import Rehearsal, looks, rehearse
from mae.settings import MAEConfig

UNKNOWN = 10_000  # training images to assume if there are none to count
TRAINED = 7  # batches to time steps with
VALIDATED = 256  # images
READ = 24  # images to time reading with,
READING = 5  # but no more after this many seconds


class Forecast(NamedTuple):
    """What a training is expected to take."""

    lines: list[str]  # of the report
    counted: int  # bytes counted from its tensors, to decide whether they fit
    memory: int | None = None  # bytes, by a rehearsal; None if there was none
    seconds: float | None = None  # from start to end; None if the images cannot be counted or a step does not fit

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def dry_run(config: MAEConfig) -> str:
    """The report of a resolved config. Nothing is prepared, no run begun, nothing kept."""
    return forecast(config).text


def forecast(config: MAEConfig) -> Forecast:
    """What a pretraining of a resolved config takes here, by doing every part of it once."""
    device = training_device(config)
    data, images = prepared_data(config.data)
    images = pretraining_images(config.data, images)
    folder = Path(expand(config.run, "run"))

    def needs(part: int) -> int:
        return pretraining_memory(config, part, device)

    config = with_batch_size(config, "pretrain", images or UNKNOWN, folder, device, needs)

    # a step that does not fit would end in swapping, or in a killed process
    part = max(config.pretrain.batch // config.pretrain.optimizer.accumulate, 1)
    needed = needs(min(part, images or part))
    counted = memory_in_use() + needed
    if needed > free_memory(device):
        cost = pretraining_cost(config)
        lines = counted_lines(config, cost)
        lines.append(f"memory       {gb(needed)} at least; {gb(free_memory(device))} are free on {device}")
        lines.append("speed        not measured: a step needs more memory than is free")
        return Forecast(lines, counted)

    # rehearsed first, as the counting afterwards takes memory too
    source = "the config's images"
    held_out = looked_at = 1.0
    unprepared = data is None
    if data is None:
        data = random_data(config.pretrain.batch, config.data.image_size)
        source = "random images, because the config's are not prepared"
        if images:  # the number of validation images is known approximately
            held_out = min(len(data.split("validate")) / max(images * config.data.validate_fraction, 1), 1.0)
            looked_at = min(len(data.split("train")) / images, 1.0)
    else:
        data, held_out, looked_at = part_of(data, config.pretrain.batch)
    every = config.pretrain.probe_every
    stage = pretrain_stage(config, data, device)
    rehearsed = rehearse(stage, held_out, every, looked_at)

    cost = pretraining_cost(config)
    lines = counted_lines(config, cost)
    lines.append(f"memory       {gb(rehearsed.memory)} at most, {measured_where(device)}")
    lines.append(_speed(stage.batches.batch_size, cost, rehearsed, device, source))
    if images and unprepared:
        lines += preparing(config.data)
    seconds = _seconds(config, rehearsed, images) if images else None
    return Forecast([*lines, _whole_run(config, rehearsed, images)], counted, rehearsed.memory, seconds)


def measured_where(device: torch.device) -> str:
    return "measured on the device" if device.type == "cuda" else "measured in this process"


def _speed(size: int, cost: Cost, rehearsed: Rehearsal, device: torch.device, source: str) -> str:
    seconds = rehearsed.step
    return (
        f"speed        {size / seconds:,.1f} images/s, {size * cost.flops / seconds / 1e9:,.0f} GFLOP/s, "
        f"{seconds:.3g} s a step on {device} with {torch.get_num_threads()} threads; {source}"
    )


def _steps(config: MAEConfig, images: int) -> int:
    return own_epochs(config) * max(images // min(config.pretrain.batch, images), 1)


def _seconds(config: MAEConfig, rehearsed: Rehearsal, images: int) -> float:
    settings = config.pretrain
    validations = looks(own_epochs(config), settings.validate_every, settings.probe_every)
    probes = looks(own_epochs(config), settings.probe_every)
    return rehearsed.whole_run(_steps(config, images), validations, probes)


def _whole_run(config: MAEConfig, rehearsed: Rehearsal, images: int | None) -> str:
    if images is None:
        return "whole run    not known: the images are not there; see data.root"
    return (
        f"whole run    {duration(_seconds(config, rehearsed, images))}: {own_epochs(config):,} epochs of {images:,} "
        f"images, {_steps(config, images):,} steps, with validations ({rehearsed.validate:.2g} s each) and the files "
        "and pictures after each"
    )


# ---------------------------------------------------------------- counted


def counted_lines(config: MAEConfig, cost: Cost) -> list[str]:
    """The lines that follow from the settings alone."""
    settings = config.pretrain
    again = ", activations computed twice" if config.activation_checkpointing else ""
    moments = "AdamW and the average of weights" if settings.optimizer.ema else "AdamW"

    return [
        f"parameters   encoder {cost.encoder:,}, decoder {cost.decoder:,} ({config.model.decoder})",
        f"patches      {cost.patches} an image: {cost.kept} kept, {cost.predicted} predicted",
        f"arithmetic   {cost.flops / 1e9:,.3g} GFLOPs an image, forward and backward{again}",
        f"counted      {gb(cost.memory)} of tensors in a step of {settings.batch} images ({config.precision}): weights "
        f"{gb(cost.weights)}, {moments} {gb(cost.states)}, activations and gradients {gb(cost.passing)}",
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
    """Noise images, every second one abnormal, for training and for validation."""
    # every image is a patient and a study of its own
    names = np.arange(count).astype(str)
    table = pd.DataFrame({"image_id": names, "patient_id": names, "study_id": names, "label": np.arange(count) % 2.0})
    table = pd.concat([table.assign(split=split) for split in ("train", "validate")], ignore_index=True)
    return Data(Manifest(table, (), credentialed=False), _RandomImages(count, size))


def prepared_data(settings: DataSettings) -> tuple[Data | None, int | None]:
    """The config's images, if they are prepared or need not be, and the number of training images, if known."""
    try:
        roots = [Path(expand(source.root, "data.root")) for source in settings.each_source().values()]
    except UserError:  # someone who plans may not have them yet
        return None, None
    if not all(root.exists() for root in roots):  # opening the phantom would draw it
        return None, None

    manifest = open_manifest(settings)
    if settings.store is False:
        return Data(manifest, ImageFiles(settings, manifest)), len(manifest.of_split("train"))

    # a store is never made here, only found
    folder = finished_store(settings, known_as(settings, manifest.table))
    if folder is None:
        return None, len(manifest.of_split("train"))
    data = Data(manifest, ImageStore(folder))
    return data, len(data.split("train"))


def pretraining_images(settings: DataSettings, labelled: int | None) -> int | None:
    """How many images a pretraining trains on: the data set's plus those of `data.unlabelled`; None if unknown."""
    further = settings.of_unlabelled()
    if further is None or labelled is None:
        return labelled
    more = prepared_data(further)[1]
    return None if more is None else labelled + more


def part_of(data: Data, batch: int) -> tuple[Data, float, float]:
    """A part of the data, its share of the validation images, and its share of the images of both splits.

    It has few validation images, and as many training images as the timed steps need.
    """
    table = data.manifest.table
    some = []
    for split, most in (("train", TRAINED * batch), ("validate", max(batch, VALIDATED))):
        rows = table[table["split"] == split]
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
        some.append(rows.iloc[chosen])
    train, validate = some
    of_validation = len(validate) / max(int((table["split"] == "validate").sum()), 1)
    of_both = (len(train) + len(validate)) / max(int(table["split"].isin(["train", "validate"]).sum()), 1)
    part = replace(data.manifest, table=pd.concat(some, ignore_index=True))
    return Data(part, data.store), of_validation, of_both


def preparing(settings: DataSettings) -> list[str]:
    """A line on how long it takes to decode the images that are not prepared yet, by reading some of them."""
    paths = open_manifest(settings).table["path"]

    # a few of them, and not for long
    start = time.monotonic()
    read = 0
    for number in np.random.default_rng(0).permutation(len(paths))[:READ]:
        with suppress(UnreadableImage):
            read_fitted(paths.iloc[number], settings.image_size, settings.resize, settings.tone)
        read += 1
        if time.monotonic() - start > READING:
            break

    # then all, by several processes
    workers = min(settings.workers or usable_cores(), usable_cores())
    seconds = (time.monotonic() - start) / max(read, 1) * len(paths) / workers
    return [f"preparing    {duration(seconds)}: {len(paths):,} images are decoded once, by {workers} processes"]


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
