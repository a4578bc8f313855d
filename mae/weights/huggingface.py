"""Hugging Face's folders and state dicts of ViTMAE and ViT."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data.config import UserError
from mae.weights.files import license_of, read_folder, read_json, read_weights, tensors_of
from mae.weights.layouts import HUGGINGFACE, HUGGINGFACE_5, HUGGINGFACE_MODULES, Names, translate
from mae.weights.source import Facts, Source, Target, as_levels, call_back, make_source, prefix_of

DEFAULTS = Facts(
    eps=1e-12,
    norm_pixel_loss=False,
    license="unknown",
    assumed=("LayerNorm eps 1e-12 and plain pixels, transformers' defaults",),
)
NUMBERS = ("image_size", "num_attention_heads", "decoder_num_attention_heads", "layer_norm_eps")  # as they are used


def huggingface_source(source: str | Path | Mapping[str, Tensor], target: Target) -> Source:
    """A ViTMAE or ViT folder, or a state dict of such a model, in memory or in a file."""
    if isinstance(source, Mapping):
        return _huggingface("state dict", tensors_of(source, "state dict"), target, DEFAULTS)
    path = Path(source)
    if path.is_file():
        return _huggingface(str(path), tensors_of(read_weights(path), path), target, DEFAULTS)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: found no config.json, expected a folder of Hugging Face's layout")

    config = read_json(path / "config.json")
    tensors = read_folder(path)
    facts = replace(_facts(config, path / "config.json"), license=license_of(path))
    facts = replace(facts, **_preprocessing(path / "preprocessor_config.json"))
    made = _huggingface(str(path), tensors, target, facts)
    _check_against(made, config)
    return made


def _huggingface(place: str, tensors: dict[str, Tensor], target: Target, facts: Facts) -> Source:
    """Names as of a model that holds a ViT, then the translation by the layout they belong to."""
    prefix = prefix_of(tensors, "embeddings.patch_embeddings.projection.weight", place)
    outer = prefix.removesuffix("vit.")
    names = {}
    for name in tensors:
        if name.startswith(prefix):  # a ViTModel's names lack what its holders put before them
            names[name] = "vit." + name.removeprefix(prefix)
        else:
            names[name] = name.removeprefix(outer)

    found = translate({new: tensors[old] for old, new in names.items()}, layout_of(names.values()), place)
    return make_source(place, call_back(found, {new: old for old, new in names.items()}), target, facts)


def layout_of(names: Iterable[str]) -> Names:
    """Which of transformers' versions wrote tensors of these names."""
    for name in names:
        if name.startswith("vit.layers."):
            return HUGGINGFACE_MODULES
        if name.startswith("decoder.decoder_encoder.layer."):
            return HUGGINGFACE_5
    return HUGGINGFACE


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
