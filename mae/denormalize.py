"""Brightness and contrast for patches that were predicted up to these, from what surrounds them."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from mae.masking import put, take

# What the first guess of a patch's brightness and of its contrast weighs against one border. Chosen on training
# images of Kermany, where a third or three times as much makes no difference.
TRUST = (0.003, 0.1)
STEPS = 120  # of conjugate gradients; half are enough with three quarters of the patches hidden


def continue_borders(
    patches: Tensor, keep: Tensor, pred: Tensor, masked: Tensor, grid: tuple[int, int], patch_size: int
) -> Tensor:
    """Normalised predictions (b m p·p·c) of the masked patches (b m) → pixels that continue what is around them.

    Of `patches` (b n p·p·c) only those kept (b k) are read. All brightnesses and contrasts of an image are found
    together: the sum of squared jumps across the borders between patches is lowest, and a first guess from
    the visible patches' statistics holds them where borders say little.
    """
    guess = surroundings(take(patches, keep), keep, masked, grid)  # b m 2
    trust = guess.new_tensor(TRUST)
    shown, predicted = _sides(patches, patch_size), _sides(pred, patch_size)  # b n 4·p·c, b m 4·p·c

    def energy(levels: Tensor) -> Tensor:
        sides = put(shown, masked, applied(levels, predicted))
        top, bottom, left, right = rearrange(sides, "b (h w) (side d) -> side b h w d", h=grid[0], side=4)
        jumps = (bottom[:, :-1] - top[:, 1:]).square().sum() + (right[:, :, :-1] - left[:, :, 1:]).square().sum()
        return jumps / top.shape[-1] + (trust * (levels - guess).square()).sum()

    return applied(_lowest(energy, guess), pred)


def applied(levels: Tensor, pred: Tensor) -> Tensor:
    """Brightness and contrast (b m 2) given to normalised patches (b m p·p·c)."""
    return levels[..., :1] + levels[..., 1:] * pred


def statistics(patches: Tensor) -> Tensor:
    """Mean and deviation (b k 2) of patches (b k p·p·c): their own brightness and contrast."""
    return torch.stack([patches.mean(-1), patches.std(-1)], dim=-1)


def surroundings(visible: Tensor, keep: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean and deviation (b m 2) for the masked places, from the visible patches by inverse squared distance."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(visible)  # n 2
    weights = torch.cdist(places[masked], places[keep]).pow(-2)  # b m k
    return weights / weights.sum(dim=2, keepdim=True) @ statistics(visible)


def _sides(patches: Tensor, patch_size: int) -> Tensor:
    """Top, bottom, left and right (b n 4·p·c) of patches (b n p·p·c), carried on by half a pixel to the border.

    So a slope that goes on is no jump; to make it none, contrast would have to vanish.
    """
    tiles = rearrange(patches, "b n (p q c) -> b n p q c", p=patch_size, q=patch_size)
    down, across = tiles.unbind(2), tiles.unbind(3)
    inner = min(1, patch_size - 1)
    ends = [(line[end], line[end + step]) for line in (down, across) for end, step in ((0, inner), (-1, -inner))]
    return torch.cat([(1.5 * last - 0.5 * before).flatten(2) for last, before in ends], dim=2)


def _lowest(energy: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a quadratic energy, a sum over the batch, is lowest: conjugate gradients from `start` (b m 2)."""
    slope, bends = torch.func.vjp(torch.func.grad(energy), start)  # its matrix is symmetric: vjp multiplies by it
    found, descent = start, -slope
    direction, size = descent, _squared(descent)
    for _ in range(STEPS):
        [bend] = bends(direction)
        step = size / (direction * bend).sum((1, 2), keepdim=True).clamp(min=1e-30)
        found, descent = found + step * direction, descent - step * bend
        size, before = _squared(descent), size
        direction = descent + size / before.clamp(min=1e-30) * direction
    return found


def _squared(vectors: Tensor) -> Tensor:
    return vectors.square().sum((1, 2), keepdim=True)  # b 1 1
