"""Laws of random draws and of augmentation."""

import math
import zlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from data.augment import DRAWS, augment
from data.draws import uniform
from data.settings import AugmentSettings

STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": 1.0, "rotation": 0.0, "translation": 0.0, "flip": 0.0}
STILL |= {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "erase": 0.0}
LIVELY = AugmentSettings(crop_scale=(0.3, 1.0), rotation=20, translation=0.1, flip=0.5, erase=0.5)


def images_of(b: int = 5, height: int = 14, width: int = 22, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (b, channels, height, width), dtype=torch.uint8, generator=generator)


def middle(b: int = 5, **draws: float) -> Tensor:
    """Draws at one half, which crop, shift and turn nothing; `u7=0.1` sets the draw number 7."""
    table = torch.full((b, DRAWS), 0.5)
    for name, value in draws.items():
        table[:, int(name[1:])] = value
    return table


def settings(**changed) -> AugmentSettings:
    return AugmentSettings(**STILL | changed)


# ---------------------------------------------------------------- smaller images, and blur


def test_an_image_of_twice_the_area_lies_wholly_inside_with_black_around_it():
    white = torch.full((64, 1, 40, 56), 255, dtype=torch.uint8)
    small = augment(white, settings(crop_scale=(2.0, 2.0), crop_ratio=1.2), uniform(3, "a", 0, torch.arange(64), DRAWS))
    shares = small.float().mean((1, 2, 3)) / 255
    assert shares.sub(0.5).abs().max() < 0.01
    assert len({tuple(image.flatten().tolist()) for image in small}) > 50  # each at a place of its own


def test_crops_go_both_ways_where_the_range_does():
    white = torch.full((200, 1, 30, 30), 255, dtype=torch.uint8)
    draws = uniform(0, "a", 0, torch.arange(200), DRAWS)
    shares = augment(white, settings(crop_scale=(0.5, 2.0)), draws).float().mean((1, 2, 3)) / 255
    whole = shares > 0.999  # areas up to 1
    assert 0.2 < whole.float().mean() < 0.5
    assert shares.min() < 0.6


def test_sigma_of_each_blur_is_its_draw():
    spot = torch.zeros(3, 1, 41, 41, dtype=torch.uint8)
    spot[..., 20, 20] = 255
    spot[..., 18:23, 18:23] = 255
    draws = middle(3)
    draws[:, 14] = torch.tensor([0.0, 0.5, 1.0])
    blurred = augment(spot, settings(blur=3.0), draws).double()
    assert blurred[0].equal(spot[0].double())
    offsets = torch.arange(-20, 21.0, dtype=torch.float64)
    variances = [(image[0].sum(0) * offsets**2).sum() / image.sum() for image in blurred]
    for found, sigma in zip(variances, (0, 1.5, 3.0), strict=True):
        assert found - variances[0] == pytest.approx(sigma**2, abs=0.35)


def test_blur_leaves_plain_images_and_works_on_any_shape():
    plain = torch.full((2, 3, 7, 5), 90, dtype=torch.uint8)
    assert augment(plain, settings(blur=4.0), middle(2, u14=0.9)).equal(plain)


@pytest.mark.parametrize("changed", [{"crop_scale": (0.5, 2.0)}, {"blur": 2.0}])
def test_smaller_and_blurred_images_do_not_depend_on_their_batch(changed):
    images = images_of(11)
    draws = uniform(5, "a", 1, torch.arange(11), DRAWS)
    together = augment(images, settings(**changed), draws)
    for number in range(11):
        alone = augment(images[number : number + 1], settings(**changed), draws[number : number + 1])
        assert alone.equal(together[number : number + 1])


@pytest.mark.parametrize("wrong", [(0.5, 5.0), (0.0, 1.0), (1.5, 1.0)])
def test_crops_have_bounds(wrong):
    with pytest.raises(ValueError, match="expected 0 < low <= high <= 4"):
        AugmentSettings(crop_scale=wrong)


# ---------------------------------------------------------------- draws


def test_draws_depend_on_the_image_not_on_its_batch():
    numbers = torch.tensor([7, 0, 3, 12_345_678_901, 5])
    draws = uniform(1, "mask", 2, numbers, 11)
    assert draws.shape == (5, 11)
    order = torch.tensor([4, 1, 3, 0, 2])
    assert uniform(1, "mask", 2, numbers[order], 11).equal(draws[order])
    for image in range(5):
        assert uniform(1, "mask", 2, numbers[image : image + 1], 11).equal(draws[image : image + 1])
    assert uniform(1, "mask", 2, numbers, 5).equal(draws[:, :5])


