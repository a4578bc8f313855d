"""Laws of what a file of weights may leave unsaid: how its images were standardised, and what its decoder predicts."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from foreign_weights import (
    HEADS,
    edit_json,
    folder_of,
    from_weights,
    grey,
    quiet,
    reference_file,
    timm_features,
    timm_weights,
    tiny,
    with_decoder,
)
from safetensors.torch import save_file
from tiny_world import tiny_config
from torch import Tensor

from data.config import change_config, load_config
from data.errors import UserError
from mae.engine.checkpoint import load_checkpoint, load_weights
from mae.model import mae_from
from mae.pretrain import pretrain
from mae.weights import load_facebook, load_huggingface, resolve, starting_point
from mae.weights.source import IMAGENET

HEADS_OF_BOTH = {"model.heads": HEADS, "model.decoder_heads": 2}
SMALL = HEADS_OF_BOTH | {"model.decoder_width": 8, "model.decoder_depth": 1}  # where the file brings no decoder


def features(config) -> Tensor:
    """Features of 8-bit grey images by the model that a config begins from, built as a run would build it."""
    start = starting_point(config, quiet)
    model = mae_from(start.config.model, start.config.data.image_size).eval()
    load_weights(model, start)
    with torch.no_grad():
        return model.encoder(model.encoder.standardize(grey()))


def expected(weights: dict[str, Tensor], mean, std) -> Tensor:
    """What timm computes from the same images, standardised by these."""
    channels = weights["patch_embed.proj.weight"].shape[1]
    mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (mean, std))
    return timm_features(weights, ((grey() / 255).expand(-1, channels, -1, -1) - mean) / std)


# ---------------------------------------------------------------- how images were standardised


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("of_file", [1, 3])
@pytest.mark.parametrize(("mean", "std"), [(0.5056, 0.252), (0.5, 0.5), (0.2, 0.25), (0.0, 0.5), (None, None)])
def test_a_config_says_how_a_silent_files_images_were_standardised(mean, std, of_file, in_channels, tmp_path):
    """0.5056 and 0.252 are those of a published masked autoencoder of radiographs; 0.5 and 0.5 timm's most usual."""
    if of_file < in_channels:
        pytest.skip("one channel does not become three")
    weights = timm_weights(channels=of_file)
    torch.save({"model": weights}, tmp_path / "vit.pth")
    changes = SMALL | {"model.in_channels": in_channels}
    if mean is not None:
        changes |= {"model.pixel_mean": mean, "model.pixel_std": std}
    config = from_weights(tmp_path, tmp_path / "vit.pth", changes)

    usual = IMAGENET if of_file == 3 else (0.5, 0.25)
    by = (mean, std) if mean is not None else usual
    ours = features(config)
    torch.testing.assert_close(ours, expected(weights, *by), rtol=0, atol=2e-5)
    once = resolve(config)
    assert resolve(once) == once
    torch.testing.assert_close(features(once), ours, rtol=0, atol=0)


def test_channels_may_have_one_number_each(tmp_path):
    torch.save(timm_weights(), tmp_path / "vit.pth")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    changes = {"model.heads": HEADS, "model.in_channels": 3, "model.pixel_mean": mean, "model.pixel_std": std}
    config = from_weights(tmp_path, tmp_path / "vit.pth", changes)
    torch.testing.assert_close(features(config), expected(timm_weights(), mean, std), rtol=0, atol=2e-5)


