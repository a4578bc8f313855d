"""A DICOM reads as the formulas of the standard say, whatever its bits, sign, polarity, window and transfer syntax."""

import os
import subprocess
import sys
import time
import zlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from checkout import ROOT
from PIL import Image, features
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)
from radiograph_files import PATIENT, dicom, lut, save, scene

from data.dicom import in_child
from data.images import read_image
from data.refusal import UnreadableImage

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def shown_by_the_standard(stored: np.ndarray, elements: dict, negative: bool) -> np.ndarray:
    """PS3.3 C.11.1 (rescale) and C.11.2.1 (windows), pixel by pixel, then C.7.6.3.1.2 (polarity)."""
    x = stored * float(elements["RescaleSlope"]) + float(elements["RescaleIntercept"])
    c, w = elements["WindowCenter"], elements["WindowWidth"]
    if elements["VOILUTFunction"] == "LINEAR":
        y = ((x - (c - 0.5)) / (w - 1) + 0.5).clip(0, 1)
    elif elements["VOILUTFunction"] == "LINEAR_EXACT":
        y = ((x - c) / w + 0.5).clip(0, 1)
    else:
        y = 1 / (1 + np.exp(-4 * (x - c) / w))
    return 255 * (1 - y if negative else y)


def any_radiograph(rng: np.random.Generator) -> tuple[np.ndarray, int, dict]:
    """Stored values of 8 to 16 bits, signed or not, up to both ends of their range; bits; how they are shown."""
    bits, signed = int(rng.integers(8, 17)), bool(rng.integers(2))
    stored = rng.integers(0, 2**bits, (31, 47))
    stored.flat[:2] = 0, 2**bits - 1
    wide = bits > 8 or rng.integers(2)
    dtype = {(0, 0): np.uint8, (0, 1): np.int8, (1, 0): np.uint16, (1, 1): np.int16}[int(wide), int(signed)]
    slope, intercept = rng.choice([1, 0.5, 2.25]), rng.choice([0, -1024, 17.5])
    reach = slope * 2**bits
    elements = {
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "WindowCenter": int(intercept + reach * rng.uniform(0.2, 0.8) - signed * reach / 2),
        "WindowWidth": int(reach * rng.uniform(0.05, 1.5)) + 2,
        "VOILUTFunction": str(rng.choice(FUNCTIONS)),
    }
    return (stored - signed * 2 ** (bits - 1)).astype(dtype), bits, elements


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_any_radiograph_reads_as_the_standard_says(tmp_path, photometric, syntax):
    rng = np.random.default_rng(SYNTAXES.index(syntax))
    for _ in range(40):
        stored, bits, elements = any_radiograph(rng)
        if syntax == RLELossless and bits == 8:
            stored = stored.astype(f"{stored.dtype.kind}1")  # pydicom compresses 8 of 16 bits into half a file
        path = save(dicom(stored, bits=bits, photometric=photometric, syntax=syntax, **elements), tmp_path / "a.dcm")
        expected = shown_by_the_standard(stored, elements, photometric == "MONOCHROME1")
        assert np.abs(read_image(path) - expected).max() <= 0.51, (bits, stored.dtype, elements)


def test_any_monochrome1_and_its_inverted_monochrome2_twin_read_alike(tmp_path):
    rng = np.random.default_rng(9)
    for _ in range(60):
        stored, bits, elements = any_radiograph(rng)
        one = save(dicom(stored, bits=bits, photometric="MONOCHROME1", **elements), tmp_path / "one.dcm")
        ends = -1 if stored.dtype.kind == "i" else 2**bits - 1  # lowest plus highest value of the range
        mirror = elements["RescaleSlope"] * ends + 2 * elements["RescaleIntercept"]
        center = mirror - elements["WindowCenter"] + (elements["VOILUTFunction"] == "LINEAR")
        twin = dicom((ends - stored.astype(int)).astype(stored.dtype), bits=bits, **elements | {"WindowCenter": center})
        a, b = read_image(one), read_image(save(twin, tmp_path / "two.dcm"))
        assert np.abs(a.astype(int) - b).max() <= 1 and np.ptp(a) > 20, (bits, stored.dtype, elements)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda s: s.name)
