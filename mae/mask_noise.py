"""Where the mask falls in training: each patch gets a number, and those with the lowest stay (`random_masking`).

The mask ratio is exact whatever the numbers are. They are functions of (seed, epoch, image). Validation always hides
patches at random, so that its losses can be compared.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mae.masking import random_masking

Masking = Literal["random", "red", "green", "blue", "content"]
BANK = 64  # patterns of filtered noise, each of which may be shifted and mirrored
FINE, COARSE = 0.6, 1.5  # deviations of Gaussian filters, in patches
PLAIN = 0.2  # weight of a patch that shows nothing; on average patches weigh 1 more


def mask_noise(
    masking: Masking, seed: int, draw: Callable[[str, int], Tensor], patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """(b n) for images whose patches (b n p·p·c) are `grid` rows and columns.

    draw: (purpose, count) → uniform draws (b count) in 0..1 for these images in this epoch.
    """
    n = grid[0] * grid[1]
    if masking == "random":
        return draw("mask", n)
    if masking == "content":
        return by_content(draw("mask", n), patches)
    return coloured(masking, seed, draw("mask colour", 5), grid)


def by_content(draws: Tensor, patches: Tensor) -> Tensor:
    """(b n), high for patches that vary: the odds of hiding one follow its weight (Efraimidis & Spirakis 2006).

    The weight is PLAIN plus the deviation of its pixels as a share of the image's mean deviation.
    """
    spread = patches.float().std(-1, correction=0)  # b n
    mean = spread.mean(1, keepdim=True)
    weights = PLAIN + torch.where(mean > 0, spread / mean.clamp(min=1e-12), 1.0)
    return draws.clamp(min=1e-9).log() / weights


def predicted_at_random(noise: Tensor, mask_ratio: float, draws: Tensor) -> Tensor:
    """Noise (b n) that hides the same patches and orders them by draws (b n), as the lowest of them are predicted."""
    kept, masked = random_masking(noise, mask_ratio)
    masked = masked.gather(1, draws.gather(1, masked).argsort(1))
    return torch.cat([kept, masked], dim=1).argsort(1).to(noise.dtype)  # each patch's place in this order


def coloured(colour: Literal["red", "green", "blue"], seed: int, draws: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b n): a pattern of the bank for each image, shifted and mirrored by its draws (b 5): arXiv 2407.13036."""
    rows, columns = grid
    bank = _bank(colour, seed, grid, draws.device)  # B h w
    which = (draws[:, 0] * BANK).long()
    down = (draws[:, 1] * rows).long()
    right = (draws[:, 2] * columns).long()

    # patterns have no seam, so they may be shifted cyclically
    y = torch.arange(rows, device=draws.device)
    x = torch.arange(columns, device=draws.device)
    y = torch.where(draws[:, 3, None] < 0.5, y, y.flip(0))  # b h
    x = torch.where(draws[:, 4, None] < 0.5, x, x.flip(0))  # b w
    y = (y + down[:, None]) % rows
    x = (x + right[:, None]) % columns
    return bank[which[:, None, None], y[:, :, None], x[:, None, :]].flatten(1)  # b n


@lru_cache(maxsize=8)  # on its device: a copy in each step would make the host wait
def _bank(colour: str, seed: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """(B h w): white noise through a low-pass, band-pass or high-pass filter; the same in every run of a seed."""
    rows, columns = grid
    white = torch.from_numpy(np.random.default_rng(seed).standard_normal((BANK, rows, columns)))

    # Gaussian filters are Gaussian in frequencies, too
    squared = torch.fft.fftfreq(rows).square()[:, None] + torch.fft.fftfreq(columns).square()  # h w
    fine, coarse = (torch.exp(-2 * (np.pi * deviation) ** 2 * squared) for deviation in (FINE, COARSE))
    passes = {"red": coarse, "green": fine - coarse, "blue": 1 - fine}
    return torch.fft.ifft2(torch.fft.fft2(white) * passes[colour]).real.float().to(device)
