"""Same weights and same noise: same loss, predictions and features as the libraries the paper's weights come from.

transformers is compared where it is installed (the `test` extra), facebookresearch/mae where FACEBOOK_MAE is the
folder of its files.
"""

import argparse
import importlib
import os
import sys
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae.model import MaskedAutoencoder
from mae.weights import load_facebook, load_huggingface, save_huggingface

FACEBOOK = os.environ.get("FACEBOOK_MAE")
needs_facebook = pytest.mark.skipif(not FACEBOOK, reason="FACEBOOK_MAE names no folder of facebookresearch/mae's files")


class Geometry(NamedTuple):
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


BASE = Geometry(224, 16, 768, 12, 12, 512, 8, 16)
ODD = Geometry(35, 5, 36, 3, 3, 20, 2, 5)  # 49 patches, sizes that cannot coincide
GEOMETRIES = pytest.mark.parametrize("geometry", [BASE, ODD], ids=["base", "odd"])
NORM_PIXEL = pytest.mark.parametrize("norm_pixel", [False, True], ids=["pixels", "norm-pixel"])


class Outcome(NamedTuple):
    loss: Tensor
    logits: Tensor  # b n p·p·c, all patches
    mask: Tensor  # b n


def shaken(model: nn.Module, seed: int = 0, but: str = "pos") -> nn.Module:
    """Every parameter but the positions moved a little: fresh zero biases and unit norms would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if but not in name:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def images_and_noise(geometry: Geometry, b: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(b, 3, geometry.image_size, geometry.image_size, generator=generator)
    return images, torch.rand(b, (geometry.image_size // geometry.patch_size) ** 2, generator=generator)


@torch.no_grad()
def compare(ours: MaskedAutoencoder, theirs: Outcome, images: Tensor, noise: Tensor, loss=1e-5, pred=1e-4) -> None:
    out = ours(images, 0.75, noise)
    assert out.mask.equal(theirs.mask.to(out.mask))
    torch.testing.assert_close(out.loss, theirs.loss, rtol=loss, atol=0)
    masked = theirs.logits.gather(1, out.masked[..., None].expand(-1, -1, theirs.logits.shape[-1]))
    torch.testing.assert_close(out.pred, masked, rtol=0, atol=pred)


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="transformers is not installed (pip install 'mae-cxr[test]')")


@pytest.fixture(scope="module")
def huggingface(transformers, tmp_path_factory):
    """(geometry) → a ViTMAEForPreTraining and our conversion of its folder, made once."""
    made = {}

    def get(geometry: Geometry):
        if geometry not in made:
            config = transformers.ViTMAEConfig(
                image_size=geometry.image_size,
                patch_size=geometry.patch_size,
                hidden_size=geometry.width,
                intermediate_size=4 * geometry.width,
                num_hidden_layers=geometry.depth,
                num_attention_heads=geometry.heads,
                decoder_hidden_size=geometry.decoder_width,
                decoder_intermediate_size=4 * geometry.decoder_width,
                decoder_num_hidden_layers=geometry.decoder_depth,
                decoder_num_attention_heads=geometry.decoder_heads,
            )
            theirs = shaken(transformers.ViTMAEForPreTraining(config))
            folder = tmp_path_factory.mktemp("huggingface")
            theirs.save_pretrained(folder)
            made[geometry] = theirs, load_huggingface(folder, say=lambda text: None).eval()
        return made[geometry]

    return get


def of_huggingface(model, images: Tensor, noise: Tensor, norm_pixel: bool) -> Outcome:
    model.config.norm_pix_loss = norm_pixel
    with torch.no_grad():
        out = model(images, noise=noise)
    return Outcome(out.loss, out.logits, out.mask)


@NORM_PIXEL
@GEOMETRIES
def test_loss_and_predictions_equal_huggingface(huggingface, geometry, norm_pixel):
    theirs, ours = huggingface(geometry)
    images, noise = images_and_noise(geometry)
    ours.norm_pixel_loss = norm_pixel
    compare(ours, of_huggingface(theirs, images, noise, norm_pixel), images, noise)


@NORM_PIXEL
def test_in_float64_loss_and_predictions_equal_huggingface_to_rounding(transformers, huggingface, norm_pixel):
    theirs, ours = huggingface(ODD)
    images, noise = images_and_noise(ODD)
    images, ours.norm_pixel_loss = images.double(), norm_pixel
    try:
        expected = of_huggingface(theirs.double(), images, noise, norm_pixel)
        compare(ours.double(), expected, images, noise, loss=1e-12, pred=1e-12)
    finally:
        theirs.float()
        ours.float()


@GEOMETRIES
def test_unmasked_features_equal_huggingface_at_mask_ratio_0(huggingface, geometry):
    theirs, ours = huggingface(geometry)
    images, noise = images_and_noise(geometry)
    ratio, theirs.vit.config.mask_ratio = theirs.vit.config.mask_ratio, 0.0
    try:
        with torch.no_grad():
            out = theirs.vit(images, noise=noise)
            tokens = ours.encoder(images)
    finally:
        theirs.vit.config.mask_ratio = ratio
    patches = out.last_hidden_state[:, 1:].gather(1, out.ids_restore[..., None].expand(-1, -1, geometry.width))
    torch.testing.assert_close(tokens[:, 0], out.last_hidden_state[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens[:, 1:], patches, rtol=0, atol=1e-4)


@GEOMETRIES
def test_what_we_save_vitmae_and_vit_reproduce(transformers, huggingface, geometry, tmp_path):
    _, ours = huggingface(geometry)
    save_huggingface(ours, tmp_path, say=lambda text: None)
    images, noise = images_and_noise(geometry, 1)
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
    ours.norm_pixel_loss = theirs.config.norm_pix_loss
    compare(ours, of_huggingface(theirs, images, noise, theirs.config.norm_pix_loss), images, noise)
    vit = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(images), vit(images).last_hidden_state, rtol=0, atol=1e-4)


def test_positions_of_the_class_tokens_count_too(transformers, tmp_path):
    config = transformers.ViTMAEConfig(
        image_size=12,
        patch_size=4,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=3,
        decoder_hidden_size=16,
        decoder_intermediate_size=64,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        norm_pix_loss=True,
    )
    theirs = shaken(transformers.ViTMAEForPreTraining(config), but="nothing")  # positions are moved too
    assert theirs.decoder.decoder_pos_embed[0, 0].any()
    theirs.save_pretrained(tmp_path)
    ours = load_huggingface(tmp_path, say=lambda text: None).eval()
    images, noise = torch.randn(2, 3, 12, 12), torch.rand(2, 9)
    compare(ours, of_huggingface(theirs, images, noise, True), images, noise)


# ---------------------------------------------------------------- facebookresearch/mae


class StandInPatchEmbed(nn.Module):
    """What the reference takes from timm: images → embedded patches."""

    def __init__(self, image_size: int, patch_size: int, channels: int, width: int):
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (image_size // patch_size) ** 2
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class StandInBlock(nn.Module):
    """What the reference takes from timm: a pre-norm block, with timm's parameter names."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, qk_scale: None, norm_layer):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norm_layer(width), norm_layer(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, qkv_bias), "proj": nn.Linear(width, width)})
        hidden = int(width * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        tokens = tokens + self.attn.proj((scores @ v).transpose(1, 2).flatten(2))
        return tokens + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(tokens))))