def splitmix(z: int) -> int:
    """The finaliser of splitmix64, in Python's own integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize(("seed", "epoch", "image"), [(0, 0, 0), (1, 2, 3), (7, 399, 377_110)])
def test_draws_are_splitmix64(seed, epoch, image):
    golden, state = 0x9E3779B97F4A7C15, 0
    for part in (seed, zlib.crc32(b"mask"), epoch):
        state = splitmix((state + part + golden) % 2**64)
    state = splitmix((state + image * golden) % 2**64)
    expected = [(splitmix((state + k * golden) % 2**64) >> 40) / 2**24 for k in range(1, 8)]
    assert uniform(seed, "mask", epoch, torch.tensor([image]), 7)[0].tolist() == expected


def test_draws_differ_with_seed_purpose_epoch_and_image():
    numbers = torch.arange(50)
    streams = [
        uniform(seed, purpose, epoch, numbers, 7)
        for seed in (0, 1, 2)
        for purpose in ("mask", "augment")
        for epoch in (0, 1, 2)
    ]
    rows = torch.cat(streams)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    uniform(0, "mask", 0, torch.arange(3), 5)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("seed", [0, 1, 123_456])
def test_draws_are_uniform(seed):
    draws = uniform(seed, "mask", 3, torch.arange(2000), 50).flatten().numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    counts = np.bincount((draws * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_each_draw_of_each_image_is_uniform_over_epochs():
    draws = torch.stack([uniform(0, "augment", epoch, torch.arange(3), DRAWS) for epoch in range(1000)])
    p_values = [stats.kstest(draws[:, i, k].numpy(), "uniform").pvalue for i in range(3) for k in range(DRAWS)]
    assert min(p_values) > 0.05 / len(p_values) / 10


def test_streams_are_uncorrelated():
    numbers = torch.arange(20_000)
    streams = [
        uniform(seed, purpose, epoch, numbers, 2)
        for seed, purpose, epoch in ((0, "mask", 0), (1, "mask", 0), (0, "augment", 0), (0, "mask", 1), (1, "mask", 1))
    ]
    columns = torch.cat([*streams, streams[0].roll(1, 0)], dim=1).T  # the last: neighbouring images
    apart = torch.corrcoef(columns) - torch.eye(len(columns))
    assert apart.abs().max() < 5 / 20_000**0.5


# ---------------------------------------------------------------- augmentation


def test_disabled_augmentation_is_the_identity():
    images = images_of()
    assert augment(images, AugmentSettings(enabled=False), torch.rand(5, DRAWS)).equal(images)


@pytest.mark.parametrize("shape", [(14, 22), (64, 64), (33, 7)])
def test_settings_that_do_nothing_return_the_image(shape):
    images = images_of(5, *shape)
    for draws in (middle(), uniform(0, "augment", 0, torch.arange(5), DRAWS)):
        assert (augment(images, settings(), draws).int() - images.int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_8_bit_and_keep_their_shape(channels):
    images = images_of(channels=channels)
    augmented = augment(images, LIVELY, uniform(0, "augment", 0, torch.arange(5), DRAWS))
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    assert not augmented.equal(images)


def test_an_image_is_augmented_alike_whatever_its_batch():
    images, numbers = images_of(), torch.arange(5)
    together = augment(images, LIVELY, uniform(0, "augment", 0, numbers, DRAWS))
    order = torch.tensor([3, 0, 4, 2, 1])
    assert augment(images[order], LIVELY, uniform(0, "augment", 0, numbers[order], DRAWS)).equal(together[order])
    alone = augment(images[2:3], LIVELY, uniform(0, "augment", 0, numbers[2:3], DRAWS))
    assert alone.equal(together[2:3])


def test_certain_flips_mirror():
    images = images_of()
    flipped = augment(images, settings(flip=1.0), torch.rand(5, DRAWS, generator=torch.Generator().manual_seed(0)))
    assert (flipped.int() - images.flip(-1).int()).abs().max() <= 1


def test_flips_are_as_frequent_as_asked():
    images = images_of(1).expand(1000, -1, -1, -1)
    draws = uniform(0, "augment", 0, torch.arange(1000), DRAWS)
    flipped = (augment(images, settings(flip=0.3), draws).int() - images.int()).abs().amax((1, 2, 3)) > 1
    assert abs(flipped.float().mean() - 0.3) < 0.06


def spot(height: int, width: int, x: float, y: float) -> Tensor:
    """A soft bright spot, `x` right of and `y` below the centre, in pixels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = (columns - (width - 1) / 2 - x) ** 2 + (rows - (height - 1) / 2 - y) ** 2
    return (255 * torch.exp(-squares / 8)).round().to(torch.uint8)[None, None]


