"""Which patches stay, and the way back."""

import torch
from einops import repeat
from torch import Tensor


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Split patches by their noise (b n): the lowest stay, as in the paper's code.

    Returns the indices of the kept (b k) and of the masked patches (b m); at least one of each.
    """
    n = noise.shape[1]
    kept = min(max(int(n * (1 - mask_ratio)), 1), n - 1)
    order = noise.argsort(dim=1, stable=True)
    return order[:, :kept], order[:, kept:]


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (b n d) at the indices (b k) → (b k d)."""
    return tokens.gather(1, repeat(indices, "b k -> b k d", d=tokens.shape[-1]))


def put(tokens: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """A copy of tokens (b n d) with values (b k d) at the indices (b k): the way back from `take`."""
    return tokens.scatter(1, repeat(indices, "b k -> b k d", d=tokens.shape[-1]), values.to(tokens.dtype))


def mask_of(masked: Tensor, n: int) -> Tensor:
    """Indices of the masked patches (b m) → mask (b n): 1 = not seen by the encoder."""
    return torch.zeros(masked.shape[0], n, device=masked.device).scatter(1, masked, 1.0)
