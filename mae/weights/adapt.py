"""Weights for another number of channels or another grid of patches."""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def fold_to_grey(
    weights: Mapping[str, Tensor], mean: Tensor, std: Tensor, grey: tuple[float, float], norm_pixel_loss: bool
) -> dict[str, Tensor]:
    """Weights for standardised channels (mean, std: c) → the same function of one channel, standardised by `grey`.

    A grey level g = m + s·x reaches channel c as (g - μ_c) / σ_c, so the kernel becomes s·ΣW_c/σ_c and the bias gains
    ΣW_c(m - μ_c)/σ_c: exact. The prediction becomes the mean of the channels' predicted grey levels: exact too. Under
    norm-pixel loss it becomes the mean of the channels' predictions. These are in units of a deviation over all
    channels, so this is an approximation, off by a factor for each patch.
    """
    m, s = grey
    mean, std = mean.double(), std.double()
    kernel = rearrange(weights["encoder.embed.weight"].double(), "d (n c) -> d n c", c=len(mean))
    folded = {
        "encoder.embed.weight": s * (kernel / std).sum(-1),  # d n
        "encoder.embed.bias": weights["encoder.embed.bias"].double() + (kernel * ((m - mean) / std)).sum((1, 2)),  # d
    }
    if "decoder.predict.weight" in weights:
        predict = rearrange(weights["decoder.predict.weight"].double(), "(n c) e -> n c e", c=len(mean))
        bias = rearrange(weights["decoder.predict.bias"].double(), "(n c) -> n c", c=len(mean))
        if not norm_pixel_loss:
            predict = predict * std[:, None] / s
            bias = (bias * std + mean - m) / s
        folded |= {"decoder.predict.weight": predict.mean(1), "decoder.predict.bias": bias.mean(1)}  # n e, n
    return {**weights, **{name: tensor.float() for name, tensor in folded.items()}}


def resample(positions: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Positions (n d) of one grid → of another, bicubic as in the paper's fine-tuning code; equal grids: untouched."""
    if grid == to:
        return positions
    image = rearrange(positions, "(h w) d -> 1 d h w", h=grid[0])
    return rearrange(F.interpolate(image, to, mode="bicubic", align_corners=False), "1 d h w -> (h w) d").contiguous()


def as_channels(value: float | tuple[float, ...], channels: int) -> Tensor:
    """One number for all channels, or one for each → (c)."""
    return torch.tensor(value, dtype=torch.float64).broadcast_to(channels)
