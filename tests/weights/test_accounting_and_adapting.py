"""Laws of what becomes of each tensor: nothing is dropped in silence, what is called exact is exact."""

from pathlib import Path

import pytest
import torch
from foreign_weights import (
    HEADS,
    PATCH,
    WIDTH,
    edit_json,
    folder_of,
    grey,
    quiet,
    random,
    reference_file,
    timm_weights,
    tiny,
    with_decoder,
)
from safetensors.torch import load_file
from torch.nn import functional as F

from data.errors import UserError
from mae.weights import load_facebook, load_huggingface, load_timm
from mae.weights.source import IMAGENET

# ---------------------------------------------------------------- nothing is dropped in silence


def sources(folder: Path):
    """Every kind of source, with tensors nobody asked for: (names it has, its model)."""
    weights = timm_weights() | {"extra.weight": torch.ones(2)}
    sizes = {"heads": HEADS, "decoder_heads": 2}
    yield set(weights), load_timm(weights, quiet, heads=HEADS, in_channels=1, image_size=(8, 12))
    reference = with_decoder(weights)
    file = reference_file(folder / "mae.pth", reference, epoch=1)
    yield {*reference, "epoch"}, load_facebook(file, quiet, **sizes)
    half = {
        name: tensor.half()
        for name, tensor in load_file(folder_of(tiny(), folder / "hf") / "model.safetensors").items()
    }
    half |= {"vit.pooler.dense.weight": torch.ones(2), "classifier.bias": torch.ones(2)}
    yield set(half), load_huggingface(half, quiet, **sizes)
    yield set(half), load_huggingface(half, quiet, **sizes, decoder_depth=2)  # its own decoder does not fit
    alone = {name.removeprefix("vit."): tensor for name, tensor in half.items() if name.startswith("vit.")}
    yield set(alone), load_huggingface(alone, quiet, heads=HEADS)
    yield {*half, "mask_token"}, load_huggingface(half | {"mask_token": torch.ones(2)}, quiet, **sizes)


def test_every_tensor_of_a_source_is_accounted_for_once(tmp_path):
    for names, model in sources(tmp_path):
        report = model.report
        parts = [*report.loaded, *report.adapted, *report.unexpected]
        assert sorted(parts) == sorted(names)


def test_every_tensor_of_a_model_is_accounted_for(tmp_path):
    for _, model in sources(tmp_path):
        fresh = tiny(seed=5)
        parts = {name for name in model.state_dict() if name.startswith("decoder.")}
        assert set(model.report.missing) in (set(), parts)
        assert set(fresh.encoder.state_dict()) == set(model.encoder.state_dict())


def test_the_printed_report_says_what_was_loaded_adapted_missing_and_unexpected():
    said = []
    load_timm(timm_weights(), said.append, heads=HEADS, in_channels=1, image_size=20)
    [text] = said
    assert text.startswith("state dict: 26 tensors loaded, licence unknown\n")
    assert "pos_embed: without the class token's; 3×3 → 5×5 patches, bicubic" in text
    assert "patch_embed.proj.weight, patch_embed.proj.bias: 3 channels and their normalisation → grey, exactly" in text
    assert "missing, left at fresh initialisation: decoder.mask_token" in text
    assert "unexpected, not used: head.weight, head.bias" in text
    assert "ImageNet's" in text


# ---------------------------------------------------------------- channels and grids


