"""What a fine-tuning begins from, and whether config and checkpoint fit: the twin of `mae/weights/start.py`."""

import hashlib
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from classify.models.resnet_weights import resnet_start, resolve_resnet
from classify.settings import ClassifyConfig
from data.config import SHIPPED, as_typed, beside, change_config, expand, keys_given, paths_in
from data.errors import UserError
from data.privacy import with_settings
from data.settings import DataSettings
from mae.engine.checkpoint import Checkpoint, expect_fit, load_checkpoint
from mae.model import check_sizes, mae_from
from mae.weights import resolve, starting_point, without_weights

ASKED_OTHERWISE = ("data.store", "finetune.run")  # the first is made anew if missing, the second asked for if written
PREPROCESSING = ("image_size", "resize", "tone")  # of the data section: travels with the weights


def config_of(checkpoint: Checkpoint) -> ClassifyConfig:
    """The whole config a checkpoint was made with, the sections of this room included."""
    config = checkpoint.config
    assert isinstance(config, ClassifyConfig)
    return config


def beginning(config: ClassifyConfig, checkpoint: str | Path | None) -> tuple[ClassifyConfig, Checkpoint | None]:
    """What a fine-tuning begins from, and the config with its sizes: the checkpoint, else what the config names.

    The config names it in `model.init` for a ViT, and in `finetune.init` for a ResNet.
    """
    if checkpoint:
        return config, load_checkpoint(checkpoint, kind="mae")
    if config.finetune.model != "vit":
        return resnet_start(without_weights(config))

    start = starting_point(config)
    if start is None:
        return without_weights(config), None
    return config_of(start), start


def resolved(config: ClassifyConfig) -> ClassifyConfig:
    """The config as its run has it: with the sizes that `model.init`, or a ResNet's `finetune.init`, brings."""
    if config.finetune.model == "vit":
        return resolve(config)
    return resolve_resnet(without_weights(config))


def config_for(checkpoint: Checkpoint, config: ClassifyConfig | None, overrides: Mapping[str, Any]) -> ClassifyConfig:
    """The config of a fine-tuning: the checkpoint's, or the given one with the checkpoint's stage one."""
    made = config_of(checkpoint)
    wanted = config or with_settings(made, overrides, made_on=consented(checkpoint))
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


# ---------------------------------------------------------------- whose paths count


def with_paths_given(
    config: ClassifyConfig, checkpoint: Checkpoint, overrides: Mapping[str, Any], command: str, run: bool
) -> ClassifyConfig:
    """A checkpoint's config, changed by overrides, with paths that this machine's user has chosen.

    A checkpoint in the run folder that its own settings name was made here, and its paths count. Any other one may be
    a stranger's, and must not decide where files are read or written: the command line must give these paths. If it
    does not, UserError shows the line to type. `run`: that line has to name a folder to write too.
    """
    if _is_at_home(checkpoint):
        return config

    given = keys_given(overrides)
    sections = ("data", "finetune") if run else ("data", "evaluate", "report")
    missing = [key for key in _paths_needed(config, sections) if key not in given]
    if run and "finetune.run" not in given:
        missing.append("finetune.run")
    if missing:
        words = [f"{key}={_example(key, config, checkpoint)}" for key in missing]
        raise UserError(
            f"{checkpoint.place}: found a checkpoint outside the run folder that its settings name (copied, moved, or "
            f"without its config.yaml), expected the paths on the command line: {command} {' '.join(words)}"
        )

    # data that served the pretraining alone are never read
    if "data.unlabelled" not in given:
        config = change_config(config, {"data.unlabelled": []})

    # a store is made anew wherever it is missing, so nobody has to name it
    if "data.store" in given or config.data.store is False:
        return config
    return change_config(config, {"data.store": type(config.data).model_fields["store"].default})


def consented(checkpoint: Checkpoint) -> Collection[str]:
    """The data sets that the consent in a checkpoint's settings covers; none if it is a stranger's or was moved."""
    return checkpoint.made_on if _is_at_home(checkpoint) else ()


