"""Batched augmentation on the training device: one resampling per image."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from data.settings import AugmentSettings

DRAWS = 15  # uniform numbers an image's augmentation is made of
CPU_IMAGES = 8  # at a time, of 224 pixels a side: their intermediate values stay in a core's cache


def augment(images: Tensor, settings: AugmentSettings, draws: Tensor) -> Tensor:
    """Crop, rotate, shift, flip, blur, change tone and erase 8-bit images (b c h w), by `draws` (b DRAWS) in [0, 1).

    Returns 8-bit images of the same shape; what comes from outside the image is black.
    """
    if not settings.enabled:
        return images
    count = max(len(images), 1)
    if images.device.type == "cpu":
        count = CPU_IMAGES
    parts = []
    for some, u in zip(images.split(count), draws.split(count), strict=True):
        parts.append(_augment(some, settings, u.unbind(1)))
    return torch.cat(parts)


def _augment(images: Tensor, settings: AugmentSettings, u: tuple[Tensor, ...]) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):  # bf16 would shift pixels and round greys
        grid = _grid(images, settings, u)
        grey = F.grid_sample(images.float() / 255, grid, padding_mode="zeros", align_corners=False)
        if settings.blur:
            grey = _blur(grey, settings.blur * u[14], settings.blur)
        grey = _tone(grey, settings, u[8:11])
        if settings.erase:
            grey = _erase(grey, settings.erase, u[11:14])
        return (grey.clamp(0, 1) * 255).round().to(torch.uint8)


def _grid(images: Tensor, settings: AugmentSettings, u: tuple[Tensor, ...]) -> Tensor:
    """The sampling grid (b h w 2) of crop ∘ rotation ∘ shift ∘ flip, in grid_sample's coordinates (-1..1)."""
    height, width = images.shape[-2:]
    low, high = settings.crop_scale

    # the crop's size, and where it lies
    area = low + (high - low) * u[0]
    ratio = torch.exp((2 * u[1] - 1) * math.log(settings.crop_ratio))
    x_scale = (area * ratio).sqrt()
    y_scale = (area / ratio).sqrt()
    if high <= 1:  # no side of a crop is longer than the image's
        x_scale = x_scale.clamp(max=1)
        y_scale = y_scale.clamp(max=1)
    x_shift = (2 * u[2] - 1) * (1 - x_scale) + (2 * u[3] - 1) * 2 * settings.translation
    y_shift = (2 * u[4] - 1) * (1 - y_scale) + (2 * u[5] - 1) * 2 * settings.translation

    # what the grid's coordinates become: an affine map for each image
    angle = (2 * u[6] - 1) * math.radians(settings.rotation)
    mirror = torch.where(u[7] < settings.flip, -1.0, 1.0)
    aspect = height / width  # rotation is in pixels, the grid in half-sides
    of_x = torch.stack([mirror * x_scale * angle.cos(), mirror * x_scale * angle.sin() / aspect], dim=1)  # b 2
    of_y = torch.stack([-y_scale * angle.sin() * aspect, y_scale * angle.cos()], dim=1)
    shift = torch.stack([x_shift, y_shift], dim=1)

    # the map of every pixel's centre, first in columns, then in rows
    x = _centres(width, images.device)
    y = _centres(height, images.device)
    in_columns = x[:, None] * of_x[:, None] + shift[:, None]  # b w 2
    return in_columns[:, None] + (y[:, None] * of_y[:, None])[:, :, None]  # F.affine_grid's, in a third of the time


def _centres(side: int, device: torch.device) -> Tensor:
    """Where the pixels' centres (side) lie between -1 and 1."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1


def _blur(grey: Tensor, deviations: Tensor, largest: float) -> Tensor:
    """Images (b c h w), each blurred by a Gaussian of its own deviation (b) in pixels; edges are repeated outside."""
    batch, channels, height, width = grey.shape
    reach = math.ceil(3 * largest)  # the same for all: what an image becomes does not depend on its batch
    offsets = torch.arange(-reach, reach + 1, device=grey.device)
    kernels = torch.exp(-(offsets**2) / (2 * deviations.clamp(min=1e-3)[:, None] ** 2))  # b k
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # b·c k

    # all images as channels of one, each of which has its own kernel: rows, then columns
    flat = grey.reshape(1, batch * channels, height, width)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), "replicate"), kernels[:, None, None, :], groups=len(kernels))
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), "replicate"), kernels[:, None, :, None], groups=len(kernels))
    return flat.reshape(grey.shape)


def _tone(grey: Tensor, settings: AugmentSettings, u: tuple[Tensor, ...]) -> Tensor:
    """Contrast about mid-grey, brightness and gamma of images in 0..1."""
    contrast, brightness, gamma = ((2 * part - 1)[:, None, None, None] for part in u)
    # a tone that is switched off costs nothing
    if settings.contrast or settings.brightness:
        grey = (grey - 0.5) * (1 + settings.contrast * contrast) + 0.5 + settings.brightness * brightness
    if settings.gamma:
        grey = grey.clamp(0, 1) ** (1 + settings.gamma * gamma)
    return grey


def _erase(grey: Tensor, probability: float, u: tuple[Tensor, ...]) -> Tensor:
    """Grey out one square of a fifth of the side (Zhong et al. 2020) with the given probability."""
    height, width = grey.shape[-2:]
    side_y = max(height // 5, 1)
    side_x = max(width // 5, 1)

    # where the square lies, and which pixels it covers
    top = (u[1] * (height - side_y + 1)).long()
    left = (u[2] * (width - side_x + 1)).long()
    rows = torch.arange(height, device=grey.device)
    columns = torch.arange(width, device=grey.device)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + side_y)  # b h
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + side_x)  # b w
    erased = in_rows[:, :, None] & in_columns[:, None, :] & (u[0] < probability)[:, None, None]  # b h w
    return grey.masked_fill(erased[:, None], 0.5)
