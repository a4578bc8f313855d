"""Laws of `data.images`: every file reads as the radiograph it holds, or is refused in one clear line."""

import csv
import hashlib
import logging
import os
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from radiograph_files import PATIENT, H, W, dicom, lut, picture, save, scene

from data.images import MAX_PIXELS, UnreadableImage, fit_image, read_fitted, read_image
from data.jpeg import means_only

SHARED = Path(__file__).parents[2] / "shared" / "data"

needs_dicoms = pytest.mark.skipif(not (SHARED / "dicom").exists(), reason="shared DICOM samples are missing")
needs_originals = pytest.mark.skipif(
    not (SHARED / "kermany_originals").exists(), reason="shared Kermany originals are missing"
)


def refusal(path: Path, **options) -> str:
    """The one line with which `path` is refused."""
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: found ") and ", expected " in message
    assert len(message.splitlines()) == 1 and PATIENT[:8] not in message
    return message


def differ(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(float) - b).max()


# DICOM

STORED = scene(3800).astype(np.uint16) + 100
CURVE = (4095 * np.linspace(0, 1, 4096) ** 2).astype(np.uint16)

TWINS = {  # elements of the MONOCHROME1 file, elements of its MONOCHROME2 twin
    "window": (
        {"WindowCenter": 1800, "WindowWidth": 2000},
        {"WindowCenter": 4096 - 1800, "WindowWidth": 2000},
    ),
    "linear_exact": (
        {"WindowCenter": 1800, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 4095 - 1800, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
    ),
    "sigmoid": (
        {"WindowCenter": 1800, "WindowWidth": 2000, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 4095 - 1800, "WindowWidth": 2000, "VOILUTFunction": "SIGMOID"},
    ),
    "voi_lut": (
        {"VOILUTSequence": lut(CURVE, 0, 12)},
        {"VOILUTSequence": lut(4095 - CURVE[::-1], 0, 12)},
    ),
    "inverse": (
        {"WindowCenter": 2048, "WindowWidth": 4096, "PresentationLUTShape": "INVERSE"},
        {"WindowCenter": 2048, "WindowWidth": 4096, "PresentationLUTShape": "IDENTITY"},
    ),
    "percentiles": ({}, {}),
    "padding": ({"PixelPaddingValue": 4095}, {"PixelPaddingValue": 0}),
}


@pytest.mark.parametrize("case", TWINS)
@pytest.mark.parametrize("tone", ["window", "mimic_jpg"])
def test_monochrome1_and_its_inverted_monochrome2_twin_read_alike(tmp_path, case, tone):
    stored = STORED.copy()
    if case == "padding":
        stored[:, :40] = 4095
    ones, twos = TWINS[case]
    one = save(dicom(stored, photometric="MONOCHROME1", **ones), tmp_path / "one.dcm")
    two = save(dicom(4095 - stored, photometric="MONOCHROME2", **twos), tmp_path / "two.dcm")
    a, b = read_image(one, tone=tone), read_image(two, tone=tone)
    # 255 - trunc(x) is not trunc(255 - x), and equalisation widens that one level
    assert differ(a, b) <= (1 if tone == "window" else 6)
    assert a.std() > 20 and np.corrcoef(a[:, 40:].ravel(), -STORED[:, 40:].ravel().astype(float))[0, 1] > 0.8


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 900, "WindowWidth": 1500},
        {"WindowCenter": 900, "WindowWidth": 1500, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 900, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [900, 10], "WindowWidth": [1500, 20]},
        {"WindowCenter": 300, "WindowWidth": 2000, "RescaleSlope": 0.5, "RescaleIntercept": -500},
        {"VOILUTSequence": lut(CURVE[:3000], 200, 12)},
        {"VOILUTSequence": lut(CURVE, 0, 12), "WindowCenter": 1, "WindowWidth": 2},
        {"ModalityLUTSequence": lut(CURVE * 16, 0, 16), "WindowCenter": 20000, "WindowWidth": 50000},
    ],
    ids=lambda e: "+".join(e),
)
def test_window_and_luts_equal_pydicoms_own(tmp_path, elements, syntax):
    path = save(dicom(STORED, **elements, syntax=syntax), tmp_path / "a.dcm")
    reference = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(reference.pixel_array, reference), reference).astype(float)
    low, high = 0, 65535 if "ModalityLUTSequence" in elements else 4095
    if "RescaleSlope" in elements:
        low, high = -500, 4095 * 0.5 - 500
    expected = np.rint((shown - low) / (high - low) * 255).astype(np.uint8)
    assert differ(read_image(path), expected) <= 1


