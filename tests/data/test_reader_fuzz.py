"""Whatever a file holds, the reader reads it or refuses it in one line: it never crashes, hangs or swallows memory.

A child process of limited memory and time reads the files, so that a crash or a hang becomes a failure, not a wait.
"""

import os
import random
import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from damaged_files import damaged, encapsulated, whole_files
from limited_reader import outcomes
from PIL import Image, features
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit
from radiograph_files import dicom, picture, save, scene

FILES = int(os.environ.get("MAE_DAMAGED_FILES", "120"))  # how many are tried: a few in the suite, thousands by hand
PORTION = 1000  # files for one child


def test_damaged_files_are_read_or_refused(tmp_path):
    intact, folder = tmp_path / "intact", tmp_path / "damaged"
    intact.mkdir()
    rng = random.Random(FILES)
    files = whole_files(intact)
    names = sorted(files)
    refused = 0
    for start in range(0, FILES, PORTION):
        folder.mkdir()
        for number in range(start, min(start + PORTION, FILES)):
            name = names[number % len(names)]
            (folder / f"{number}.{name}").write_bytes(damaged(name, files, rng))
        refused += sum(reason is not None for reason in outcomes(folder).values())
        shutil.rmtree(folder)
    assert FILES / 4 < refused < FILES  # the damage is real, and not all of it matters


def test_garbage_with_the_first_bytes_of_a_kind_is_refused(tmp_path):
    rng = random.Random(0)
    starts = {
        "jpeg": b"\xff\xd8\xff\xe0",
        "png": b"\x89PNG\r\n\x1a\n",
        "dicom": bytes(128) + b"DICM",
        "bare": b"\x08\x00\x05\x00",
        "none": b"",
    }
    for name, start in starts.items():
        for size in (0, 1, 7, 500, 50_000):
            (tmp_path / f"{name}{size}").write_bytes(start + rng.randbytes(size))
    assert all(outcomes(tmp_path).values())


def test_a_file_is_what_its_bytes_say_and_not_its_name(tmp_path):
    intact, folder = tmp_path / "intact", tmp_path / "renamed"
    intact.mkdir()
    folder.mkdir()
    for name, whole in whole_files(intact).items():
        for ending in (".dcm", ".jpg", ""):
            (folder / f"{name.replace('.', '_')}{ending}").write_bytes(whole)
    found = outcomes(folder)
    assert {name for name, reason in found.items() if reason} == {name for name in found if "deflated" in name}


# made to hurt
def huge(folder: Path) -> None:
    """Files of a few bytes that declare billions of pixels, text or scans."""
    side = 60_000
    small = Image.fromarray(scene(250).astype(np.uint8))
    for kind, marker, at, width in (("JPEG", b"\xff\xc0", 5, 2), ("PNG", b"IHDR", 4, 4)):
        stream = BytesIO()
        small.save(stream, kind)
        data = bytearray(stream.getvalue())
        place = data.index(marker) + at
        data[place : place + 2 * width] = side.to_bytes(width, "big") * 2
        if kind == "PNG":
            data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (folder / f"pixels.{kind}").write_bytes(data)
    save(dicom(scene(4000).astype(np.uint16), Rows=side, Columns=side), folder / "pixels.dcm")
    progressive = picture(small, folder / "scans", format="JPEG", progressive=True).read_bytes()
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    (folder / "scans").write_bytes(progressive[:-2] + last * 1000 + progressive[-2:])
    save(encapsulated(folder / "scans", JPEGBaseline8Bit), folder / "scans.dcm")


def test_huge_declarations_are_refused_before_anything_is_allocated(tmp_path):
    huge(tmp_path)
    found = outcomes(tmp_path)
    for name in ("scans", "scans.dcm"):
        assert "scans, expected at most 200" in found.pop(name)
    assert all("60000 x 60000 pixels declared" in r or "too many pixels declared" in r for r in found.values()), found


def test_small_files_that_inflate_to_gigabytes_do_no_harm(tmp_path):
    chunk = b"zTXt" + b"k\0\0" + zlib.compress(bytes(2**26))
    stream = BytesIO()
    Image.fromarray(scene(250).astype(np.uint8)).save(stream, "PNG")
    png = stream.getvalue()
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "text.png").write_bytes(png[:33] + text + png[33:])
    pixels = b"IDAT" + zlib.compress(bytes(2**26))
    data = struct.pack(">I", len(pixels) - 4) + pixels + struct.pack(">I", zlib.crc32(pixels))
    (tmp_path / "pixels.png").write_bytes(png[:33] + data + png[-12:])
    image = dicom(scene(4000).astype(np.uint16))
    save(image, tmp_path / "deflated.dcm")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    megabyte = deflater.compress(bytes(2**20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    bomb = megabyte * 4096 + deflater.flush()
    plain = (tmp_path / "deflated.dcm").read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    (tmp_path / "deflated.dcm").write_bytes(plain.replace(b"UI\x14\x00", b"UI\x16\x00") + bomb)
    assert "deflated" in outcomes(tmp_path)["deflated.dcm"]


def test_a_stream_larger_than_its_dicom_says_is_refused(tmp_path):
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow decodes no JPEG 2000")
    stream = picture(scene(250).astype(np.uint8), tmp_path / "a.j2k").read_bytes()
    for side in (300, 60_000):
        data, place = bytearray(stream), stream.index(b"\xff\x51") + 6
        data[place : place + 8] = struct.pack(">II", side, side)
        (tmp_path / "a.j2k").write_bytes(data)
        save(encapsulated(tmp_path / "a.j2k", JPEG2000Lossless), tmp_path / f"{side}.dcm")
    (tmp_path / "a.j2k").unlink()
    assert all("cannot be decoded" in str(reason) for reason in outcomes(tmp_path).values())


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "there.png").symlink_to(tmp_path / "back.png")
    (tmp_path / "back.png").symlink_to(tmp_path / "there.png")
    (tmp_path / "nowhere.dcm").symlink_to(tmp_path / "missing.dcm")
    (tmp_path / "device.dcm").symlink_to("/dev/zero")
    (tmp_path / "folder.dcm").mkdir()
    os.mkfifo(tmp_path / "pipe.dcm")
    found = outcomes(tmp_path)
    reasons = {
        "zero.jpg": "an empty file",
        "loop.jpg": "symbolic links",
        "there.png": "symbolic links",
        "back.png": "symbolic links",
        "nowhere.dcm": "no such file",
        "device.dcm": "no regular file",
        "folder.dcm": "a folder",
        "pipe.dcm": "no regular file",
    }
    assert all(reasons[name] in found[name] for name in found), found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read_is_refused(tmp_path):
    picture(scene(250).astype(np.uint8), tmp_path / "a.png").chmod(0)
    assert "permission denied" in outcomes(tmp_path)["a.png"]
