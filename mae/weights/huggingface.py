"""Hugging Face's folders and state dicts of ViTMAE and ViT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.config import UserError
from mae.weights.files import license_of, read_folder, read_json, read_weights, tensors_of
from mae.weights.layouts import HUGGINGFACE, HUGGINGFACE_MODULES, translate
from mae.weights.source import Levels, Source, Target, as_levels, call_back, make_source, prefix_of

NUMBERS = ("image_size", "num_attention_heads", "decoder_num_attention_heads", "layer_norm_eps")  # as they are used


def huggingface_source(source: str | Path | Mapping[str, Tensor], target: Target) -> Source:
    """A ViTMAE or ViT folder, or a state dict of such a model, in memory or in a file."""
    if isinstance(source, Mapping) or Path(source).is_file():
        facts = {"eps": 1e-12, "norm_pixel_loss": False, "license": "unknown"}
        assumed = ("LayerNorm eps 1e-12 and plain pixels, transformers' defaults",)
        place = "state dict" if isinstance(source, Mapping) else str(source)
        raw = source if isinstance(source, Mapping) else read_weights(Path(source))
        return _huggingface(place, tensors_of(raw, place), target, facts, assumed)
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: found no config.json, expected a folder of Hugging Face's layout")
    config = read_json(folder / "config.json")
    tensors = read_folder(folder)
    facts = _facts(config, folder / "config.json") | {"license": license_of(folder)}
    facts |= _preprocessing(folder / "preprocessor_config.json")
    made = _huggingface(str(folder), tensors, target, facts)
    _check_against(made, config)
    return made


def _huggingface(place: str, tensors: dict, target: Target, facts: dict, assumed: tuple[str, ...] = ()) -> Source:
    prefix = prefix_of(tensors, "embeddings.patch_embeddings.projection.weight", place)
    outer = prefix.removesuffix("vit.")
    names = {  # ViTModel's names lack what its holders put before them
        name: "vit." + name.removeprefix(prefix) if name.startswith(prefix) else name.removeprefix(outer)
        for name in tensors
    }
    layout = HUGGINGFACE_MODULES if any(name.startswith("vit.layers.") for name in names.values()) else HUGGINGFACE
    found = translate({new: tensors[old] for old, new in names.items()}, layout, place)
    return make_source(place, call_back(found, {new: old for old, new in names.items()}), target, facts, assumed)


def _facts(config: dict[str, Any], place: Path) -> dict[str, Any]:
    """What config.json says of the model."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"):
        if name not in config:
            raise UserError(f"{place}: found no {name}, expected the config.json of a ViTMAE or ViT")
    for name in NUMBERS:
        for value in config[name] if isinstance(config.get(name), list) else [config.get(name, 1)]:
            if not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{place}: found {name} {json.dumps(config[name])}, expected a number above 0")
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise UserError(f"{place}: found hidden_act {activation}, expected gelu")
    return {
        "heads": config["num_attention_heads"],
        "decoder_heads": config.get("decoder_num_attention_heads"),
        "image_size": config["image_size"],
        "eps": config.get("layer_norm_eps", 1e-12),
        "norm_pixel_loss": bool(config.get("norm_pix_loss", False)),
    }


def _preprocessing(path: Path) -> dict[str, Levels]:
    """Mean and deviation, grey levels in 0..1, that a folder's images are standardised by."""
    config = read_json(path) if path.is_file() else {}
    if not config.get("do_normalize", True):
        return {"pixel_mean": 0.0, "pixel_std": 1.0}
    if "image_mean" not in config or "image_std" not in config:
        return {}
    levels = 255 * (config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1)
    return {f"pixel_{name}": as_levels(config[f"image_{name}"], levels, path) for name in ("mean", "std")}


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
