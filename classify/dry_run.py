"""mae-finetune --dry-run: what a fine-tuning would cost on this machine. Writes nothing and keeps no weights."""

import statistics
from pathlib import Path

import torch

from classify.cases import LabelledSplits, check_unit, splits_of
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

    # images of noise stand in for those that are not prepared
    data, images = prepared_data(config.data)
    prepared = data is not None
    if data is not None:
        splits = splits_of(data, config)
        check_unit(splits.validate, "validate", config, data.manifest)
        source = "the config's images"
    else:
        data = random_data(config.finetune.batch_size, config.data.image_size)
        splits = LabelledSplits(train=data.split("train"), validate=data.split("train"))
        source = "random images, as the config's are not prepared"

    # measured
    keep_freed_memory()
    stage = finetune_stage(config, data, splits, device, pretrained)
    batch_size = stage.batches.batch_size
    seconds = statistics.median(step_seconds(stage))

    # counted
    trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in stage.model.parameters())
    steps_per_epoch = len(stage.batches)
    if images and not prepared:
        steps_per_epoch = max(images // batch_size, 1)
    steps = stage.epochs * steps_per_epoch

    whole = "not known: the images are not there; see data.root"
    if images:
        whole = f"{duration(steps * seconds)}: {stage.epochs:,} epochs, {steps:,} steps; validation comes on top"
    kind = f"{config.finetune.model}, {config.finetune.mode}"
    memory = peak_memory(device) / 1e9
    speed = f"{batch_size / seconds:,.1f} images/s, {seconds:.3g} s a step"
    return "\n".join(
        [
            f"parameters   {total:,}, of which {trained:,} are trained ({kind})",
            f"memory       {memory:.2f} GB at most, in steps of {batch_size} images ({config.precision})",
            f"speed        {speed} on {device} with {torch.get_num_threads()} threads; {source}",
            f"whole run    {whole}",
        ]
    )