def test_any_lut_reads_as_the_standard_says(tmp_path, syntax):
    rng = np.random.default_rng(3)
    for _ in range(40):
        stored, bits, _ = any_radiograph(rng)
        first, entries = int(stored.min()) + int(rng.integers(0, 30)), int(rng.integers(2, 2 ** min(bits, 12)))
        depth = int(rng.integers(10, 17))
        table = np.sort(rng.integers(0, 2**depth, entries)).astype(np.uint16)
        item = lut(table, 0, depth)
        written = first % 2**16 if syntax == ImplicitVRLittleEndian else first  # some write signed as unsigned
        item[0].add_new("LUTDescriptor", "SS" if -(2**15) <= written < 0 else "US", [entries, written, depth])
        path = save(dicom(stored, bits=bits, VOILUTSequence=item), tmp_path / "a.dcm")
        expected = table[np.clip(stored.astype(int) - first, 0, entries - 1)] / (2**depth - 1) * 255
        assert np.abs(read_image(path) - expected).max() <= 0.51, (bits, stored.dtype, first, entries, depth)


@pytest.mark.parametrize(
    ("pixels", "intercept", "first"), [(-2000, 42000, 40000), (59000, 0, 59000), (0, -3000, -3000)]
)
@pytest.mark.parametrize("kind", ["US", "SS"])
def test_the_sign_of_a_luts_first_value_is_that_of_the_values(tmp_path, kind, pixels, intercept, first):
    stored = (scene(4000).astype(np.int64) + pixels).astype(np.int16 if pixels < 0 else np.uint16)
    table = (65535 * np.linspace(0, 1, 4001) ** 2).astype(np.uint16)
    item = lut(table, 0, 16)
    written = first % 2**16
    if kind == "SS" and written >= 2**15:  # read with the other sign, whatever is meant (dcm4che 1521)
        written -= 2**16
    item[0].add_new("LUTDescriptor", kind, [len(table), written, 16])

    image = dicom(stored, bits=16, RescaleSlope=1, RescaleIntercept=intercept, VOILUTSequence=item)
    expected = table[stored.astype(int) + intercept - first] / 65535 * 255
    assert np.abs(read_image(save(image, tmp_path / "a.dcm")) - expected).max() <= 0.51


def test_what_stands_in_unused_bits_is_ignored(tmp_path):
    stored = scene(4000).astype(np.uint16)
    clean = save(dicom(stored, WindowCenter=2000, WindowWidth=3000), tmp_path / "a.dcm")
    overlay = stored | (np.indices(stored.shape)[1] % 7 << 12).astype(np.uint16)  # older files keep an overlay there
    dirty = save(dicom(overlay, WindowCenter=2000, WindowWidth=3000), tmp_path / "b.dcm")
    assert (read_image(dirty) == read_image(clean)).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_what_stands_in_unused_bits_is_ignored_in_compressed_pixels_too(tmp_path, syntax, signed):
    if syntax == JPEG2000Lossless and not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")
    window = {"WindowCenter": 0 if signed else 2000, "WindowWidth": 3000}
    stored = scene(4000).astype(np.int16) - 2000 if signed else scene(4000).astype(np.uint16)
    clean = read_image(save(dicom(stored, **window), tmp_path / "a.dcm"))

    # cells of 12 bits, in two's complement, below an overlay (pydicom 2260, 1149)
    cells = (stored.astype(np.int64) % 4096).astype(np.uint16)
    cells |= (np.indices(stored.shape)[1] % 7 << 12).astype(np.uint16)
    dirty = dicom(cells, PixelRepresentation=int(signed), syntax=syntax, **window)
    if syntax == JPEG2000Lossless:
        dirty = compressed(Image.fromarray(cells), dirty, syntax, no_jp2=True)
    assert (read_image(save(dirty, tmp_path / "b.dcm")) == clean).all()


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
def test_what_lossy_compression_brings_above_the_stored_bits_stays_bright(tmp_path):
    stored = scene(4000).astype(np.uint16)
    stored[:50] = 4100  # of a white border, 5 too much
    image = dicom(stored, WindowCenter=2048, WindowWidth=4096)
    lossy = compressed(Image.fromarray(stored), image, JPEG2000, no_jp2=True)
    assert read_image(save(lossy, tmp_path / "a.dcm"))[:45].min() == 255


def test_values_in_the_upper_bits_are_refused_and_not_cut_off(tmp_path):
    path = save(dicom(scene(4000).astype(np.uint16) << 4, HighBit=15), tmp_path / "a.dcm")
    with pytest.raises(UnreadableImage, match="found 12 bits stored below bit 15, expected bit 11 to be the highest"):
        read_image(path)


