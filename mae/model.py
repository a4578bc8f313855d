"""MaskedAutoencoder: encoder, decoder and the loss (He et al. 2022, arXiv 2111.06377)."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.errors import UserError, did_you_mean
from data.settings import Size, height_and_width
from mae.decoder import CrossDecoder, Decoder
from mae.encoder import Encoder
from mae.engine.shapes import shapes_only
from mae.masking import mask_of, random_masking, take
from mae.patches import patchify
from mae.settings import ModelSettings

NORM_PIXEL_LOSS = True  # unless a decoder was already trained otherwise: the paper's better results have it

# The paper's ViT-B, -L and -H (tables 8 and 9) with its decoder of 512 × 8; the smaller ones, which
# the paper does not have, keep the proportion of decoder to encoder. Small patches are for small images:
# 4 pixels for 28 to 48, 8 for 56 to 96.


def _sizes(patch: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> dict[str, int]:
    """Sizes by the names they have in a config; of encoder and decoder: width, depth, heads."""
    sizes = {"patch_size": patch}
    sizes["width"], sizes["depth"], sizes["heads"] = encoder
    sizes["decoder_width"], sizes["decoder_depth"], sizes["decoder_heads"] = decoder
    return sizes


PRESETS = {
    "vit_micro_patch4": _sizes(4, encoder=(128, 6, 4), decoder=(64, 2, 2)),
    "vit_micro_patch8": _sizes(8, encoder=(128, 6, 4), decoder=(64, 2, 2)),
    "vit_micro_patch16": _sizes(16, encoder=(128, 6, 4), decoder=(64, 2, 2)),
    "vit_tiny_patch4": _sizes(4, encoder=(192, 12, 3), decoder=(128, 4, 4)),
    "vit_small_patch4": _sizes(4, encoder=(384, 12, 6), decoder=(256, 8, 8)),
    "vit_tiny_patch8": _sizes(8, encoder=(192, 12, 3), decoder=(128, 4, 4)),
    "vit_small_patch8": _sizes(8, encoder=(384, 12, 6), decoder=(256, 8, 8)),
    "vit_tiny_patch16": _sizes(16, encoder=(192, 12, 3), decoder=(128, 4, 4)),
    "vit_small_patch16": _sizes(16, encoder=(384, 12, 6), decoder=(256, 8, 8)),
    "vit_base_patch16": _sizes(16, encoder=(768, 12, 12), decoder=(512, 8, 16)),
    "vit_large_patch16": _sizes(16, encoder=(1024, 24, 16), decoder=(512, 8, 16)),
    "vit_huge_patch14": _sizes(14, encoder=(1280, 32, 16), decoder=(512, 8, 16)),
}


class Reconstruction(NamedTuple):
    """What a masked autoencoder makes of a batch."""

    loss: Tensor  # (): mean squared error over the masked patches
    pred: Tensor  # (b m p·p·c): the predicted patches, normalised where the loss is
    masked: Tensor  # (b m): which patches those are
    mask: Tensor  # (b n): 1 = not seen by the encoder


class MaskedAutoencoder(nn.Module):
    """Hides patches, encodes the others, and predicts the hidden ones from these."""

    def __init__(self, encoder: Encoder, decoder: Decoder | CrossDecoder, norm_pixel_loss: bool = True):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.norm_pixel_loss = norm_pixel_loss
        self.report: Any = None  # on the weights it was made from, if they came from another program

    @property
    def patches(self) -> int:
        """Number of patches (n) of an image."""
        return self.encoder.grid[0] * self.encoder.grid[1]

    def forward(
        self,
        images: Tensor,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        predict_ratio: float | None = None,
        visible_loss: float = 0.0,
    ) -> Reconstruction:
        """Standardised images (b c h w) → Reconstruction.

        noise: (b n), the lowest are kept; None draws it from torch's global generator.
        predict_ratio: share of the n patches to predict: the masked ones with the lowest noise. None predicts
        all masked ones.
        visible_loss: weight of an additional loss on the visible patches (decoder self; arXiv 2402.03752).
        """
        # hide patches
        if noise is None:
            noise = torch.rand(len(images), self.patches, device=images.device)
        keep, masked = random_masking(noise, mask_ratio)  # b k, b m
        mask = mask_of(masked, self.patches)  # b n

        if predict_ratio is not None:
            # in the self decoder mask tokens attend to each other: leaving some out changes the rest
            if not self.decoder.reads_depths:
                raise UserError("predict_ratio: found it with the decoder 'self', expected 'cross'")
            predicted = max(int(self.patches * predict_ratio), 1)
            masked = masked[:, :predicted]  # b m

        # predict what was hidden, and compare
        tokens = self._encode(images, keep)
        if not visible_loss:
            pred = self.decoder(tokens, keep, masked)  # b m p·p·c
            return Reconstruction(self._error(pred, images, masked), pred, masked, mask)

        if self.decoder.reads_depths:
            raise UserError("visible_loss: found it with the decoder 'cross', expected 'self'")
        both = self.decoder(tokens, keep, masked, visible_too=True)  # b k+m p·p·c
        visible, pred = both.split([keep.shape[1], masked.shape[1]], dim=1)
        loss = self._error(pred, images, masked) + visible_loss * self._error(visible, images, keep)
        return Reconstruction(loss, pred, masked, mask)

    def _error(self, pred: Tensor, images: Tensor, which: Tensor) -> Tensor:
        """Mean squared error of what is predicted (b m p·p·c) for the patches `which` (b m) of the images."""
        target = take(patchify(images, self.encoder.patch_size), which)  # b m p·p·c
        if self.norm_pixel_loss:
            target = normalize_patches(target)  # b m p·p·c
        return (pred.to(target.dtype) - target).square().mean()  # float32 under autocast too

    def _encode(self, images: Tensor, keep: Tensor) -> Tensor:
        if self.decoder.reads_depths:
            return torch.stack(self.encoder.depths(images, keep))  # l b 1+k d
        return self.encoder(images, keep)  # b 1+k d


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch (… p·p·c) by its own mean and deviation: the paper's norm_pix_loss."""
    mean = patches.mean(-1, keepdim=True)  # … 1
    variance = patches.var(-1, keepdim=True)  # … 1
    return (patches - mean) / (variance + 1e-6).sqrt()


