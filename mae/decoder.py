"""The lightweight decoder: visible tokens → pixels of the masked patches. Used in pretraining only."""

import torch
from einops import repeat
from torch import Tensor, nn

from mae.patches import sincos_positions
from mae.transformer import Block, init_weights, token


class Decoder(nn.Module):
    """All tokens attend to each other (the paper's decoder); only masked patches are predicted.

    `grid` is the image's size in patches, `encoder_width` the width of its tokens, `pixels` the
    number of values in a patch (p·p·c).
    """

    def __init__(self, grid: tuple[int, int], encoder_width: int, width: int, depth: int, heads: int, pixels: int):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = token(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, pixels)
        self.register_buffer("positions", sincos_positions(width, grid), persistent=False)  # n d
        self.apply(init_weights)

    def forward(self, tokens: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        """Encoder tokens (b 1+k d) of the patches `keep` (b k) → pixels (b m p·p·c) of `masked` (b m).

        Attention does not mind the order of its tokens, so masked ones stand after the visible ones and
        nothing is shuffled back: each carries its own position.
        """
        tokens = self.embed(tokens)  # b 1+k e
        visible = tokens[:, 1:] + self.positions[keep]  # b k e
        hidden = repeat(self.mask_token, "1 1 e -> b m e", b=len(masked), m=masked.shape[1])
        hidden = hidden + self.positions[masked]  # b m e
        tokens = torch.cat([tokens[:, :1], visible, hidden], dim=1)  # b 1+n e
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens[:, -masked.shape[1] :]))  # b m p·p·c
