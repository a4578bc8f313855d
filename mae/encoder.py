"""The Vision Transformer encoder: what pretraining trains and classification imports."""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor, nn

from mae.linear import Linear
from mae.masking import take
from mae.patch_embedding import PatchConvolutions
from mae.patches import patchify, sincos_positions
from mae.transformer import Block, drop_path, run_block, token


class Encoder(nn.Module):
    """Images → tokens; embeds only the patches it keeps.

    `image_size` (h w) and `patch_size` are in pixels. Preprocessing travels with the weights:
    `pixel_mean` and `pixel_std` (grey levels as a share of 255; one number, or one a channel) are
    buffers, applied by `standardize`. `eps` is the LayerNorms': 1e-6 in the paper's code.
    `embed`: linear, as in the paper, or conv (`PatchConvolutions`).
    """

    positions: Tensor
    mean: Tensor
    std: Tensor

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
        embed: str = "linear",
    ):
        super().__init__()
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.width = width
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)

        # how it computes while training; set by the training code
        self.drop_path = 0.0  # rate of the last block
        self.recompute = False  # recompute activations in the backward pass instead of keeping them

        # what it learns
        self.embed: nn.Module = Linear(patch_size * patch_size * in_channels, width)
        if embed == "conv":
            self.embed = PatchConvolutions(patch_size, in_channels, width)
        self.class_token = token(width)
        self.blocks = nn.ModuleList(Block(width, heads, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)

        # what is fixed, and travels with the weights
        self.register_buffer("positions", sincos_positions(width, self.grid))  # n d, or what loaded weights bring
        self.register_buffer("mean", per_channel(pixel_mean, in_channels))  # c 1 1
        self.register_buffer("std", per_channel(pixel_std, in_channels))  # c 1 1

    def standardize(self, images: Tensor) -> Tensor:
        """8-bit grey levels (b c h w) → what the model reads; a single channel is used for all of them."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def forward(self, images: Tensor, keep: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Standardised images (b c h w) → tokens (b 1+k d), the class token first.

        keep: (b k) indices of the patches to look at; None looks at all n of them.
        noise: (b 2·depth) uniform draws that decide stochastic depth while training with `drop_path` > 0.
        """
        tokens = self.embed_kept(images, keep)  # b 1+k d
        for block, drop in zip(self.blocks, self._drops(tokens.shape[0], noise), strict=True):
            tokens = run_block(block, tokens, drop, recompute=self.recompute)
        return self.norm(tokens)

    def depths(self, images: Tensor, keep: Tensor | None = None, noise: Tensor | None = None) -> list[Tensor]:
        """Tokens (b 1+k d) as embedded and after each block, the last normalised; arguments as in `forward`.

        The cross decoder reads them. `forward` has its own loop, because this one keeps all depths.
        """
        tokens = self.embed_kept(images, keep)  # b 1+k d
        found = [tokens]
        for block, drop in zip(self.blocks, self._drops(tokens.shape[0], noise), strict=True):
            tokens = run_block(block, tokens, drop, recompute=self.recompute)
            found.append(tokens)
        found[-1] = self.norm(tokens)
        return found

    def embed_kept(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """Standardised images (b c h w) → tokens (b 1+k d) of the kept patches, the class token first."""
        height, width = (side * self.patch_size for side in self.grid)
        expected = (self.in_channels, height, width)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: found (c h w) {tuple(images.shape[1:])}, expected {expected}")

        # hidden patches are left out before anything is computed: this is why pretraining is fast
        patches = patchify(images, self.patch_size)  # b n p·p·c
        positions = self.positions  # n d
        if keep is not None:
            patches = take(patches, keep)  # b k p·p·c
            positions = positions[keep]  # b k d
        tokens = self.embed(patches) + positions  # b k d
        class_tokens = repeat(self.class_token, "1 1 d -> b 1 d", b=tokens.shape[0])
        return torch.cat([class_tokens, tokens], dim=1)  # b 1+k d

    def _drops(self, batch: int, noise: Tensor | None) -> list[Tensor | None]:
        """Each block's scales (b 2) for stochastic depth; None outside of training or without it."""
        depth = len(self.blocks)
        if not self.training or not self.drop_path:
            return [None] * depth

        # deeper blocks are dropped more often
        rates = torch.linspace(0, self.drop_path, depth, device=self.positions.device)
        if noise is None:
            noise = torch.rand(batch, 2 * depth, device=self.positions.device)
        scales = drop_path(noise, rates.repeat_interleave(2))  # b 2·depth
        return list(scales.split(2, dim=1))


def per_channel(value: float | Sequence[float], channels: int) -> Tensor:
    """One number for all channels, or one for each → (c 1 1)."""
    return torch.tensor(value, dtype=torch.get_default_dtype()).broadcast_to(channels).reshape(channels, 1, 1).clone()
