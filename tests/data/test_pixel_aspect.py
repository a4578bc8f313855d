"""A disc is stored round, whatever shape the file's pixels have and whichever way it says so (PS3.3 C.7.6.3.1.7)."""

import struct
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from png_files import GREY, chunk, png
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from radiograph_files import dicom, picture, save, scene

from data.aspect import MOST, pixel_aspect
from data.images import fit_image, read_fitted, read_image

SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")  # by precedence
WINDOW = {"WindowCenter": 128, "WindowWidth": 256, "bits": 8}


def disc(height: float, width: float, side: int = 480) -> np.ndarray:
    """A white disc over 0.6 of a square field, uint8 (h w); its pixels have the given height and width."""
    rows, columns = round(side / height), round(side / width)
    y, x = (np.mgrid[0:rows, 0:columns] + 0.5) / np.array([rows, columns]).reshape(2, 1, 1) - 0.5
    return np.where(x**2 + y**2 < 0.3**2, 255, 10).astype(np.uint8)


def sides(image: np.ndarray) -> tuple[int, int]:
    """Height and width of the white part."""
    white = image > 130
    return int(white.any(1).sum()), int(white.any(0).sum())


def is_round(image: np.ndarray, diameter: float) -> bool:
    return all(abs(side - diameter) <= 1 for side in sides(image))


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("keyword", SPACINGS)
@pytest.mark.parametrize(("height", "width"), [(2, 1), (1, 3), (4, 5)])
@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_a_disc_is_stored_round(tmp_path, height, width, keyword, resize, syntax):
    path = save(dicom(disc(height, width), syntax=syntax, **WINDOW, **{keyword: [height, width]}), tmp_path / "a.dcm")
    assert is_round(read_fitted(path, 80, resize), 48)


def test_colours_have_pixels_of_a_shape_too(tmp_path):
    colours = np.stack([disc(2, 1)] * 3, -1)
    path = save(dicom(colours, bits=8, photometric="RGB", PixelAspectRatio=[2, 1]), tmp_path / "a.dcm")
    assert is_round(read_fitted(path, 80), 48)


@pytest.mark.parametrize("number", range(3))
def test_the_first_spacing_counts(tmp_path, number):
    elements = {SPACINGS[number]: [0.2, 0.1], SPACINGS[number + 1]: [1, 1]}
    path = save(dicom(disc(2, 1), **WINDOW, **elements), tmp_path / "a.dcm")
    assert is_round(read_fitted(path, 80), 48)


@pytest.mark.parametrize(
    "value", [b"0\\1", b"1\\0", b"-2\\1", b"NaN\\1", b"inf\\1", b"2", b"", b"a\\b", b"2,0\\1", b"1\\2\\3", b"9999\\1"]
)
@pytest.mark.parametrize("keyword", SPACINGS)
def test_a_shape_that_is_none_is_as_if_absent(tmp_path, keyword, value):
    plain = save(dicom(disc(1, 1), **WINDOW), tmp_path / "a.dcm")
    image = pydicom.dcmread(plain)
    tag = Tag(keyword)
    padded = value + b" " * (len(value) % 2)
    image._dict[tag] = RawDataElement(tag, "DS", len(padded), padded, 0, False, True)
    image.save_as(tmp_path / "b.dcm")
    assert np.array_equal(read_fitted(tmp_path / "b.dcm", 80), read_fitted(plain, 80))

    if keyword != "PixelAspectRatio":  # the next keyword counts
        image.PixelAspectRatio = [1, 2]
        image.save_as(tmp_path / "b.dcm")
        assert sides(read_fitted(tmp_path / "b.dcm", 80)) == pytest.approx((24, 48), abs=1)


def test_squashing_stretches_whatever_the_pixels_shape_is(tmp_path):
    path = save(dicom(disc(2, 1), **WINDOW, PixelSpacing=[1, 2]), tmp_path / "a.dcm")
    plain = save(dicom(disc(2, 1), **WINDOW), tmp_path / "b.dcm")
    assert np.array_equal(read_fitted(path, (60, 80), "squash"), read_fitted(plain, (60, 80), "squash"))


def test_the_pixels_themselves_stay_as_they_are_stored(tmp_path):
    assert read_image(save(dicom(disc(2, 1), **WINDOW, PixelSpacing=[2, 1]), tmp_path / "a.dcm")).shape == (240, 480)


