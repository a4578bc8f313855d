"""What a reconstruction shows: pictures of what was predicted, never of what was hidden."""

from typing import NamedTuple

import pytest
import torch
from tiny_mae import PATCH, change, fix_prediction, noise_for, tiny
from torch import Tensor

from mae.denormalize import STEPS, continue_borders, surroundings
from mae.masking import put, random_masking, take
from mae.model import MaskedAutoencoder, normalize_patches
from mae.patches import patchify, unpatchify
from mae.reconstruct import reconstruct


def small(
    channels: int = 1, norm_pixel_loss: bool = True, decoder: str = "self", mean: float = 0.5
) -> MaskedAutoencoder:
    """For images of 6 × 10, 15 patches, which are 2 × 2."""
    return tiny(channels, norm_pixel_loss, decoder=decoder, mean=mean).eval()


def grey_images(b: int = 3, seed: int = 3) -> Tensor:
    return torch.randint(0, 256, (b, 1, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("norm_pixel_loss", [True, False])
def test_a_reconstruction_never_reads_hidden_patches(norm_pixel_loss, decoder, channels):
    model, images, noise = small(channels, norm_pixel_loss, decoder), grey_images(), noise_for(3)
    _, masked = random_masking(noise, 0.75)
    pictures = reconstruct(model, images, 0.75, noise)
    flattened = reconstruct(model, change(images, masked, 200), 0.75, noise)
    assert not flattened.original.equal(pictures.original)
    for one, other in zip(pictures[1:], flattened[1:], strict=True):
        assert one.equal(other)


def test_hidden_statistics_read_them_and_only_where_asked():
    model, images, noise = small(), grey_images(), noise_for(3)
    _, masked = random_masking(noise, 0.75)
    pictures = reconstruct(model, images, 0.75, noise, hidden_statistics=True)
    flattened = reconstruct(model, change(images, masked, 200), 0.75, noise, hidden_statistics=True)
    assert not flattened.mix.equal(pictures.mix)
    shown, true = (take(patchify(part, PATCH), masked) for part in (flattened.mix, flattened.original))
    torch.testing.assert_close(shown, true)  # a flat patch has no contrast: its mean is all there is
    plain = small(norm_pixel_loss=False)
    assert reconstruct(plain, images, 0.75, noise, True).mix.equal(reconstruct(plain, images, 0.75, noise).mix)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mix_shows_visible_patches_as_they_are_and_the_others_as_predicted(channels):
    model, images, noise = small(channels, mean=0.4), grey_images(), noise_for(3)
    keep, masked = random_masking(noise, 0.75)
    pictures = reconstruct(model, images, 0.75, noise)
    original, seen, alone, mix = (patchify(part, PATCH) for part in pictures)
    torch.testing.assert_close(pictures.original, images / 255)
    for part in (seen, mix):
        torch.testing.assert_close(take(part, keep), take(original, keep))
    assert take(alone, masked).equal(take(mix, masked))
    for part, places in ((seen, masked), (alone, keep)):
        torch.testing.assert_close(take(part, places), torch.full_like(take(part, places), 0.4))  # the mean grey


def test_a_perfect_prediction_without_norm_pixels_is_the_image():
    model, images, noise = small(norm_pixel_loss=False), grey_images(), noise_for(3)
    _, masked = random_masking(noise, 0.75)
    fix_prediction(model, take(patchify(model.encoder.standardize(images), PATCH), masked))
    torch.testing.assert_close(reconstruct(model, images, 0.75, noise).mix, images / 255)


def test_pictures_are_grey_levels_and_carry_no_gradient():
    for part in reconstruct(small(3), grey_images(), 0.75, noise_for(3)):
        assert part.shape == (3, 1, 6, 10)
        assert 0 <= part.min() <= part.max() <= 1
        assert not part.requires_grad


# ---------------------------------------------------------------- brightness and contrast of predicted patches


class Scene(NamedTuple):
    """A smooth picture in patches (b n p·p), its mask, and the perfect prediction a norm-pixel model would make."""

    patches: Tensor
    keep: Tensor
    masked: Tensor
    pred: Tensor

    @classmethod
    def of(cls, picture: Tensor, patch: int, ratio: float = 0.75) -> "Scene":
        patches = patchify(picture, patch)
        noise = torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(5))
        keep, masked = random_masking(noise, ratio)
        return cls(patches, keep, masked, normalize_patches(take(patches, masked)))

    @property
    def hidden(self) -> Tensor:
        return take(self.patches, self.masked)

    def error(self, shown: Tensor) -> float:
        return (shown - self.hidden).abs().max().item()


def continued(scene: Scene, grid: tuple[int, int], patch: int) -> Tensor:
    return continue_borders(scene.patches, scene.keep, scene.pred, scene.masked, grid, patch)


def by_distance(scene: Scene, grid: tuple[int, int]) -> Tensor:
    """What inverse distances alone would give."""
    guess = surroundings(take(scene.patches, scene.keep), scene.keep, scene.masked, grid)
    return guess[..., :1] + guess[..., 1:] * scene.pred


def waves(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    return torch.stack([y.sin() + x.cos(), (y * x).sin()])[:, None]  # b 1 h w


@pytest.mark.parametrize(("grid", "patch"), [((5, 7), 4), ((7, 3), 8)])
def test_perfect_predictions_of_a_slope_are_put_back_in_place(grid, patch, monkeypatch):
    """They would be exact, but the first guess keeps a share."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, grid[0] * patch), torch.linspace(-2, 1, grid[1] * patch), indexing="ij")
    scene = Scene.of(torch.stack([x, x + y, 0.5 * x - y])[:, None].double(), patch, 0.5)
    assert scene.error(continued(scene, grid, patch)) < 0.3 * scene.error(by_distance(scene, grid))
    monkeypatch.setattr("mae.denormalize.TRUST", (1e-9, 1e-9))
    monkeypatch.setattr("mae.denormalize.STEPS", 500)
    assert scene.error(continued(scene, grid, patch)) < 1e-4


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize(("grid", "patch"), [((1, 9), 3), ((9, 1), 3), ((3, 5), 2), ((4, 3), 1)])
def test_grids_of_any_shape_have_levels(grid, patch):
    scene = Scene.of(waves(grid[0] * patch, grid[1] * patch), patch)
    scene = scene._replace(pred=torch.ones_like(scene.pred))  # a patch of one pixel has no deviation
    levels = surroundings(take(scene.patches, scene.keep), scene.keep, scene.masked, grid)
    assert continued(scene, grid, patch).shape == scene.hidden.shape == (*levels.shape[:2], patch * patch)


def test_perfect_predictions_of_a_smooth_picture_nearly_restore_it():
    scene = Scene.of(waves(40, 56), 8)
    shown = continued(scene, (5, 7), 8)
    assert scene.error(shown) < 0.3 * scene.error(by_distance(scene, (5, 7)))
    whole = unpatchify(put(scene.patches, scene.masked, shown), (5, 7), 8)
    steps, true = ((part[..., 8::8] - part[..., 7:-8:8]).abs().mean() for part in (whole, waves(40, 56)))
    assert steps < 1.5 * true


def test_levels_follow_the_picture_they_are_found_for():
    """If visible patches have twice the contrast and another brightness, predicted ones change in the same way."""
    scene = Scene.of(waves(20, 28), 4)
    brighter = scene._replace(patches=2 * scene.patches + 3)
    expected = 2 * continued(scene, (5, 7), 4) + 3
    torch.testing.assert_close(continued(brighter, (5, 7), 4), expected, rtol=1e-3, atol=1e-3)


def test_images_of_a_batch_do_not_know_each_other():
    scene = Scene.of(waves(20, 28), 4)
    alone = Scene(*(part[1:] for part in scene))
    torch.testing.assert_close(continued(scene, (5, 7), 4)[1:], continued(alone, (5, 7), 4), rtol=1e-4, atol=1e-4)


def test_a_flat_picture_stays_flat():
    model, noise = small(), noise_for(3)
    images = torch.full((3, 1, 6, 10), 60, dtype=torch.uint8)
    fix_prediction(model, torch.zeros(3, 12, PATCH * PATCH))
    torch.testing.assert_close(reconstruct(model, images, 0.75, noise).mix, images / 255)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_enough_steps_are_taken(ratio, monkeypatch):
    scene = Scene.of(torch.nn.functional.interpolate(waves(20, 28), (56, 56)), 4, ratio)
    soon = continued(scene, (14, 14), 4)
    monkeypatch.setattr("mae.denormalize.STEPS", 10 * STEPS)
    assert (soon - continued(scene, (14, 14), 4)).abs().max() < 1 / 64  # a standard deviation is 64 grey levels