def test_grey_reads_as_three_normalised_channels_did(tmp_path):
    folder, images = folder_of(tiny(pixel_mean=IMAGENET[0], pixel_std=IMAGENET[1]), tmp_path), grey()
    colour, folded = load_huggingface(folder, quiet), load_huggingface(folder, quiet, in_channels=1)
    assert folded.encoder.standardize(images).equal(images / 255)
    mean, std = (torch.tensor(value)[:, None, None] for value in IMAGENET)
    replicated = (images / 255).expand(-1, 3, -1, -1).sub(mean).div(std)
    with torch.no_grad():
        expected = colour.encoder(replicated)
        torch.testing.assert_close(folded.encoder(folded.encoder.standardize(images)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("norm_pixel", [False, True])
def test_a_grey_prediction_is_the_mean_of_the_channels(norm_pixel, tmp_path):
    """Exact in grey levels; under norm-pixel loss the mean of the normalised ones."""
    model = tiny(pixel_mean=IMAGENET[0], pixel_std=IMAGENET[1], norm_pixel_loss=norm_pixel)
    folder, images, noise = folder_of(model, tmp_path), grey(), torch.rand(2, 9)
    folded = load_huggingface(folder, quiet, in_channels=1)
    with torch.no_grad():
        three = model(model.encoder.standardize(images), 0.5, noise).pred.unflatten(2, (-1, 3))  # b m p·p c
        one = folded(folded.encoder.standardize(images), 0.5, noise).pred  # b m p·p
    levels = three if norm_pixel else three * torch.tensor(IMAGENET[1]) + torch.tensor(IMAGENET[0])
    torch.testing.assert_close(one, levels.mean(-1), rtol=0, atol=2e-5)
    how = folded.report.adapted["decoder.decoder_pred.weight"]
    assert ("approximately" in how) == norm_pixel


def test_the_mean_and_deviation_of_the_folder_are_what_is_folded(tmp_path):
    folder, images = folder_of(tiny(pixel_mean=0.4, pixel_std=0.3), tmp_path), grey()
    colour, folded = load_huggingface(folder, quiet), load_huggingface(folder, quiet, in_channels=1)
    with torch.no_grad():
        expected = colour.encoder(colour.encoder.standardize(images))
        torch.testing.assert_close(folded.encoder(images / 255), expected, rtol=0, atol=2e-5)


def test_statistics_of_levels_up_to_255_are_understood(tmp_path):
    folder = folder_of(tiny(pixel_mean=0.4, pixel_std=0.2), tmp_path)
    changes = {"do_rescale": False, "image_mean": [102.0] * 3, "image_std": [51.0] * 3}
    edit_json(folder / "preprocessor_config.json", **changes)
    encoder = load_huggingface(folder, quiet).encoder
    torch.testing.assert_close(encoder.mean.flatten(), torch.full((3,), 0.4))
    torch.testing.assert_close(encoder.std.flatten(), torch.full((3,), 0.2))


def test_grey_weights_do_not_become_three_channels(tmp_path):
    with pytest.raises(UserError, match=r"found weights for 1 channel\(s\), expected 3; give model.in_channels=1"):
        load_huggingface(folder_of(tiny(1), tmp_path), quiet, in_channels=3)


@pytest.mark.parametrize(("rows", "columns"), [(3, 6), (2, 8), (8, 2)])
def test_positions_are_interpolated_to_rectangles(rows, columns):
    weights = timm_weights(grid=4)
    size = (rows * PATCH, columns * PATCH)
    model = load_timm(weights, quiet, heads=HEADS, image_size=size)
    image = weights["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (4, 4))  # 1 d 4 4
    expected = F.interpolate(image, (rows, columns), mode="bicubic", align_corners=False)
    assert model.encoder.positions.equal(expected.flatten(2).transpose(1, 2)[0])
    assert model.encoder(random(1, 3, *size)).shape == (1, 1 + rows * columns, WIDTH)

    # with as many patches, it might have been the file's own grid (timm 2737)
    guess = f"a grid of 4 x 4 patches, which are as many as {rows} x {columns}"
    assert (guess in model.report.assumed) == (rows * columns == 16)


def test_the_same_grid_keeps_positions_bit_for_bit():
    weights = timm_weights()
    model = load_timm(weights, quiet, heads=HEADS, image_size=12)
    assert model.encoder.positions.equal(weights["pos_embed"][0, 1:])
