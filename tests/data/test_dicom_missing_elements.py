"""A DICOM without an element that decoding needs is refused by the element's name, whatever is in its place."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from image_reading import refusal
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from radiograph_files import CURVE, PATIENT, STORED, dicom, lut, picture, save, scene

from data.images import read_image

WINDOW = {"WindowCenter": 2000, "WindowWidth": 3000}
NUMBERS = ("BitsAllocated", "BitsStored", "PixelRepresentation", "Rows", "Columns", "SamplesPerPixel")
NEEDED = (*NUMBERS, "PhotometricInterpretation", "PixelData")
NAME = PATIENT[:8].encode()


def named(keyword: str) -> str:
    tag = f"{tag_for_keyword(keyword):08X}"
    return f"{keyword} ({tag[:4]},{tag[4:]})"


def with_raw(image: FileDataset, path: Path, keyword: str, kind: str, value: bytes) -> Path:
    """The file with an element of that value, which no library would write."""
    image = pydicom.dcmread(save(image, path))
    image._dict[Tag(keyword)] = RawDataElement(Tag(keyword), kind, len(value), value, 0, False, True)
    image.save_as(path)
    return path


# ---------------------------------------------------------------- needed


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda s: s.name)
@pytest.mark.parametrize("keyword", NEEDED)
def test_a_missing_or_empty_element_is_named(tmp_path, keyword, syntax):
    image = dicom(STORED, **WINDOW, syntax=syntax)
    image[keyword].value = None
    assert f"found no {named(keyword)}, expected " in refusal(save(image, tmp_path / "empty.dcm"))
    del image[keyword]
    assert f"found no {named(keyword)}, expected " in refusal(save(image, tmp_path / "missing.dcm"))


def test_colours_need_to_know_how_they_lie(tmp_path):
    image = dicom(np.stack([scene(250).astype(np.uint8)] * 3, -1), bits=8, photometric="RGB")
    del image.PlanarConfiguration
    assert f"no {named('PlanarConfiguration')}, expected 0 or 1" in refusal(save(image, tmp_path / "a.dcm"))


@pytest.mark.parametrize("keyword", NUMBERS)
@pytest.mark.parametrize(
    ("kind", "value"), [("LO", NAME), ("US", NAME), ("US", b"\1"), ("US", b"\1\0\2\0"), ("DS", b"1.5 ")]
)
def test_what_is_no_number_is_named_and_not_quoted(tmp_path, keyword, kind, value):
    path = with_raw(dicom(STORED), tmp_path / "a.dcm", keyword, kind, value)
    reason = refusal(path)
    assert f"found no number in {named(keyword)}, expected " in reason
    assert "Aurelian" not in reason


@pytest.mark.parametrize(
    ("keyword", "number", "expected"),
    [
        ("BitsAllocated", 32, "8 or 16"),
        ("BitsAllocated", 1, "8 or 16"),
        ("BitsStored", 0, "a whole number from 1 to 16"),
        ("BitsStored", 99, "a whole number from 1 to 16"),
        ("PixelRepresentation", 2, "0 or 1"),
        ("Rows", 0, "a whole number from 1 to 65535"),
        ("Columns", 0, "a whole number from 1 to 65535"),
        ("SamplesPerPixel", 4, "1 or 3"),
    ],
)
def test_a_number_that_cannot_be_is_named(tmp_path, keyword, number, expected):
    image = dicom(STORED, **{keyword: number})
    assert f"found {number} in {named(keyword)}, expected {expected}" in refusal(save(image, tmp_path / "a.dcm"))


def test_a_long_number_may_be_somebodys(tmp_path):
    for keyword in ("Rows", "NumberOfFrames"):
        path = with_raw(dicom(STORED), tmp_path / "a.dcm", keyword, "IS", b"12345678")
        reason = refusal(path)
        assert "found far too many" in reason
        assert "12345678" not in reason


def test_more_bits_stored_than_allocated_are_named(tmp_path):
    image = dicom(scene(250).astype(np.uint8), bits=12)
    assert f"found 12 in {named('BitsStored')}, expected at most the 8 alloc" in refusal(save(image, tmp_path / "a"))


def test_a_whole_number_of_another_type_is_one(tmp_path):
    plain = read_image(save(dicom(STORED, **WINDOW), tmp_path / "a.dcm"))
    for keyword, value in (("Rows", b"150 "), ("BitsStored", b"12"), ("SamplesPerPixel", b"1 ")):
        path = with_raw(dicom(STORED, **WINDOW), tmp_path / "b.dcm", keyword, "IS", value)
        assert np.array_equal(read_image(path), plain)


def test_more_pixels_than_rows_and_columns_are_named(tmp_path):
    path = save(dicom(np.vstack([STORED] * 3), **WINDOW, Rows=STORED.shape[0]), tmp_path / "a.dcm")
    image = pydicom.dcmread(path)
    image.Rows = STORED.shape[0]
    reason = refusal(save(image, path))
    assert f"found pixel data of another size, expected one image of {STORED.shape[0]} rows and" in reason


# ---------------------------------------------------------------- not needed


@pytest.mark.parametrize("keyword", ["HighBit", "NumberOfFrames", "PixelPaddingValue", "PixelPaddingRangeLimit"])
@pytest.mark.parametrize(("kind", "value"), [("LO", NAME), ("US", NAME), ("US", b"\1"), ("SQ", b""), ("US", b"")])
def test_what_can_be_done_without_is_as_if_absent(tmp_path, keyword, kind, value):
    if kind == "US" and value == NAME and keyword != "HighBit":
        return  # several numbers, of which the first counts
    plain = dicom(STORED)
    del plain.HighBit
    expected = read_image(save(plain, tmp_path / "a.dcm"))
    assert np.array_equal(read_image(with_raw(dicom(STORED), tmp_path / "b.dcm", keyword, kind, value)), expected)


@pytest.mark.parametrize("lacks", ["LUTDescriptor", "LUTData", "all", "a number"])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_that_is_none_is_as_if_absent(tmp_path, keyword, lacks):
    expected = read_image(save(dicom(STORED, **WINDOW), tmp_path / "a.dcm"))
    items = lut(CURVE, 0, 12)
    if lacks == "all":
        items = [Dataset()]
    elif lacks == "a number":
        items[0].LUTDescriptor = [4096, 0]
    else:
        del items[0][lacks]
    path = save(dicom(STORED, **WINDOW, **{keyword: items}), tmp_path / "b.dcm")
    assert np.array_equal(read_image(path), expected)


# ---------------------------------------------------------------- the transfer syntax


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda s: s.name
)
def test_without_a_transfer_syntax_pixels_read_as_the_file_was_parsed(tmp_path, syntax, value):
    if syntax == ExplicitVRBigEndian and value == "":
        return  # an empty one makes pydicom parse little endian
    expected = read_image(save(dicom(STORED, **WINDOW), tmp_path / "a.dcm"))
    image = dicom(STORED.astype(">u2") if syntax == ExplicitVRBigEndian else STORED, **WINDOW)
    image.file_meta.TransferSyntaxUID = syntax
    stream = BytesIO()
    pydicom.dcmwrite(
        stream, Dataset(image), implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )  # no file meta at all
    del image.file_meta.TransferSyntaxUID
    if value is not None:
        image.file_meta.TransferSyntaxUID = value
    meta = BytesIO()
    pydicom.filewriter.write_file_meta_info(meta, image.file_meta, enforce_standard=False)
    (tmp_path / "b.dcm").write_bytes(bytes(128) + b"DICM" + meta.getvalue() + stream.getvalue())
    assert np.array_equal(read_image(tmp_path / "b.dcm"), expected)


def test_compressed_pixels_need_a_transfer_syntax(tmp_path):
    image = dicom(scene(250).astype(np.uint8), bits=8)
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.PixelData = encapsulate([picture(scene(250).astype(np.uint8), tmp_path / "a.jpg").read_bytes()])
    image["PixelData"].VR = "OB"
    path = save(image, tmp_path / "a.dcm")
    assert read_image(path).shape == scene(250).shape
    image = pydicom.dcmread(path)
    length = len(image.file_meta.TransferSyntaxUID) + 8
    content = path.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI")
    size = int.from_bytes(content[140:144], "little") - length - length % 2
    path.write_bytes(content[:140] + size.to_bytes(4, "little") + content[144:at] + content[at + length + length % 2 :])
    assert f"found no {named('TransferSyntaxUID')}, expected the one by which" in refusal(path)


@pytest.mark.parametrize("value", ["1.2.3", "1.2\\1.3", "Aurelian", "1.2.840.10008.1.2.4.95"])
def test_a_transfer_syntax_that_is_none_is_refused_and_not_quoted(tmp_path, value):
    image = dicom(STORED, **WINDOW)
    content = save(image, tmp_path / "a.dcm").read_bytes()
    old = b"1.2.840.10008.1.2.1\0"
    wide = value.encode().ljust(len(old), b"\0")
    if len(wide) > len(old):
        wide += b"\0" * (len(wide) % 2)
        content = content.replace(b"UI\x14\0" + old, b"UI" + len(wide).to_bytes(2, "little") + wide)
    (tmp_path / "b.dcm").write_bytes(content.replace(old, wide))
    assert "unknown transfer syntax" in refusal(tmp_path / "b.dcm")
