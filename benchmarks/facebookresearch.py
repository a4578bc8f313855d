"""facebookresearch/mae's model on today's libraries, with a stand-in for what it takes from timm 0.3.2."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor, nn


def facebook_files(folder: Path) -> ModuleType:
    """`models_mae.py` of a folder that holds the repository's files."""
    if "timm" not in sys.modules and find_spec("timm") is None:
        for name in ("timm", "timm.models", "timm.models.vision_transformer"):
            sys.modules[name] = ModuleType(name)
        vars(sys.modules["timm.models.vision_transformer"]).update(PatchEmbed=PatchEmbed, Block=Block)
    vars(np).setdefault("float", float)  # its code for positions uses a name that numpy 1.24 removed
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import models_mae

    return models_mae


class PatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # b n d


class Attention(nn.Module):
    """Written out, as timm had it then."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 b h n d
        weights = ((qkv[0] @ qkv[1].transpose(-2, -1)) * self.scale).softmax(-1)  # b h n n
        return self.proj((weights @ qkv[2]).transpose(1, 2).flatten(2))  # b n d


class MLP(nn.Sequential):
    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_layer=nn.LayerNorm, **_: object):
        super().__init__()
        self.norm1, self.attn = norm_layer(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = norm_layer(dim), MLP(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))
