"""A patch embedding of small convolutions that end at the patch's edges, so that no patch sees its neighbours."""

from einops import rearrange
from torch import Tensor, nn

from mae.convolution import Conv3x3
from mae.linear import Linear

LARGE = 8  # side in pixels; from this size on a third convolution halves the patch once more


class PatchConvolutions(nn.Module):
    """Patches (b k p·p·c) → tokens (b k d): 3 × 3 convolutions inside each patch, then one linear layer of all of it.

    Early convolutions help ViTs to learn (Xiao et al. 2021). Convolutions across patches would show the encoder
    what is hidden. These do not: they are padded with zeros at each patch's edge.
    """

    def __init__(self, patch_size: int, in_channels: int, width: int):
        super().__init__()
        self.patch_size = patch_size
        channels = max(width // 4, 8)
        strides = (1, 2, 2) if patch_size >= LARGE else (1, 2)

        layers: list[nn.Module] = []
        side = patch_size
        for number, stride in enumerate(strides):
            layers += [Conv3x3(channels if number else in_channels, channels, stride, bias=True), nn.GELU()]
            side = -(-side // stride)
        self.convolutions = nn.Sequential(*layers)
        self.project = Linear(channels * side * side, width)

    def forward(self, patches: Tensor) -> Tensor:
        batch = patches.shape[0]
        images = rearrange(patches, "b k (p q c) -> (b k) c p q", p=self.patch_size, q=self.patch_size)
        return self.project(rearrange(self.convolutions(images), "(b k) c p q -> b k (c p q)", b=batch))  # b k d
