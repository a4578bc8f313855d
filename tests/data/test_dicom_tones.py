"""Laws of what a DICOM file shows: its window and tables, its inverted twin, and what is refused."""

import csv
import logging
from io import BytesIO

import numpy as np
import pydicom
import pytest
from checkout import SHARED
from image_reading import differ, needs_dicoms, refusal
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from radiograph_files import CURVE, PATIENT, STORED, dicom, lut, save, scene

from data.images import read_fitted, read_image
from data.refusal import UnreadableImage

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


@pytest.mark.parametrize("center", [1000.5, 1000, 1000.25])
def test_a_linear_window_of_width_one_is_a_step(tmp_path, center):
    """PS3.3 C.11.2.1.2.1: black up to the centre minus a half, itself included, and white above."""
    grey = read_image(save(dicom(STORED, WindowCenter=center, WindowWidth=1), tmp_path / "a.dcm"))
    assert set(np.unique(grey)) == {0, 255}
    assert ((grey == 255) == (center - 0.5 < STORED)).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels"),
        ({"BitsAllocated": 32}, "32 in BitsAllocated (0028,0100), expected 8 or 16"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation"),
        ({"PixelData": b"\0" * 100}, "cannot be decoded"),
        ({"BitsStored": 99}, "found"),
    ],
    ids=lambda c: "+".join(c) if isinstance(c, dict) else "",
)
def test_dicom_that_is_not_one_radiograph_is_refused_with_its_reason(tmp_path, change, reason):
    assert reason in refusal(save(dicom(STORED, **change), tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    ("uid", "what"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", " in an object of class Basic Text SR,"),
        ("1.2.840.10008.5.1.4.1.1.11.1", " in an object of class Grayscale Softcopy Presentation State,"),
        ("1.2.840.10008.1.2.1", ","),
        ("1.2.3.4", ","),
    ],
)
def test_dicom_without_pixels_is_refused_and_named_by_its_class(uid, what, tmp_path):
    image = dicom(STORED)
    del image.PixelData
    image.file_meta.MediaStorageSOPClassUID = uid
    assert f"no PixelData (7FE0,0010){what}" in refusal(save(image, tmp_path / "a.dcm"))


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