def _is_at_home(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint lies in the run folder that its own settings name."""
    folder = Path(checkpoint.place).resolve().parent
    if not (folder / "config.yaml").is_file():  # every run folder of ours has one
        return False
    config = config_of(checkpoint)
    try:
        if checkpoint.kind == "mae":
            names = [Path(expand(config.run, "run"))]
        else:
            names = [run_folder(config, None), run_folder(config, checkpoint.meta.get("pretrained_from"))]
    except UserError:  # a variable that is not set here, so it is another machine's
        return False
    names += [served for name in names if (served := served_by(name))]
    return folder in [name.resolve() for name in names]


def served_by(trial: Path) -> Path | None:
    """The folder to which a comparison moves a trial of tuning that won; None for the folder of any other run.

    A trial of `<grid>/<cell>` is `<grid>/tune/<cell>-<8 hexadecimal digits>` (classify/grid.py).
    """
    named = re.fullmatch(r"(.+)-[0-9a-f]{8}", trial.name)
    if trial.parent.name != "tune" or named is None:
        return None
    return trial.parent.parent / named[1]


def _paths_needed(config: ClassifyConfig, sections: Collection[str]) -> list[str]:
    """The settings of these sections that say where something lies, as far as the user must give them."""
    mixed = config.data.source == "mix"
    needed = []
    for key, value in paths_in(config):
        if key.startswith("data.sources."):
            key = "data.sources"
        if key.startswith("data.unlabelled."):  # pretraining alone reads them
            continue
        unused = value is None or key in ASKED_OTHERWISE or (key == "data.root" and mixed)
        below_root = key == "data.table" and not _leads_elsewhere(value)
        shipped = key == "data.root" and value.startswith(SHIPPED)  # the same wherever the package is installed
        if key.split(".")[0] in sections and key not in needed and not unused and not below_root and not shipped:
            needed.append(key)
    return needed


def _leads_elsewhere(path: str) -> bool:
    return bool(set(path) & set("$~")) or Path(path).is_absolute() or ".." in Path(path).parts


def _example(key: str, config: ClassifyConfig, checkpoint: Checkpoint) -> str:
    """An example of a setting's path, for a line to type."""
    if key == "finetune.run":
        return shlex.quote(str(_default_folder(config, checkpoint.place)))
    return {"data.sources": "'[{source: …, root: FOLDER}, …]'", "data.table": "FILE", "data.patients": "FILE"}.get(
        key, "FOLDER"
    )


def run_folder(config: ClassifyConfig, checkpoint: str | Path | None) -> Path:
    """Where a fine-tuning writes."""
    if config.finetune.run:
        return Path(expand(config.finetune.run, "finetune.run"))
    return _default_folder(config, checkpoint)


def _default_folder(config: ClassifyConfig, checkpoint: str | Path | None) -> Path:
    """`<pretraining's folder>-<mode>`, or `<run>-<model>` (and `-linear`) without a checkpoint.

    For weights that a pretraining kept: `<pretraining's folder>-epoch010-<mode>`.
    """
    settings = config.finetune
    if checkpoint:
        folder = Path(checkpoint).parent
        kept = Path(checkpoint).stem  # one pretraining's kept weights each have a folder
        ending = f"-{kept}-{settings.mode}" if re.fullmatch(r"epoch\d+", kept) else f"-{settings.mode}"
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
    is_vit = settings.model == "vit"
    if pretrained and pretrained.kind == "mae" and not is_vit:
        raise UserError(f"finetune.model: found {settings.model}, expected vit with a --checkpoint")
    smallest = 2 * settings.optimizer.accumulate
    few = isinstance(settings.batch_size, int) and settings.batch_size < smallest
    if few and (settings.mode == "linear" or not is_vit):
        raise UserError(
            f"finetune.batch_size: found {settings.batch_size}, expected at least {smallest} for batch normalisation: "
            f"2 images in each part, accumulate={settings.optimizer.accumulate}"
        )

    # the network and the images it is given
    if pretrained and is_vit:
        check_preprocessing(pretrained, config.data)
        expect_fit(lambda: mae_from(config.model, config.data.image_size), pretrained)
    if is_vit:
        check_sizes(config.model, config.data.image_size)


def check_preprocessing(checkpoint: Checkpoint, settings: DataSettings) -> None:
    """UserError unless images are read as the checkpoint's were: preprocessing travels with the weights."""
    then = checkpoint.config.data.model_dump(mode="json")
    now = settings.model_dump(mode="json")
    for name in PREPROCESSING:
        if then[name] != now[name]:
            raise UserError(
                f"{checkpoint.place}: found data.{name} = {then[name]}, expected {now[name]} by the config; "
                f"give {as_typed(f'data.{name}', then[name])}"
            )


def file_digest(path: str | Path | None) -> str | None:
    """16 hexadecimal digits of what a checkpoint file holds."""
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
