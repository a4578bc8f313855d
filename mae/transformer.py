"""The pre-norm transformer block of the Vision Transformer (Dosovitskiy et al. 2021)."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention (b n d) → (b n d)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(tokens)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and around a residual path."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor, drop: Tensor | None = None) -> Tensor:
        """`drop` (b 2) scales each image's two residual branches; see `drop_path`."""
        attended, computed = (None, None) if drop is None else drop[:, :, None, None].unbind(1)  # b 1 1
        tokens = tokens + _scale(self.attention(self.norm1(tokens)), attended)
        return tokens + _scale(self.mlp(self.norm2(tokens)), computed)


def _scale(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale.to(branch.dtype)


def drop_path(noise: Tensor, rates: Tensor) -> Tensor:
    """Stochastic depth (Huang et al. 2016): noise and rates → 0 where dropped, else 1 / (1 - rate)."""
    return (noise >= rates) / (1 - rates)


def init_weights(module: nn.Module) -> None:
    """The paper's initialisation (section A.1): Xavier-uniform linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def token(width: int) -> nn.Parameter:
    """A learned token (1 1 d)."""
    return nn.Parameter(torch.randn(1, 1, width) * 0.02)
