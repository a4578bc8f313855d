"""mae-finetune --dry-run: what a fine-tuning would cost on this machine. Writes nothing and keeps no weights."""

import statistics
from pathlib import Path

import torch

from classify.finetune import LabelledSplits, beginning, check_fit, finetune_stage, labelled_splits
from data.config import Root
from mae.dry_run import duration, prepared_data, random_data, step_seconds
from mae.engine.loop import peak_memory
from mae.engine.memory import keep_freed_memory


def dry_run(config: Root, checkpoint: str | Path | None = None) -> str:
    """The report of a fine-tuning: real updates at learning rate 0, on the config's images where they are prepared."""
    config, pretrained = beginning(config, checkpoint)
    device = check_fit(config, pretrained)
    data, images = prepared_data(config)
    real = data is not None
    data = data or random_data(config, config.finetune.batch_size)
    splits = labelled_splits(config, data) if real else LabelledSplits(data.split("train"), data.split("train"))
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
