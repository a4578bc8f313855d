"""PNG and JPEG of any colour, depth, polarity and orientation read as their grey twin, or are refused by name."""

from io import BytesIO

import numpy as np
import pytest
from image_reading import differ, refusal
from PIL import Image, ImageCms
from png_files import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, chunk, png
from radiograph_files import STORED, scene

from data.images import read_image

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
ORIENTATIONS = {  # of EXIF: what a viewer does to the stored pixels (TIFF 6.0, tag 274)
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: stored.T[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: stored.T[::-1],
}


def read(tmp_path, content: bytes, **options) -> np.ndarray:
    (tmp_path / "file").write_bytes(content)
    return read_image(tmp_path / "file", **options)


def channels(grey: np.ndarray, kind: int) -> np.ndarray:
    """The grey in every colour, and noise for alpha."""
    alpha = np.random.default_rng(0).integers(0, 2**16, grey.shape)
    bands = {GREY: [grey], COLOUR: [grey] * 3, GREY_ALPHA: [grey, alpha], COLOUR_ALPHA: [grey, grey, grey, alpha]}
    return np.stack(bands[kind], -1)


# ---------------------------------------------------------------- PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", [COLOUR, GREY_ALPHA, COLOUR_ALPHA])
@pytest.mark.parametrize("top", [14, 4095, 65535])
def test_colours_of_16_bits_read_as_their_grey_twin(tmp_path, top, kind, interlaced):
    grey = (scene(1) * top).astype(int)
    twin = read(tmp_path, png(channels(grey, GREY), GREY, 16))
    found = read(tmp_path, png(channels(grey, kind), kind, 16, interlaced=interlaced))
    assert np.array_equal(found, twin)
    assert found.min() == 0 and found.max() == 255


@pytest.mark.parametrize("kind", [COLOUR, COLOUR_ALPHA])
def test_coloured_pixels_of_16_bits_read_as_their_luma(tmp_path, kind):
    samples = np.random.default_rng(1).integers(0, 2**16, (23, 31, 3 + (kind == COLOUR_ALPHA)))
    luma = np.rint(samples[..., :3] @ LUMA).astype(int)
    twin = read(tmp_path, png(luma[..., None], GREY, 16))
    assert differ(read(tmp_path, png(samples, kind, 16)), twin) <= 1


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(
    ("kind", "bits"), [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (COLOUR, 8), (GREY_ALPHA, 8), (COLOUR_ALPHA, 8)]
)
def test_pictures_of_up_to_8_bits_read_as_they_are(tmp_path, kind, bits, transparent, interlaced):
    count = {GREY: 1, COLOUR: 3, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[kind]
    samples = np.random.default_rng(bits).integers(0, 2**bits, (13, 17, count))
    expected = samples[..., 0] * 255 / (2**bits - 1)
    if count > 2:
        expected = samples[..., :3] @ LUMA
    before = b""
    if transparent and kind in (GREY, COLOUR):
        before = chunk(b"tRNS", samples[0, 0].astype(">u2").tobytes())
    found = read(tmp_path, png(samples, kind, bits, interlaced=interlaced, before=before))
    assert np.abs(found - expected).max() <= 0.51


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_reads_as_its_colours(tmp_path, bits, transparent):
    rng = np.random.default_rng(bits)
    samples, palette = rng.integers(0, 2**bits, (13, 17, 1)), rng.integers(0, 256, (2**bits, 3))
    before = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if transparent:
        before += chunk(b"tRNS", rng.bytes(2**bits))
    found = read(tmp_path, png(samples, PALETTE, bits, before=before))
    assert np.abs(found - (palette @ LUMA)[samples[..., 0]]).max() <= 0.51


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("kind", "bits"), [(GREY, 8), (GREY, 16), (COLOUR, 16), (GREY_ALPHA, 16)])
def test_a_png_is_turned_as_its_exif_says(tmp_path, kind, bits, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    samples = channels(STORED.astype(int) >> (16 - bits) // 2, kind)
    flat = read(tmp_path, png(samples, kind, bits))
    turned = chunk(b"eXIf", exif.tobytes()[6:])
    assert np.array_equal(read(tmp_path, png(samples, kind, bits, before=turned)), ORIENTATIONS[orientation](flat))
    last = png(samples, kind, bits)
    behind = last[:-12] + turned + last[-12:]  # allowed, too
    assert np.array_equal(read(tmp_path, behind), ORIENTATIONS[orientation](flat))


# ---------------------------------------------------------------- JPEG


def coloured() -> tuple[Image.Image, np.ndarray]:
    """A smooth picture of many colours, and its luma."""
    bands = [scene(250), scene(250)[::-1], scene(250)[:, ::-1]]
    colours = np.stack(bands, -1).astype(np.uint8)
    return Image.fromarray(colours), colours @ LUMA


def jpeg(image: Image.Image, **options) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=98, **options)
    return stream.getvalue()


def adobe(content: bytes) -> tuple[int, int]:
    """Where Adobe's segment begins and ends."""
    start = content.index(b"\xff\xee")
    return start, start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("space", ["YCbCr", "RGB", "CMYK", "YCCK"])
def test_a_jpeg_reads_as_its_luma_whatever_its_colours_are_called(tmp_path, space, progressive):
    image, luma = coloured()
    content = b""
    if space in ("YCbCr", "RGB"):
        content = jpeg(image, subsampling=0, progressive=progressive, keep_rgb=space == "RGB")
    elif space == "CMYK":
        content = jpeg(image.convert("CMYK"), subsampling=0, progressive=progressive)
    else:  # luma and chroma of the ink, then black, all of it inverted, as Photoshop writes them
        *bands, black = (*image.convert("YCbCr").split(), Image.new("L", image.size))
        content = bytearray(jpeg(Image.merge("CMYK", [*bands, black]), subsampling=0, progressive=progressive))
        content[adobe(bytes(content))[1] - 1] = 2
    assert np.abs(read(tmp_path, bytes(content)) - luma).max() <= 3


def test_four_colours_of_unknown_polarity_are_refused(tmp_path):
    content = jpeg(coloured()[0].convert("CMYK"))
    start, end = adobe(content)
    (tmp_path / "a.jpg").write_bytes(content[:start] + content[end:])
    assert "found four colours without Adobe's mark, expected grey" in refusal(tmp_path / "a.jpg")


def test_a_jpeg_of_12_bits_is_refused_by_name(tmp_path):
    content = bytearray(jpeg(coloured()[0]))
    frame = content.index(b"\xff\xc0")
    content[frame + 1], content[frame + 4] = 0xC1, 12
    (tmp_path / "a.jpg").write_bytes(content)
    assert "found a JPEG of 12 bits, expected 8 bits" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("at_least", [None, 10])
def test_a_jpeg_is_turned_as_its_exif_says(tmp_path, orientation, at_least):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = Image.fromarray(scene(250).astype(np.uint8))
    flat = read(tmp_path, jpeg(grey))
    found = read(tmp_path, jpeg(grey, exif=exif), at_least=at_least)
    if orientation != 1:  # such files are decoded whole
        assert np.array_equal(found, ORIENTATIONS[orientation](flat))


def test_a_colour_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = coloured()[0]
    assert np.array_equal(read(tmp_path, jpeg(image, icc_profile=profile)), read(tmp_path, jpeg(image)))
