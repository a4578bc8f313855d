"""Laws of the shapes a model takes: small and large patches, every mask ratio, one or three channels."""

from typing import get_args

import pytest
import torch
from tiny_mae import count, encoder_size
from tiny_world import tiny_config

from classify import build_resnet
from classify.models.build import build_model
from data.settings import height_and_width
from mae import build_mae
from mae.model import PRESETS
from mae.patches import patchify, unpatchify
from mae.settings import ModelSettings

SMALL = {"width": 12, "depth": 1, "heads": 3, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
MEANS, SPREADS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def grey(height: int, width: int, b: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (b, 1, height, width), dtype=torch.uint8, generator=generator)


# ---------------------------------------------------------------- patches, presets, mask ratios


@pytest.mark.parametrize(("patch", "size"), [(4, 28), (8, 56), (14, 28), (14, 56), (16, (16, 48)), (16, (48, 16))])
@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_patch_size_goes_both_ways(patch, size, decoder, channels):
    height, width = height_and_width(size)
    model = build_mae("vit_tiny_patch16", size, channels, decoder, patch_size=patch, **SMALL)
    assert model.encoder.grid == (height // patch, width // patch)
    images = model.encoder.standardize(grey(height, width))
    out = model(images, 0.5)
    assert out.loss.isfinite()
    assert out.pred.shape[2] == patch * patch * channels
    assert unpatchify(patchify(images, patch), model.encoder.grid, patch).equal(images)


@pytest.mark.parametrize(("patch", "patches"), [(14, 256), (16, 196)])
def test_the_papers_grids(patch, patches):
    assert build_mae("vit_tiny_patch16", 224, patch_size=patch, **SMALL).patches == patches


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_every_mask_ratio_hides_as_many_patches_as_the_paper(ratio, decoder):
    model = build_mae("vit_tiny_patch4", (28, 56), decoder=decoder, **SMALL)
    out = model(torch.randn(2, 1, 28, 56), ratio)
    hidden = 98 - int(98 * (1 - ratio))  # `len_keep` of the paper's code
    assert out.masked.shape == (2, hidden)
    assert out.mask.sum(1).tolist() == [hidden] * 2


def test_the_config_knows_every_preset():
    assert get_args(ModelSettings.model_fields["preset"].annotation) == tuple(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_what_their_table_says(preset):
    size, patch = PRESETS[preset], int(preset.rpartition("patch")[2])
    with torch.device("meta"):
        model = build_mae(preset, 4 * patch)
    assert size["patch_size"] == patch
    assert count(model.encoder) == encoder_size(size["width"], size["depth"], patch**2)
    width = size["decoder_width"]
    blocks = size["decoder_depth"] * (12 * width**2 + 13 * width)
    ends = (size["width"] + 1) * width + width + 2 * width + (width + 1) * patch**2  # embed, token, norm, predict
    assert count(model.decoder) == blocks + ends


# ---------------------------------------------------------------- channels


def test_grey_images_serve_as_every_channel():
    encoder = build_mae("vit_tiny_patch16", (32, 16), 3, pixel_mean=MEANS, pixel_std=SPREADS, **SMALL).encoder
    images = grey(32, 16)
    expected = torch.stack([(images[:, 0] / 255 - m) / s for m, s in zip(MEANS, SPREADS, strict=True)], dim=1)
    torch.testing.assert_close(encoder.standardize(images), expected)
    torch.testing.assert_close(encoder.standardize(images.expand(-1, 3, -1, -1)), expected)
    resnet = build_resnet("resnet18", 3, pixel_mean=MEANS, pixel_std=SPREADS)
    torch.testing.assert_close(resnet.standardize(images), expected)


def test_one_number_is_every_channels():
    one, three = (build_mae("vit_tiny_patch16", 32, 3, pixel_mean=mean, **SMALL) for mean in (0.4, (0.4, 0.4, 0.4)))
    assert one.encoder.mean.shape == (3, 1, 1)
    assert one.encoder.mean.equal(three.encoder.mean)


@pytest.mark.parametrize("model", ["vit", "resnet18"])
def test_classifiers_have_the_configs_channels(model, tmp_path):
    config = tiny_config(
        tmp_path,
        finetune__model=model,
        data__image_size=[16, 24],
        model__in_channels=3,
        model__pixel_mean=list(MEANS),
        model__pixel_std=list(SPREADS),
    )
    classifier = build_model(config).eval()
    assert classifier(classifier.standardize(grey(16, 24))).shape == (2,)
    mean = classifier.encoder.mean if model == "vit" else classifier.mean
    torch.testing.assert_close(mean.flatten(), torch.tensor(MEANS))


@pytest.mark.parametrize(("size", "small"), [(32, True), ([24, 64], True), ([64, 24], True), (64, False)])
def test_a_short_side_takes_the_small_stem(size, small, tmp_path):
    resnet = build_model(tiny_config(tmp_path, finetune__model="resnet18", data__image_size=size))
    assert resnet.conv1.kernel_size == ((3, 3) if small else (7, 7))


# ---------------------------------------------------------------- all the way


def test_a_nan_pixel_anywhere_reaches_the_loss():
    """The loop looks at losses, so it stops for a NaN; `forward` itself never waits for the device."""
    model, noise = build_mae("vit_tiny_patch16", (16, 48), **SMALL), torch.tensor([[0.1, 0.5, 0.9]])
    for place in (0, 20, 47):  # in the kept patch, and in each hidden one
        images = torch.randn(1, 1, 16, 48)
        images[..., place] = torch.nan
        assert model(images, 0.6, noise).loss.isnan()
