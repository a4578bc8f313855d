"""What a PNG or JPEG holds beside its pixels never costs them, however broken or long it is."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from png_files import chunk
from radiograph_files import scene

from data.extras import with_fewer_extras
from data.images import read_fitted, read_image
from data.refusal import UnreadableImage

GREY = scene(250).astype(np.uint8)
LONG = zlib.compress(bytes(3_000_000))  # Pillow reads texts and profiles of up to 1 MiB


def encoded(kind: str) -> bytes:
    file = BytesIO()
    Image.fromarray(GREY).save(file, kind)
    return file.getvalue()


def segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, 2 + len(content)) + content


PNG = encoded("PNG")
HEADER = 33  # bytes of a PNG's signature and first chunk
JPEG = encoded("JPEG")
TURNED = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x112, 3, 1, 6) + bytes(4)  # EXIF: a quarter to the right
CHUNKS = {
    "a long profile": chunk(b"iCCP", b"name\0\0" + LONG),  # Pillow 2445
    "a long text": chunk(b"zTXt", b"key\0\0" + LONG),  # Pillow 8363
    "a long text of Unicode": chunk(b"iTXt", b"key\0\1\0\0\0" + LONG),
    "many texts": b"".join(chunk(b"tEXt", b"key %d\0" % number + bytes(1_000_000)) for number in range(70)),
    "a text compressed in no known way": chunk(b"zTXt", b"key\0\x05?"),
    "a damaged text": chunk(b"tEXt", b"key\0text")[:-1] + b"?",
    "no EXIF": chunk(b"eXIf", b"http://"),  # Pillow 5528
    "half a density": chunk(b"pHYs", b"\0\0"),
    "half a gamma": chunk(b"gAMA", b"\0"),
    "half a transparency": chunk(b"tRNS", b"\0"),
}
SEGMENTS = {
    "no EXIF": segment(0xE1, b"Exif\0\0http://ns"),  # Pillow 4852, 8348
    "EXIF twice": segment(0xE1, b"Exif\0\0Exif\0\0II*\0\x08\0\0\0"),
    "half of an EXIF": segment(0xE1, b"Exif\0\0" + TURNED[:16]),
    "half a profile": segment(0xE2, b"ICC_PROFILE\0\1"),
    "no list of pictures": segment(0xE2, b"MPF\0?"),
    "half of Adobe's mark": segment(0xEE, b"Adobe"),
    "half of JFIF's": segment(0xE0, b"JFIF"),
}


@pytest.mark.parametrize("what", CHUNKS)
def test_a_png_reads_whatever_stands_beside_its_pixels(what, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG[:HEADER] + CHUNKS[what] + PNG[HEADER:])
    assert np.array_equal(read_image(path), GREY)


@pytest.mark.parametrize("what", SEGMENTS)
def test_a_jpeg_reads_whatever_stands_beside_its_pixels(what, tmp_path):
    plain, path = tmp_path / "plain.jpg", tmp_path / "a.jpg"
    plain.write_bytes(JPEG)
    path.write_bytes(JPEG[:2] + SEGMENTS[what] + JPEG[2:])
    assert np.array_equal(read_image(path), read_image(plain))
    assert np.array_equal(read_fitted(path, 16), read_fitted(plain, 16))  # decoded at 1/8 of its size


def test_which_side_is_up_is_known_though_a_text_is_too_long(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG[:HEADER] + CHUNKS["a long text"] + chunk(b"eXIf", TURNED) + PNG[HEADER:])
    assert np.array_equal(read_image(path), np.rot90(GREY, -1))

    picture, turned = BytesIO(), Image.Exif()
    turned[0x112] = 6
    Image.fromarray(GREY).save(picture, "JPEG", exif=turned)
    plain, path = tmp_path / "plain.jpg", tmp_path / "a.jpg"
    plain.write_bytes(picture.getvalue())
    path.write_bytes(picture.getvalue()[:2] + SEGMENTS["half a profile"] + picture.getvalue()[2:])
    assert np.array_equal(read_image(path), read_image(plain))
    assert read_image(path).shape == GREY.T.shape


@pytest.mark.parametrize("content", [PNG[:-300], PNG[:HEADER] + CHUNKS["half a gamma"] + PNG[HEADER:-300]])
def test_damaged_pixels_are_refused_as_before(content, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"found damaged content"):
        read_image(path)


@pytest.mark.parametrize("content", [PNG, JPEG, b"", PNG[:20], JPEG[:3], JPEG[:2] + b"\xff" * 9, PNG[:8] + b"\xff" * 9])
def test_pixels_are_never_left_out(content):
    for fewer in with_fewer_extras(content):
        assert len(fewer) < max(len(content), 9)
        pixels = content[content.find(b"IDAT") :] if b"IDAT" in content else content[content.find(b"\xff\xdb") :]
        assert content not in (PNG, JPEG) or fewer.endswith(pixels)
