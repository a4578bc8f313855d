"""Hugging Face's folders and state dicts of ViTMAE and ViT."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.config import UserError
from mae.weights.files import license_of, read_folder, read_json, read_weights
from mae.weights.source import Facts, Source, Target, as_levels, make_source
from mae.weights.state_dicts import StateDict, state_dict_of

DEFAULTS = Facts(
    eps=1e-12,
    norm_pixel_loss=False,
    license="unknown",
    assumed=("LayerNorm eps 1e-12 and plain pixels, transformers' defaults",),
)
NUMBERS = ("image_size", "num_attention_heads", "decoder_num_attention_heads", "layer_norm_eps")  # as they are used


def huggingface_source(source: str | Path | Mapping[str, Any], target: Target) -> Source:
    """A ViTMAE or ViT folder, or a state dict of such a model, in memory or in a file."""
    if isinstance(source, Mapping):
        return of_huggingface(state_dict_of(source, "state dict", ["huggingface"]), target)
    path = Path(source)
    if path.is_file():
        return of_huggingface(state_dict_of(read_weights(path), str(path), ["huggingface"]), target)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: found no config.json, expected a folder of Hugging Face's layout")

    config = read_json(path / "config.json")
    found = state_dict_of(read_folder(path), str(path), ["huggingface"])
    facts = replace(_facts(config, path / "config.json"), license=license_of(path))
    facts = replace(facts, **_preprocessing(path / "preprocessor_config.json"))
    made = make_source(found, target, facts)
    _check_against(made, config)
    return made


def of_huggingface(found: StateDict, target: Target) -> Source:
    """A state dict without its folder says nothing besides its tensors."""
    return make_source(found, target, DEFAULTS)


def _facts(config: dict[str, Any], place: Path) -> Facts:
    """What config.json says of the model."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"):
        if name not in config:
            raise UserError(f"{place}: found no {name}, expected the config.json of a ViTMAE or ViT")
    for name in NUMBERS:
        values = config.get(name, 1)
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{place}: found {name} {json.dumps(values)}, expected a number above 0")
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UserError(f"{place}: found hidden_act {activation}, expected gelu")

    return Facts(
        eps=config.get("layer_norm_eps", DEFAULTS.eps),
        norm_pixel_loss=bool(config.get("norm_pix_loss", False)),
        license=DEFAULTS.license,
        heads=config["num_attention_heads"],
        decoder_heads=config.get("decoder_num_attention_heads"),
        image_size=config["image_size"],
    )


def _preprocessing(path: Path) -> dict[str, Any]:
    """Mean and deviation, grey levels in 0..1, that a folder's images are standardised by."""
    config = read_json(path) if path.is_file() else {}
    if not config.get("do_normalize", True):
        return {"pixel_mean": 0.0, "pixel_std": 1.0}
    if "image_mean" not in config or "image_std" not in config:
        return {}

    white = 255.0  # of the pixels that mean and deviation are about
    if config.get("do_rescale", True):
        white *= config.get("rescale_factor", 1 / 255)
    return {f"pixel_{name}": as_levels(config[f"image_{name}"], white, path) for name in ("mean", "std")}


def _check_against(source: Source, config: dict[str, Any]) -> None:
    """UserError where the weights are not those that config.json describes."""
    sizes = source.encoder_sizes
    described = {"hidden_size": "width", "num_hidden_layers": "depth", "patch_size": "patch_size"}
    pairs = [(name, config[name], sizes[ours]) for name, ours in described.items()]
    pairs.append(("num_channels", config.get("num_channels", 3), source.found.in_channels))
    for name, said, found in pairs:
        if said not in (found, [found, found]):
            raise UserError(
                f"{source.place}: found {name} {json.dumps(said)} in config.json, expected {found} by weights"
            )
