"""What a fine-tuning begins from, and whether config and checkpoint fit: the twin of `mae/weights/start.py`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classify.settings import ClassifyConfig
from data.config import beside, expand
from data.errors import UserError
from data.privacy import with_settings
from data.settings import DataSettings
from mae.engine.checkpoint import Checkpoint, load_checkpoint
from mae.model import check_sizes
from mae.weights import resolve, starting_point, without_weights

PREPROCESSING = ("image_size", "resize", "tone")  # of the data section: travels with the weights


def config_of(checkpoint: Checkpoint) -> ClassifyConfig:
    """The whole config a checkpoint was made with, the sections of this room included."""
    config = checkpoint.config
    assert isinstance(config, ClassifyConfig)
    return config


def beginning(config: ClassifyConfig, checkpoint: str | Path | None) -> tuple[ClassifyConfig, Checkpoint | None]:
    """What a fine-tuning begins from, and the config with its sizes: the checkpoint, else what `model.init` names."""
    if checkpoint:
        return config, load_checkpoint(checkpoint, kind="mae")
    if config.finetune.model != "vit":
        return without_weights(config), None

    start = starting_point(config)
    if start is None:
        return without_weights(config), None
    return config_of(start), start


def resolved(config: ClassifyConfig) -> ClassifyConfig:
    """The config as its run has it: with the sizes that `model.init` brings, where a ViT is to begin from it."""
    if config.finetune.model == "vit":
        return resolve(config)
    return without_weights(config)


def config_for(checkpoint: Checkpoint, config: ClassifyConfig | None, overrides: Mapping[str, Any]) -> ClassifyConfig:
    """The config of a fine-tuning: the checkpoint's, or the given one with the checkpoint's stage one."""
    made = config_of(checkpoint)
    wanted = config or with_settings(made, overrides)
    if config is None and wanted.pretrain != made.pretrain:
        raise UserError(f"command line: found pretrain settings changed, expected those of {checkpoint.place}")

    # sizes that the config gives must be those of the weights; what it leaves out, the weights bring
    for name in wanted.model.model_fields_set:
        then, now = getattr(made.model, name), getattr(wanted.model, name)
        if now is not None and then != now:
            raise UserError(
                f"{checkpoint.place}: found model.{name} = {then}, expected {now} by the config; "
                f"leave model.{name} out, or pretrain that size"
            )
    return wanted.model_copy(update={"model": made.model, "pretrain": made.pretrain})


def run_folder(config: ClassifyConfig, checkpoint: str | Path | None) -> Path:
    """Where a fine-tuning writes."""
    if config.finetune.run:
        return Path(expand(config.finetune.run, "finetune.run"))
    return _default_folder(config, checkpoint)


def _default_folder(config: ClassifyConfig, checkpoint: str | Path | None) -> Path:
    """`<pretraining's folder>-<mode>`, or `<run>-<model>` (and `-linear`) without a checkpoint."""
    settings = config.finetune
    if checkpoint:
        folder = Path(checkpoint).parent
        ending = f"-{settings.mode}"
    else:
        folder = Path(expand(config.run, "run"))
        ending = f"-{settings.model}"
        if settings.mode == "linear":
            ending += "-linear"
    return beside(folder, ending, "finetune.run")


def check_fit(config: ClassifyConfig, pretrained: Checkpoint | None) -> None:
    """UserError if config and checkpoint do not fit together, before any data is read."""
    # the network and the way it is trained
    settings = config.finetune
    if pretrained and settings.model != "vit":
        raise UserError(f"finetune.model: found {settings.model}, expected vit with a --checkpoint")
    if settings.mode == "linear" and settings.model != "vit":
        raise UserError(f"finetune.mode: found linear, expected full for {settings.model} from random weights")
    smallest = 2 * settings.optimizer.accumulate
    if settings.batch_size < smallest and (settings.mode == "linear" or settings.model != "vit"):
        raise UserError(
            f"finetune.batch_size: found {settings.batch_size}, expected at least {smallest} for batch normalisation: "
            f"2 images in each part, accumulate={settings.optimizer.accumulate}"
        )

    # the network and the images it is given
    if pretrained:
        check_preprocessing(pretrained, config.data)
    if settings.model == "vit":
        check_sizes(config.model, config.data.image_size)


def check_preprocessing(checkpoint: Checkpoint, settings: DataSettings) -> None:
    """UserError unless images are read as the checkpoint's were: preprocessing travels with the weights."""
    then = checkpoint.config.data.model_dump(mode="json")
    now = settings.model_dump(mode="json")
    for name in PREPROCESSING:
        if then[name] != now[name]:
            as_override = str(then[name]).replace(" ", "")
            raise UserError(
                f"{checkpoint.place}: found data.{name} = {then[name]}, expected {now[name]} by the config; "
                f"give data.{name}={as_override}"
            )


def file_digest(path: str | Path | None) -> str | None:
    """What a checkpoint file holds, in 16 hexadecimal digits."""
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
