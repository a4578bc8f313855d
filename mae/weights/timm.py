"""State dicts of timm's ViTs, and of facebookresearch/mae, which builds on timm."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from data.config import UserError
from mae.weights.files import license_of, read_facebook, read_folder, read_json, read_weights, tensors_of
from mae.weights.layouts import TIMM, translate
from mae.weights.source import Source, Target, as_levels, call_back, make_source, prefix_of

FACEBOOK_LICENSE = "CC-BY-NC-4.0"  # of facebookresearch/mae, code and weights


def facebook_source(path: str | Path, target: Target) -> Source:
    """A `.pth` of facebookresearch/mae, of pretraining or fine-tuning."""
    raw = read_facebook(Path(path))
    if not isinstance(raw, dict) or "model" not in raw:
        raise UserError(f"{path}: found no 'model', expected a file of facebookresearch/mae")
    arguments = raw.get("args") or {}
    arguments = arguments if isinstance(arguments, dict) else vars(arguments)
    facts, assumed = {"eps": 1e-6, "license": FACEBOOK_LICENSE}, ()
    if "norm_pix_loss" in arguments:
        facts["norm_pixel_loss"] = bool(arguments["norm_pix_loss"])
    else:
        facts["norm_pixel_loss"], assumed = False, ("plain pixels, the reference's default",)
    made = _timm(str(path), tensors_of(raw["model"], path), target, facts, assumed)
    made.found.unexpected.extend(str(name) for name in raw if name not in ("model", "args"))
    return made


def timm_source(source: str | Path | Mapping[str, Tensor], target: Target) -> Source:
    """A timm ViT's state dict, in a file or in memory, or its folder from a hub."""
    facts, others = {"eps": 1e-6, "norm_pixel_loss": True, "license": "unknown"}, []
    if isinstance(source, Mapping):
        place, tensors = "state dict", dict(source)
    elif Path(source).is_dir():
        place, tensors = str(source), read_folder(Path(source))
        trained = read_json(Path(source) / "config.json").get("pretrained_cfg", {})
        facts |= {"license": license_of(Path(source))}
        facts |= {f"pixel_{name}": as_levels(trained[name], 1, source) for name in ("mean", "std") if name in trained}
    else:
        place, raw = str(source), read_weights(Path(source))
        inner = next((name for name in ("state_dict", "model") if isinstance(raw, dict) and name in raw), None)
        others = [name for name in raw if name != inner] if inner else []
        tensors = tensors_of(raw[inner] if inner else raw, place)
    made = _timm(place, tensors, target, facts, ("LayerNorm eps 1e-6, timm's default",))
    made.found.unexpected.extend(map(str, others))
    return made


def _timm(place: str, tensors: dict, target: Target, facts: dict, assumed: tuple[str, ...]) -> Source:
    prefix = prefix_of(tensors, "patch_embed.proj.weight", place)
    names = {name: name.removeprefix(prefix) if name.startswith(prefix) else f"…{name}" for name in tensors}
    pooled = "norm.weight" not in names.values() and "fc_norm.weight" in names.values()
    if pooled:  # global pooling has one norm, behind the mean
        names = {
            old: new.replace("fc_norm.", "norm.") if new.startswith("fc_norm.") else new for old, new in names.items()
        }
    found = translate({new: tensors[old] for old, new in names.items()}, TIMM, place)
    if pooled:
        found.note("encoder.norm.weight", how := "normalises every token here, before the mean and not after it")
        found.note("encoder.norm.bias", how)
    return make_source(place, call_back(found, {new: old for old, new in names.items()}), target, facts, assumed)
