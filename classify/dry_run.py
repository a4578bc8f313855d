"""mae-finetune --dry-run: what a fine-tuning would cost on this machine. Writes nothing and keeps no weights."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from classify.cases import LabelledSplits, check_unit, splits_of
from classify.domain import MOST
from classify.finetune import finetune_stage
from classify.finetune_cost import finetuning_memory
from classify.settings import ClassifyConfig
from classify.start import beginning, check_fit, run_folder
from mae.batch_size import with_batch_size
from mae.dry_run import UNKNOWN, Forecast, duration, gb, measured_where, prepared_data, preparing, random_data
from mae.engine.machine import free_memory, memory_in_use
from mae.engine.run import training_device
from mae.rehearsal import rehearse

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
    prepared = data is not None
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
        least = f"{gb(needed)} at least, of which {gb(free_memory(device))} are free on {device}"
        lines = [f"memory       {least}", "speed        not measured: a step needs more memory than is free"]
        return Forecast(lines, counted)

    # images of noise stand in for those that are not prepared
    held_out = 1.0
    source = "the config's images"
    if data is None:
        data = random_data(max(config.finetune.batch, 4), config.data.image_size)
        splits = LabelledSplits(train=data.split("train"), validate=data.split("validate"))
        source = "random images, as the config's are not prepared"
        held_out = min(len(splits.validate) / max(labelled * config.data.validate_fraction, 1), 1.0)
    else:
        some = few_of(splits.validate, max(config.evaluate.batch_size, VALIDATED))
        held_out = len(some) / len(splits.validate)
        splits = LabelledSplits(train=splits.train, validate=some)

    # measured
    stage = finetune_stage(config, data, splits, device, pretrained)
    batch_size = stage.batches.batch_size
    rehearsed = rehearse(stage, held_out)

    # counted
    trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in stage.model.parameters())
    steps_per_epoch = len(stage.batches)
    if images and not prepared:
        steps_per_epoch = max(images // batch_size, 1)
    steps = stage.epochs * steps_per_epoch

    whole = "not known: the images are not there; see data.root"
    seconds = rehearsed.whole_run(steps, stage.epochs) if images else None
    if seconds is not None and images:
        # at its end it looks at images of both splits, so that it knows its domain
        validated = max(round(len(splits.validate) / held_out), 1)
        looked_at = min(MOST, images) + min(MOST, validated)
        seconds += rehearsed.validate * looked_at / validated
        whole = (
            f"{duration(seconds)}: {stage.epochs:,} epochs, {steps:,} steps, with "
            f"validations ({rehearsed.validate:.2g} s each), and what is written and drawn after each"
        )
    kind = f"{config.finetune.model}, {config.finetune.mode}"
    speed = f"{batch_size / rehearsed.step:,.1f} images/s, {rehearsed.step:.3g} s a step"
    lines = [
        f"parameters   {total:,}, of which {trained:,} are trained ({kind})",
        f"memory       {gb(rehearsed.memory)} at most, {measured_where(device)}, in steps of {batch_size} images "
        f"({config.precision})",
        f"speed        {speed} on {device} with {torch.get_num_threads()} threads; {source}",
        *(preparing(config.data) if images else []),
        f"whole run    {whole}",
    ]
    return Forecast(lines, counted, rehearsed.memory, seconds)


def few_of(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """So many rows of a table, with each label in its share."""
    ordered = table.sort_values("label", kind="stable")
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return ordered.iloc[np.unique(places)]
