"""Laws of what may be changed about pretraining: where masks fall, what the loss sees, what a patch embedding sees."""

import math

import numpy as np
import pytest
import torch
from tiny_world import call, tiny_config

from classify.cli import export
from classify.finetune import finetune
from data.draws import uniform
from data.errors import UserError
from data.loader import Batch, open_data
from mae import build_mae, load_checkpoint
from mae.mask_noise import BANK, mask_noise
from mae.masking import put, random_masking
from mae.patches import patchify, unpatchify
from mae.pretrain import check_model, pretrain, pretrain_step
from mae.settings import PretrainSettings
from mae.weights import starting_point

GRID = (5, 7)
SIZES = {"patch_size": 4, "width": 12, "depth": 2, "heads": 3, "decoder_width": 8, "decoder_depth": 1}
MASKINGS = ("red", "green", "blue", "content")


def images_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 20, 28, generator=torch.Generator().manual_seed(seed))


def model_of(**changed):
    torch.manual_seed(0)
    return build_mae(image_size=(20, 28), decoder_heads=2, **SIZES | changed)


def noise_of(masking: str, images: torch.Tensor, numbers, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    def draw(purpose: str, count: int) -> torch.Tensor:
        return uniform(seed, purpose, epoch, torch.tensor(numbers), count)

    return mask_noise(masking, seed, draw, patchify(images, 4), GRID)


# ---------------------------------------------------------------- where masks fall


def test_random_masks_are_what_they_were():
    images, numbers = images_of(3), [2, 7, 11]
    assert noise_of("random", images, numbers, 5, 3).equal(uniform(5, "mask", 3, torch.tensor(numbers), 35))


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
def test_the_mask_ratio_is_exact(masking, ratio):
    keep, masked = random_masking(noise_of(masking, images_of(3), [0, 5, 9]), ratio)
    assert keep.shape[1] == int(35 * (1 - ratio))
    for row in range(3):
        assert sorted(torch.cat([keep[row], masked[row]]).tolist()) == list(range(35))


@pytest.mark.parametrize("masking", MASKINGS)
def test_masks_depend_on_seed_epoch_and_image_and_on_nothing_else(masking):
    images, numbers = images_of(5), [3, 1, 4, 15, 9]
    noise = noise_of(masking, images, numbers)
    order = [4, 2, 0]
    assert noise_of(masking, images[order], [numbers[place] for place in order]).equal(noise[order])
    assert noise_of(masking, images, numbers).equal(noise)
    assert not noise_of(masking, images, numbers, epoch=1).equal(noise)
    assert not noise_of(masking, images, numbers, seed=1).equal(noise)
    assert len({tuple(row) for row in noise.tolist()}) == 5


def neighbours_alike(masking: str) -> float:
    """Correlation between a patch's being hidden and its right neighbour's, over many images."""
    count = 4 * BANK
    noise = noise_of(masking, torch.zeros(count, 1, 20, 28), list(range(count)))
    masked = random_masking(noise, 0.5)[1]
    hidden = torch.zeros(count, 35).scatter(1, masked, 1.0).reshape(count, *GRID)
    pairs = torch.stack([hidden[:, :, :-1].flatten(), hidden[:, :, 1:].flatten()])
    return torch.corrcoef(pairs)[0, 1].item()


def test_red_comes_in_large_spots_green_in_middling_and_blue_in_fine_ones():
    red, green, blue = (neighbours_alike(colour) for colour in ("red", "green", "blue"))
    assert red > green + 0.1 > blue + 0.2
    assert blue < -0.1
    assert red > 0.3


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_every_patch_is_hidden_as_often_as_any_other(colour):
    count = 3000
    noise = noise_of(colour, torch.zeros(count, 1, 20, 28), list(range(count)))
    masked = random_masking(noise, 0.6)[1]
    share = torch.bincount(masked.flatten(), minlength=35) / count
    assert (share - masked.shape[1] / 35).abs().max() < 0.06


def test_patches_with_content_are_hidden_more_often_and_plain_ones_sometimes():
    count = 2000
    image = torch.zeros(1, 1, 20, 28)
    image[..., 4:16, 8:20] = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))  # 3 x 3 patches
    varies = patchify(image, 4).std(-1)[0] > 0
    assert int(varies.sum()) == 9
    masked = random_masking(noise_of("content", image.expand(count, -1, -1, -1), list(range(count))), 0.5)[1]
    share = torch.bincount(masked.flatten(), minlength=35) / count
    assert share[varies].min() > 0.9
    assert 0.2 < share[~varies].min() < share[~varies].max() < 0.5