def build_mae(
    preset: str = "vit_base_patch16",
    image_size: Size = 224,
    in_channels: int = 1,
    decoder: str = "self",
    norm_pixel_loss: bool = True,
    pixel_mean: float | Sequence[float] = 0.5,
    pixel_std: float | Sequence[float] = 0.25,
    norm_eps: float = 1e-6,
    embed: str = "linear",
    **sizes: int | None,
) -> MaskedAutoencoder:
    """A masked autoencoder by preset; `sizes` (patch_size, width, decoder_depth, …) override the preset's.

    Raises ValueError for an unknown preset, decoder or size, and for sizes that do not divide.
    """
    # what was asked for: the preset's sizes, or those given in their place
    if preset not in PRESETS:
        known = f"{', '.join(PRESETS)}{did_you_mean(preset, PRESETS)}"
        raise UserError(f"model.preset: found {preset!r}, expected one of {known}")
    if decoder not in ("self", "cross"):
        raise UserError(f"model.decoder: found {decoder!r}, expected 'self' or 'cross'")
    if embed not in ("linear", "conv"):
        raise UserError(f"model.embed: found {embed!r}, expected 'linear' or 'conv'")
    size = _overridden(PRESETS[preset], sizes)
    if embed == "conv" and size["patch_size"] == 1:
        raise UserError("model.patch_size: found 1, expected at least 2 with model.embed = conv")
    image_size = height_and_width(image_size)
    _check_geometry(image_size, size)
    pixels = size["patch_size"] ** 2 * in_channels  # values in a patch
    if norm_pixel_loss and pixels == 1:
        raise UserError("model.patch_size: found 1, expected at least 2 with norm_pixel_loss (one value has no spread)")

    # the decoder reads the encoder's tokens
    encoder = Encoder(
        image_size=image_size,
        patch_size=size["patch_size"],
        in_channels=in_channels,
        width=size["width"],
        depth=size["depth"],
        heads=size["heads"],
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        eps=norm_eps,
        embed=embed,
    )
    for_decoder: dict[str, Any] = {
        "grid": encoder.grid,
        "encoder_width": size["width"],
        "width": size["decoder_width"],
        "depth": size["decoder_depth"],
        "heads": size["decoder_heads"],
        "pixels": pixels,
        "eps": norm_eps,
    }

    # both decoders take the same sizes; the cross decoder also reads every depth of the encoder
    if decoder == "cross":
        return MaskedAutoencoder(encoder, CrossDecoder(**for_decoder, encoder_depth=size["depth"]), norm_pixel_loss)
    return MaskedAutoencoder(encoder, Decoder(**for_decoder), norm_pixel_loss)


def _overridden(preset: dict[str, int], sizes: dict[str, int | None]) -> dict[str, int]:
    """The preset's sizes, overridden by those that are given; UserError for one that no preset has."""
    unknown = sizes.keys() - preset.keys()
    if unknown:
        raise UserError(f"model: found size {min(unknown)!r}, expected one of {', '.join(preset)}")

    overridden = dict(preset)
    for name, value in sizes.items():
        if value is not None:
            overridden[name] = value
    return overridden


def mae_from(settings: ModelSettings, image_size: Size) -> MaskedAutoencoder:
    """The masked autoencoder a config's `model` section describes."""
    arguments = settings.model_dump(exclude={"init"})
    if settings.norm_pixel_loss is None:
        arguments["norm_pixel_loss"] = NORM_PIXEL_LOSS
    return build_mae(image_size=image_size, **arguments)


@cache  # remembers sizes that fit: a run asks several times
def check_sizes(settings: ModelSettings, image_size: Size) -> None:
    """UserError if the sizes do not fit together. It builds nothing, so that it can run before hours of decoding."""
    one_of_each = settings.model_copy(update={"depth": 1, "decoder_depth": 1})  # all blocks are alike
    with shapes_only():
        mae_from(one_of_each, image_size)


def _check_geometry(image_size: tuple[int, int], size: dict[str, int]) -> None:
    """UserError if the sizes do not fit the image or each other."""
    for name, value in size.items():
        if value < 1:
            raise UserError(f"model.{name}: found {value}, expected at least 1")

    # patches tile the image, and one can be hidden while another stays
    patch = size["patch_size"]
    height, width = image_size
    if height % patch or width % patch:
        raise UserError(f"model.patch_size: found {patch}, expected a divisor of the image size {image_size}")
    if height * width < 2 * patch * patch:
        raise UserError(f"model.patch_size: found {patch}, expected at least two patches in {image_size}")

    # heads share the width, and positions need four parts of it
    for part in ("", "decoder_"):
        width = size[f"{part}width"]
        heads = size[f"{part}heads"]
        if width % heads:
            raise UserError(f"model.{part}heads: found {heads}, expected a divisor of {part}width {width}")
        if width % 4:
            raise UserError(f"model.{part}width: found {width}, expected a multiple of 4 (sine-cosine positions)")
