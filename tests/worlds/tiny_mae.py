"""A small masked autoencoder whose main sizes differ, its images, noise and counts."""

import torch
from torch import Tensor

from mae import build_mae
from mae.model import MaskedAutoencoder
from mae.patches import patchify, unpatchify

GRID, PATCH = (3, 5), 2  # 15 patches in an image of 6 × 10
SIZES = {
    "patch_size": PATCH,
    "width": 12,
    "depth": 3,
    "heads": 3,
    "decoder_width": 8,
    "decoder_depth": 2,
    "decoder_heads": 2,
}


def tiny(
    channels: int = 1, norm_pixel_loss: bool = True, seed: int = 0, decoder: str = "self", mean: float = 0.5, **sizes
) -> MaskedAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_mae("vit_tiny_patch16", (6, 10), channels, decoder, norm_pixel_loss, mean, **SIZES | sizes)


def pixels(b: int = 7, channels: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(b, channels, 6, 10, generator=torch.Generator().manual_seed(seed))


def noise_for(b: int = 7, seed: int = 2) -> Tensor:
    return torch.rand(b, 15, generator=torch.Generator().manual_seed(seed))


def change(images: Tensor, places: Tensor, value) -> Tensor:
    """The images with other pixels in the patches at `places` (b k)."""
    patches = patchify(images, PATCH).clone()
    for image, places_of_image in enumerate(places):
        patches[image, places_of_image] = value if torch.is_tensor(value) else torch.tensor(value, dtype=images.dtype)
    return unpatchify(patches, GRID, PATCH)


def fix_prediction(model: MaskedAutoencoder, value: Tensor) -> None:
    model.decoder.forward = lambda tokens, keep, masked: value


def losses_of_60_steps(model: MaskedAutoencoder, images: Tensor, noise: Tensor) -> list[float]:
    """The losses of training on one batch, with the same half of the patches always hidden."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(images, 0.5, noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def encoder_size(width: int, depth: int, patch_values: int) -> int:
    attention, mlp, norms = 4 * width**2 + 4 * width, 8 * width**2 + 5 * width, 4 * width
    return depth * (attention + mlp + norms) + (patch_values + 1) * width + width + 2 * width


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