def test_an_image_of_one_grey_is_masked_at_random():
    noise = noise_of("content", torch.zeros(2, 1, 20, 28), [3, 8])
    plain = uniform(0, "mask", 0, torch.tensor([3, 8]), 35)
    assert noise.argsort(1).equal(plain.argsort(1))


@pytest.mark.parametrize("masking", ["random", *MASKINGS])
def test_patches_to_predict_are_drawn_from_the_masked_ones_at_random(masking):
    """By a model that notes which patches it is asked for."""
    asked = []
    model = model_of(decoder="cross", norm_pixel_loss=False)
    model.decoder.register_forward_pre_hook(lambda module, given: asked.append(given[1:]))
    settings = PretrainSettings.model_validate(
        {"mask_ratio": 0.6, "predict_ratio": 0.2, "masking": masking, "augment": {"enabled": False}}
    )
    count = 500
    plain = np.full((count, 1, 20, 28), 110, np.uint8)
    plain[:, :, :12, :12] = np.random.default_rng(0).integers(0, 255, (12, 12))  # 9 patches vary
    batch = Batch(torch.from_numpy(plain), torch.zeros(count), torch.arange(count))
    with torch.no_grad():
        pretrain_step(model, batch, 0, settings, 0)
    [(keep, predicted)] = asked
    assert predicted.shape == (count, 7)

    # each masked patch is asked for as often as any other
    hidden = 1 - torch.zeros(count, 35).scatter(1, keep, 1.0)
    chosen = torch.zeros(count, 35).scatter(1, predicted, 1.0)
    assert (chosen <= hidden).all()
    shares = chosen.sum(0) / hidden.sum(0)
    assert (shares - 7 / 21).abs().max() < 0.13

    # at the edge of a spot as often as within it
    beside = 1 - hidden.reshape(count, *GRID)[:, :, 1:]
    of_all, of_chosen = (
        (each * beside).sum() / each.sum()
        for each in (part.reshape(count, *GRID)[:, :, :-1] for part in (hidden, chosen))
    )
    assert abs(of_all - of_chosen) < 0.04


# ---------------------------------------------------------------- what the loss sees


def test_a_loss_on_visible_patches_is_added_by_its_weight():
    model, images = model_of(), images_of(3)
    noise = torch.rand(3, 35, generator=torch.Generator().manual_seed(2))
    plain = model(images, 0.6, noise)
    once, thrice = (model(images, 0.6, noise, visible_loss=weight) for weight in (1.0, 3.0))
    assert plain.pred.allclose(once.pred, atol=1e-6)
    assert plain.masked.equal(once.masked)
    seen = once.loss - plain.loss
    assert seen > 0
    assert thrice.loss.item() == pytest.approx((plain.loss + 3 * seen).item(), rel=1e-5)


def test_only_such_a_loss_learns_from_the_pixels_of_visible_patches():
    """By the target alone: the encoder sees these pixels in any case."""
    model, images = model_of(norm_pixel_loss=False), images_of(1)
    noise = torch.arange(35.0)[None]
    keep, _ = random_masking(noise, 0.6)
    both = model.decoder(model.encoder(images, keep), keep, torch.arange(35)[None, keep.shape[1] :], visible_too=True)
    target = patchify(images, 4)[:, : keep.shape[1]]
    expected = (both[:, : keep.shape[1]] - target).square().mean()
    found = model(images, 0.6, noise, visible_loss=1.0).loss - model(images, 0.6, noise).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_cross_decoder_has_no_visible_patches_to_predict(tmp_path):
    config = tiny_config(tmp_path, model__decoder="cross", pretrain__visible_loss=0.5)
    with pytest.raises(UserError, match=r"pretrain\.visible_loss: found it with model\.decoder = cross"):
        check_model(config.model, config.pretrain, config.data.image_size)
    with pytest.raises(UserError, match="visible_loss"):
        model_of(decoder="cross")(images_of(2), visible_loss=1.0)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("changed", [{"masking": each} for each in MASKINGS] + [{"visible_loss": 0.3}])