def test_signed_values_read_as_their_unsigned_twin(tmp_path):
    unsigned = save(dicom(STORED, WindowCenter=2000, WindowWidth=3000), tmp_path / "u.dcm")
    signed = (STORED.astype(np.int32) - 2048).astype(np.int16)
    shifted = save(dicom(signed, WindowCenter=-48, WindowWidth=3000), tmp_path / "s.dcm")
    assert differ(read_image(unsigned), read_image(shifted)) == 0


def test_lut_of_8_bit_entries_is_not_cut_at_256_inputs(tmp_path):
    curve = (CURVE // 16).astype(np.uint8)
    words = save(dicom(STORED, VOILUTSequence=lut(curve, 0, 8)), tmp_path / "words.dcm")
    item = lut(curve, 0, 8)
    item[0].LUTData = curve.tobytes()  # the same entries, two in each word
    packed = save(dicom(STORED, VOILUTSequence=item), tmp_path / "packed.dcm")
    for path in (words, packed):
        assert differ(read_image(path), curve[STORED]) == 0


def test_padding_does_not_move_the_percentiles(tmp_path):
    framed = np.pad(STORED, 100, constant_values=0)
    bare = read_image(save(dicom(STORED), tmp_path / "bare.dcm"))
    padded = read_image(save(dicom(framed, PixelPaddingValue=0), tmp_path / "padded.dcm"))
    ranged = dicom(np.where(framed == 0, 7, framed), PixelPaddingValue=0, PixelPaddingRangeLimit=50)
    assert differ(padded[100:-100, 100:-100], bare) == 0
    assert differ(read_image(save(ranged, tmp_path / "ranged.dcm"))[100:-100, 100:-100], bare) == 0


@pytest.mark.parametrize("voi", [{}, {"WindowCenter": "", "WindowWidth": ""}, {"WindowCenter": 5, "WindowWidth": 0}])
def test_without_a_usable_window_the_whole_range_is_used(tmp_path, voi):
    grey = read_image(save(dicom(STORED // 8, **voi), tmp_path / "a.dcm"))
    assert grey.min() == 0 and grey.max() == 255 and grey.std() > 40


def test_mimic_tone_equalizes_the_histogram_of_stored_values(tmp_path):
    window = {"WindowCenter": 500, "WindowWidth": 50}
    grey = read_image(save(dicom(STORED, **window), tmp_path / "a.dcm"), tone="mimic_jpg")
    levels = ((STORED - STORED.min()) / np.ptp(STORED) * 255).astype(np.uint8)  # OpenCV's definition, in full
    histogram = np.bincount(levels.ravel(), minlength=256)
    first = np.flatnonzero(histogram)[0]
    table = np.rint((np.cumsum(histogram) - histogram[first]) * 255 / (STORED.size - histogram[first]))
    assert differ(grey, table[levels].astype(np.uint8)) <= 1


def test_colour_dicom_reads_as_its_grey_twin(tmp_path):
    grey = scene(250).astype(np.uint8)
    rgb = save(dicom(np.stack([grey] * 3, -1), bits=8, photometric="RGB"), tmp_path / "rgb.dcm")
    neutral = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], -1)
    ybr = save(dicom(neutral, bits=8, photometric="YBR_FULL"), tmp_path / "ybr.dcm")
    assert differ(read_image(rgb), grey) <= 1
    assert differ(read_image(ybr), grey) <= 1


def test_dicom_without_preamble_or_extension_is_read(tmp_path):
    image = dicom(STORED, WindowCenter=2000, WindowWidth=3000)
    whole = read_image(save(image, tmp_path / "whole.jpg"))
    (tmp_path / "meta_first").write_bytes((tmp_path / "whole.jpg").read_bytes()[132:])
    image.remove_private_tags()
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"  # group 0008 comes first
    bare = BytesIO()
    pydicom.dcmwrite(bare, Dataset(image), implicit_vr=True, little_endian=True, enforce_file_format=False)
    (tmp_path / "bare").write_bytes(bare.getvalue())
    assert differ(read_image(tmp_path / "meta_first"), whole) == 0
    assert differ(read_image(tmp_path / "bare"), whole) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation"),
        ({"PixelData": b"\0" * 100}, "cannot be decoded"),
        ({"BitsStored": 99}, "found"),
    ],
    ids=lambda c: "+".join(c) if isinstance(c, dict) else "",
)
def test_dicom_that_is_not_one_radiograph_is_refused_with_its_reason(tmp_path, change, reason):
    assert reason in refusal(save(dicom(STORED, **change), tmp_path / "a.dcm"))