def centre_of(image: Tensor) -> tuple[float, float]:
    """Centre of the brightness, in pixels (x, y) from the image's centre."""
    weights = image[0, 0].double() / image.double().sum()
    rows, columns = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in weights.shape), indexing="ij")
    return (weights * columns).sum().item(), (weights * rows).sum().item()


@pytest.mark.parametrize(("height", "width"), [(60, 60), (50, 90), (90, 50)])
@pytest.mark.parametrize("degrees", [30.0, -45.0])
def test_rotation_turns_about_the_centre_by_the_angle(height, width, degrees):
    x, y = 14.0, -9.0
    extreme = middle(1, u6=1.0 if degrees > 0 else 0.0)
    found = centre_of(augment(spot(height, width, x, y), settings(rotation=abs(degrees)), extreme))
    angle = math.radians(degrees)
    wanted = (x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle))
    assert found == pytest.approx(wanted, abs=0.1)


def test_translation_shifts_by_a_share_of_the_side():
    moved = augment(spot(50, 90, 3, -4), settings(translation=0.1), middle(1, u3=1.0, u5=0.0))
    assert centre_of(moved) == pytest.approx((3 - 0.1 * 90, -4 + 0.1 * 50), abs=0.1)


def test_a_crop_shows_the_asked_share_of_the_image():
    images = spot(48, 96, 8, -3)
    zoomed = augment(images, settings(crop_scale=(0.25, 0.25)), middle(1))
    assert centre_of(zoomed) == pytest.approx((16, -6), abs=0.2)  # a quarter of the area: twice the size
    wide = augment(images, settings(crop_scale=(0.25, 0.25), crop_ratio=2.0), middle(1, u1=1.0))
    scale = math.sqrt(0.25 * 2), math.sqrt(0.25 / 2)
    assert centre_of(wide) == pytest.approx((8 / scale[0], -3 / scale[1]), abs=0.2)


@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_crops_stay_inside_the_image(corner):
    white = torch.full((1, 1, 20, 30), 255, dtype=torch.uint8)
    draws = middle(1, u0=0.0, u1=0.3, u2=corner, u4=corner)
    cropped = augment(white, settings(crop_scale=(0.3, 1.0), crop_ratio=1.3), draws)
    assert cropped[..., 1:-1, 1:-1].min() >= 254  # the outermost pixels may reach half a pixel out


def test_what_comes_from_outside_is_black():
    white = torch.full((1, 1, 20, 30), 255, dtype=torch.uint8)
    moved = augment(white, settings(translation=0.4), middle(1, u3=1.0))
    assert not moved[..., 20:].any()
    assert (moved[..., :17] == 255).all()


def test_tone_follows_its_formulas():
    grey = torch.arange(0, 250, 10, dtype=torch.uint8).view(1, 1, 5, 5)
    share = grey.double() / 255
    cases = {
        "contrast": ({"contrast": 0.2}, middle(1, u8=1.0), (share - 0.5) * 1.2 + 0.5),
        "brightness": ({"brightness": 0.1}, middle(1, u9=0.0), share - 0.1),
        "gamma": ({"gamma": 0.2}, middle(1, u10=1.0), share**1.2),
    }
    for name, (changed, draws, expected) in cases.items():
        found = augment(grey, settings(**changed), draws).double() / 255
        assert (found - expected.clamp(0, 1)).abs().max() < 1.01 / 255, name


def test_erasing_greys_out_the_stated_square():
    images = torch.full((1, 1, 15, 25), 200, dtype=torch.uint8)
    erased = augment(images, settings(erase=1.0), middle(1, u12=0.0, u13=0.999))
    expected = images.clone()
    expected[..., :3, 20:] = 128
    assert (erased.int() - expected.int()).abs().max() <= 1
    assert augment(images, settings(erase=0.4), middle(1)).equal(images)  # 0.5 is not below 0.4


def test_erased_squares_reach_every_corner_and_never_leave():
    images = torch.full((4000, 1, 15, 25), 200, dtype=torch.uint8)
    erased = augment(images, settings(erase=1.0), uniform(0, "augment", 0, torch.arange(4000), DRAWS)) < 200
    assert (erased.sum((1, 2, 3)) == 3 * 5).all()
    assert erased.any(0).all()


def test_autocast_does_not_touch_pixels():
    images, draws = images_of(), uniform(0, "augment", 0, torch.arange(5), DRAWS)
    plain = augment(images, AugmentSettings(erase=0.5), draws)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, AugmentSettings(erase=0.5), draws), plain)
