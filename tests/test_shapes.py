"""Laws of the shapes users ask for: rectangles, one or three channels, small and large patches, every mask ratio."""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from test_mae import count, encoder_size
from tiny_runs import tiny_config
from tiny_world import call, make_world, succeed

import classify.cli
from classify import build_resnet
from classify.finetune import build_model
from data.augment import DRAWS, augment
from data.config import UserError, make_config
from data.images import fit_image, read_fitted, read_image
from data.manifest import open_manifest
from data.preparation import describe_store, main, prepare
from data.settings import AugmentSettings, height_and_width
from mae import build_mae
from mae.model import PRESETS
from mae.patches import patchify, unpatchify
from mae.settings import ModelSettings

SMALL = {"width": 12, "depth": 1, "heads": 3, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
MEANS, SPREADS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def grey(height: int, width: int, b: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (b, 1, height, width), dtype=torch.uint8, generator=generator)


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
        return describe_store(config, open_manifest(config).table)

    assert described(16) == described([16, 16])
    assert described(16)["image_size"] == 16  # as stores of older versions have it
    assert described([16, 24])["image_size"] == [16, 24]  # equal to what store.json gives back
    assert len({described(size)["fingerprint"] for size in (16, [16, 24], [24, 16])}) == 3
    assert "-16px-" in prepare(tiny_config(tmp_path, data__image_size=[16, 16])).folder.name


def test_prepare_says_what_it_made(tmp_path):
    world = make_world(tmp_path)
    assert "(60 images of 16x48)" in succeed(main, "--config", world.config, "data.image_size=[16,48]")
    assert "(60 images of 32x32)" in succeed(main, "--config", world.config)


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


@pytest.mark.parametrize(
    "settings",
    [
        ["data.image_size=[40,24]", "model.patch_size=8"],
        [
            *("data.image_size=[16,48]", "data.resize=crop", "model.in_channels=3", "model.decoder=cross"),
            *("model.pixel_mean=[.485,.456,.406]", "model.pixel_std=[.229,.224,.225]", "pretrain.predict_ratio=.3"),
        ],
    ],
    ids=["tall", "wide, three channels"],
)
def test_a_comparison_of_rectangles_goes_all_the_way(settings, tmp_path):
    world = make_world(tmp_path)
    rows = "{name: A, pretraining: [a]}, {name: L, pretraining: [a], set: {finetune.mode: linear}}"
    grid = ["compare.pretrainings={a: {}}", f"compare.rows=[{rows}, {{name: R, set: {{finetune.model: resnet18}}}}]"]
    printed = succeed(classify.cli.compare, "--config", world.config, *settings, *grid)
    assert all(f"| {name}" in printed for name in "ALR")
    height, width = settings[0].removeprefix("data.image_size=[").removesuffix("]").split(",")
    assert f"{height} × {width} pixels" in (tmp_path / "runs/mae/report.html").read_text()


def test_weights_of_another_rectangle_are_refused_with_the_setting_to_give(world, tmp_path):
    changed = ["data.image_size=[32,16]", f"finetune.run={tmp_path}"]
    outcome = call(classify.cli.finetune, "--checkpoint", world.pretrained, *changed)
    found = "found data.image_size = 32, expected [32, 16] by the config; give data.image_size=32"
    assert (outcome.code, outcome.err) == (2, f"error: {world.pretrained}: {found}\n")


def test_a_nan_pixel_anywhere_reaches_the_loss():
    """So the loop, which looks at losses, stops for it; `forward` itself never waits for the device."""
    model, noise = build_mae("vit_tiny_patch16", (16, 48), **SMALL), torch.tensor([[0.1, 0.5, 0.9]])
    for place in (0, 20, 47):  # in the kept patch, and in each hidden one
        images = torch.randn(1, 1, 16, 48)
        images[..., place] = torch.nan
        assert model(images, 0.6, noise).loss.isnan()
