"""Hugging Face's folders and state dicts of ViTMAE and ViT."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError, printable
from mae.weights.files import SETTINGS, described_in, read_folder, read_json, read_weights
from mae.weights.layouts import NO_BIASES
from mae.weights.licenses import license_of
from mae.weights.source import Facts, Source, Target, as_levels, make_source
from mae.weights.state_dicts import StateDict, state_dict_of

DEFAULTS = Facts(eps=1e-12, license="unknown", assumed=("LayerNorm eps 1e-12, transformers' default",))
LARGEST = 2**31  # more than any number of a config.json, and less than infinity
NUMBERS = ("image_size", "num_attention_heads", "decoder_num_attention_heads", "layer_norm_eps")  # as they are used


def huggingface_source(source: str | Path | Mapping[str, Any], target: Target) -> Source:
    """A ViTMAE or ViT folder, or a state dict of such a model, in memory or in a file."""
    if isinstance(source, Mapping):
        return of_huggingface(state_dict_of(source, "state dict", ["huggingface"]), target)
    path = Path(source)
    folder = described_in(path)
    if folder is None:
        return of_huggingface(state_dict_of(read_weights(path), str(path), ["huggingface"]), target)
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{path}: found no config.json, expected a folder of Hugging Face's layout")

    config = read_json(folder / SETTINGS)
    found = state_dict_of(read_folder(path), str(path), ["huggingface"])
    facts = replace(_facts(config, folder / SETTINGS), license=license_of(folder))
    facts = replace(facts, **preprocessing_of(folder / "preprocessor_config.json"))
    made = make_source(found, target, facts)
    _check_against(made, config)
    return made


def of_huggingface(found: StateDict, target: Target) -> Source:
    """A state dict without its folder, which says nothing besides its tensors."""
    return make_source(found, target, DEFAULTS)


def _facts(config: dict[str, Any], place: Path) -> Facts:
    """What config.json says of the model."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"):
        if name not in config:
            raise UserError(f"{place}: found no {name}, expected the config.json of a ViTMAE or ViT")
    for name in NUMBERS:
        expect_numbers(config, name, place)
    for name in ("norm_pix_loss", "qkv_bias"):
        _expect_truth(config, name, place)
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UserError(f"{place}: found hidden_act {printable(activation)}, expected gelu")

    return Facts(
        eps=config.get("layer_norm_eps", DEFAULTS.eps),
        norm_pixel_loss=config.get("norm_pix_loss"),
        license=DEFAULTS.license,
        heads=config["num_attention_heads"],
        decoder_heads=config.get("decoder_num_attention_heads"),
        image_size=config["image_size"],
    )


def expect_numbers(config: Mapping[str, Any], name: str, place: Path) -> None:
    """UserError if the setting is there and not a number above 0 of its kind; an image size may have two."""
    values = config.get(name, 1)
    kind = (int, float) if name == "layer_norm_eps" else (int,)
    several = (
        values if isinstance(values, list) and name in ("image_size", "img_size") and len(values) == 2 else [values]
    )
    for value in several:
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < LARGEST:
            raise UserError(f"{place}: found {name} {_shown(values)}, expected a number above 0")


def _expect_truth(config: Mapping[str, Any], name: str, place: Path) -> None:
    if not isinstance(config.get(name), bool | None):
        raise UserError(f"{place}: found {name} {_shown(config[name])}, expected true or false")


def _shown(value: Any) -> str:
    return printable(json.dumps(value))


def preprocessing_of(path: Path) -> dict[str, Any]:
    """Mean and deviation, grey levels in 0..1, that a folder's images are standardised by."""
    config = read_json(path) if path.is_file() else {}
    for name in ("do_normalize", "do_rescale"):
        _expect_truth(config, name, path)
    as_they_are = config.get("do_normalize") is False
    if not as_they_are and ("image_mean" not in config or "image_std" not in config):
        return {}

    white = 255.0  # in the units of mean and deviation
    if config.get("do_rescale") is not False:
        factor = as_levels(config.get("rescale_factor", 1 / 255), 1, path)
        if isinstance(factor, tuple) or factor <= 0:
            raise UserError(f"{path}: found rescale_factor {_shown(factor)}, expected a number above 0")
        white *= factor
    if as_they_are:
        return {"pixel_mean": 0.0, "pixel_std": 1 / white}
    return {f"pixel_{name}": as_levels(config[f"image_{name}"], white, path) for name in ("mean", "std")}


def _check_against(source: Source, config: dict[str, Any]) -> None:
    """UserError if the weights are not those that config.json describes."""
    sizes = source.encoder_sizes
    described = {"hidden_size": "width", "num_hidden_layers": "depth", "patch_size": "patch_size"}
    pairs = [(name, config[name], sizes[ours]) for name, ours in described.items()]
    pairs.append(("num_channels", config.get("num_channels", 3), source.found.in_channels))
    for name, said, found in pairs:
        if said not in (found, [found, found]):
            raise UserError(f"{source.place}: found {name} {_shown(said)} in config.json, expected {found} by weights")

    # transformers' layers have biases unless they are said to have none
    if config.get("qkv_bias") is not False and any(NO_BIASES in how for how in source.found.adapted.values()):
        raise UserError(f"{source.place}: found attention without biases, expected them by config.json")