def test_dicom_without_pixels_is_refused(tmp_path):
    image = dicom(STORED)
    del image.PixelData
    assert "without pixel data" in refusal(save(image, tmp_path / "a.dcm"))


def test_no_patient_attribute_reaches_a_message_or_a_log(tmp_path, caplog):
    caplog.set_level("DEBUG")
    path = save(dicom(STORED, WindowCenter=2000, WindowWidth=3000), tmp_path / "a.dcm")
    whole = path.read_bytes()
    for length in (b"\x30", b"\x60"):  # a damaged length: the transfer syntax swallows the name behind it
        path.write_bytes(whole.replace(b"UI\x14\x00", b"UI" + length + b"\x00"))
        assert path.read_bytes() != whole
        refusal(path)
    assert PATIENT[:8] not in caplog.text and not logging.getLogger("pydicom").disabled


@needs_dicoms
def test_shared_dicoms_are_read_or_refused_as_their_index_says():
    for row in csv.DictReader((SHARED / "dicom" / "index.csv").open()):
        path = SHARED / "dicom" / row["file"]
        try:
            grey = read_image(path)
        except UnreadableImage as reason:
            assert row["decodes_plain"] == "no", reason
            if row["decodes_with_plugins"] == "yes":
                assert any(p in str(reason) for p in row["needs_plugin"].split(" or ")), reason
        else:
            assert row["decodes_plain"] == "yes" or row["decodes_with_plugins"] == "yes", row["file"]
            assert grey.shape == (int(row["rows"]), int(row["cols"])) and grey.std() > 10


@needs_dicoms
@pytest.mark.parametrize("tone", ["window", "mimic_jpg"])
def test_shared_chest_dicoms_show_bright_mediastinum_and_dark_lungs(tone):
    for name in ("implicit_cxr", "j2k_RG1_J2KI"):
        chest = read_fitted(SHARED / "dicom" / f"chest_CR_mono1_{name}.dcm", 100, "squash", tone)
        middle, lungs = chest[30:60, 45:55], np.hstack([chest[25:45, 22:35], chest[25:45, 70:80]])
        assert middle.mean() > lungs.mean() + 15, name


# JPEG and PNG


def test_grey_and_colour_twins_read_alike(tmp_path):
    grey = scene(250).astype(np.uint8)
    plain = Image.fromarray(grey)
    for mode in ("L", "RGB", "RGBA", "LA", "P"):
        assert differ(read_image(picture(plain.convert(mode), tmp_path / f"{mode}.png")), grey) <= 1
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            path = picture(plain.convert(mode), tmp_path / "a.jpg", quality=97, progressive=progressive)
            assert np.abs(read_image(path).astype(float) - grey).mean() < 1


