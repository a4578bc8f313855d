"""Original / masked / reconstruction: what a masked autoencoder makes of images."""

from typing import NamedTuple

import torch
from torch import Tensor

from mae.masking import put, take
from mae.model import MaskedAutoencoder
from mae.patches import patchify, unpatchify

CAPTION = (
    "Left to right: original, what the encoder saw, reconstruction. A norm-pixel model predicts each hidden patch "
    "up to brightness and contrast; these are estimated from the visible patches around it, never from itself."
)


class Pictures(NamedTuple):
    """Grey levels in 0..1, each (b c h w)."""

    original: Tensor
    masked: Tensor
    reconstruction: Tensor


@torch.no_grad()
def reconstruct(model: MaskedAutoencoder, images: Tensor, mask_ratio: float, noise: Tensor) -> Pictures:
    """8-bit images (b c h w) and mask noise (b n) → pictures; hidden patches show the prediction."""
    encoder = model.encoder
    pixels = encoder.standardize(images)
    output = model(pixels, mask_ratio, noise)
    patches = patchify(pixels, encoder.patch_size)  # b n p·p·c
    pred = output.pred.to(patches.dtype)
    if model.norm_pixel_loss:
        keep = output.mask.argsort(dim=1, stable=True)[:, : patches.shape[1] - pred.shape[1]]
        mean, std = _surroundings(take(patches, keep), keep, output.masked, encoder.grid)
        pred = pred * std + mean
    hidden = put(patches, output.masked, torch.zeros_like(pred))
    filled = put(patches, output.masked, pred)
    return Pictures(*(_to_grey(encoder, part) for part in (patches, hidden, filled)))


def _surroundings(visible: Tensor, keep: Tensor, masked: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (b m 1) for the masked places, from the visible patches by inverse squared distance."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(visible)  # n 2
    weights = torch.cdist(places[masked], places[keep]).pow(-2)  # b m k
    weights = weights / weights.sum(dim=2, keepdim=True)
    statistics = torch.stack([visible.mean(-1), visible.std(-1)], dim=-1)  # b k 2
    return (weights @ statistics).split(1, dim=-1)  # each b m 1


def _to_grey(encoder, patches: Tensor) -> Tensor:
    images = unpatchify(patches, encoder.grid, encoder.patch_size)
    return (images * encoder.std + encoder.mean).clamp(0, 1)
