"""State dicts of timm's ViTs, and of facebookresearch/mae, which builds on timm."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError, printable
from mae.weights.files import SETTINGS, described_in, read_facebook, read_folder, read_json, read_weights
from mae.weights.huggingface import expect_numbers
from mae.weights.licenses import license_of
from mae.weights.source import Facts, Source, Target, as_levels, fitting_grids, make_source
from mae.weights.state_dicts import StateDict, state_dict_of

FACEBOOK_LICENSE = "CC-BY-NC-4.0"  # of facebookresearch/mae, code and weights
TIMM_FACTS = Facts(eps=1e-6, license="unknown", assumed=("LayerNorm eps 1e-6, timm's default",))


def facebook_source(path: str | Path, target: Target) -> Source:
    """A `.pth` of facebookresearch/mae, of pretraining or fine-tuning."""
    return of_facebook(state_dict_of(read_facebook(Path(path)), str(path), ["timm"]), target)


def timm_source(source: str | Path | Mapping[str, Any], target: Target) -> Source:
    """A timm ViT's state dict, in a file or in memory, or its folder from a hub."""
    if isinstance(source, Mapping):
        return of_timm(state_dict_of(source, "state dict", ["timm"]), target)
    path = Path(source)
    folder = described_in(path)
    if folder is None:
        return of_timm(state_dict_of(read_weights(path), str(path), ["timm"]), target)
    found = state_dict_of(read_folder(path), str(path), ["timm"])
    return of_timm(found, target, _facts_of_folder(folder))


def of_facebook(found: StateDict, target: Target) -> Source:
    said = found.arguments.get("norm_pix_loss")
    norm_pixel_loss = bool(said) if isinstance(said, int) else None
    facts = Facts(eps=1e-6, norm_pixel_loss=norm_pixel_loss, license=FACEBOOK_LICENSE)
    found = replace(found, others=[name for name in found.others if name != "args"])
    return _of_either(found, target, facts)


def of_timm(found: StateDict, target: Target, facts: Facts = TIMM_FACTS) -> Source:
    return _of_either(found, target, facts)


def is_of_facebook(found: StateDict) -> bool:
    """Whether a program of facebookresearch/mae wrote it: these put the weights under `model`."""
    return "model" in found.wrappers or "norm_pix_loss" in found.arguments


def _facts_of_folder(folder: Path) -> Facts:
    """timm's facts, with the folder's licence and the statistics that its images were standardised by."""
    config = read_json(folder / SETTINGS)
    trained = config.get("pretrained_cfg")
    if not isinstance(trained, dict):
        raise UserError(f"{folder}: found no settings for pretrained_cfg in config.json, expected those of timm")
    statistics: dict[str, Any] = {}
    for name in ("mean", "std"):
        if name in trained:
            statistics[f"pixel_{name}"] = as_levels(trained[name], 1, folder)
    return replace(TIMM_FACTS, license=license_of(folder), **statistics, **_arguments_of(config, folder))


def _arguments_of(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the arguments that its model was built with say, and no tensor shows."""
    arguments = config.get("model_args")
    if not isinstance(arguments, dict):
        return {}
    activation = arguments.get("act_layer")
    if activation not in (None, "gelu"):
        raise UserError(f"{folder / SETTINGS}: found act_layer {printable(activation)}, expected gelu")

    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("num_heads", "img_size"):
        expect_numbers(given, name, folder / SETTINGS)
    size = given.get("img_size")
    without = given.get("no_embed_class")
    return {
        "heads": given.get("num_heads"),
        "image_size": size if isinstance(size, list) else None,  # positions of a square show their grid themselves
        "class_position": not without if isinstance(without, bool) else None,
    }


def _of_either(found: StateDict, target: Target, facts: Facts) -> Source:
    if _lacks_class_position(found, target, facts):
        return _with_class_position(found, target, facts)
    return _with_one_norm(found, target, facts)


def _lacks_class_position(found: StateDict, target: Target, facts: Facts) -> bool:
    """Whether all positions are of patches (timm's no_embed_class). UserError if that cannot be told."""
    positions = found.tensors.get("pos_embed")
    kernel = found.tensors["patch_embed.proj.weight"]  # the landmark by which the model was found
    if positions is None or positions.ndim != 3 or kernel.ndim != 4 or not kernel.shape[-1] or not positions.numel():
        return False  # it is refused later on
    if facts.class_position is not None:
        return not facts.class_position
    if "decoder_pos_embed" in found.tensors or not positions[0, 0].any():
        return False  # facebookresearch's; or sines and cosines, whose class token has zeros

    n = positions.shape[1]
    with_one, without = (
        fitting_grids(count, kernel.shape[-1], facts.image_size, target.image_size) for count in (n - 1, n)
    )
    if with_one and without:
        grids = ["{} x {}".format(*grid) for grid in (with_one[0], without[0])]
        raise UserError(
            f"{found.place}: found {n} positions, which a class token and {grids[0]} patches have, or {grids[1]} "
            "patches alone, expected only one of them to fit; take another data.image_size, or a folder whose "
            "config.json has model_args with no_embed_class"
        )
    return bool(without)


def _with_class_position(found: StateDict, target: Target, facts: Facts) -> Source:
    """A class token without a position is the same as one with a position of zeros."""
    positions = found.tensors["pos_embed"]
    zeros = torch.zeros_like(positions[:, :1])
    tensors = found.tensors | {"pos_embed": torch.cat([zeros, positions], 1)}
    made = _with_one_norm(replace(found, tensors=tensors), target, facts)
    made.found.note("encoder.positions", "has none for the class token: zeros, the same")
    return made


def _with_one_norm(found: StateDict, target: Target, facts: Facts) -> Source:
    """A model with global pooling has one norm, after the mean. Here it takes the place of the encoder's last."""
    if "norm.weight" in found.tensors or "fc_norm.weight" not in found.tensors:
        return make_source(found, target, facts)

    own = {name: re.sub(r"^fc_norm\.", "norm.", name) for name in found.tensors}
    tensors = {own[name]: tensor for name, tensor in found.tensors.items()}
    names = {own[name]: theirs for name, theirs in found.names.items()}
    made = make_source(replace(found, tensors=tensors, names=names), target, facts)

    how = "normalises every token here, before the mean and not after it"
    made.found.note("encoder.norm.weight", how)
    made.found.note("encoder.norm.bias", how)
    return made
