"""Weights of other programs → a MaskedAutoencoder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data.errors import UserError
from data.settings import height_and_width
from mae.encoder import Encoder
from mae.engine.checkpoint import expect_finite
from mae.engine.checkpoint_file import existing
from mae.engine.shapes import shapes_only
from mae.model import NORM_PIXEL_LOSS, PRESETS, MaskedAutoencoder, build_mae
from mae.weights.account import Report
from mae.weights.adapt import as_channels, fold_to_grey, resample
from mae.weights.huggingface import huggingface_source
from mae.weights.source import FOLDED, STATISTICS, Levels, Source, Target, same_levels
from mae.weights.timm import facebook_source, timm_source

Say = Callable[[str], None]


def load_huggingface(source: str | Path | Mapping[str, Tensor], say: Say = print, **wishes: Any) -> MaskedAutoencoder:
    """A Hugging Face ViTMAE (or ViT: fresh decoder) folder, or the state dict of such a model.

    wishes: fields of `Target`, such as image_size, in_channels=1 (three channels are folded into one, exactly but
    for a decoder with norm-pixel loss) and, for a bare state dict, heads. Every tensor is accounted for in a Report,
    which `say` gets and the model keeps as `.report`. Raises UserError for anything but a plain ViT.
    """
    target = Target(**wishes)
    source = source if isinstance(source, Mapping) else existing(source)
    return convert(checked(huggingface_source(source, target), target), target, say)


def load_facebook(path: str | Path, say: Say = print, **wishes: Any) -> MaskedAutoencoder:
    """A `.pth` of facebookresearch/mae, of pretraining (with or without decoder) or fine-tuning; else as above."""
    target = Target(**wishes)
    return convert(checked(facebook_source(existing(path), target), target), target, say)


def load_timm(source: str | Path | Mapping[str, Tensor], say: Say = print, **wishes: Any) -> MaskedAutoencoder:
    """A timm ViT's state dict (.pth, .bin, .safetensors, in memory) or folder; the decoder is fresh; else as above."""
    target = Target(**wishes)
    source = source if isinstance(source, Mapping) else existing(source)
    return convert(checked(timm_source(source, target), target), target, say)


def convert(source: Source, target: Target, say: Say = print) -> MaskedAutoencoder:
    """The model of a source, made as the target wishes."""
    source = _kept(source, target)
    arguments = model_arguments(source, target)
    model = build_mae(**arguments)
    missing = _fill(model, _adapted(source, model.encoder, model.norm_pixel_loss))
    model.report = replace(_report(source, missing), loss=_loss_of(source, model.norm_pixel_loss))
    say(str(model.report))
    return model


# ---------------------------------------------------------------- steps of a conversion


def checked(source: Source, target: Target) -> Source:
    """The source, as far as the target uses it; UserError unless its tensors are all those of its model."""
    source = _kept(source, target)
    with shapes_only():
        wanted = build_mae(**model_arguments(source, Target())).state_dict()
    weights = source.found.weights
    for name, tensor in weights.items():
        if name not in wanted or wanted[name].shape != tensor.shape:
            expected = tuple(wanted[name].shape) if name in wanted else "none"
            found = f"found {name} {tuple(tensor.shape)}, expected {expected}"
            raise UserError(f"{source.place}: {found}{_way_round(name, source)}")

    # a decoder may be missing as a whole
    for name in sorted(wanted.keys() - weights.keys() - {*STATISTICS}):
        if source.decoder is not None or not name.startswith("decoder."):
            found = f"found no tensor for {name}, expected all of encoder and, if any, decoder"
            raise UserError(f"{source.place}: {found}{_way_round(name, source)}")
    expect_finite(weights, source.place)
    return source


def _way_round(name: str, source: Source) -> str:
    """What to do about a decoder that is none of ours: the encoder beside it may be a good one."""
    if not name.startswith("decoder."):
        return ""
    return (
        f"; to use its encoder alone, give another model.decoder_depth than its {source.decoder_sizes['decoder_depth']}"
    )


def _kept(source: Source, target: Target) -> Source:
    """The source, without its decoder if the target wishes for another."""
    if source.decoder is None:
        return source
    here = source.decoder_sizes | {"decoder": source.decoder}
    differ = [name for name, size in here.items() if getattr(target, name) not in (None, size)]
    if not differ:
        return source
    found = source.found.without_decoder()
    return replace(source, found=found, decoder=None, decoder_heads=None, norm_pixel_loss=None)


