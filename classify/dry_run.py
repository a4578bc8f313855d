"""mae-finetune --dry-run: what a fine-tuning would cost on this machine. Writes nothing and keeps no weights."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classify.cases import LabelledSplits, check_unit, splits_of
from classify.domain import MOST
from classify.finetune import finetune_stage
from classify.finetune_cost import finetuning_memory
from classify.models.build import Model
from classify.settings import ClassifyConfig
from classify.start import beginning, check_fit, run_folder
from data.loader import Data
from mae.batch_size import with_batch_size
from mae.dry_run import UNKNOWN, Forecast, gb, measured_where, prepared_data, preparing, random_data
from mae.engine.console import duration
from mae.engine.machine import free_memory, memory_in_use
from mae.engine.run import training_device
from mae.engine.stage import Stage
from mae.rehearsal import Rehearsal, looks, rehearse

VALIDATED = 256  # images, at least


def dry_run(config: ClassifyConfig, checkpoint: str | Path | None = None) -> str:
    """The report of a fine-tuning: real updates at learning rate 0, on the config's images where they are prepared."""
    return forecast(config, checkpoint).text


def forecast(config: ClassifyConfig, checkpoint: str | Path | None = None) -> Forecast:
    """What a fine-tuning takes here, by doing every part of it once."""
    folder = run_folder(config, checkpoint)
    config, pretrained = beginning(config, checkpoint)
    check_fit(config, pretrained)
    device = training_device(config)

    # how many images there are to learn from
    data, images = prepared_data(config.data)
    splits = None
    labelled = images or UNKNOWN
    if data is not None:
        splits = splits_of(data, config)
        check_unit(splits.validate, "validate", config, data.manifest)
        labelled = len(splits.train)

    def needs(part: int) -> int:
        return finetuning_memory(config, part, device)

    config = with_batch_size(config, "finetune", labelled, folder, device, needs)
    part = min(max(config.finetune.batch // config.finetune.optimizer.accumulate, 1), labelled)
    needed = needs(part)
    counted = memory_in_use() + needed
    if needed > free_memory(device):
        least = f"{gb(needed)} at least; {gb(free_memory(device))} are free on {device}"
        lines = [f"memory       {least}", "speed        not measured: a step needs more memory than is free"]
        return Forecast(lines, counted)

    # measured
    looked_at = _few_images(config, data, splits, labelled)
    stage = finetune_stage(config, looked_at.data, looked_at.splits, device, pretrained)
    rehearsed = rehearse(stage, looked_at.held_out)

    whole = "not known: the images are not there; see data.root"
    seconds = None
    if images:
        batches = len(stage.batches) if data is not None else max(images // stage.batches.batch_size, 1)
        seconds = rehearsed.whole_run(stage.epochs * batches, looks(stage.epochs, stage.validate_every))
        seconds += _look_at_domain(rehearsed, images, looked_at)
        whole = (
            f"{duration(seconds)}: {stage.epochs:,} epochs, {stage.epochs * batches:,} steps, with "
            f"validations ({rehearsed.validate:.2g} s each) and the files and pictures after each"
        )
    lines = [
        *_measured_lines(config, stage, rehearsed, looked_at.source),
        *(preparing(config.data) if images and data is None else []),
        f"whole run    {whole}",
    ]
    return Forecast(lines, counted, rehearsed.memory, seconds)


# ---------------------------------------------------------------- images to rehearse on


class _Looked(NamedTuple):
    """What a rehearsal looks at."""

    data: Data
    splits: LabelledSplits
    held_out: float  # share of all validation images that these are
    source: str


def _few_images(config: ClassifyConfig, data: Data | None, splits: LabelledSplits | None, labelled: int) -> _Looked:
    """All training images and few for validation; noise stands in for those that are not prepared."""
    if data is not None and splits is not None:
        some = few_of(splits.validate, max(config.evaluate.batch_size, VALIDATED))
        held_out = len(some) / len(splits.validate)
        return _Looked(data, LabelledSplits(train=splits.train, validate=some), held_out, "the config's images")

    noise = random_data(max(config.finetune.batch, 4), config.data.image_size)
    drawn = LabelledSplits(train=noise.split("train"), validate=noise.split("validate"))
    held_out = min(len(drawn.validate) / max(labelled * config.data.validate_fraction, 1), 1.0)
    return _Looked(noise, drawn, held_out, "random images, because the config's are not prepared")


def few_of(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows of a table, with each label in its share."""
    ordered = table.sort_values("label", kind="stable")
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return ordered.iloc[np.unique(places)]


# ---------------------------------------------------------------- what it took


def _look_at_domain(rehearsed: Rehearsal, images: int, looked_at: _Looked) -> float:
    """Seconds that a training spends at its end on images of both splits, to learn its domain."""
    validated = max(round(len(looked_at.splits.validate) / looked_at.held_out), 1)
    return rehearsed.validate * (min(MOST, images) + min(MOST, validated)) / validated


def _measured_lines(config: ClassifyConfig, stage: Stage[Model], rehearsed: Rehearsal, source: str) -> list[str]:
    trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in stage.model.parameters())
    batch_size = stage.batches.batch_size
    kind = f"{config.finetune.model}, {config.finetune.mode}"
    speed = f"{batch_size / rehearsed.step:,.1f} images/s, {rehearsed.step:.3g} s a step"
    return [
        f"parameters   {total:,}, of which {trained:,} are trained ({kind})",
        f"memory       {gb(rehearsed.memory)} at most, {measured_where(stage.device)}, in steps of {batch_size} images "
        f"({config.precision})",
        f"speed        {speed} on {stage.device} with {torch.get_num_threads()} threads; {source}",
    ]
