"""Laws of bad image files: each is refused in one clear line, or read, and nothing else happens."""

import os
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_reading import refusal
from PIL import Image
from pydicom.uid import RLELossless
from radiograph_files import CURVE, PATIENT, STORED, H, W, dicom, lut, picture, save, scene

from data.images import read_image
from data.refusal import MAX_PIXELS, UnreadableImage


def test_files_that_are_no_image_are_refused_with_their_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "garbage.jpg").write_bytes(b"no image at all" * 50)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in {
        "empty.jpg": "an empty file",
        "garbage.jpg": "expected JPEG, PNG or DICOM",
        "loop.jpg": "symbolic links",
        "pipe.jpg": "no regular file",
        "missing.jpg": "no such file",
        "": "a folder",
        "two\nlines\0.jpg": "",
    }.items():
        if name.startswith("two"):
            with pytest.raises(UnreadableImage) as caught:
                read_image(tmp_path / name)
            assert len(str(caught.value).splitlines()) == 1
        else:
            assert reason in refusal(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_refused(tmp_path):
    path = picture(scene(250).astype(np.uint8), tmp_path / "a.png")
    path.chmod(0)
    assert "permission denied" in refusal(path)


def test_permission_error_is_refused_whoever_runs_this(tmp_path, monkeypatch):
    path = picture(scene(250).astype(np.uint8), tmp_path / "a.png")

    def denied(_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "permission denied" in refusal(path)


@pytest.mark.parametrize("side", [13_000, 60_000])  # above our limit, above Pillow's
def test_huge_declared_size_is_refused_before_allocation(tmp_path, side):
    assert side * side > MAX_PIXELS
    png = BytesIO()
    Image.new("L", (8, 8)).save(png, "PNG")
    data = bytearray(png.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(data)
    assert "pixels declared" in refusal(tmp_path / "huge.png")
    jpeg = BytesIO()
    Image.new("L", (8, 8)).save(jpeg, "JPEG")
    data = bytearray(jpeg.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = side.to_bytes(2, "big") * 2
    (tmp_path / "huge.jpg").write_bytes(data)
    assert "pixels declared" in refusal(tmp_path / "huge.jpg")
    assert "pixels declared" in refusal(tmp_path / "huge.jpg", at_least=64)


def test_animated_png_is_refused(tmp_path):
    frames = [Image.fromarray(scene(k).astype(np.uint8)) for k in (100, 200)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert "2 frames" in refusal(tmp_path / "a.png")


def samples(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(1)
    grey = np.clip(scene(230) + rng.normal(0, 8, (H, W)), 0, 255).astype(np.uint8)
    compressed = dicom(STORED, WindowCenter=2000, WindowWidth=3000, syntax=RLELossless)
    plain = dicom(STORED, VOILUTSequence=lut(CURVE, 0, 12), ModalityLUTSequence=lut(CURVE, 0, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": picture(grey, folder / "a.jpg"),
        "progressive": picture(Image.fromarray(grey).convert("RGB"), folder / "p.jpg", progressive=True, exif=exif),
        "png": picture(grey, folder / "a.png"),
        "png16": picture(STORED, folder / "b.png"),
        "dicom": save(plain, folder / "a.dcm"),
        "rle": save(compressed, folder / "b.dcm"),
    }


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "png16", "dicom", "rle"])
def test_truncated_files_are_refused(tmp_path, kind):
    whole = samples(tmp_path)[kind].read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[: int(len(whole) * share)])
        refusal(cut)
        refusal(cut, at_least=16)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "png16", "dicom", "rle"])
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, kind, recwarn, capfd):
    whole = samples(tmp_path)[kind].read_bytes()
    rng = np.random.default_rng(7)
    path = tmp_path / "damaged"
    for trial in range(30):
        data = bytearray(whole[: rng.integers(1, len(whole))] if trial % 3 == 0 else whole)
        reach = len(data) if trial % 2 else min(len(data), 1500)  # half of the damage hits the headers
        for place in rng.integers(0, reach, rng.integers(1, 12)):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            grey = read_image(path, at_least=int(rng.integers(1, 200)))
            assert grey.dtype == np.uint8 and grey.ndim == 2
        except UnreadableImage as reason:
            assert len(str(reason).splitlines()) == 1 and PATIENT[:8] not in str(reason)
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_unknown_tone_is_a_plain_value_error(tmp_path):
    with pytest.raises(ValueError, match="tone: found 'x', expected one of window, mimic_jpg") as caught:
        read_image(tmp_path / "a.jpg", tone="x")
    assert caught.type is ValueError
