"""Images ↔ patches, and where each patch stands."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(b c h w) → (b n p·p·c), rows first, pixels as in the paper's code: (p q c)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """(b n p·p·c) → (b c h w), the inverse of `patchify`; `grid` is the image's size in patches."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch_size, q=patch_size)


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine positions (n width): the first half of the width codes x, the second y.

    Vaswani et al. 2017 in two dimensions, as in the MAE paper's code; `width` must divide by 4.
    """
    rows, columns = np.indices(grid)
    positions = np.concatenate([_sincos(width // 2, columns.ravel()), _sincos(width // 2, rows.ravel())], axis=1)
    return torch.tensor(positions, dtype=torch.float32)


def _sincos(width: int, places: np.ndarray) -> np.ndarray:
    frequencies = 10000.0 ** -(np.arange(width // 2) / (width / 2))
    angles = places[:, None] * frequencies  # n width/2
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # n width
