"""`model.init`: weights of any kind → the config with their sizes, and the checkpoint a run begins from."""

from pathlib import Path
from typing import Any, TypeVar

from data.config import change_config, expand
from data.errors import UserError
from mae.engine.checkpoint import FORMAT, Checkpoint, load_checkpoint
from mae.engine.checkpoint_file import checkpoint_file, existing, is_run, runs_in
from mae.engine.distributed import is_main
from mae.engine.optim import seeded
from mae.model import NORM_PIXEL_LOSS, PRESETS
from mae.settings import MAEConfig, ModelSettings
from mae.weights.files import SETTINGS, described_in, digest, read_facebook, read_json
from mae.weights.huggingface import huggingface_source, of_huggingface
from mae.weights.load import Say, checked, convert, model_arguments
from mae.weights.source import Levels, Source, Target, own_source, same_levels
from mae.weights.state_dicts import state_dict_of
from mae.weights.timm import is_of_facebook, of_facebook, of_timm, timm_source

Kind = TypeVar("Kind", bound=MAEConfig)
GEOMETRY = ("patch_size", "embed", "width", "depth", "heads", "norm_eps")  # the file decides


def _say_once(text: str) -> None:
    """With several ranks, only one prints."""
    if is_main():
        print(text)


def starting_point(config: MAEConfig, say: Say = _say_once) -> Checkpoint | None:
    """The weights that `model.init` names, as a checkpoint of the config's model; None if it names nothing.

    What the file lacks is drawn by the config's seed. `meta` has the licence and a digest of the file's weights.
    """
    if config.model.init is None:
        return None
    source, target = _source_of(config)
    settings = _resolved(config, source, target)
    facts = {
        "seen": source.seen,
        "seen_elsewhere": source.seen_elsewhere,
        "seen_unread": source.seen_unread,
        "credentialed": list(source.credentialed),
        "license": source.license,
        "init": digest(source.found.weights),
    }
    with seeded(config.seed):
        model = convert(source, target, say)
    return Checkpoint("mae", settings.model_dump(mode="json"), model.state_dict(), facts, place=source.place)


def resolve(config: Kind) -> Kind:
    """The config with the sizes of the weights that `model.init` names; UserError where it asks for others."""
    return without_weights(config) if config.model.init is None else _resolved(config, *_source_of(config))


def without_weights(config: Kind) -> Kind:
    """The config, with null replaced by the default of a run that begins from random weights."""
    if config.model.norm_pixel_loss is not None:
        return config
    return change_config(config, {"model.norm_pixel_loss": NORM_PIXEL_LOSS})


def _source_of(config: MAEConfig) -> tuple[Source, Target]:
    model = config.model
    assert model.init is not None
    mean, std = _statistics_given(model)
    target = Target(
        image_size=config.data.image_size,
        in_channels=model.in_channels,
        norm_pixel_loss=model.norm_pixel_loss,
        **{name: getattr(model, name) for name in ("heads", "decoder_width", "decoder_depth", "decoder_heads")},
        decoder="cross" if model.decoder == "cross" else None,
        pixel_mean=mean,
        pixel_std=std,
    )
    return checked(open_source(expand(model.init, "model.init"), target), target), target


def _statistics_given(model: ModelSettings) -> tuple[Levels | None, Levels | None]:
    """The config's mean and deviation of the pixels, if either is not at its default: they belong together."""
    if _given(model, "pixel_mean") is None and _given(model, "pixel_std") is None:
        return None, None
    return model.pixel_mean, model.pixel_std


def _given(model: ModelSettings, name: str) -> Any:
    """A setting; None if it is at its default, which may only stand there because a config was written out."""
    value = getattr(model, name)
    return None if value == type(model).model_fields[name].default else value


def open_source(path: str | Path, target: Target) -> Source:
    """Weights of any known kind, told by content: ours, Hugging Face's, facebookresearch's, timm's."""
    path = existing(path)
    if path.is_dir() and not (path / SETTINGS).is_file() and (is_run(path) or runs_in(path)):
        path = checkpoint_file(path)
    if folder := described_in(path):
        if (folder / SETTINGS).is_file() and "pretrained_cfg" in read_json(folder / SETTINGS):
            return timm_source(path, target)
        return huggingface_source(path, target)

    raw = read_facebook(path)
    if is_ours(raw):
        return own_source(load_checkpoint(path, "mae"))
    found = state_dict_of(raw, str(path))
    if found.program == "huggingface":
        return of_huggingface(found, target)
    if is_of_facebook(found):
        return of_facebook(found, target)
    return of_timm(found, target)


def is_foreign(path: str | Path) -> bool:
    """Whether the path holds what another program wrote, of whatever kind, and not a checkpoint of ours."""
    path = Path(path)
    if path.is_dir():
        return (path / SETTINGS).is_file()
    if not path.is_file():
        return False
    try:
        return described_in(path) is not None or not is_ours(read_facebook(path))
    except UserError:
        return False


def is_ours(raw: Any) -> bool:
    """Whether what a file holds is a checkpoint of ours."""
    return isinstance(raw, dict) and isinstance(raw.get("format"), str) and raw["format"] == FORMAT


def _resolved(config: Kind, source: Source, target: Target) -> Kind:
    """The config with what `build_mae` will be given; UserError naming a setting that contradicts it."""
    arguments = model_arguments(source, target)
    model = config.model
    preset = _given(model, "preset")
    for name in GEOMETRY:
        size = _given(model, name)
        if size is None and preset:
            size = PRESETS[preset].get(name)
        if size not in (None, arguments[name]):
            by = f"model.{name}" if getattr(model, name) == size else f"model.preset = {preset}"
            raise UserError(
                f"{source.place}: found {name} {arguments[name]}, expected {size} by {by}; leave it out, or take "
                "other weights"
            )

    _check_statistics(model, source, target)
    arguments.pop("image_size")
    arguments["preset"] = preset or arguments["preset"]
    return change_config(config, {f"model.{name}": value for name, value in arguments.items()}, source.place)


def _check_statistics(model: ModelSettings, source: Source, target: Target) -> None:
    """UserError if the config's mean or deviation of the pixels is not that of the file."""
    if target.says_folded(source.found.in_channels):
        return
    for name, found in (("pixel_mean", source.pixel_mean), ("pixel_std", source.pixel_std)):
        given = _given(model, name)
        if given is not None and not same_levels(given, found):
            raise UserError(
                f"{source.place}: found {name} {found}, expected {given} by model.{name}; leave it out, or take other "
                "weights"
            )
