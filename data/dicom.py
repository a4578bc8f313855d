"""One DICOM file → 8-bit grey: modality LUT, VOI LUT or window, polarity, in the standard's order (PS3.3 C.11).

Only the elements of `DICOM_TAGS` are kept, and what pydicom says of them is not passed on: nothing
about a patient can reach a message or a log.
"""

import faulthandler
import math
import os
import signal
from collections.abc import Callable, Iterable
from io import BytesIO
from mmap import mmap
from typing import Any, NoReturn

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data.aspect import pixel_aspect
from data.refusal import check_size, refuse
from data.settings import Tone
from data.tones import between_tails, equalized, to_bytes

SECONDS = 120  # for a plugin to decode one file
GREYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DICOM_TAGS = (
    *("TransferSyntaxUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter"),
    *("WindowWidth", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "PixelData", "PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing",),
)
# height and width of a pixel; the ratio counts where no spacing is given (PS3.3 C.7.6.3.1.7)
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")


def read_dicom(data: bytes, tone: Tone) -> tuple[np.ndarray, float]:
    """Grey levels uint8 (h w), and the height of a pixel divided by its width."""
    dataset = _parse_dicom(data)
    stored = _stored_values(dataset)
    if stored.ndim == 3:
        grey = np.array(Image.fromarray(stored).convert("L"))
    else:
        grey = _grey(stored, dataset, tone)
    return grey, _aspect(dataset)


def _aspect(dataset: Any) -> float:
    for keyword in SPACINGS:
        pair = _decimals(dataset, keyword)
        aspect = pixel_aspect(*pair) if len(pair) == 2 else None
        if aspect is not None:
            return aspect
    return 1.0


def _grey(stored: np.ndarray, dataset: Any, tone: Tone) -> np.ndarray:
    """Every tone depends on the stored value alone: it is worked out once per value, not per pixel."""
    # every value that a pixel can have, in the order of its bits: a pixel's bits are the index of its tone
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    index = stored.view(f"u{stored.itemsize}")
    codes = np.arange(2 ** (8 * stored.itemsize), dtype=index.dtype).view(stored.dtype).astype(float)

    negative = dataset.PhotometricInterpretation == "MONOCHROME1"
    values = _modality(codes, dataset)
    if tone == "mimic_jpg":
        counts = np.bincount(index.ravel(), minlength=len(codes))
        return equalized(values, counts, negative)[index]

    shown = _voi(values, dataset)
    if shown is None:
        counts = np.bincount(index.ravel(), minlength=len(codes))
        shown = between_tails(values, _without_padding(codes, counts, dataset))
    if negative:  # here and nowhere else: Presentation LUT Shape INVERSE only repeats what MONOCHROME1 says
        shown = 1 - shown
    return to_bytes(shown)[index]


def _parse_dicom(data: bytes) -> Any:
    """The dataset, once it is clear that it holds one image that we can show."""
    if DeflatedExplicitVRLittleEndian.encode() in data[:4096]:  # pydicom would inflate it whole, whatever its size
        refuse("a deflated DICOM", "one that is not")
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True, specific_tags=list(DICOM_TAGS))
    except Exception:  # never its text: a damaged file could put anything into it
        refuse("a damaged DICOM", "an intact one")

    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        refuse("a DICOM without pixel data", "an image")
    check_size(dataset.Rows, dataset.Columns)
    frames = dataset.get("NumberOfFrames")
    bits = dataset.get("BitsAllocated")
    samples = dataset.get("SamplesPerPixel")
    if int(frames or 1) > 1:
        refuse(f"{int(frames)} frames", "one")
    if bits != 8 and (bits, samples) != (16, 1):
        refuse(f"{int(bits)} bits allocated", "8 or 16 (8 for colour)")

    known = GREYS if samples == 1 else COLOURS
    found = dataset.get("PhotometricInterpretation")
    if found == "PALETTE COLOR":  # false colours: their brightness says nothing of the X-rays
        refuse("the photometric interpretation PALETTE COLOR", " or ".join(known))
    if found not in known:  # not quoted: in a damaged file it may be anything
        refuse(f"{samples} samples in another photometric interpretation", " or ".join(known))

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def _stored_values(dataset: Any) -> np.ndarray:
    """uint8/int8/uint16/int16 (h w), or RGB uint8 (h w 3), by any decoder pydicom finds."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        refuse("pixel data in an unknown transfer syntax", "one that pydicom decodes")

    high = dataset.get("HighBit")
    bits = dataset.get("BitsStored")
    if not syntax.is_encapsulated and None not in (high, bits) and high != bits - 1:  # pydicom cuts off the upper bits
        refuse(f"{bits} bits stored below bit {high}", f"bit {bits - 1} to be the highest")

    # which plugins would help, for who may install them
    plugins = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
    if "gdcm" in plugins:
        plugins += "; pip install 'mae-cxr[dicom]' brings gdcm"
    if not decoder.is_available:
        refuse(f"{syntax.name} pixel data", f"a plugin that decodes it ({plugins})")

    try:
        return _decode_pixels(dataset, decoder)
    except Exception:  # its text is long and may quote the file
        hint = "intact data"
        if plugins:
            hint = f"intact data or a further plugin ({plugins})"
        refuse(f"{syntax.name} pixel data that cannot be decoded", hint)


def _decode_pixels(dataset: Any, decoder: Any) -> np.ndarray:
    """By Pillow or pydicom itself where they can, so that a store does not depend on what else is installed."""
    if not decoder.UID.is_encapsulated:
        return pixel_array(dataset)
    for plugin in {"pillow", "pydicom"} & set(decoder.available_plugins):
        try:
            return pixel_array(dataset, decoding_plugin=plugin)
        except Exception:
            if len(decoder.available_plugins) == 1:
                raise

    most_bytes = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * 2
    return in_child(lambda: pixel_array(dataset), most_bytes)


def in_child(decode: Callable[[], np.ndarray], most_bytes: int) -> np.ndarray:
    """What `decode` returns, from a process of its own: GDCM ends its process over a damaged file.

    Raises RuntimeError where it crashed, failed or took longer than `SECONDS`.
    """
    with mmap(-1, most_bytes + 4096) as shared:
        child = os.fork()
        if child == 0:
            _decode_and_exit(decode, shared)
        _, status = os.waitpid(child, 0)
        if status != 0:
            raise RuntimeError("the decoder crashed, failed or did not end")
        return np.load(BytesIO(shared), allow_pickle=False)


def _decode_and_exit(decode: Callable[[], np.ndarray], shared: mmap) -> NoReturn:
    """The child: it never returns into its parent's code, whatever happens."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)  # ends this process inside the library's own code, too
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries' own complaints
        np.save(shared, decode())
        os._exit(0)
    finally:
        os._exit(1)