def test_negative_padding_is_excluded_whichever_way_it_is_written(tmp_path):
    stored = (scene(3000).astype(np.int32) - 1000).astype(np.int16)
    framed = np.pad(stored, 60, constant_values=-2000)
    bare = read_image(save(dicom(stored, bits=16), tmp_path / "bare.dcm"))
    for representation, value in (("SS", -2000), ("US", 2**16 - 2000)):
        image = dicom(framed, bits=16)
        image.add_new("PixelPaddingValue", representation, value)
        grey = read_image(save(image, tmp_path / "framed.dcm"))[60:-60, 60:-60]
        assert (grey == bare).all(), representation


# colour and compression


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("space", ["RGB", "YBR_FULL"])
def test_secondary_captures_read_as_their_grey(tmp_path, planar, space):
    red, blue = scene(250).astype(np.uint8), scene(250).astype(np.uint8)[::-1]
    colours = Image.fromarray(np.stack([red, red // 2, blue], -1))
    held = np.asarray(colours.convert("YCbCr") if space == "YBR_FULL" else colours)
    image = dicom(held, bits=8, photometric=space, PlanarConfiguration=planar)
    if planar:
        image.PixelData = np.moveaxis(held, -1, 0).tobytes()
    grey = read_image(save(image, tmp_path / "a.dcm"))
    assert np.abs(grey.astype(int) - np.asarray(colours.convert("L"))).max() <= 3


def compressed(picture: Image.Image, twin: pydicom.FileDataset, syntax: str, **options) -> pydicom.FileDataset:
    """The twin with its pixels as the picture's compressed stream."""
    stream = BytesIO()
    picture.save(stream, "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000", **options)
    twin.file_meta.TransferSyntaxUID = syntax
    twin.PixelData = encapsulate([stream.getvalue()])
    twin["PixelData"].VR = "OB"
    return twin


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_jpeg_and_jpeg_2000_read_as_their_uncompressed_twins(tmp_path, photometric):
    grey, twelve = scene(250).astype(np.uint8), scene(4000).astype(np.uint16)
    window = {"WindowCenter": 2000, "WindowWidth": 3500, "photometric": photometric}
    small = {"WindowCenter": 120, "WindowWidth": 200, "photometric": photometric}
    plain = read_image(save(dicom(grey, bits=8, **small), tmp_path / "a.dcm"))
    jpeg = compressed(Image.fromarray(grey), dicom(grey, bits=8, **small), JPEGBaseline8Bit, quality=97)
    assert np.abs(read_image(save(jpeg, tmp_path / "b.dcm")).astype(int) - plain).mean() < 1
    if features.check("jpg_2000"):
        plain = read_image(save(dicom(twelve, **window, bits=16), tmp_path / "c.dcm"))
        lossless = compressed(Image.fromarray(twelve), dicom(twelve, **window, bits=16), JPEG2000Lossless, no_jp2=True)
        assert (read_image(save(lossless, tmp_path / "d.dcm")) == plain).all()


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_a_jpeg_of_8_bits_in_cells_of_16_reads_as_in_cells_of_8(tmp_path, syntax):
    grey = scene(250).astype(np.uint8)
    greys = []
    for allocated in (8, 16):
        jpeg = compressed(Image.fromarray(grey), dicom(grey, bits=8), JPEGBaseline8Bit, quality=97)
        jpeg.file_meta.TransferSyntaxUID = syntax
        jpeg.BitsAllocated = allocated
        greys.append(read_image(save(jpeg, tmp_path / "a.dcm")))
    assert np.array_equal(*greys)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_a_jpeg_of_8_bits_that_says_12_is_refused_without_naming_plugins(tmp_path, syntax):
    """No plugin would help: the windows of such a file are for greys that its pixels no longer have."""
    grey = scene(250).astype(np.uint8)
    jpeg = compressed(Image.fromarray(grey), dicom(grey.astype(np.uint16), bits=12), JPEGBaseline8Bit, quality=97)
    jpeg.file_meta.TransferSyntaxUID = syntax
    expected = r"found 8 bits in JPEG .* pixel data, expected the 12 of BitsStored \(0028,0101\)$"
    with pytest.raises(UnreadableImage, match=expected) as caught:
        read_image(save(jpeg, tmp_path / "a.dcm"))
    assert type(caught.value) is UnreadableImage


def test_colour_jpeg_reads_as_its_grey(tmp_path):
    colours = Image.fromarray(np.stack([scene(250).astype(np.uint8)] * 3, -1))
    twin = dicom(np.asarray(colours), bits=8, photometric="YBR_FULL_422")
    path = save(compressed(colours, twin, JPEGBaseline8Bit, quality=97), tmp_path / "a.dcm")
    assert np.abs(read_image(path) - scene(250)).mean() < 2


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_jpeg_of_coarse_colours_is_ycbcr_whatever_the_file_says(tmp_path, photometric, marked):
    shades = [scene(250), scene(200)[::-1], scene(120)[:, ::-1]]
    colours = Image.fromarray(np.stack(shades, -1).astype(np.uint8))
    image = dicom(np.asarray(colours), bits=8, photometric=photometric)
    image = compressed(colours, image, JPEGBaseline8Bit, quality=97, subsampling="4:2:0")
    if not marked:  # nothing in the stream says that it is YCbCr either (pydicom 2280)
        [stream] = generate_frames(image.PixelData, number_of_frames=1)
        start = stream.index(b"\xff\xe0")
        end = start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big")
        image.PixelData = encapsulate([stream[:start] + stream[end:]])
        image["PixelData"].VR = "OB"
    grey = read_image(save(image, tmp_path / "a.dcm"))
    assert np.abs(grey.astype(int) - np.asarray(colours.convert("L"))).max() <= 3


# what is refused


def test_a_palette_is_refused_by_name(tmp_path):
    path = save(dicom(scene(250).astype(np.uint8), bits=8, photometric="PALETTE COLOR"), tmp_path / "a.dcm")
    with pytest.raises(UnreadableImage, match="found the photometric interpretation PALETTE COLOR, expected MONOCHROM"):
        read_image(path)


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    image = dicom(scene(4000).astype(np.uint16))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(image, tmp_path / "a.dcm")
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("inflated"))
    with pytest.raises(UnreadableImage, match="found a deflated DICOM, expected one that is not"):
        read_image(path)


def test_a_missing_plugin_is_named_with_the_way_to_get_it(tmp_path):
    if get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("a plugin for lossless JPEG is installed")
    image = dicom(scene(4000).astype(np.uint16))
    image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    image.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    image["PixelData"].VR = "OB"
    with pytest.raises(UnreadableImage, match=r"python-gdcm.*; pip install 'mae-cxr\[dicom\]' brings gdcm"):
        read_image(save(image, tmp_path / "a.dcm"))


def test_a_decoder_that_crashes_or_hangs_costs_one_file(monkeypatch, capfd):
    grey = scene(4000).astype(np.int16)
    assert (in_child(lambda: grey, grey.nbytes) == grey).all()
    monkeypatch.setattr("data.dicom.SECONDS", 1)
    for end in (os.abort, lambda: os.kill(os.getpid(), 11), lambda: 1 / 0, lambda: time.sleep(60)):
        with pytest.raises(RuntimeError, match="crashed, failed or did not end"):
            in_child(end, 10)
    assert capfd.readouterr() == ("", "")


def test_nothing_about_the_patient_reaches_a_store_or_the_terminal(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = ["path,image_id,patient_id,split,label"]
    for i in range(8):
        image = dicom(scene(4000).astype(np.uint16), WindowCenter=2000, WindowWidth=3000, AccessionNumber=PATIENT[:16])
        if i == 7:
            image.NumberOfFrames = 2
        save(image, images / f"{i}.dcm")
        rows.append(f"{i}.dcm,i{i},p{i},{('train', 'train', 'validate', 'test')[i % 4]},{i // 4}")
    (images / "table.csv").write_text("\n".join(rows) + "\n")
    settings = [
        "--config",
        "phantom",
        "data.source=table",
        f"data.root={images}",
        "data.table=table.csv",
        f"data.store={tmp_path}/stores",
    ]
    command = [sys.executable, "-c", "from data.cli import prepare as main; main()", *settings, "data.image_size=32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    written = b"".join(p.read_bytes() for p in (tmp_path / "stores").rglob("*") if p.is_file())
    assert b"2 frames" in written
    assert PATIENT[:8].encode() not in written and PATIENT[:8] not in done.stdout + done.stderr