def test_predictions_are_in_the_units_that_the_config_says(tmp_path):
    """The grey prediction is the mean of the three channels' predicted grey levels."""
    weights = with_decoder(timm_weights())
    file = reference_file(tmp_path / "mae.pth", weights)
    said = {"pixel_mean": 0.4, "pixel_std": 0.3, "heads": HEADS, "decoder_heads": 2}
    colour = load_facebook(file, quiet, **said).eval()
    folded = load_facebook(file, quiet, in_channels=1, **said).eval()
    assert (folded.encoder.mean.item(), folded.encoder.std.item()) == pytest.approx((0.4, 0.3))
    images, noise = grey(), torch.rand(2, 9, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        three = colour(colour.encoder.standardize(images), 0.5, noise).pred.unflatten(2, (-1, 3))  # b m p·p c
        one = folded(folded.encoder.standardize(images), 0.5, noise).pred  # b m p·p
    torch.testing.assert_close(one, three.mean(-1), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("said", "std"),
    [
        ({"do_normalize": False}, 1.0),
        ({"do_normalize": False, "do_rescale": False}, 1 / 255),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, 0.5),
    ],
)
def test_pixels_that_are_not_normalised_have_the_scale_that_their_folder_says(said, std, tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights")
    edit_json(folder / "preprocessor_config.json", **said)
    model = load_huggingface(folder, say=quiet)
    assert not model.encoder.mean.any()
    torch.testing.assert_close(model.encoder.std.flatten(), torch.full((3,), std))


def test_what_a_file_says_is_not_said_otherwise(tmp_path):
    folder = folder_of(tiny(pixel_mean=0.4, pixel_std=0.3), tmp_path / "weights")
    for channels in (1, 3):
        right = from_weights(tmp_path, folder, {"model.in_channels": channels, "model.pixel_mean": 0.4})
        assert features(right).equal(features(change_config(right, {"model.pixel_mean": 0.5})))  # its default: left out
        wrong = change_config(right, {"model.pixel_std": 0.2})
        with pytest.raises(UserError, match=r"weights: found pixel_std \(?0\.3.*, expected 0\.2 by model\.pixel_std"):
            resolve(wrong)


def test_what_is_assumed_names_the_settings_that_say_otherwise(tmp_path):
    save_file(timm_weights(channels=1), tmp_path / "vit.safetensors")
    said = []
    starting_point(from_weights(tmp_path, tmp_path / "vit.safetensors", {"model.heads": HEADS}), said.append)
    assert "assumed: mean 0.5 and deviation 0.25 of the pixels; pixel_mean and pixel_std say others" in said[0]


# ---------------------------------------------------------------- what the decoder predicts


def weights_that_say(norm_pixel_loss: bool | None, kind: str, root: Path) -> Path:
    """A file or folder with a decoder that was trained for this; None: it does not say."""
    if kind == "reference":
        arguments = {} if norm_pixel_loss is None else {"args": argparse.Namespace(norm_pix_loss=norm_pixel_loss)}
        return reference_file(root / "mae.pth", with_decoder(timm_weights()), **arguments)
    folder = folder_of(tiny(norm_pixel_loss=bool(norm_pixel_loss)), root / "folder")
    if norm_pixel_loss is None:
        edit_json(folder / "config.json", norm_pix_loss=None)
    return folder


@pytest.mark.parametrize("kind", ["reference", "folder"])
@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("by_file", [None, True, False])
def test_a_decoder_goes_on_with_its_own_loss_or_is_said_to_change(by_file, asked, kind, tmp_path):
    config = from_weights(tmp_path, weights_that_say(by_file, kind, tmp_path), HEADS_OF_BOTH)
    said = []
    start = starting_point(change_config(config, {"model.norm_pixel_loss": asked}), said.append)
    made = start.config.model.norm_pixel_loss
    assert made == (bool(by_file) if asked is None else asked)
    assert f"(norm_pixel_loss {str(made).lower()})" in said[0]
    assert ("as asked for; the decoder was trained for" in said[0]) == (made != bool(by_file))
    assert ("assumed: plain pixels" in said[0]) == (by_file is None)


def test_a_fresh_decoder_predicts_normalised_patches(tmp_path):
    torch.save(timm_weights(), tmp_path / "vit.pth")
    encoder_alone = from_weights(tmp_path, tmp_path / "vit.pth", HEADS_OF_BOTH | {"model.decoder_width": 8})
    other_depth = from_weights(tmp_path, weights_that_say(False, "folder", tmp_path), {"model.decoder_depth": 3})
    for config in (encoder_alone, other_depth):
        assert resolve(config).model.norm_pixel_loss is True
        assert resolve(change_config(config, {"model.norm_pixel_loss": False})).model.norm_pixel_loss is False


def test_a_checkpoint_of_ours_goes_on_with_its_own_loss(tmp_path):
    first = pretrain(from_weights(tmp_path, weights_that_say(False, "folder", tmp_path)))
    said = []
    start = starting_point(from_weights(tmp_path, first / "last.pt"), said.append)
    assert start.config.model.norm_pixel_loss is False
    assert "loss: plain pixels (norm_pixel_loss false), as the decoder was trained for" in said[0]


def test_without_weights_to_begin_from_patches_are_normalised(tmp_path):
    config = tiny_config(tmp_path)
    assert config.model.norm_pixel_loss is None
    assert mae_from(config.model, 12).norm_pixel_loss
    assert resolve(config).model.norm_pixel_loss is True
    assert load_checkpoint(pretrain(config) / "last.pt").config.model.norm_pixel_loss is True


def test_a_run_of_when_the_default_was_written_out_goes_on(tmp_path):
    config = change_config(tiny_config(tmp_path, pretrain__epochs=1), {"model.norm_pixel_loss": True})
    pretrain(config)
    left_out = change_config(config, {"model.norm_pixel_loss": None, "pretrain.epochs": 2})
    assert load_checkpoint(pretrain(left_out) / "last.pt").progress["epoch"] == 2


def test_the_original_studys_config_asks_for_the_papers_loss():
    assert load_config("vit_mae_base").model.norm_pixel_loss is True


def test_a_word_for_a_truth_value_is_no_truth_value(tmp_path):
    folder = folder_of(tiny(), tmp_path)
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"norm_pix_loss": "false"})
    )
    with pytest.raises(UserError, match='found norm_pix_loss "false", expected true or false'):
        resolve(from_weights(tmp_path, folder))
