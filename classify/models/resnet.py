"""ResNet-18 and -50 with torchvision's names (He et al. 2016; the stride on the 3×3 convolution, as in v1.5)."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import UserError
from mae.convolution import Conv3x3
from mae.encoder import per_channel
from mae.engine.optim import without_autocast

WIDTH = 64  # channels of the stem and the first layer
OFFSET = "conv1.offset"  # only in weights that were adapted to images standardised as here
Depths = tuple[int, int, int, int]  # blocks of each of the four layers


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = Conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(branch + shortcut)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(branch)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(branch + shortcut)


class OffsetConv2d(nn.Conv2d):
    """A convolution of images that were shifted before it: each position of the kernel adds its offset.

    A position adds its offset where it lies on the image, and nothing where it lies on the padding. So weights made for
    images that were standardised differently compute the same, even at the border.
    """

    offset: Tensor

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int, padding: int):
        super().__init__(inputs, outputs, kernel_size, stride, padding, bias=False)
        self.register_buffer("offset", torch.zeros(outputs, 1, kernel_size, kernel_size))  # d 1 p q

    def forward(self, input: Tensor) -> Tensor:
        inside = torch.ones_like(input[:1, :1])  # 1 1 h w
        return super().forward(input) + F.conv2d(inside, self.offset, stride=self.stride, padding=self.padding)


class ResNet(nn.Module):
    """Standardised images (b c h w) → logits (b) of *abnormal* for one class, (b classes) for more.

    probe: freeze the trunk, its batch statistics too, and put a BatchNorm without affine parameters before the linear
    head, as in a ViT's probe.
    folded: the first convolution has offsets, which weights of other programs fill.
    """

    depth_draws = 0  # it has no stochastic depth
    patch_draws = 0  # and no patches

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Depths,
        in_channels: int,
        classes: int,
        small_stem: bool,
        pixel_mean: float | Sequence[float],
        pixel_std: float | Sequence[float],
        probe: bool = False,
        folded: bool = False,
    ):
        super().__init__()
        self.probe = probe

        # stem
        self.maxpool: nn.Module
        side, stride = (3, 1) if small_stem else (7, 2)
        if folded:
            self.conv1: nn.Conv2d = OffsetConv2d(in_channels, WIDTH, side, stride, padding=side // 2)
        else:
            self.conv1 = nn.Conv2d(in_channels, WIDTH, side, stride, padding=side // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        if small_stem:
            self.maxpool = nn.Identity()
        else:
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        # four layers: the later three halve the side and double the width
        wider = WIDTH * block.expansion  # what a layer of width WIDTH returns
        self.layer1 = _layer(block, inputs=WIDTH, width=WIDTH, depth=depths[0], stride=1)
        self.layer2 = _layer(block, inputs=wider, width=2 * WIDTH, depth=depths[1], stride=2)
        self.layer3 = _layer(block, inputs=2 * wider, width=4 * WIDTH, depth=depths[2], stride=2)
        self.layer4 = _layer(block, inputs=4 * wider, width=8 * WIDTH, depth=depths[3], stride=2)
        features = 8 * wider
        self.fc = nn.Linear(features, classes)

        # preprocessing is the config's, not the weights': no checkpoint holds it
        self.register_buffer("mean", per_channel(pixel_mean, in_channels), persistent=False)  # c 1 1
        self.register_buffer("std", per_channel(pixel_std, in_channels), persistent=False)  # c 1 1

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

        # a frozen trunk's features can have any scale
        self.norm: nn.Module = nn.Identity()
        if probe:
            self.requires_grad_(False)
            self.norm = nn.BatchNorm1d(features, eps=1e-6, affine=False)
            self.fc.requires_grad_(True)
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def train(self, mode: bool = True) -> "ResNet":
        super().train(mode)
        if self.probe:
            for name, part in self.named_children():
                if name not in ("norm", "fc"):
                    part.eval()  # frozen in behaviour too: no batch statistics
        return self

    def standardize(self, images: Tensor) -> Tensor:
        """8-bit grey levels (b c h w) → what the model reads; one channel serves as all of them."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: Tensor, noise: Tensor | None = None, patch_noise: Tensor | None = None) -> Tensor:
        """`noise` is for models with stochastic depth, `patch_noise` for those with patches; a ResNet has neither."""
        return self.classify(self.maps(images))

    def features(self, images: Tensor) -> Tensor:
        """Standardised images (b c h w) → what the head sees (b d)."""
        return self.maps(images).mean(dim=(2, 3))

    def maps(self, images: Tensor) -> Tensor:
        """Standardised images (b c h w) → the last layer's maps (b d h w)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))

    def stem(self, images: Tensor) -> Tensor:
        """Standardised images (b c h w) → what the four layers read (b d h w)."""
        return self.maxpool(F.relu(self.bn1(self.conv1(images))))

    def classify(self, maps: Tensor) -> Tensor:
        """The last layer's maps (b d h w) → logits."""
        pooled = maps.mean(dim=(2, 3))  # b d

        # not in 16 bits: scores would tie
        with without_autocast(pooled.device):
            return self.fc(self.norm(pooled.to(self.fc.weight.dtype))).squeeze(1)


def _layer(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """`depth` blocks, the first of which strides."""
    outputs = width * block.expansion

    # the shortcut of the first block must have the shape of the block's output
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    blocks = [block(inputs, width, stride, downsample)]
    for _ in range(depth - 1):
        blocks.append(block(outputs, width, stride=1, downsample=None))
    return nn.Sequential(*blocks)


SHAPES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], Depths]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def build_resnet(
    name: str = "resnet18",
    in_channels: int = 1,
    classes: int = 1,
    stem: str = "imagenet",
    pixel_mean: float | Sequence[float] = 0.5,
    pixel_std: float | Sequence[float] = 0.25,
    probe: bool = False,
    folded: bool = False,
) -> ResNet:
    """A randomly initialised ResNet; `stem`: "imagenet" (7×7/2, max-pool) or "small" (3×3/1); else see `ResNet`.

    Raises ValueError for an unknown name or stem.
    """
    if name not in SHAPES:
        raise UserError(f"finetune.model: found {name!r}, expected one of {', '.join(SHAPES)}")
    if stem not in ("imagenet", "small"):
        raise UserError(f"finetune.stem: found {stem!r}, expected imagenet or small")

    block, depths = SHAPES[name]
    return ResNet(
        block,
        depths,
        in_channels=in_channels,
        classes=classes,
        small_stem=stem == "small",
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        probe=probe,
        folded=folded,
    )


def resnet_layer_scale(decay: float) -> Callable[[str], float]:
    """Layer-wise learning-rate decay, as `layer_scale` of a ViT: parameter name of a `ResNet` → factor.

    The head has factor 1, the four layers decay^1 to decay^4 from the last to the first, the stem decay^5.
    """

    def scale(name: str) -> float:
        if name.startswith("fc."):
            return 1.0
        layer = re.match(r"layer(\d)\.", name)
        return decay ** (5 - int(layer[1]) if layer else 5)

    return scale
