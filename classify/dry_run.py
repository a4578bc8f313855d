"""mae-finetune --dry-run: what a fine-tuning would cost on this machine. Writes nothing and keeps no weights."""

import statistics
from pathlib import Path

import torch

from classify.cases import LabelledSplits, labelled_splits
from classify.finetune import finetune_stage
from classify.settings import ClassifyConfig
from classify.start import beginning, check_fit
from mae.dry_run import duration, prepared_data, random_data, step_seconds
from mae.engine.loop import peak_memory
from mae.engine.memory import keep_freed_memory
from mae.engine.run import training_device


def dry_run(config: ClassifyConfig, checkpoint: str | Path | None = None) -> str:
    """The report of a fine-tuning: real updates at learning rate 0, on the config's images where they are prepared."""
    config, pretrained = beginning(config, checkpoint)
    check_fit(config, pretrained)
    device = training_device(config)
    data, images = prepared_data(config.data)
    real = data is not None
    data = data or random_data(config.finetune.batch_size, config.data.image_size)
    if real:
        splits = labelled_splits(data, config.finetune.sample, config.data.split_seed)
    else:
        splits = LabelledSplits(data.split("train"), data.split("train"))
    keep_freed_memory()
    stage = finetune_stage(config, data, splits, device, pretrained)
    seconds, size = statistics.median(step_seconds(stage)), stage.batches.batch_size
    trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in stage.model.parameters())
    source = "the config's images" if real else "random images, as the config's are not prepared"
    steps = stage.epochs * max(images // size, 1) if images and not real else stage.epochs * len(stage.batches)
    whole = f"{duration(steps * seconds)}: {stage.epochs:,} epochs, {steps:,} steps; validation comes on top"
    kind = f"{config.finetune.model}, {config.finetune.mode}"
    return "\n".join(
        [
            f"parameters   {total:,}, of which {trained:,} are trained ({kind})",
            f"memory       {peak_memory(device) / 1e9:.2f} GB at most, in steps of {size} images ({config.precision})",
            f"speed        {size / seconds:,.1f} images/s, {seconds:.3g} s a step on {device} with "
            f"{torch.get_num_threads()} threads; {source}",
            f"whole run    {whole if images else 'not known: the images are not there; see data.root'}",
        ]
    )
