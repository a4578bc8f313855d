"""Encoder + pooling + head: a linear probe where the encoder is frozen, else a fine-tuned classifier."""

from collections.abc import Callable
from typing import get_args

from torch import Tensor, nn

from classify.settings import Pool
from data.errors import UserError
from mae.encoder import Encoder
from mae.engine.optim import without_autocast
from mae.masking import random_masking


class Classifier(nn.Module):
    """Standardised images (b c h w) → logits (b) of *abnormal*; every patch is looked at.

    pool: "mean" of the patch tokens or the "cls" token.
    probe: freeze the encoder and put a BatchNorm without affine parameters before the linear head, so
    that the probe does not depend on the features' scale (He et al. 2022, appendix A.1).
    drop_patches: the share of patches that a step of fine-tuning leaves out (PatchDropout, Liu et al. 2023, arXiv
    2208.07220). An encoder that was pretrained by masking knows images with holes.
    """

    def __init__(self, encoder: Encoder, pool: Pool = "mean", probe: bool = False, drop_patches: float = 0.0):
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.probe = probe
        self.drop_patches = drop_patches

        # a frozen encoder's features can have any scale
        self.norm: nn.Module = nn.Identity()
        if probe:
            self.norm = nn.BatchNorm1d(encoder.width, eps=1e-6, affine=False)
            encoder.requires_grad_(False)

        self.head = nn.Linear(encoder.width, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def depth_draws(self) -> int:
        """How many random draws an image needs for stochastic depth."""
        return 2 * len(self.encoder.blocks)

    @property
    def patch_draws(self) -> int:
        """How many draws decide which patches of an image a training step looks at; 0: it looks at all."""
        if self.probe or not self.drop_patches:
            return 0
        return len(self.encoder.positions)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.probe:
            self.encoder.eval()  # frozen in behaviour too: no stochastic depth
        return self

    def standardize(self, images: Tensor) -> Tensor:
        return self.encoder.standardize(images)

    def forward(self, images: Tensor, noise: Tensor | None = None, patch_noise: Tensor | None = None) -> Tensor:
        """`noise` (b 2·depth): draws for stochastic depth, see `Encoder`; `patch_noise` (b n): the lowest are kept."""
        keep = None
        if patch_noise is not None:
            keep, _ = random_masking(patch_noise, self.drop_patches)
        return self.classify(self.encoder(images, keep, noise))

    def features(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Standardised images (b c h w) → what the head sees (b d)."""
        return self.pooled(self.encoder(images, noise=noise))

    def pooled(self, tokens: Tensor) -> Tensor:
        """The encoder's tokens (b 1+n d), of all patches or of some → what the head sees (b d)."""
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(dim=1)

    def classify(self, tokens: Tensor) -> Tensor:
        """The encoder's tokens (b 1+n d), of all patches or of some → logits (b)."""
        pooled = self.pooled(tokens)  # b d

        # not in 16 bits: scores would tie
        with without_autocast(pooled.device):
            return self.head(self.norm(pooled.to(self.head.weight.dtype))).squeeze(1)  # b


def build_classifier(
    encoder: Encoder, pool: Pool = "mean", probe: bool = False, drop_path: float = 0.0, drop_patches: float = 0.0
) -> Classifier:
    """A classifier on a (pretrained or fresh) encoder; `drop_path` is the last block's rate in training."""
    if pool not in get_args(Pool):
        raise UserError(f"finetune.pool: found {pool!r}, expected one of {', '.join(get_args(Pool))}")
    encoder.drop_path = drop_path
    return Classifier(encoder, pool, probe, drop_patches)


def layer_scale(decay: float, depth: int) -> Callable[[str], float]:
    """Layer-wise learning-rate decay (Clark et al. 2020): parameter name of a `Classifier` → factor.

    The head has factor 1, block i has decay^(depth - i), the patch embedding decay^(depth + 1).
    """

    def scale(name: str) -> float:
        # encoder.blocks.3.…, encoder.embed.…, encoder.norm.…, head.…
        parts = name.split(".")
        if parts[0] != "encoder" or parts[1] == "norm":
            return 1.0
        layer = 0
        if parts[1] == "blocks":
            layer = int(parts[2]) + 1
        return decay ** (depth + 1 - layer)

    return scale
