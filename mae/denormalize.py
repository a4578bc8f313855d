"""Brightness and contrast for patches that were predicted without them, from what surrounds these patches."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from mae.masking import put, take

# Weights of the first guess of a patch's brightness and of its contrast, relative to one border. Chosen on training
# images of Kermany, where a third or three times as much makes no difference.
TRUST = (0.003, 0.1)
STEPS = 120  # of conjugate gradients; half are enough with three quarters of the patches hidden


def continue_borders(
    patches: Tensor, keep: Tensor, pred: Tensor, masked: Tensor, grid: tuple[int, int], patch_size: int
) -> Tensor:
    """Normalised predictions (b m p·p·c) of the masked patches (b m) → pixels that continue what is around them.

    Of `patches` (b n p·p·c) only those kept (b k) are read. All brightnesses and contrasts of an image are found
    together, so that the sum of squared jumps across the borders between patches is lowest. Where borders say
    little, a first guess from the visible patches' statistics holds them.
    """
    # the first guess, which the borders are weighed against, and the pixels that meet at borders
    guess = surroundings(take(patches, keep), keep, masked, grid)  # b m 2
    trust = guess.new_tensor(TRUST)  # 2
    shown = _sides(patches, patch_size)  # b n 4·p·c
    predicted = _sides(pred, patch_size)  # b m 4·p·c

    def energy(levels: Tensor) -> Tensor:
        sides = put(shown, masked, applied(levels, predicted))  # b n 4·p·c
        top, bottom, left, right = rearrange(sides, "b (h w) (side d) -> side b h w d", h=grid[0], side=4)

        # each patch against the one below it, and against the one to its right
        jumps = (bottom[:, :-1] - top[:, 1:]).square().sum() + (right[:, :, :-1] - left[:, :, 1:]).square().sum()
        return jumps / top.shape[-1] + (trust * (levels - guess).square()).sum()

    return applied(_lowest(energy, guess), pred)


def applied(levels: Tensor, pred: Tensor) -> Tensor:
    """Brightness and contrast (b m 2) given to normalised patches (b m p·p·c)."""
    return levels[..., :1] + levels[..., 1:] * pred


def statistics(patches: Tensor) -> Tensor:
    """Mean and deviation (b k 2) of patches (b k p·p·c): their own brightness and contrast."""
    return torch.stack([patches.mean(-1), patches.std(-1)], dim=-1)  # b k 2


def surroundings(visible: Tensor, keep: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean and deviation (b m 2) for the masked places: the visible patches', weighted by inverse squared distance."""
    # where each patch stands in the grid
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(visible)  # n 2

    # the nearer a visible patch, the more it says
    weights = torch.cdist(places[masked], places[keep]).pow(-2)  # b m k
    return weights / weights.sum(dim=2, keepdim=True) @ statistics(visible)  # b m 2


def _sides(patches: Tensor, patch_size: int) -> Tensor:
    """Top, bottom, left and right (b n 4·p·c) of patches (b n p·p·c), carried on by half a pixel to the border.

    So a slope that continues across a border is no jump. Otherwise only zero contrast would remove the jump.
    """
    tiles = rearrange(patches, "b n (p q c) -> b n p q c", p=patch_size, q=patch_size)
    rows = tiles.unbind(2)  # p of b n q c
    columns = tiles.unbind(3)  # q of b n p c
    second = min(1, patch_size - 1)  # a patch of one pixel has no second line
    sides = [
        _carried_on(rows[0], rows[second]),
        _carried_on(rows[-1], rows[-1 - second]),
        _carried_on(columns[0], columns[second]),
        _carried_on(columns[-1], columns[-1 - second]),
    ]
    return torch.cat(sides, dim=2)


def _carried_on(outer: Tensor, inner: Tensor) -> Tensor:
    """Half a pixel beyond the outer of two lines (b n p c) → (b n p·c)."""
    return (1.5 * outer - 0.5 * inner).flatten(2)


def _lowest(energy: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a quadratic energy that is a sum over the batch: conjugate gradients from `start` (b m 2)."""
    # the gradient's derivative is the energy's matrix; as that is symmetric, vjp multiplies by it
    gradient, multiply = torch.func.vjp(torch.func.grad(energy), start)[:2]

    # each step goes to where the energy is lowest along its direction
    levels = start
    residual = -gradient
    direction = residual
    size = _squared(residual)
    unknowns = start[0].numel()  # in exact arithmetic this many steps are enough
    for _ in range(min(STEPS, 2 * unknowns)):
        [bend] = multiply(direction)
        step = size / (direction * bend).sum((1, 2), keepdim=True).clamp(min=1e-30)
        levels = levels + step * direction
        residual = residual - step * bend

        # the next direction does not undo what this one has reached
        before = size
        size = _squared(residual)
        direction = residual + size / before.clamp(min=1e-30) * direction
    return levels


def _squared(vectors: Tensor) -> Tensor:
    return vectors.square().sum((1, 2), keepdim=True)  # b 1 1