@pytest.fixture(scope="module")
def reference():
    """facebookresearch/mae's models_mae on the stand-in for timm, because it needs an older timm."""
    with pytest.MonkeyPatch.context() as patch:
        names = ("timm", "timm.models", "timm.models.vision_transformer")
        stand_in = {name: ModuleType(name) for name in names}
        stand_in[names[2]].PatchEmbed, stand_in[names[2]].Block = StandInPatchEmbed, StandInBlock
        for name, module in stand_in.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(np, "float", float, raising=False)  # numpy had it at that time
        patch.syspath_prepend(FACEBOOK)
        for name in ("util", "util.pos_embed", "models_mae"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("models_mae")
        for name in ("util", "util.pos_embed", "models_mae"):
            sys.modules.pop(name, None)


def of_facebook(model: nn.Module, images: Tensor, noise: Tensor, patch: pytest.MonkeyPatch) -> Outcome:
    with torch.no_grad(), patch.context() as here:
        here.setattr(torch, "rand", lambda *shape, **options: noise)  # its only draw
        return Outcome(*model(images))


@pytest.fixture(scope="module")
def facebook(reference, tmp_path_factory):
    """(geometry) → a model of the reference and our conversion of its file, made once."""
    made = {}

    def get(geometry: Geometry):
        if geometry not in made:
            size, patch, width, depth, heads, *decoder = geometry
            sizes = dict(zip(("decoder_embed_dim", "decoder_depth", "decoder_num_heads"), decoder, strict=True))
            sizes |= {"embed_dim": width, "depth": depth, "num_heads": heads}
            norm = {"norm_layer": lambda width: nn.LayerNorm(width, 1e-6)}
            theirs = shaken(reference.MaskedAutoencoderViT(size, patch, **sizes, **norm))
            file = tmp_path_factory.mktemp("facebook") / "reference.pth"
            arguments = argparse.Namespace(norm_pix_loss=True, model="mae_vit", lr=1e-3)
            torch.save({"model": theirs.state_dict(), "epoch": 799, "args": arguments}, file)
            wishes = {"heads": heads, "decoder_heads": geometry.decoder_heads}
            made[geometry] = theirs, load_facebook(file, say=lambda text: None, **wishes).eval()
            assert made[geometry][1].norm_pixel_loss
        return made[geometry]

    return get


@needs_facebook
@NORM_PIXEL
@GEOMETRIES
def test_loss_and_predictions_equal_facebook(facebook, geometry, norm_pixel, monkeypatch):
    theirs, ours = facebook(geometry)
    theirs.norm_pix_loss = ours.norm_pixel_loss = norm_pixel
    images, noise = images_and_noise(geometry)
    compare(ours, of_facebook(theirs, images, noise, monkeypatch), images, noise)