def model_arguments(source: Source, target: Target) -> dict[str, Any]:
    """What `build_mae` is given for a source and a target."""
    source = _kept(source, target)
    sizes = source.encoder_sizes
    channels = target.in_channels or source.found.in_channels
    if channels not in (1, source.found.in_channels):
        raise UserError(
            f"{source.place}: found weights for {source.found.in_channels} channel(s), expected {channels}; "
            "give model.in_channels=1"
        )
    if channels != source.found.in_channels and source.embed != "linear":
        raise UserError(
            f"{source.place}: found convolutions of {source.found.in_channels} channels (model.embed = {source.embed})"
            ", expected a linear patch embedding, which alone can be folded into one channel"
        )

    # a decoder keeps predicting what it was trained for, unless something else is wished for
    norm_pixel_loss = target.norm_pixel_loss
    if norm_pixel_loss is None:
        norm_pixel_loss = NORM_PIXEL_LOSS if source.norm_pixel_loss is None else source.norm_pixel_loss

    # if the source has no decoder, the new one gets the sizes wished for, else those of this width's preset
    preset = preset_like(sizes["width"])
    decoder_sizes: dict[str, int | None] = {}
    for name, size in PRESETS[preset].items():
        if name.startswith("decoder_"):
            decoder_sizes[name] = getattr(target, name) or size
    if source.decoder:
        decoder_sizes = source.decoder_sizes

    height, width = (side * source.found.patch_size for side in source.grid)
    return {
        "preset": preset,
        "image_size": height_and_width(target.image_size or (height, width)),
        "in_channels": channels,
        "decoder": source.decoder or target.decoder or "self",
        "norm_pixel_loss": norm_pixel_loss,
        "norm_eps": source.eps,
        "embed": source.embed,
        **_statistics(source, target, channels),
        **sizes,
        **decoder_sizes,
    }


def _statistics(source: Source, target: Target, channels: int) -> dict[str, Levels]:
    """Mean and deviation that the model standardises its images by."""
    if channels == source.found.in_channels:
        return {"pixel_mean": source.pixel_mean, "pixel_std": source.pixel_std}

    # weights folded to grey contain their channels' mean and deviation, unless the target gives each as one number
    mean, std = target.pixel_mean, target.pixel_std
    if (
        not isinstance(mean, float)
        or not isinstance(std, float)
        or not same_levels(mean, source.pixel_mean)
        or not same_levels(std, source.pixel_std)
    ):
        mean, std = FOLDED
    return {"pixel_mean": mean, "pixel_std": std}


def preset_like(width: int) -> str:
    """The first preset of that width; ViT-B where there is none."""
    for name, sizes in PRESETS.items():
        if sizes["width"] == width:
            return name
    return "vit_base_patch16"


def _adapted(source: Source, encoder: Encoder, norm_pixel_loss: bool) -> dict[str, Tensor]:
    """The source's weights, adapted to the model's channels and grid."""
    found = source.found
    weights = dict(found.weights)
    if encoder.in_channels != found.in_channels:
        channels = found.in_channels
        mean = as_channels(source.pixel_mean, channels)
        std = as_channels(source.pixel_std, channels)
        grey = float(encoder.mean), float(encoder.std)
        weights = fold_to_grey(weights, mean, std, grey, norm_pixel_loss)

        # and say so
        exact = "approximately: norm-pixel loss" if norm_pixel_loss else "exactly"
        for name, how in {"encoder.embed": "exactly", "decoder.predict": exact}.items():
            for leaf in ("weight", "bias"):
                if f"{name}.{leaf}" in weights:
                    found.note(f"{name}.{leaf}", f"{channels} channels and their normalisation → grey, {how}")

    for name in ("encoder.positions", "decoder.positions"):
        if name in weights and source.grid != encoder.grid:
            weights[name] = resample(weights[name], source.grid, encoder.grid)
            found.note(name, "{}×{} → {}×{} patches, bicubic".format(*source.grid, *encoder.grid))
    return weights


def _fill(model: MaskedAutoencoder, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy the weights into the model; returns what the model has and the weights lack."""
    own = model.state_dict()
    model.load_state_dict({**own, **weights})
    return tuple(name for name in own if name not in {*weights, *STATISTICS})


def _loss_of(source: Source, norm_pixel_loss: bool) -> str:
    """In words, what the source's decoder will predict."""
    if source.decoder is None:
        return ""
    kinds = {True: "each patch normalised (norm_pixel_loss true)", False: "plain pixels (norm_pixel_loss false)"}
    if norm_pixel_loss == source.norm_pixel_loss:
        return f"{kinds[norm_pixel_loss]}, as the decoder was trained for"
    return f"{kinds[norm_pixel_loss]}, as asked for; the decoder was trained for {kinds[not norm_pixel_loss]}"


def _report(source: Source, missing: tuple[str, ...]) -> Report:
    used: list[str] = []
    for names in source.found.origins.values():
        used += names
    used += source.consumed
    return Report(
        place=source.place,
        license=source.license,
        loaded=tuple(name for name in used if name not in source.found.adapted),
        adapted=source.found.adapted,
        missing=missing,
        unexpected=tuple(source.found.unexpected),
        assumed=source.assumed,
    )
