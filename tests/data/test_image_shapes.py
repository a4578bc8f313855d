"""Laws of rectangular images: the setting, fitting, the store and augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import make_world, succeed, tiny_config

from data.augment import DRAWS, augment
from data.cli import prepare as main
from data.config import make_config
from data.errors import UserError
from data.images import fit_image, read_fitted, read_image
from data.manifest import open_manifest
from data.preparation import describe_store, prepare
from data.settings import AugmentSettings, height_and_width


def scene(height: int, width: int) -> np.ndarray:
    """A smooth picture uint8 (h w), not symmetric in any direction."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    return ((0.5 + 0.25 * np.sin(5 * x + y) + 0.2 * np.cos(7 * y * x)) * 250).astype(np.uint8)


# ---------------------------------------------------------------- the setting


def test_a_square_is_one_number_however_it_is_written(tmp_path):
    plain = tiny_config(tmp_path, data__image_size=64)
    assert tiny_config(tmp_path, data__image_size=[64, 64]) == plain
    assert plain.data.image_size == 64
    assert height_and_width(64) == (64, 64) == height_and_width([64, 64])


def test_a_rectangle_survives_yaml_and_json(tmp_path):
    config = tiny_config(tmp_path, data__image_size=[40, 24])
    assert config.data.image_size == (40, 24)
    assert make_config(config.model_dump(mode="json"), "again") == config
    assert hash(config.data) == hash(tiny_config(tmp_path, data__image_size=[40, 24]).data)
    assert tiny_config(tmp_path, data__image_size=[24, 40]) != config


@pytest.mark.parametrize("size", [4, 4000, 1.5, True, None, "a", [64], [4, 64], [64, 4000], [64.0, 64], [1, 2, 3], {}])
def test_an_impossible_size_is_one_line(size, tmp_path):
    with pytest.raises(UserError) as caught:
        tiny_config(tmp_path, data__image_size=size)
    message = str(caught.value)
    assert message.startswith("command line: data.image_size: found ")
    assert message.endswith("expected 8 to 2048, or [height, width] of these")


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (7, 50)])
def test_padding_keeps_the_whole_picture_and_its_aspect(size):
    height, width = size
    for shape in [(60, 100), (100, 60), (30, 30), (1, 90)]:
        fitted = fit_image(np.full(shape, 255, np.uint8), size, "pad")
        assert fitted.shape == size
        rows, columns = np.flatnonzero(fitted.any(1)), np.flatnonzero(fitted.any(0))
        scale = min(height / shape[0], width / shape[1])
        assert len(rows) == max(1, round(shape[0] * scale)) and len(columns) == max(1, round(shape[1] * scale))
        for places, side in ((rows, height), (columns, width)):
            assert abs(places[0] - (side - 1 - places[-1])) <= 1  # in the middle


@pytest.mark.parametrize("size", [(40, 24), (24, 40)])
def test_squashing_fills_the_frame(size):
    image = scene(90, 70)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS), float)
    assert np.abs(fit_image(image, size, "squash") - expected).max() <= 1


def test_cropping_keeps_the_central_part_of_the_frames_aspect():
    image = np.zeros((60, 100), np.uint8)
    image[:, 32:68] = 255  # 60 × 36 has the aspect of 40 × 24
    assert fit_image(image, (40, 24), "crop").min() >= 240
    assert fit_image(image, (40, 25), "crop")[:, [0, -1]].max() < 240
    tall = np.zeros((100, 60), np.uint8)
    tall[32:68] = 255
    assert fit_image(tall, (24, 40), "crop").min() >= 240


@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
def test_a_picture_of_the_frames_size_is_left_alone(resize):
    assert (fit_image(scene(40, 24), (40, 24), resize) == scene(40, 24)).all()
    assert (fit_image(scene(30, 30), (17, 17), resize) == fit_image(scene(30, 30), 17, resize)).all()


@pytest.mark.parametrize("shape", [(1501, 1106), (985, 1333), (1400, 260)])
@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(96, 64), (40, 224), (300, 20)])
def test_a_reduced_jpeg_decode_is_close_to_a_full_one(size, resize, shape, tmp_path):
    Image.fromarray(scene(*shape)).save(tmp_path / "a.jpg", quality=95)
    reduced, full = (
        read_fitted(tmp_path / "a.jpg", size, resize),
        fit_image(read_image(tmp_path / "a.jpg"), size, resize),
    )
    assert reduced.shape == size
    assert np.abs(reduced.astype(float) - full).mean() < 1


# ---------------------------------------------------------------- store and augmentation


def test_a_store_of_rectangles(tmp_path):
    config = tiny_config(tmp_path, data__image_size=[16, 24])
    table, store = open_manifest(config).table, prepare(config)
    assert store.images.shape == (60, 16, 24)
    assert "-16x24px-" in store.folder.name
    for path, row in zip(table["path"], store.rows(table["image_id"]), strict=True):
        assert (store.images[row] == read_fitted(path, (16, 24))).all()


def test_a_stores_fingerprint_tells_rectangles_apart_and_squares_alike(tmp_path):
    def described(size):
        config = tiny_config(tmp_path, data__image_size=size)
        return describe_store(config.data, open_manifest(config).table)

    assert described(16) == described([16, 16])
    assert described(16)["image_size"] == 16  # as stores of older versions have it
    assert described([16, 24])["image_size"] == [16, 24]  # equal to what store.json gives back
    assert len({described(size)["fingerprint"] for size in (16, [16, 24], [24, 16])}) == 3
    assert "-16px-" in prepare(tiny_config(tmp_path, data__image_size=[16, 16])).folder.name


def test_prepare_says_what_it_made(tmp_path):
    world = make_world(tmp_path)
    assert "(60 images of 16x48)" in succeed(main, "--config", world.config, "data.image_size=[16,48]")
    assert "(60 images of 12x12)" in succeed(main, "--config", world.config)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40)])
def test_turning_a_rectangle_keeps_angles_and_distances(height, width):
    """A round spot stays round, and as far from the centre as it was: no shear."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows - (height - 1) / 2, columns - (width - 1) / 2
    spot = (255 * torch.exp(-((columns - 9) ** 2 + (rows + 7) ** 2) / 18)).round().to(torch.uint8)[None, None]
    still = {"crop_scale": (1.0, 1.0), "crop_ratio": 1.0, "translation": 0.0, "brightness": 0.0, "contrast": 0.0}
    draws = torch.full((1, DRAWS), 0.5)
    draws[:, 6] = 1.0
    turned = augment(spot, AugmentSettings(**still, gamma=0.0, rotation=30.0), draws)[0, 0].double()
    weights = turned / turned.sum()
    x, y = (weights * columns).sum(), (weights * rows).sum()
    assert (x**2 + y**2) ** 0.5 == pytest.approx((9**2 + 7**2) ** 0.5, abs=0.1)
    spread_x, spread_y = (weights * (columns - x) ** 2).sum(), (weights * (rows - y) ** 2).sum()
    assert spread_x == pytest.approx(9, rel=0.05) and spread_y == pytest.approx(9, rel=0.05)
    assert abs((weights * (columns - x) * (rows - y)).sum()) < 0.2
