"""Laws of reading a baseline JPEG for its blocks' means: libjpeg's pixels bit for bit, or libjpeg itself."""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from checkout import ORIGINALS
from PIL import Image

import data.jpeg
from data.images import read_fitted, read_image
from data.jpeg import block_means
from data.refusal import UnreadableImage

pytestmark = pytest.mark.skipif(not data.jpeg.FAST, reason="numba is not installed (extra fast)")


def picture(shape: tuple[int, ...], noise: float, seed: int = 0) -> np.ndarray:
    """Smooth greys or colours with noise: between none and all of the coefficients are there."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    smooth = 128 + 100 * np.sin(x / 17 + y / 29)
    smooth = smooth if len(shape) == 2 else smooth[:, :, None] * [1, 0.7, 0.4]
    return (smooth + rng.normal(0, noise, shape)).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, **options) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def by_libjpeg(content: bytes) -> np.ndarray:
    image = Image.open(BytesIO(content))
    image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
    return np.asarray(image.convert("L"))


@pytest.mark.parametrize("shape", [(64, 64), (67, 129), (8, 300), (301, 9), (200, 150)])
@pytest.mark.parametrize("options", [{"quality": q} for q in (1, 30, 75, 90, 95, 100)] + [{"optimize": True}])
@pytest.mark.parametrize("noise", [0, 3, 80])
def test_grey_means_are_libjpegs(shape, options, noise):
    content = encoded(picture(shape, noise), **options)
    np.testing.assert_array_equal(block_means(content), by_libjpeg(content))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("shape", [(64, 64, 3), (67, 129, 3), (201, 150, 3)])
@pytest.mark.parametrize("noise", [0, 40])
def test_colour_means_are_libjpegs_luma(shape, subsampling, noise):
    content = encoded(picture(shape, noise), subsampling=subsampling, quality=88)
    np.testing.assert_array_equal(block_means(content), by_libjpeg(content))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((70, 90), {"progressive": True}),
        ((70, 90), {"restart_marker_blocks": 3}),
        ((70, 90, 3), {"keep_rgb": True}),
        ((70, 90, 4), {}),
    ],
)
def test_other_kinds_are_left_to_libjpeg(shape, options):
    pixels = picture((*shape[:2], 3) if len(shape) == 3 else shape, 5)
    image = Image.fromarray(pixels).convert("CMYK") if shape[-1] == 4 else Image.fromarray(pixels)
    file = BytesIO()
    image.save(file, "JPEG", **options)
    assert block_means(file.getvalue()) is None


def either(path: Path, monkeypatch) -> list[object]:
    """What is read without and with numba: pixels, or the words of the refusal."""
    found = []
    for fast in (False, True):
        monkeypatch.setattr(data.jpeg, "FAST", fast)
        try:
            found.append(read_fitted(path, (17, 23), "squash").tolist())
        except UnreadableImage as error:
            found.append(str(error))
    return found


def test_damaged_files_read_the_same_with_and_without(tmp_path, monkeypatch):
    rng, path = np.random.default_rng(0), tmp_path / "damaged.jpg"
    contents = [encoded(picture(shape, 30), quality=85) for shape in ((310, 330), (310, 330, 3))]
    read = 0
    for number in range(120):
        content = bytearray(contents[number % 2])
        for place in rng.integers(2, len(content), 1 + number % 3):
            content[place] = rng.integers(256)
        if number % 5 == 0:
            del content[rng.integers(len(content)) :]
        path.write_bytes(content)
        without, within = either(path, monkeypatch)
        assert without == within, number
        read += isinstance(within, list) and block_means(bytes(content)) is not None
    assert read > 10


def test_numba_that_cannot_be_loaded_leaves_all_to_libjpeg(monkeypatch):
    monkeypatch.setitem(sys.modules, "data.huffman", None)  # its import fails
    monkeypatch.delattr(data, "huffman", raising=False)
    data.jpeg._huffman.cache_clear()
    try:
        assert block_means(encoded(picture((64, 72), 9))) is None
    finally:
        data.jpeg._huffman.cache_clear()


def with_segment(content: bytes, marker: int, change) -> bytes:
    """The file with the body of its first segment of this kind changed, at the same length."""
    place = content.index(bytes([255, marker]))
    size = int.from_bytes(content[place + 2 : place + 4], "big")
    body = bytearray(content[place + 4 : place + 2 + size])
    change(body)
    return content[: place + 4] + bytes(body) + content[place + 2 + size :]


def hostile(body: bytearray, kind: str) -> None:
    if kind == "sizes beyond any integer":
        body[17:29] = bytes([255] * 12)
    elif kind == "more codes than bits":
        body[1:17] = bytes([3, *body[2:17]])
    elif kind == "no codes":
        body[1:17] = bytes(16)
    elif kind == "another table":
        body[0] = 7


@pytest.mark.parametrize("kind", ["sizes beyond any integer", "more codes than bits", "no codes", "another table"])
def test_hostile_tables_are_left_to_libjpeg(kind):
    content = with_segment(encoded(picture((64, 72), 9)), 0xC4, lambda body: hostile(body, kind))
    assert block_means(content) is None


def test_a_component_without_blocks_is_left_to_libjpeg():
    def no_blocks(body: bytearray) -> None:
        body[10] = 0x01

    content = encoded(picture((64, 72, 3), 9))
    assert block_means(content) is not None
    assert block_means(with_segment(content, 0xC0, no_blocks)) is None


@pytest.mark.parametrize("length", [0, 1, 2, 3, 20, 150, 300])
def test_headers_that_end_are_left_to_libjpeg(length):
    assert block_means(encoded(picture((64, 72), 9))[:length]) is None


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="needs ../shared/data/kermany_originals: real JPEG radiographs")
def test_real_radiographs_read_the_same_with_and_without(monkeypatch):
    used = 0
    for path in sorted(ORIGINALS.rglob("*.jpeg"))[::3]:
        monkeypatch.setattr(data.jpeg, "FAST", True)
        used += block_means(path.read_bytes()) is not None
        fast = read_image(path, at_least=40)
        monkeypatch.setattr(data.jpeg, "FAST", False)
        np.testing.assert_array_equal(fast, read_image(path, at_least=40))
    assert used > 10
