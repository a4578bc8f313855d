"""Laws of an exported preprocessor: transformers reads an image as we do, or the folder says what it cannot do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from foreign_weights import folder_of, quiet, tiny
from PIL import Image, ImageOps
from tiny_world import succeed, tiny_config

from classify.cli import export as mae_export
from classify.models.build import build_model
from data.images import fit_image, read_image
from mae.engine.checkpoint import Checkpoint, save_checkpoint
from mae.weights import save_encoder, save_huggingface
from mae.weights.reading import Reading, before_the_processor, fitting

# Mean difference in grey levels on the images below, which have fine noise. If an image is reduced by much, ours first
# takes means of blocks, and Lanczos alone does not; bilinear is off by 2.3 to 9.6.
TOLERANCE = 1.3
SHAPES = ((97, 203), (64, 64), (150, 90), (512, 640), (1025, 900))
SIDE = 32


def image_of(height: int, width: int) -> np.ndarray:
    """Waves with noise (h w) uint8."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 25, (height, width))
    return (128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 5) + noise).clip(0, 255).astype(np.uint8)


def processor(folder: Path):
    return pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(folder)


def seen_by_transformers(folder: Path, image: Image.Image) -> np.ndarray:
    """The processor's pixels (h w) in grey levels."""
    said = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = processor(folder)(image, return_tensors="np")["pixel_values"][0]  # c h w
    return 255 * (pixels[0] * said["image_std"][0] + said["image_mean"][0])


def exported(resize: str, root: Path, channels: int = 1, size=SIDE) -> Path:
    save_huggingface(tiny(channels, image_size=size), root, say=quiet, resize=resize)
    return root


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stretched_image_is_what_we_make_of_it(channels, shape, tmp_path):
    folder, image = exported("squash", tmp_path, channels), image_of(*shape)
    given = Image.fromarray(image).convert("L" if channels == 1 else "RGB")
    seen = seen_by_transformers(folder, given)
    assert np.abs(seen - fit_image(image, SIDE, "squash")).mean() < TOLERANCE


def test_a_rectangle_keeps_its_sides(tmp_path):
    folder, image = exported("squash", tmp_path, size=(12, 20)), image_of(97, 203)
    seen = seen_by_transformers(folder, Image.fromarray(image))
    assert seen.shape == (12, 20)
    assert np.abs(seen - fit_image(image, (12, 20), "squash")).mean() < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", ["pad", "crop"])
@pytest.mark.parametrize("size", [SIDE, (24, 40)])
def test_what_the_readme_says_makes_pad_and_crop_the_same(size, resize, shape, tmp_path):
    folder, image = exported(resize, tmp_path, size=size), image_of(*shape)
    [line] = re.findall(r"^image = (.*)  # of PIL$", (folder / "README.md").read_text(), re.M)
    prepared = eval(line, {"ImageOps": ImageOps, "Image": Image, "image": Image.fromarray(image)})
    if resize == "crop" and isinstance(size, tuple):
        assert "do_center_crop" not in json.loads((folder / "preprocessor_config.json").read_text())
    seen = seen_by_transformers(folder, prepared)
    assert np.abs(seen - fit_image(image, size, resize)).mean() < TOLERANCE


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_become_the_grey_that_we_read(channels, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "x.png")
    reading = Reading(7, 7, channels, mean=(0.5,) * channels, std=(0.2,) * channels, resize="pad")
    line = re.search(r"^image = (.*)  # of PIL$", before_the_processor(reading), re.M)[1]
    assert reading.converted in line
    made = eval(line, {"ImageOps": ImageOps, "Image": Image, "image": Image.fromarray(colours)})
    ours = fit_image(read_image(tmp_path / "x.png"), (7, 7), "pad")
    assert len(made.getbands()) == channels
    assert all(np.array_equal(np.asarray(channel), ours) for channel in made.split())


@pytest.mark.parametrize("side", [5, 7, 602, 1203, 2047])
def test_bars_are_as_wide_as_ours_however_wide(side):
    image = image_of(3, 50)
    for shape, given in (((side, 50), image), ((50, side), image.T)):
        line = fitting(Reading(*shape, channels=1, mean=(0.5,), std=(0.2,), resize="pad"))
        made = eval(line, {"ImageOps": ImageOps, "Image": Image, "image": Image.fromarray(given)})
        assert np.array_equal(np.asarray(made), fit_image(given, shape, "pad"))


@pytest.mark.parametrize("shape", [(64, 64), (512, 640), (97, 203)])
def test_a_square_crop_is_said_to_transformers_too(shape, tmp_path):
    """It rounds where the crop begins, so it is off by up to a pixel of the result. Stretching gives another image."""
    folder, image = exported("crop", tmp_path), image_of(*shape)
    ours = fit_image(image, SIDE, "crop")
    seen = seen_by_transformers(folder, Image.fromarray(image))
    assert np.abs(seen - ours).mean() < 2
    if shape[0] != shape[1]:
        assert np.abs(fit_image(image, SIDE, "squash").astype(float) - ours).mean() > 20


@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_an_export_says_how_its_images_were_read(kind, resize, tmp_path):
    config = tiny_config(tmp_path, data__resize=resize, finetune__pool="cls")
    weights = tiny(1).state_dict() if kind == "mae" else build_model(config).state_dict()
    save_checkpoint(Checkpoint(kind, config.model_dump(mode="json"), weights), tmp_path / "best.pt")
    said = succeed(mae_export, "--checkpoint", tmp_path / "best.pt", "--out", tmp_path / "out")
    preprocessor = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert preprocessor["resample"] == Image.Resampling.LANCZOS
    assert preprocessor.get("do_center_crop", False) == (resize == "crop")
    readme = (tmp_path / "out/README.md").read_text()
    function = {"pad": "ImageOps.pad", "crop": "ImageOps.fit", "squash": "are stretched"}[resize]
    assert function in readme
    assert (f"{resize}; README.md says how" in said) == (resize != "squash")


def test_weights_alone_say_the_resampling(tmp_path):
    folder_of(tiny(), tmp_path / "mae")
    save_encoder(tiny().encoder, tmp_path / "vit", "ViTModel", say=quiet)
    for name in ("mae", "vit"):
        assert json.loads((tmp_path / name / "preprocessor_config.json").read_text())["resample"] == 1
