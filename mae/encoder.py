"""The Vision Transformer encoder: what pretraining trains and classification imports."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from einops import repeat
from torch import Tensor, nn

from mae.linear import Linear
from mae.masking import take
from mae.patches import patchify, sincos_positions
from mae.transformer import Block, drop_path, init_weights, through, token


class Encoder(nn.Module):
    """Images → tokens; embeds only the patches it keeps.

    `image_size` (h w) and `patch_size` are in pixels. Preprocessing travels with the weights:
    `pixel_mean` and `pixel_std` (grey levels as a share of 255; one number, or one a channel) are
    buffers, applied by `standardize`. `eps` is the LayerNorms': 1e-6 in the paper's code.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        in_channels: int,
        width: int,
        depth: int,
        heads: int,
        pixel_mean: float | Sequence[float] = 0.5,
        pixel_std: float | Sequence[float] = 0.25,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.patch_size, self.in_channels, self.width = patch_size, in_channels, width
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.drop_path = 0.0  # rate of the last block while training; set by whoever trains
        self.recompute = False  # activations in the backward pass, instead of keeping them; likewise
        self.embed = Linear(patch_size * patch_size * in_channels, width)
        self.class_token = token(width)
        self.blocks = nn.ModuleList(Block(width, heads, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        self.register_buffer("positions", sincos_positions(width, self.grid))  # n d, or what loaded weights bring
        self.register_buffer("mean", per_channel(pixel_mean, in_channels))  # c 1 1
        self.register_buffer("std", per_channel(pixel_std, in_channels))  # c 1 1
        self.apply(init_weights)

    def standardize(self, images: Tensor) -> Tensor:
        """8-bit grey levels (b c h w) → what the model reads; one channel serves as all of them."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def forward(self, images: Tensor, keep: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Standardised images (b c h w) → tokens (b 1+k d), the class token first.

        keep: (b k) indices of the patches to look at; None looks at all n of them.
        noise: (b 2·depth) uniform draws that decide stochastic depth while training with `drop_path` > 0.
        """
        return deque(self.depths(images, keep, noise), maxlen=1).pop()  # the last; the others are let go

    def depths(self, images: Tensor, keep: Tensor | None = None, noise: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens (b 1+k d) as embedded and after each block, the last normalised; arguments as in `forward`."""
        size = tuple(side * self.patch_size for side in self.grid)
        if tuple(images.shape[1:]) != (self.in_channels, *size):
            raise ValueError(f"images: found (c h w) {tuple(images.shape[1:])}, expected {(self.in_channels, *size)}")
        patches = patchify(images, self.patch_size)  # b n p·p·c
        if keep is None:
            tokens = self.embed(patches) + self.positions  # b n d
        else:
            tokens = self.embed(take(patches, keep)) + self.positions[keep]  # b k d
        tokens = torch.cat([repeat(self.class_token, "1 1 d -> b 1 d", b=len(tokens)), tokens], dim=1)  # b 1+k d
        drops = self._drops(len(tokens), noise)
        for depth, block in enumerate(self.blocks):
            yield tokens
            tokens = through(block, self.recompute, tokens, None if drops is None else drops[:, 2 * depth :][:, :2])
        yield self.norm(tokens)

    def _drops(self, batch: int, noise: Tensor | None) -> Tensor | None:
        if not self.training or not self.drop_path:
            return None
        rates = torch.linspace(0, self.drop_path, len(self.blocks), device=self.positions.device)
        if noise is None:
            noise = torch.rand(batch, 2 * len(self.blocks), device=self.positions.device)
        return drop_path(noise, rates.repeat_interleave(2))  # b 2·depth


def per_channel(value: float | Sequence[float], channels: int) -> Tensor:
    """One number for all channels, or one for each → (c 1 1)."""
    return torch.tensor(value, dtype=torch.get_default_dtype()).broadcast_to(channels).reshape(channels, 1, 1).clone()