# ---------------------------------------------------------------- PNG and JPEG


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("unit", [0, 1])
def test_a_png_says_it_by_its_physical_dimensions(tmp_path, unit, turned):
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    facts = chunk(b"pHYs", struct.pack(">IIB", 3000, 1500, unit)) + chunk(b"eXIf", exif.tobytes()[6:])
    for bits in (8, 16):
        (tmp_path / "a.png").write_bytes(png(disc(2, 1)[..., None], GREY, bits, before=facts))
        assert is_round(read_fitted(tmp_path / "a.png", 80), 48)


@pytest.mark.parametrize("side", [480, 2400])
@pytest.mark.parametrize("orientation", [1, 3, 5, 8])
@pytest.mark.parametrize("unit", [0, 1, 2])
@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_a_jpeg_says_it_by_its_density(tmp_path, unit, orientation, side, resize):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = BytesIO()
    Image.fromarray(disc(2, 1, side)).save(stream, "JPEG", quality=95, exif=exif)
    content = bytearray(stream.getvalue())
    jfif = content.index(b"JFIF\0")
    content[jfif + 7 : jfif + 12] = bytes([unit]) + b"\0\x90\0\x48"  # 144 across, 72 down
    (tmp_path / "a.jpg").write_bytes(content)
    assert is_round(read_fitted(tmp_path / "a.jpg", 80, resize), 48)


@pytest.mark.parametrize("density", [b"\0\0\0\x48", b"\0\x48\0\0", b"\0\0\0\0", b"\xff\xff\0\1"])
def test_a_density_that_is_none_is_as_if_absent(tmp_path, density):
    content = bytearray(picture(disc(1, 1), tmp_path / "a.jpg").read_bytes())
    jfif = content.index(b"JFIF\0")
    content[jfif + 8 : jfif + 12] = density
    (tmp_path / "b.jpg").write_bytes(content)
    assert np.array_equal(read_fitted(tmp_path / "b.jpg", 80), read_fitted(tmp_path / "a.jpg", 80))


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize("aspect", [1 / MOST, 0.3, 1.0, 1.7, MOST])
@pytest.mark.parametrize("shape", [(1, 90), (60, 100), (333, 7), (50, 50)])
@pytest.mark.parametrize("size", [(8, 64), (37, 23)])
def test_fitting_any_shape_of_pixels(size, shape, aspect):
    white = np.full(shape, 255, np.uint8)
    height, width = shape[0] * aspect, shape[1]
    scale = min(size[0] / height, size[1] / width)
    padded = fit_image(white, size, "pad", aspect=aspect)
    assert sides(padded) == (max(1, round(height * scale)), max(1, round(width * scale)))
    assert (fit_image(white, size, "crop", aspect=aspect) == 255).all()
    assert (fit_image(white, size, "squash", aspect=aspect) == 255).all()


def test_cropping_keeps_the_central_part_of_the_frames_shape():
    wide = np.zeros((60, 100), np.uint8)
    wide[:, 20:80] = 255  # 120 × 60 in widths of a pixel: the shape of a 40 × 20 frame
    assert fit_image(wide, (40, 20), "crop", aspect=2.0).min() > 230
    assert fit_image(wide, (40, 22), "crop", aspect=2.0)[:, [0, -1]].max() < 200


def test_an_aspect_is_none_where_it_cannot_be_used():
    assert pixel_aspect(0.2, 0.1) == pytest.approx(2)
    nothing = float("nan"), float("inf"), 0.0, -1.0, None, 1e-300
    for value in nothing:
        assert pixel_aspect(value, 1.0) is None
        assert pixel_aspect(1.0, value) is None


def test_square_pixels_change_nothing(tmp_path):
    grey = scene(250).astype(np.uint8)
    plain = save(dicom(grey, **WINDOW), tmp_path / "a.dcm")
    spaced = save(dicom(grey, **WINDOW, PixelSpacing=[0.139, 0.139]), tmp_path / "b.dcm")
    for resize in ("pad", "crop", "squash"):
        assert np.array_equal(read_fitted(spaced, (31, 47), resize), read_fitted(plain, (31, 47), resize))
