"""What the readers of all programs' files return: weights in our layout, and what is known of their model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, isqrt
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError, printable
from data.settings import Size, height_and_width
from mae.engine.checkpoint import Checkpoint
from mae.model import PRESETS
from mae.settings import ModelSettings
from mae.weights.layouts import Translation, translate
from mae.weights.licenses import License
from mae.weights.state_dicts import StateDict

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation that published weights were made with
STATISTICS = ("encoder.mean", "encoder.std")  # of the pixels: buffers that come from settings
FOLDED = 0.0, 1.0  # mean and deviation of a grey model whose weights contain those of their channels
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
    decoder: str | None = None  # self or cross; a decoder of another kind or other sizes than the source's starts fresh
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None

    def says_folded(self, channels: int) -> bool:
        """Whether mean 0 and deviation 1 only say that the weights' channels were folded into one (`FOLDED`)."""
        return self.in_channels == 1 != channels and (self.pixel_mean, self.pixel_std) == FOLDED


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
    norm_pixel_loss: bool | None  # what the decoder predicts; None where there is none
    license: License | None  # of the weights, where they have one
    embed: str = "linear"
    decoder: str | None = None
    decoder_heads: int | None = None
    assumed: tuple[str, ...] = ()
    consumed: tuple[str, ...] = ()  # names that became settings
    seen: Any = field(default_factory=list)  # what is remembered of the images that the weights were trained on
    credentialed: tuple[str, ...] = ()  # the credentialed data sets among those known
    seen_elsewhere: bool = True  # whether there were others, which are unknown here
    seen_unread: bool = False  # whether some were images without labels whose files had not been read

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
    settings = checkpoint.config.model
    sizes = _sizes_of(settings)
    patch = sizes["patch_size"]
    height, width = height_and_width(checkpoint.config.data.image_size)

    # names and layout are ours already; mean and deviation of the pixels come from the settings
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if name not in STATISTICS}
    found = Translation(
        weights=weights,
        origins={name: (name,) for name in weights},
        unexpected=[],
        adapted={},
        patch_size=patch,
        in_channels=settings.in_channels,
    )
    return Source(
        place=checkpoint.place,
        found=found,
        grid=(height // patch, width // patch),
        heads=sizes["heads"],
        pixel_mean=settings.pixel_mean,
        pixel_std=settings.pixel_std,
        eps=settings.norm_eps,
        norm_pixel_loss=settings.norm_pixel_loss is not False,
        license=checkpoint.meta.get("license"),
        embed=settings.embed,
        decoder=settings.decoder,
        decoder_heads=sizes["decoder_heads"],
        consumed=STATISTICS,
        seen=checkpoint.fact("seen"),
        credentialed=checkpoint.credentialed,
        seen_elsewhere=checkpoint.meta.get("seen_elsewhere", False),
        seen_unread=checkpoint.meta.get("seen_unread", False),
    )


def _sizes_of(settings: ModelSettings) -> dict[str, int]:
    """The sizes of a model section; its preset fills in what is null."""
    sizes = dict(PRESETS[settings.preset])
    for name in sizes:
        given = getattr(settings, name)
        if given is not None:
            sizes[name] = given
    return sizes


# ---------------------------------------------------------------- other programs' files


@dataclass(frozen=True)
class Facts:
    """What a file says of its model besides the tensors; None where it says nothing."""

    eps: float
    license: License
    norm_pixel_loss: bool | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    image_size: Any = None  # a side, or a list of height and width
    pixel_mean: Levels | None = None
    pixel_std: Levels | None = None
    class_position: bool | None = None  # whether the class token has one, if the program leaves a choice
    assumed: tuple[str, ...] = ()  # what its program does where the file is silent


def make_source(state_dict: StateDict, target: Target, facts: Facts) -> Source:
    """A Source of a state dict and its file's facts. What neither file nor target says is assumed, and reported."""
    place = state_dict.place
    found = _translated(state_dict)
    assumed = list(facts.assumed)
    mean, std = _pixel_statistics(facts, found.in_channels, target, assumed)
    _check_statistics(mean, std, found.in_channels, place)
    heads = _heads(facts, found.weights, target, place, assumed)
    decoder_heads = _decoder_heads(facts, found.weights, target, place, assumed)

    n = len(found.weights["encoder.positions"])
    decoder = "self" if "decoder.mask_token" in found.weights else None
    if decoder:
        in_decoder = len(found.weights.get("decoder.positions", ()))
        if in_decoder != n:
            raise UserError(f"{place}: found {in_decoder} positions in the decoder, expected the encoder's {n}")
    norm_pixel_loss = facts.norm_pixel_loss if decoder else None
    if decoder and norm_pixel_loss is None:
        norm_pixel_loss = False
        assumed.append("plain pixels, the default of all these programs")

    grid = _grid_of(n, found.patch_size, facts.image_size, target.image_size, place, assumed)
    return Source(
        place=place,
        found=found,
        grid=grid,
        heads=heads,
        pixel_mean=mean,
        pixel_std=std,
        eps=facts.eps,
        norm_pixel_loss=norm_pixel_loss,
        license=facts.license,
        decoder=decoder,
        decoder_heads=decoder_heads,
        assumed=tuple(assumed),
    )


def _translated(state_dict: StateDict) -> Translation:
    """The tensors under our names and in our layout, accounted for by the file's own names."""
    found = translate(state_dict.tensors, state_dict.program, state_dict.place)
    names = state_dict.names
    return replace(
        found,
        origins={ours: tuple(names[name] for name in theirs) for ours, theirs in found.origins.items()},
        unexpected=[names[name] for name in found.unexpected] + state_dict.others,
        adapted={names[name]: how for name, how in found.adapted.items()},
    )


def _pixel_statistics(facts: Facts, channels: int, target: Target, assumed: list[str]) -> tuple[Levels, Levels]:
    """Mean and deviation of the pixels: the file's, else the target's, else what is usual."""
    if facts.pixel_mean is not None and facts.pixel_std is not None:
        return facts.pixel_mean, facts.pixel_std
    if target.pixel_mean is not None and target.pixel_std is not None and not target.says_folded(channels):
        return target.pixel_mean, target.pixel_std

    mean, std = IMAGENET if channels == 3 else (0.5, 0.25)
    whose = ", ImageNet's" if channels == 3 else ""
    assumed.append(f"mean {mean} and deviation {std} of the pixels{whose}; pixel_mean and pixel_std say others")
    return mean, std


def _check_statistics(mean: Levels, std: Levels, channels: int, place: str) -> None:
    if not all(0 <= level < 1 for level in as_tuple(mean)):
        raise UserError(f"{place}: found pixel_mean {mean}, expected 0 to below 1")
    if not all(0 < level <= 1 for level in as_tuple(std)):
        raise UserError(f"{place}: found pixel_std {std}, expected deviations above 0, to 1")
    for name, levels in (("pixel_mean", mean), ("pixel_std", std)):
        if isinstance(levels, tuple) and len(levels) != channels:
            raise UserError(
                f"{place}: found {len(levels)} numbers for {name}, expected one for each of {channels} channel(s)"
            )


def _heads(facts: Facts, weights: Mapping[str, Tensor], target: Target, place: str, assumed: list[str]) -> int:
    """Number of heads of the encoder, which no tensor shows."""
    if facts.heads:
        return facts.heads
    if target.heads:
        return target.heads
    width = weights["encoder.class_token"].shape[-1]
    heads = _usual_heads(width, place)
    assumed.append(f"{heads} heads, usual at width {width}")
    return heads


def _decoder_heads(
    facts: Facts, weights: Mapping[str, Tensor], target: Target, place: str, assumed: list[str]
) -> int | None:
    """Number of heads of the decoder, if there is one."""
    if facts.decoder_heads or "decoder.mask_token" not in weights:
        return facts.decoder_heads
    if target.decoder_heads:
        return target.decoder_heads
    heads = _usual_decoder_heads(weights["decoder.mask_token"].shape[-1], place)
    assumed.append(f"{heads} decoder heads, the paper's")
    return heads


def _usual_heads(width: int, place: str) -> int:
    known = {size["width"]: size["heads"] for size in PRESETS.values()}
    if width not in known and width % 64:
        raise UserError(f"{place}: found width {width} and no number of heads, expected heads=…")
    return known.get(width, width // 64)


def _usual_decoder_heads(width: int, place: str) -> int:
    if width % 16:
        raise UserError(f"{place}: found decoder width {width} and no number of heads, expected decoder_heads=…")
    return 16


def _grid_of(
    n: int, patch_size: int, size: Any, wanted: Size | None, place: str, assumed: list[str]
) -> tuple[int, int]:
    """The grid of n positions: as the source says, else square, else the wanted one."""
    fitting = fitting_grids(n, patch_size, size, wanted)
    if len(fitting) > 1:
        square, other = fitting
        assumed.append(f"a grid of {square[0]} x {square[1]} patches, which are as many as {other[0]} x {other[1]}")
    if fitting:
        return fitting[0]
    expected = f"{size} pixels" if size else "a square"
    raise UserError(
        f"{place}: found {n} positions of patches and the class token's, expected those of {expected} in patches of "
        f"{patch_size}"
    )


def fitting_grids(n: int, patch_size: int, size: Any, wanted: Size | None) -> list[tuple[int, int]]:
    """The grids that have n patches: the source's; if its size is unknown, the square one and the wanted one."""
    sizes: list[tuple[int, int]] = []
    if size:
        sizes.append(tuple(size) if isinstance(size, list) else height_and_width(size))
    else:
        sizes.append((isqrt(n) * patch_size, isqrt(n) * patch_size))
        if wanted:
            sizes.append(height_and_width(wanted))

    grids = [(height // patch_size, width // patch_size) for height, width in sizes]
    return [grid for grid in dict.fromkeys(grids) if grid[0] * grid[1] == n > 0]


def as_tuple(levels: Levels) -> tuple[float, ...]:
    return levels if isinstance(levels, tuple) else (levels,)


def same_levels(one: Levels, other: Levels) -> bool:
    """Whether two means, or two deviations, are the same for every channel."""
    a = torch.tensor(one, dtype=torch.float64)  # c, or one number for all
    b = torch.tensor(other, dtype=torch.float64)
    if a.ndim and b.ndim and len(a) != len(b):
        return False
    return torch.allclose(a, b, rtol=1e-6)


def as_levels(value: Any, scale: float, place: Any) -> Levels:
    """A file's mean or deviation of pixels, on a scale whose white is `scale`, as grey levels in 0..1."""
    values = value if isinstance(value, list) and value else [value]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and isfinite(each) for each in values):
        raise UserError(f"{place}: found {printable(value)} for mean or deviation, expected a number for each channel")
    levels = tuple(each / scale for each in values)
    return levels[0] if len(levels) == 1 else levels
