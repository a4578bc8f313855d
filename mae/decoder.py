"""Two lightweight decoders: visible tokens → pixels of the masked patches. Used in pretraining only."""

import torch
from torch import Tensor, nn

from mae.linear import Linear
from mae.patches import sincos_positions
from mae.transformer import Block, CrossBlock, run_block, token


class Decoder(nn.Module):
    """All tokens attend to each other (the paper's decoder); only masked patches are predicted.

    `grid` is the image's size in patches, `encoder_width` the width of its tokens, `pixels` the
    number of values in a patch (p·p·c).
    """

    reads_depths = False  # the encoder's last tokens are enough
    positions: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        pixels: int,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.recompute = False  # recompute activations in the backward pass instead of keeping them; set for training

        self.embed = Linear(encoder_width, width)
        self.mask_token = token(width)
        self.blocks = nn.ModuleList(Block(width, heads, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        self.predict = Linear(width, pixels)
        self.register_buffer("positions", sincos_positions(width, grid))  # n d, or what loaded weights bring

    def forward(self, tokens: Tensor, keep: Tensor, masked: Tensor, visible_too: bool = False) -> Tensor:
        """Encoder tokens (b 1+k d) of the patches `keep` (b k) → pixels (b m p·p·c) of `masked` (b m).

        visible_too: predict the visible patches too: pixels (b k+m p·p·c), those of the patches `keep` first.

        Each token carries its own position, so attention does not depend on their order. Masked tokens simply
        follow the visible ones, and nothing is shuffled back.
        """
        tokens = self.embed(tokens)  # b 1+k e
        visible = tokens[:, 1:] + self.positions[keep]  # b k e
        hidden = self.mask_token + self.positions[masked]  # b m e
        tokens = torch.cat([tokens[:, :1], visible, hidden], dim=1)  # b 1+n e
        for block in self.blocks:
            tokens = run_block(block, tokens, recompute=self.recompute)  # b 1+n e

        wanted = tokens[:, 1:] if visible_too else tokens[:, -masked.shape[1] :]  # b m e
        return self.predict(self.norm(wanted))  # b m p·p·c


class CrossDecoder(nn.Module):
    """Mask tokens attend to the visible tokens only (CrossMAE, Fu et al. 2024, arXiv 2401.14391).

    Each block reads its own learned sum of the encoder's depths (section 3.3, inter-block attention). Mask
    tokens do not see each other, so any subset of the masked patches may be predicted, with the same result for each.
    Arguments as for `Decoder`, and `encoder_depth`, the encoder's number of blocks.
    """

    reads_depths = True
    positions: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        pixels: int,
        encoder_depth: int,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.recompute = False  # recompute activations in the backward pass instead of keeping them; set for training

        self.mask_token = token(width)
        depth_weights = torch.empty(depth, encoder_depth + 1)
        self.depth_weights = nn.Parameter(nn.init.normal_(depth_weights, std=(encoder_depth + 1) ** -0.5))
        self.blocks = nn.ModuleList(CrossBlock(width, heads, encoder_width, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        self.predict = Linear(width, pixels)
        self.register_buffer("positions", sincos_positions(width, grid))  # n d, or what loaded weights bring

    def forward(self, depths: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        """All depths of the encoder (l b 1+k d) → pixels (b m p·p·c) of `masked` (b m); the tokens imply `keep`."""
        tokens = self.mask_token + self.positions[masked]  # b m e

        # what each block attends to: a weighted sum of the encoder's depths
        sources = torch.einsum("j l, l b k d -> j b k d", self.depth_weights, depths)  # j b 1+k d
        for block, source in zip(self.blocks, sources, strict=True):
            tokens = run_block(block, tokens, source, recompute=self.recompute)
        return self.predict(self.norm(tokens))  # b m p·p·c