def test_png_of_1_8_and_16_bits(tmp_path):
    grey = scene(250).astype(np.uint8)
    black_white = read_image(picture(Image.fromarray(grey).convert("1"), tmp_path / "1.png"))
    assert set(np.unique(black_white)) == {0, 255}
    assert differ(read_image(picture(grey, tmp_path / "8.png")), grey) == 0
    twelve, sixteen = STORED, (STORED * 16).astype(np.uint16)
    a = read_image(picture(twelve, tmp_path / "12.png"))
    b = read_image(picture(sixteen, tmp_path / "16.png"))
    assert differ(a, b) <= 1 and a.max() == 255 and a.min() == 0  # how many of the bits are used is no matter
    assert np.corrcoef(a.ravel(), twelve.ravel().astype(float))[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(1501, 1106), (985, 1333), (2000, 260)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
def test_reduced_decode_is_close_to_full_decode(tmp_path, shape, mode, resize):
    noise = np.random.default_rng(0).normal(0, 6, shape)
    grey = np.clip(scene(230, *shape) + noise, 0, 255).astype(np.uint8)
    path = picture(Image.fromarray(grey).convert(mode), tmp_path / "a.jpg", quality=90)
    for size in (64, 224):
        reduced, full = read_fitted(path, size, resize), fit_image(read_image(path), size, resize)
        assert np.abs(reduced.astype(float) - full).mean() < 1.0


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(1501, 1106), (985, 1333), (64, 2000), (640, 512)])
def test_a_progressive_jpeg_without_its_details_decodes_to_the_same_pixels_at_an_eighth(tmp_path, mode, shape):
    noise = np.random.default_rng(0).normal(0, 9, shape)
    grey = np.clip(scene(230, *shape) + noise, 0, 255).astype(np.uint8)
    path = picture(Image.fromarray(grey).convert(mode), tmp_path / "a.jpg", quality=90, progressive=True)
    whole = Image.open(path)
    whole.draft("L", (shape[1] // 8, shape[0] // 8))
    assert len(means_only(path.read_bytes())) < path.stat().st_size / 2
    assert differ(read_image(path, at_least=1), np.asarray(whole)) == 0


def test_reduced_decode_never_falls_below_the_wanted_side(tmp_path):
    path = picture(scene(250, 803, 611).astype(np.uint8), tmp_path / "a.jpg")
    for wanted, shorter in [
        (1, 77),
        (76, 77),
        (77, 153),
        (152, 153),
        (153, 306),
        (305, 306),
        (306, 611),
        (900, 611),
    ]:
        assert min(read_image(path, at_least=wanted).shape) == shorter


def test_exif_orientation_is_honoured(tmp_path):
    grey = scene(250, 800, 600).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    turned = picture(grey, tmp_path / "turned.jpg", exif=exif, quality=95)
    assert np.abs(read_image(turned).astype(float) - np.rot90(grey, -1)).mean() < 2
    upright = fit_image(np.rot90(grey, -1).copy(), 64)
    assert np.abs(read_fitted(turned, 64).astype(float) - upright).mean() < 2


@needs_originals
def test_originals_read_and_their_reduced_decode_is_faithful():
    rows = list(csv.DictReader((SHARED / "kermany_originals" / "index.csv").open()))
    assert len(rows) == 120
    for i, row in enumerate(rows):
        path = SHARED / "kermany_originals" / row["path"]
        assert read_fitted(path, 224, "squash").std() > 10
        if i % 8 == 0 or row["path"].endswith("person1258_virus_2138.jpeg"):  # the sharpest of them
            full = Image.open(path).convert("L")
            assert full.size == (int(row["width"]), int(row["height"]))
            for size in (64, 128, 224, 384, 512):
                lanczos = np.asarray(full.resize((size, size), Image.Resampling.LANCZOS), float)
                assert np.abs(read_fitted(path, size, "squash") - lanczos).mean() < 1.5, (path, size)


def test_who_asks_for_it_is_given_the_bytes_that_were_read(tmp_path, archive):
    path, digest = picture(scene(250).astype(np.uint8), tmp_path / "a.png"), hashlib.sha256()
    read_fitted(path, 16, note=digest.update)
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()
    seen = []
    read_fitted(f"{archive}#train_images/2", 16, note=seen.append)
    assert seen == [read_image(f"{archive}#train_images/2").tobytes()]


# fitting


def test_fit_modes_keep_what_they_promise():
    white = np.full((60, 100), 255, np.uint8)
    padded = fit_image(white, 50, "pad")
    assert padded.shape == (50, 50) and (padded[10:40] == 255).all() and not padded[:10].any()
    assert not padded[40:].any()
    assert (fit_image(white, 50, "squash") == 255).all()
    assert (fit_image(white, 50, "crop") == 255).all()
    striped = white.copy()
    striped[:, :20] = striped[:, 80:] = 0  # crop keeps the middle 60 columns, all white
    assert fit_image(striped, 30, "crop")[:, 1:-1].min() > 240
    assert fit_image(white[:1], 40, "pad").sum() == 40 * 255
    with pytest.raises(ValueError, match="resize: found 'zoom', expected one of pad, squash, crop"):
        fit_image(white, 10, "zoom")


def test_fitting_an_image_of_the_right_size_changes_nothing():
    grey = scene(250, 64, 64).astype(np.uint8)
    for resize in ("pad", "squash", "crop"):
        assert differ(fit_image(grey, 64, resize), grey) == 0


# MedMNIST


@pytest.fixture
def archive(tmp_path) -> Path:
    grey = np.stack([scene(k, 28, 30).astype(np.uint8) for k in (50, 150, 250)])
    np.savez_compressed(tmp_path / "a.npz", train_images=grey, test_images=np.stack([grey] * 3, -1))
    return tmp_path / "a.npz"


def test_archive_member_reads_as_the_array_holds_it(archive):
    with np.load(archive) as arrays:
        assert differ(read_image(f"{archive}#train_images/2"), arrays["train_images"][2]) == 0
        assert differ(read_image(Path(f"{archive}#test_images/1")), arrays["train_images"][1]) <= 1
    assert read_fitted(f"{archive}#train_images/0", 14).shape == (14, 14)
    read_image(f"{archive}#train_images/2")[:] = 0  # ours to write: the next reader sees none of it
    assert read_image(f"{archive}#train_images/2").any()


def test_archive_is_opened_once_for_many_members(archive):
    start = time.perf_counter()
    for i in range(3000):
        read_image(f"{archive}#train_images/{i % 3}")
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("train_images/3", "index '3', expected 0 to 2"),
        ("train_images/-1", "index '-1'"),
        ("train_images", "index ''"),
        ("val_images/0", "no 'val_images', expected one of train_images, test_images"),
    ],
)
def test_archive_member_that_does_not_exist_is_refused(archive, member, reason):
    assert reason in refusal(f"{archive}#{member}")


def test_bad_archives_are_refused(tmp_path):
    (tmp_path / "b.npz").write_bytes(b"garbage" * 99)
    np.savez(tmp_path / "c.npz", train_images=np.zeros((3, 28, 28), np.float32))
    assert "found" in refusal(f"{tmp_path / 'b.npz'}#train_images/0")
    assert "float32" in refusal(f"{tmp_path / 'c.npz'}#train_images/0")
    assert "no such file" in refusal(f"{tmp_path / 'd.npz'}#train_images/0")


# bad files


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
    for trial in range(120):
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
