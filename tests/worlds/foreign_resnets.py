"""ResNets as other programs keep them, with no weight at zero or one, and what these programs compute from an image."""

from collections import OrderedDict
from pathlib import Path

import torch
from tiny_world import tiny_config
from torch import Tensor, nn
from torch.nn import functional as F

from classify.models import resnet
from classify.settings import ClassifyConfig
from data.config import change_config

IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def torchvision_weights(
    network: str = "resnet18", channels: int = 3, kernel: int = 7, classes: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """torchvision's names and shapes, in its order; counts of batches included."""
    bottleneck = network == "resnet50"
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = OrderedDict()

    def convolution(name: str, inputs: int, outputs: int, side: int) -> None:
        scale = (2 / (inputs * side * side)) ** 0.5
        weights[f"{name}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=generator)

    def norm(name: str, width: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            drawn = torch.rand(width, generator=generator)
            weights[f"{name}.{leaf}"] = drawn + 0.5 if leaf in ("weight", "running_var") else 0.2 * (drawn - 0.5)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(17)

    convolution("conv1", channels, resnet.WIDTH, kernel)
    norm("bn1", resnet.WIDTH)
    inputs = resnet.WIDTH
    for stage, depth in enumerate(DEPTHS[network]):
        width = resnet.WIDTH * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            place = f"layer{stage + 1}.{block}"
            shapes = [(inputs, width, 3), (width, width, 3)]
            if bottleneck:
                shapes = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
            for number, (before, after, side) in enumerate(shapes, start=1):
                convolution(f"{place}.conv{number}", before, after, side)
                norm(f"{place}.bn{number}", after)
            if block == 0 and (stage or bottleneck):
                convolution(f"{place}.downsample.0", inputs, outputs, 1)
                norm(f"{place}.downsample.1", outputs)
            inputs = outputs
    weights["fc.weight"] = 0.1 * torch.randn(classes, inputs, generator=generator)
    weights["fc.bias"] = torch.randn(classes, generator=generator)
    return weights


def torchvision_features(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Standardised images (b c h w) → pooled features (b d), by the published definition and these names."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-5)

    small = weights["conv1.weight"].shape[-1] == 3
    x = F.conv2d(images, weights["conv1.weight"], stride=1 if small else 2, padding=1 if small else 3)
    x = norm("bn1", x).relu()
    if not small:
        x = F.max_pool2d(x, 3, 2, 1)

    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in weights:
            place = f"layer{stage}.{block}"
            count = 3 if f"{place}.conv3.weight" in weights else 2
            stride = 2 if stage > 1 and block == 0 else 1
            y = x
            for number in range(1, count + 1):
                kernel = weights[f"{place}.conv{number}.weight"]
                strided = number == (2 if count == 3 else 1)
                y = F.conv2d(y, kernel, stride=stride if strided else 1, padding=kernel.shape[-1] // 2)
                y = norm(f"{place}.bn{number}", y)
                if number < count:
                    y = y.relu()
            if f"{place}.downsample.0.weight" in weights:
                x = norm(f"{place}.downsample.1", F.conv2d(x, weights[f"{place}.downsample.0.weight"], stride=stride))
            x = (x + y).relu()
            block += 1
    return x.mean((2, 3))


def older(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in files from before torch 0.4.1: parameters, and no counts of batches."""
    kept = OrderedDict()
    for name, tensor in weights.items():
        if not name.endswith("num_batches_tracked"):
            kept[name] = tensor if "running" in name else nn.Parameter(tensor)
    return kept


def medmnist_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in the files of MedMNIST's authors, whose network goes back to kuangliu's."""
    return {name.replace("downsample", "shortcut").replace("fc.", "linear."): t for name, t in weights.items()}


def pth(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def replicated(grey: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """8-bit grey levels (b 1 h w), repeated to one channel per mean, each standardised by its own mean and std."""
    return (grey.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]


def resnet_config(root: Path, init: Path | None, changes: dict | None = None) -> ClassifyConfig:
    config = tiny_config(root, finetune__epochs=1)
    settings = {"finetune.model": "resnet18", "finetune.init": str(init) if init else None}
    return change_config(config, settings | (changes or {}))
