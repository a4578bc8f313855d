"""DICOM elements with unusable values are treated as absent: an intact file is never lost because of them."""

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from radiograph_files import CURVE, STORED, dicom, lut, save

from data.images import read_image

WINDOW = {"WindowCenter": 2000, "WindowWidth": 3000}


def read(tmp_path, name="x", raw=None, **elements):
    """A DICOM of the elements; `raw`: values as bytes, which no library would write."""
    image = dicom(STORED, **elements)
    path = save(image, tmp_path / f"{name}.dcm")
    if raw:
        image = pydicom.dcmread(path)
        for keyword, value in raw.items():
            tag = Tag(keyword)
            padded = value + b" " * (len(value) % 2)
            image._dict[tag] = RawDataElement(tag, "DS", len(padded), padded, 0, False, True)
        image.save_as(path)
    return read_image(path)


@pytest.mark.parametrize("width", [b"NaN", b"inf", b"-inf", b"1e999", b"abc", b"2000,0", b"0", b"-5", b"0.5", b""])
def test_a_window_that_is_none_is_as_if_absent(width, tmp_path):
    plain = read(tmp_path, "plain")
    assert np.array_equal(read(tmp_path, raw={"WindowCenter": b"2000", "WindowWidth": width}), plain)
    assert plain.max() > plain.min()


@pytest.mark.parametrize("center", [b"NaN", b"2000,0", b"x", b""])
def test_a_centre_that_is_none_is_as_if_absent(center, tmp_path):
    assert np.array_equal(read(tmp_path, raw={"WindowCenter": center, "WindowWidth": b"3000"}), read(tmp_path, "plain"))


@pytest.mark.parametrize(
    ("centers", "widths"),
    [(b"\\2000", b"\\3000"), (b"7\\2000", b"NaN\\3000"), (b"2000\\9", b"3000\\1"), (b"5,0\\2000", b"4\\3000")],
)
def test_the_first_window_that_is_one_counts(centers, widths, tmp_path):
    found = read(tmp_path, raw={"WindowCenter": centers, "WindowWidth": widths})
    assert np.array_equal(found, read(tmp_path, "plain", **WINDOW))


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_functions_take_a_width_below_1(function, tmp_path):
    elements = {"RescaleSlope": 0.0001, "RescaleIntercept": 0, "VOILUTFunction": function}
    found = read(tmp_path, WindowCenter=0.2, WindowWidth=0.3, **elements)
    values = STORED * 0.0001
    expected = np.clip((values - 0.2) / 0.3 + 0.5, 0, 1)
    if function == "SIGMOID":
        expected = 1 / (1 + np.exp(-4 * (values - 0.2) / 0.3))
    assert np.abs(found - 255 * expected).max() <= 0.51


@pytest.mark.parametrize("slope", [b"0", b"NaN", b"inf", b"1,5", b""])
def test_a_slope_that_cannot_be_used_is_as_if_absent(slope, tmp_path):
    found = read(tmp_path, raw={"RescaleSlope": slope, "RescaleIntercept": b"0"}, **WINDOW)
    assert np.array_equal(found, read(tmp_path, "plain", **WINDOW))


@pytest.mark.parametrize("intercept", [b"NaN", b"-inf", b"1,0"])
def test_an_intercept_that_cannot_be_used_is_as_if_absent(intercept, tmp_path):
    found = read(tmp_path, raw={"RescaleSlope": b"1", "RescaleIntercept": intercept}, **WINDOW)
    assert np.array_equal(found, read(tmp_path, "plain", **WINDOW))


def test_a_voi_lut_of_12_bits_that_says_16_is_not_black(tmp_path):
    said_12 = read(tmp_path, "12", VOILUTSequence=lut(CURVE, 0, 12))
    said_16 = read(tmp_path, "16", VOILUTSequence=lut(CURVE, 0, 16))
    assert CURVE.max() == 4095
    assert np.array_equal(said_12, said_16)
    expected = CURVE[STORED] / 4095 * 255
    assert np.abs(said_16 - expected).max() <= 0.51


def test_a_voi_lut_that_uses_most_of_its_bits_keeps_its_scale(tmp_path):
    dim = (CURVE * 0.7).astype(np.uint16)
    found = read(tmp_path, VOILUTSequence=lut(dim, 0, 12))
    assert np.abs(found - dim[STORED] / 4095 * 255).max() <= 0.51
