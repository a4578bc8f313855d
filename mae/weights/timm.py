"""State dicts of timm's ViTs, and of facebookresearch/mae, which builds on timm."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data.config import UserError
from mae.weights.files import license_of, read_facebook, read_folder, read_json, read_weights, tensors_of
from mae.weights.layouts import TIMM, translate
from mae.weights.source import Facts, Source, Target, as_levels, call_back, make_source, prefix_of

FACEBOOK_LICENSE = "CC-BY-NC-4.0"  # of facebookresearch/mae, code and weights


def facebook_source(path: str | Path, target: Target) -> Source:
    """A `.pth` of facebookresearch/mae, of pretraining or fine-tuning."""
    raw = read_facebook(Path(path))
    if not isinstance(raw, dict) or "model" not in raw:
        raise UserError(f"{path}: found no 'model', expected a file of facebookresearch/mae")
    arguments = raw.get("args") or {}
    if not isinstance(arguments, dict):
        arguments = vars(arguments)

    facts = Facts(eps=1e-6, norm_pixel_loss=bool(arguments.get("norm_pix_loss")), license=FACEBOOK_LICENSE)
    if "norm_pix_loss" not in arguments:
        facts = replace(facts, assumed=("plain pixels, the reference's default",))
    made = _timm(str(path), tensors_of(raw["model"], path), target, facts)
    made.found.unexpected.extend(str(name) for name in raw if name not in ("model", "args"))
    return made


def timm_source(source: str | Path | Mapping[str, Tensor], target: Target) -> Source:
    """A timm ViT's state dict, in a file or in memory, or its folder from a hub."""
    facts = Facts(eps=1e-6, norm_pixel_loss=True, license="unknown", assumed=("LayerNorm eps 1e-6, timm's default",))
    if isinstance(source, Mapping):
        return _timm("state dict", dict(source), target, facts)
    path = Path(source)
    if path.is_dir():
        return _timm(str(path), read_folder(path), target, _facts_of_folder(path, facts))

    # a file holds the tensors, or holds them under a name beside other things
    raw = read_weights(path)
    others: list[Any] = []
    for wrapper in ("state_dict", "model"):
        if isinstance(raw, dict) and wrapper in raw:
            others = [name for name in raw if name != wrapper]
            raw = raw[wrapper]
            break
    made = _timm(str(path), tensors_of(raw, path), target, facts)
    made.found.unexpected.extend(map(str, others))
    return made


def _facts_of_folder(folder: Path, facts: Facts) -> Facts:
    """With the licence, and the statistics that its images were standardised by."""
    trained = read_json(folder / "config.json").get("pretrained_cfg", {})
    statistics: dict[str, Any] = {}
    for name in ("mean", "std"):
        if name in trained:
            statistics[f"pixel_{name}"] = as_levels(trained[name], 1, folder)
    return replace(facts, license=license_of(folder), **statistics)


def _timm(place: str, tensors: dict[str, Tensor], target: Target, facts: Facts) -> Source:
    """Names without their prefix, then the translation that both programs share."""
    prefix = prefix_of(tensors, "patch_embed.proj.weight", place)
    names = {name: name.removeprefix(prefix) if name.startswith(prefix) else f"…{name}" for name in tensors}
    pooled = "norm.weight" not in names.values() and "fc_norm.weight" in names.values()
    if pooled:  # global pooling has one norm, behind the mean
        names = {old: re.sub(r"^fc_norm\.", "norm.", new) for old, new in names.items()}

    found = translate({new: tensors[old] for old, new in names.items()}, TIMM, place)
    if pooled:
        how = "normalises every token here, before the mean and not after it"
        found.note("encoder.norm.weight", how)
        found.note("encoder.norm.bias", how)
    return make_source(place, call_back(found, {new: old for old, new in names.items()}), target, facts)