def test_runs_end_and_are_validated_on_masked_patches_of_random_masks(tmp_path, changed):
    own = {f"pretrain__{key}": value for key, value in changed.items()} | {"pretrain__epochs": 1}
    config = tiny_config(tmp_path, **own, pretrain__optimizer__base_lr=1e-12)  # learns next to nothing
    data = open_data(config.data)
    found = load_checkpoint(pretrain(config, data) / "last.pt")
    plain = tiny_config(tmp_path, run=str(tmp_path / "plain"), pretrain__epochs=1, pretrain__optimizer__base_lr=1e-12)
    other = load_checkpoint(pretrain(plain, data) / "last.pt")
    assert math.isclose(found.fact("validate_loss"), other.fact("validate_loss"), rel_tol=1e-6)


# ---------------------------------------------------------------- what a patch embedding sees


@pytest.mark.parametrize("patch", [2, 4])
def test_convolutions_see_no_neighbour(patch):
    model, images = model_of(embed="conv", patch_size=patch), images_of(3)
    n = (20 // patch) * (28 // patch)
    tokens = model.encoder.embed_kept(images, None)[:, 1:]
    others = patchify(images_of(3, seed=9), patch)
    for number in (0, n // 2, n - 1):
        patches = others.clone()
        patches[:, number] = patchify(images, patch)[:, number]
        changed = unpatchify(patches, model.encoder.grid, patch)
        found = model.encoder.embed_kept(changed, None)[:, 1:]
        assert found[:, number].allclose(tokens[:, number], atol=1e-6)
        assert not found[:, (number + 1) % n].allclose(tokens[:, (number + 1) % n], atol=1e-3)


def test_what_is_hidden_changes_no_prediction():
    model, images = model_of(embed="conv"), images_of(2)
    noise = torch.rand(2, 35, generator=torch.Generator().manual_seed(1))
    found = model(images, 0.6, noise)
    patches = put(patchify(images, 4), found.masked, torch.full((2, found.masked.shape[1], 16), 9.0))
    again = model(unpatchify(patches, GRID, 4), 0.6, noise)
    assert again.pred.equal(found.pred)
    assert again.loss != found.loss


def test_keeping_every_patch_equals_not_masking():
    model, images = model_of(embed="conv"), images_of(2)
    keep = torch.arange(35).expand(2, -1)
    assert model.encoder(images, keep).allclose(model.encoder(images), atol=1e-5)


@pytest.mark.parametrize(("patch", "layers"), [(4, 2), (8, 3)])
def test_larger_patches_have_a_third_convolution(patch, layers):
    model = build_mae("vit_tiny_patch8", image_size=24, patch_size=patch, embed="conv")
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.encoder.embed.modules()) == layers


def test_a_linear_embedding_is_what_it_was():
    names = set(model_of().state_dict())
    assert {"encoder.embed.weight", "encoder.embed.bias"} <= names
    assert {name for name in names if not name.startswith("encoder.embed")} == {
        name for name in model_of(embed="conv").state_dict() if not name.startswith("encoder.embed")
    }


@pytest.fixture(scope="module")
def convolved(tmp_path_factory):
    root = tmp_path_factory.mktemp("convolved")
    config = tiny_config(root, model__embed="conv", pretrain__epochs=1, finetune__epochs=1)
    return root, pretrain(config, open_data(config.data)) / "last.pt"


def test_convolutions_are_fine_tuned_and_begun_from(convolved):
    root, checkpoint = convolved
    saved = load_checkpoint(checkpoint)
    run = finetune(tiny_config(root, model__embed="conv", finetune__epochs=1), checkpoint)
    assert any("embed.convolutions" in name for name in load_checkpoint(run / "best.pt").weights)

    config = tiny_config(root, run=str(root / "again"), model__init=str(checkpoint), pretrain__epochs=1)
    start = starting_point(config, say=lambda text: None)
    assert start.config.model.embed == "conv"
    for name, tensor in saved.weights.items():
        assert start.weights[name].equal(tensor), name


def test_a_file_of_another_embedding_is_refused(convolved, tmp_path):
    config = tiny_config(tmp_path, pretrain__epochs=1)
    linear = pretrain(config, open_data(config.data)) / "last.pt"
    with pytest.raises(UserError, match=r"found embed linear, expected conv by model\.embed"):
        starting_point(tiny_config(tmp_path, model__embed="conv", model__init=str(linear)), say=lambda text: None)


def test_exports_to_transformers_say_why_there_is_none(convolved, tmp_path):
    _, checkpoint = convolved
    said = call(export, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert said.code == 2
    assert "found a patch embedding of convolutions (model.embed = conv), expected linear" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
