"""What the readers of all programs' files end in: weights in our layout, and what is known of their model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

from torch import Tensor

from data.config import UserError
from data.settings import Size, height_and_width
from mae.engine.checkpoint import Checkpoint
from mae.model import PRESETS
from mae.settings import ModelSettings
from mae.weights.layouts import Translation

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation that published weights were made with
STATISTICS = ("encoder.mean", "encoder.std")  # of the pixels: buffers that come from settings
Levels = float | tuple[float, ...]


@dataclass(frozen=True)
class Target:
    """What the converted model shall be like; None leaves it to the source."""

    image_size: Size | None = None
    in_channels: int | None = None
    norm_pixel_loss: bool | None = None
    heads: int | None = None  # where the source does not say
    pixel_mean: Levels | None = None  # likewise
    pixel_std: Levels | None = None  # likewise
    decoder: str | None = None  # self or cross; another than the source's starts fresh, as one of other sizes does
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None


@dataclass(frozen=True)
class Source:
    """Weights of a file in our layout, and the model they belong to."""

    place: str
    found: Translation
    grid: tuple[int, int]
    heads: int
    pixel_mean: Levels
    pixel_std: Levels
    eps: float
    norm_pixel_loss: bool
    license: str | None  # of the weights, where they have one
    decoder: str | None = None
    decoder_heads: int | None = None
    assumed: tuple[str, ...] = ()
    consumed: tuple[str, ...] = ()  # names that became settings
    seen: Any = field(default_factory=list)  # hashes of the images that made the weights

    @property
    def encoder_sizes(self) -> dict[str, int]:
        width = self.found.weights["encoder.class_token"].shape[-1]
        return {
            "patch_size": self.found.patch_size,
            "width": width,
            "depth": _depth(self.found, "encoder"),
            "heads": self.heads,
        }

    @property
    def decoder_sizes(self) -> dict[str, int | None]:
        width = self.found.weights["decoder.mask_token"].shape[-1]
        depth = _depth(self.found, "decoder")
        return {"decoder_width": width, "decoder_depth": depth, "decoder_heads": self.decoder_heads}


def _depth(found: Translation, room: str) -> int:
    return len({name.split(".")[2] for name in found.weights if name.startswith(f"{room}.blocks.")})


# ---------------------------------------------------------------- our own checkpoints


def own_source(checkpoint: Checkpoint) -> Source:
    """A checkpoint of mae-pretrain, as weights for another run."""
    settings, weights = checkpoint.config.model, dict(checkpoint.weights)
    sizes = _sizes_of(settings)
    for name in STATISTICS:
        weights.pop(name)
    size, patch = height_and_width(checkpoint.config.data.image_size), sizes["patch_size"]
    origins = {name: (name,) for name in weights}
    return Source(
        place=checkpoint.place,
        found=Translation(weights, origins, [], {}, patch, settings.in_channels),
        grid=(size[0] // patch, size[1] // patch),
        heads=sizes["heads"],
        pixel_mean=settings.pixel_mean,
        pixel_std=settings.pixel_std,
        eps=settings.norm_eps,
        norm_pixel_loss=settings.norm_pixel_loss,
        license=checkpoint.meta.get("license"),
        decoder=settings.decoder,
        decoder_heads=sizes["decoder_heads"],
        consumed=STATISTICS,
        seen=checkpoint.meta["seen"],
    )


def _sizes_of(settings: ModelSettings) -> dict[str, int]:
    """The sizes of a model section, what is null filled in by its preset."""
    preset = PRESETS[settings.preset]
    return {name: preset[name] if getattr(settings, name) is None else getattr(settings, name) for name in preset}


# ---------------------------------------------------------------- other programs' files


def make_source(
    place: str, found: Translation, target: Target, facts: Mapping[str, Any], assumed: tuple[str, ...] = ()
) -> Source:
    """A Source of a translation and what its file says; what neither file nor target says is assumed, and said."""
    facts = dict(facts)
    size, decoder = facts.pop("image_size", None), "self" if "decoder.embed.weight" in found.weights else None
    notes = [*assumed, *_fill_in_statistics(facts, found.in_channels, target, place)]
    notes += _fill_in_heads(facts, found.weights, target, place)
    n = len(found.weights["encoder.positions"])
    if decoder and (m := len(found.weights.get("decoder.positions", ()))) != n:
        raise UserError(f"{place}: found {m} positions in the decoder, expected the encoder's {n}")
    grid = _grid_of(n, found.patch_size, size, target.image_size, place)
    return Source(place, found, grid, decoder=decoder, assumed=tuple(notes), **facts)


def _fill_in_statistics(facts: dict[str, Any], channels: int, target: Target, place: str) -> list[str]:
    """Mean and deviation of the pixels; returns what was assumed."""
    notes = []
    if "pixel_mean" not in facts and None not in (target.pixel_mean, target.pixel_std):
        facts |= {"pixel_mean": target.pixel_mean, "pixel_std": target.pixel_std}
    elif "pixel_mean" not in facts:
        facts["pixel_mean"], facts["pixel_std"] = mean, std = IMAGENET if channels == 3 else (0.5, 0.25)
        notes = [f"mean {mean} and deviation {std} of the pixels" + (", ImageNet's" if channels == 3 else "")]
    if min(facts["pixel_std"] if isinstance(facts["pixel_std"], tuple) else [facts["pixel_std"]]) <= 0:
        raise UserError(f"{place}: found pixel_std {facts['pixel_std']}, expected deviations above 0")
    for name in ("pixel_mean", "pixel_std"):
        if isinstance(facts[name], tuple) and len(facts[name]) != channels:
            found = len(facts[name])
            raise UserError(
                f"{place}: found {found} numbers for {name}, expected one for each of {channels} channel(s)"
            )
    return notes


def _fill_in_heads(facts: dict[str, Any], weights: Mapping[str, Tensor], target: Target, place: str) -> list[str]:
    """Heads of encoder and decoder, which no tensor tells; returns what was assumed."""
    notes = []
    if not facts.get("heads"):
        width = weights["encoder.class_token"].shape[-1]
        facts["heads"] = target.heads or _usual_heads(width, place)
        notes += [] if target.heads else [f"{facts['heads']} heads, usual at width {width}"]
    if "decoder.embed.weight" in weights and not facts.get("decoder_heads"):
        facts["decoder_heads"] = target.decoder_heads or _usual_decoder_heads(
            len(weights["decoder.embed.weight"]), place
        )
        notes += [] if target.decoder_heads else [f"{facts['decoder_heads']} decoder heads, the paper's"]
    return notes


def _usual_heads(width: int, place: str) -> int:
    known = {size["width"]: size["heads"] for size in PRESETS.values()}
    if width not in known and width % 64:
        raise UserError(f"{place}: found width {width} and no number of heads, expected heads=…")
    return known.get(width, width // 64)


def _usual_decoder_heads(width: int, place: str) -> int:
    if width % 16:
        raise UserError(f"{place}: found decoder width {width} and no number of heads, expected decoder_heads=…")
    return 16


def _grid_of(n: int, patch_size: int, size: Any, wanted: Size | None, place: str) -> tuple[int, int]:
    """The grid of n positions: as the source says, else square, else the wanted one."""
    sizes = [tuple(size) if isinstance(size, list) else height_and_width(size)] if size else []
    sizes += [] if size else [(isqrt(n) * patch_size,) * 2]
    sizes += [height_and_width(wanted)] if wanted and not size else []
    for height, width in sizes:
        if (grid := (height // patch_size, width // patch_size))[0] * grid[1] == n:
            return grid
    expected = f"{size} pixels" if size else "a square"
    raise UserError(f"{place}: found {n} positions of patches, expected those of {expected} in patches of {patch_size}")


def prefix_of(tensors: Mapping[str, Tensor], landmark: str, place: str) -> str:
    """What stands before a model's own names; UserError unless one model is in it."""
    prefixes = [name.removesuffix(landmark) for name in tensors if ("." + name).endswith("." + landmark)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} models ({', '.join(sorted(prefixes))})" if prefixes else f"no {landmark}"
        raise UserError(f"{place}: found {found}, expected the state dict of one Vision Transformer")
    return prefixes[0]


def call_back(found: Translation, names: Mapping[str, str]) -> Translation:
    """The translation with the source's own names in its account."""
    return replace(
        found,
        origins={ours: tuple(names[name] for name in theirs) for ours, theirs in found.origins.items()},
        unexpected=[names[name] for name in found.unexpected],
        adapted={names[name]: how for name, how in found.adapted.items()},
    )


def as_levels(value: Any, scale: float, place: Any) -> Levels:
    """A file's mean or deviation of pixels, whose white is `scale`, as grey levels in 0..1."""
    values = value if isinstance(value, list) and value else [value]
    if not all(isinstance(each, int | float) for each in values):
        raise UserError(f"{place}: found {value!r} for mean or deviation, expected a number for each channel")
    levels = tuple(each / scale for each in values)
    return levels[0] if len(levels) == 1 else levels
