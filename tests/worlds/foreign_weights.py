"""Weights as other programs keep them, of a model as small as the tiny world's, and runs that begin from them."""

import json
from pathlib import Path

import torch
from tiny_world import MODEL, tiny_config
from torch import Tensor
from torch.nn import functional as F

from classify.settings import ClassifyConfig
from data.config import change_config
from mae import build_mae
from mae.model import MaskedAutoencoder
from mae.weights import save_huggingface

WIDTH, DEPTH, HEADS, PATCH = MODEL["width"], MODEL["depth"], MODEL["heads"], MODEL["patch_size"]


def quiet(text: str) -> None:
    pass


def tiny(channels: int = 3, seed: int = 0, image_size=12, **wishes) -> MaskedAutoencoder:
    """A masked autoencoder with no weight at zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_mae(image_size=image_size, in_channels=channels, **MODEL | wishes)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def grey(b: int = 2, size: tuple[int, int] = (12, 12)) -> Tensor:
    return torch.randint(0, 256, (b, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def folder_of(model: MaskedAutoencoder, folder: Path, license: str | None = None) -> Path:
    save_huggingface(model, folder, license, say=quiet)
    return folder


def edit_json(path: Path, **changes) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def timm_weights(grid: int = 3, channels: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A timm ViT's state dict, learned positions and head included."""
    names = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid * grid, WIDTH),
        "patch_embed.proj.weight": (WIDTH, channels, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "head.weight": (5, WIDTH),
        "head.bias": (5,),
    }
    shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    shapes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH), "norm1": (WIDTH,), "norm2": (WIDTH,)}
    for block in range(DEPTH):
        for name, shape in shapes.items():
            names |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in names.items()}


def timm_features(weights: dict[str, Tensor], images: Tensor, norm: str = "norm") -> Tensor:
    """What a timm ViT computes from standardised images (b c h w): tokens (b 1+n d)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], PATCH)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + weights["pos_embed"]
    for block in range(DEPTH):
        name = f"blocks.{block}"
        q, k, v = linear(f"{name}.attn.qkv", layer_norm(f"{name}.norm1", x)).unflatten(2, (3, HEADS, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(f"{name}.attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", layer_norm(f"{name}.norm2", x))))
    return layer_norm(norm, x)


def with_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the names that facebookresearch/mae adds in pretraining, and without the head."""
    width, found = MODEL["decoder_width"], {n: t for n, t in weights.items() if not n.startswith("head.")}
    shapes = {"decoder_embed": (width, WIDTH), "decoder_norm": (width,), "decoder_pred": (3 * PATCH * PATCH, width)}
    blocks = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm1": (width,), "norm2": (width,)}
    blocks |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes |= {f"decoder_blocks.0.{name}": shape for name, shape in blocks.items()}
    for name, shape in shapes.items():
        found |= {f"{name}.weight": random(*shape), f"{name}.bias": random(*shape[:1])}
    return found | {
        "mask_token": random(1, 1, width),
        "decoder_pos_embed": random(1, weights["pos_embed"].shape[1], width),
    }


def reference_file(path: Path, weights: dict[str, Tensor], **others) -> Path:
    torch.save({"model": weights} | others, path)
    return path


def from_weights(root: Path, init: Path, changes: dict | None = None, **settings) -> ClassifyConfig:
    """tiny_config with weights to begin from, and without model sizes."""
    config = tiny_config(root, pretrain__epochs=1, finetune__epochs=1, **settings)
    null = {f"model.{name}": None for name in MODEL}
    return change_config(config, null | {"model.init": str(init)} | (changes or {}))