def _modality(codes: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values → what the detector measured."""
    if dataset.get("ModalityLUTSequence"):
        values, _ = _look_up(codes, dataset.ModalityLUTSequence[0], dataset)
        return values
    slopes = [slope for slope in _decimals(dataset, "RescaleSlope") if slope]  # 0 would leave one grey
    intercepts = [intercept for intercept in _decimals(dataset, "RescaleIntercept") if intercept is not None]
    slope = slopes[0] if slopes else 1.0
    intercept = intercepts[0] if intercepts else 0.0
    return codes * slope + intercept


def _voi(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Values → 0…1 by the first view the file itself asks for; None if it asks for none."""
    if dataset.get("VOILUTSequence") and "LUTData" in dataset.VOILUTSequence[0]:
        found, full_scale = _look_up(values, dataset.VOILUTSequence[0], dataset)
        return found / full_scale

    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    window = _window(dataset, least=1 if function == "LINEAR" else 0)
    if window is None:
        return None

    center, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
        center -= 0.5
        width -= 1
    return np.clip((values - center) / max(width, 1e-6) + 0.5, 0, 1)


def _window(dataset: Any, least: float) -> tuple[float, float] | None:
    """The first of the file's windows that is one: of a width above 0, and of at least 1 where that is `least`.

    A linear window's width must be at least 1 (PS3.3 C.11.2.1.2.1).
    """
    pairs = zip(_decimals(dataset, "WindowCenter"), _decimals(dataset, "WindowWidth"), strict=False)
    for center, width in pairs:
        if center is not None and width is not None and width > 0 and width >= least:
            return center, width
    return None


def _decimals(dataset: Any, keyword: str) -> list[float | None]:
    """The numbers of a decimal element, None for what is none: blank, NaN, or written with a comma."""
    element = dataset.get_item(keyword)  # not converted yet: one that cannot be must not spoil the file
    if element is None or element.value is None:
        return []
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace").split("\\")
    elif isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    return [_finite(number) for number in value]


def _finite(value: Any) -> float | None:
    try:
        number = float(str(value).strip("\0 "))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _first(value: Any) -> float | None:
    """The value of an element, the first where it has several; None if it is missing or blank."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float):
        return float(value)
    return float(value[0]) if len(value) else None


def _look_up(values: np.ndarray, item: Any, dataset: Any) -> tuple[np.ndarray, int]:
    """Modality or VOI LUT and its full scale. Not pydicom's: that wraps indices of 8-bit tables at 256."""
    entries, first, bits = item.LUTDescriptor
    if first >= 2**15 and values.min() < 0:  # signed, written as unsigned
        first -= 2**16

    words = item.LUTData
    if isinstance(words, bytes):
        _, little_endian = dataset.original_encoding
        words = np.frombuffer(words, "<u2" if little_endian else ">u2")
    table = np.atleast_1d(words).astype(np.int64).astype(np.uint16)
    if bits == 8 and len(table) * 2 - (entries or 2**16) % 2**16 in (0, 1):  # two entries in each word
        table = table.view(np.uint8)

    # a descriptor may promise more bits than the entries have: then viewers go by the largest entry
    largest = int(table.max())
    full_scale = max(2**bits - 1, largest)
    if 0 < largest < 2 ** (bits - 1):
        full_scale = largest

    # values outside of the table take its first or last entry
    places = np.clip(values - first, 0, len(table) - 1).astype(np.int64)
    return table[places].astype(float), full_scale


def _without_padding(codes: np.ndarray, counts: np.ndarray, dataset: Any) -> np.ndarray:
    """The counts of pixels at each value, those that are padding left out."""
    padding = _first(dataset.get("PixelPaddingValue"))
    limit = _first(dataset.get("PixelPaddingRangeLimit"))
    if padding is None:
        return counts
    if limit is None:
        limit = padding
    if codes.min() < 0:
        padding = _signed(padding)
        limit = _signed(limit)

    low = min(padding, limit)
    high = max(padding, limit)
    valid = np.where((codes >= low) & (codes <= high), 0, counts)
    return valid if valid.any() else counts


def _signed(value: float) -> float:
    """A signed value that may be written as unsigned."""
    if value >= 2**15:
        return value - 2**16
    return value
