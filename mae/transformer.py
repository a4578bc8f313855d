"""The pre-norm transformer blocks of the Vision Transformer (Dosovitskiy et al. 2021)."""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mae.linear import Linear


class Attention(nn.Module):
    """Multi-head self-attention (b n d) → (b n d)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)  # b h n d
        return self.out(rearrange(attended, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (b m d) to a source (b k e) → (b m d)."""

    def __init__(self, width: int, heads: int, source_width: int):
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(source_width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, tokens: Tensor, source: Tensor) -> Tensor:
        q = rearrange(self.q(tokens), "b m (h d) -> b h m d", h=self.heads)
        k, v = rearrange(self.kv(source), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)  # b h m d
        return self.out(rearrange(attended, "b h m d -> b m (h d)"))


class MLP(nn.Module):
    """Two layers (b n d) → (b n d)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.gelu(self.up(tokens))  # b n hidden
        return self.down(hidden)  # b n d


class Block(nn.Module):
    """Attention and MLP, each with a LayerNorm before it and a residual path around it."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor, drop: Tensor | None = None) -> Tensor:
        """`drop` (b 2) scales each image's two residual branches; see `drop_path`."""
        attended = self.attention(self.norm1(tokens))  # b n d
        tokens = tokens + _scaled(attended, drop, branch=0)

        computed = self.mlp(self.norm2(tokens))  # b n d
        return tokens + _scaled(computed, drop, branch=1)


class CrossBlock(nn.Module):
    """Cross-attention to a source and MLP, each with a LayerNorm before it and a residual path around it."""

    def __init__(self, width: int, heads: int, source_width: int, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.source_norm = nn.LayerNorm(source_width, eps)
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = CrossAttention(width, heads, source_width)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor, source: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), self.source_norm(source))
        return tokens + self.mlp(self.norm2(tokens))


def run_block(block: nn.Module, *inputs: Tensor | None, recompute: bool) -> Tensor:
    """`block(*inputs)`; recompute: keep no activations for the backward pass, make them again (Chen et al. 2016)."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # blocks draw nothing
    return block(*inputs)


@runtime_checkable
class _Recomputes(Protocol):
    """Encoder and decoders, which run their blocks by `run_block`."""

    recompute: bool


def configure_blocks(model: nn.Module, compiled: bool, recompute: bool) -> None:
    """Set how the blocks compute, not what: parameters keep their names, so checkpoints fit with and without.

    A model without such blocks, such as a ResNet, is compiled whole. It keeps its activations: recomputing them
    would count its batch statistics twice.
    """
    for module in model.modules():
        if isinstance(module, _Recomputes):
            module.recompute = recompute

    if compiled:
        torch.compiler.reset()  # torch limits a function's graphs in a process, and a comparison trains many models
        blocks: list[nn.Module] = [module for module in model.modules() if isinstance(module, Block | CrossBlock)]
        for module in blocks or [model]:
            module.compile()


def _scaled(tokens: Tensor, drop: Tensor | None, branch: int) -> Tensor:
    """What a residual branch adds, scaled by each image's number for this branch."""
    if drop is None:
        return tokens
    return tokens * drop[:, branch, None, None].to(tokens.dtype)  # b 1 1


def drop_path(noise: Tensor, rates: Tensor) -> Tensor:
    """Stochastic depth (Huang et al. 2016): noise and rates → 0 where dropped, else 1 / (1 - rate)."""
    return (noise >= rates) / (1 - rates)


def token(width: int) -> nn.Parameter:
    """A learned token (1 1 d)."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
