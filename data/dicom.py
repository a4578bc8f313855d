"""One DICOM file → 8-bit grey: modality LUT, VOI LUT or window, polarity, in the standard's order (PS3.3 C.11).

Only the elements of `DICOM_TAGS` are kept, and pydicom's messages about them are not passed on:
nothing about a patient can reach a message or a log.
"""

import faulthandler
import logging
import math
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import metadata
from io import BytesIO
from mmap import mmap
from typing import Any, NoReturn

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder, pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000MCLossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
    RLETransferSyntaxes,
)

from data.aspect import pixel_aspect
from data.jpeg import bits_of, check_scans, has_coarse_colours
from data.refusal import (
    OF_ANOTHER_CLASS,
    LacksPlugin,
    NotNow,
    UnreadableImage,
    check_memory,
    check_size,
    may_pass,
    raise_if_it_may_pass,
    refuse,
)
from data.settings import Tone
from data.tones import between_tails, equalized, to_bytes

PASSES = 75  # a child's exit code: the failure may pass
SECONDS = 120  # for a plugin to decode one file
UNUSABLE = object()
# packages that decode, and what pydicom calls their plugins
PACKAGES = {
    "pillow": "pillow",
    "pydicom": "pydicom",
    "python-gdcm": "gdcm",
    "pylibjpeg": "pylibjpeg",
    "pylibjpeg-libjpeg": "pylibjpeg",
    "pylibjpeg-openjpeg": "pylibjpeg",
    "pylibjpeg-rle": "pylibjpeg",
    "pyjpegls": "pyjpegls",
}
# how pydicom parsed a file (implicit types, little endian) → its transfer syntax, for files that do not say it
PARSED = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
# compressions that keep every bit of a pixel's cell, also those above the bits stored
LOSSLESS = (
    *(JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000MCLossless),
    *(HTJ2KLossless, HTJ2KLosslessRPCL),
)
# elements that decoding needs, and the values that they may have
NUMBERS: dict[str, range | tuple[int, ...]] = {
    "SamplesPerPixel": (1, 3),
    "Rows": range(1, 2**16),
    "Columns": range(1, 2**16),
    "BitsAllocated": (8, 16),
    "BitsStored": range(1, 17),
    "PixelRepresentation": (0, 1),
    "PlanarConfiguration": (0, 1),
}
GREYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DICOM_TAGS = (
    *("TransferSyntaxUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter"),
    *("WindowWidth", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence", "PixelData"),
    *("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)
# nested items in which enhanced objects describe their frame; the frame's own come before those of all frames
GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
IN_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PixelMeasuresSequence": ("PixelSpacing",),
}
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
    """A pixel's height divided by its width; 1 where the file says nothing that can be used."""
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
    except Exception as error:  # never its text: a damaged file could put anything into it
        raise_if_it_may_pass(error)
        refuse("a damaged DICOM", "an intact one")

    pixels = _value(dataset, "PixelData")
    if pixels is None:
        refuse(f"no {_named('PixelData')}{_of_class(dataset)}", "an image")
    if not isinstance(pixels, bytes):
        refuse(f"no bytes in {_named('PixelData')}", "an image")
    _check_transfer_syntax(dataset)
    _check_numbers(dataset)
    _check_interpretation(dataset)
    _unfold_groups(dataset)
    return dataset


def _unfold_groups(dataset: Any) -> None:
    """Move elements about the one frame from nested items to where they stand in files without such items."""
    for keyword in GROUPS:
        for group, elements in IN_GROUPS.items():
            try:
                item = _value(_value(dataset, keyword)[0], group)[0]
            except Exception:  # it is missing, empty or no sequence
                continue
            for element in elements:
                found = item.get_item(element)  # not converted yet
                if found is not None and element not in dataset:
                    dataset[element] = found
        dataset.pop(keyword, None)


def _value(dataset: Any, keyword: str) -> Any:
    """What an element holds; None where it is missing or empty, UNUSABLE where not even pydicom can tell."""
    try:
        value = dataset.get(keyword)
    except Exception as error:
        raise_if_it_may_pass(error)
        return UNUSABLE
    empty = value is None or (hasattr(value, "__len__") and len(value) == 0)
    return None if empty else value


def _named(keyword: str) -> str:
    """Rows (0028,0010)"""
    tag = Tag(keyword)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"


def _of_class(dataset: Any) -> str:
    """What an object without pixels is: archives send reports and presentation states along with the images."""
    uid = UID(str(getattr(getattr(dataset, "file_meta", None), "MediaStorageSOPClassUID", "")))
    if uid.type != "SOP Class" or "Image" in uid.name:  # a UID of the file's own is not repeated
        return ""
    return f" {OF_ANOTHER_CLASS} {uid.name.removesuffix(' Storage')}"


def _check_transfer_syntax(dataset: Any) -> None:
    """Without a transfer syntax, a file can be read as it was parsed, unless it is compressed."""
    if _value(dataset.file_meta, "TransferSyntaxUID") is not None:
        return
    if dataset["PixelData"].is_undefined_length:
        refuse(f"no {_named('TransferSyntaxUID')}", "the one by which the pixel data is compressed")
    dataset.file_meta.add_new("TransferSyntaxUID", "UI", PARSED[dataset.original_encoding])


def _check_numbers(dataset: Any) -> None:
    """Check the numbers that decoding needs; a value that is none is not quoted: it may be anything, even a name."""
    for keyword, wanted in NUMBERS.items():
        if keyword != "PlanarConfiguration" or dataset.SamplesPerPixel > 1:
            dataset.add_new(keyword, "US", _number(dataset, keyword, wanted))
    check_size(dataset.Rows, dataset.Columns)

    if dataset.SamplesPerPixel > 1 and dataset.BitsAllocated != 8:
        refuse(f"{dataset.BitsAllocated} in {_named('BitsAllocated')}", "8 for colour")
    if dataset.BitsStored > dataset.BitsAllocated:
        refuse(f"{dataset.BitsStored} in {_named('BitsStored')}", f"at most the {dataset.BitsAllocated} allocated")

    frames = _first(dataset, "NumberOfFrames")
    if frames is not None and frames > 1:
        refuse(f"{_quoted(frames)} frames", "one")
    if "NumberOfFrames" in dataset:  # one, or nothing that can be used
        del dataset.NumberOfFrames


def _number(dataset: Any, keyword: str, wanted: range | tuple[int, ...]) -> int:
    if isinstance(wanted, range):  # thousands of numbers: too many to list
        expected = f"a whole number from {wanted[0]} to {wanted[-1]}"
    else:
        expected = " or ".join(map(str, wanted))

    value = _value(dataset, keyword)
    if value is None:
        refuse(f"no {_named(keyword)}", expected)
    if not isinstance(value, int):
        refuse(f"no number in {_named(keyword)}", expected)
    if int(value) not in wanted:  # a range would look one by one for a number of a class derived from int
        refuse(f"{_quoted(value)} in {_named(keyword)}", expected)
    return int(value)


def _quoted(number: float) -> str:
    """A number that two bytes can hold; a longer one is not shown, as it may be somebody's."""
    return str(int(number)) if -(2**15) <= number < 2**16 else "far too many"


def _check_interpretation(dataset: Any) -> None:
    known = GREYS if dataset.SamplesPerPixel == 1 else COLOURS
    found = _value(dataset, "PhotometricInterpretation")
    if found is None:
        refuse(f"no {_named('PhotometricInterpretation')}", " or ".join(known))
    if found == "PALETTE COLOR":  # false colours: their brightness says nothing of the X-rays
        refuse("the photometric interpretation PALETTE COLOR", " or ".join(known))
    if found not in known:  # not quoted: in a damaged file it may be anything
        refuse(f"{dataset.SamplesPerPixel} samples in another photometric interpretation", " or ".join(known))


def _stored_values(dataset: Any) -> np.ndarray:
    """uint8/int8/uint16/int16 (h w), or RGB uint8 (h w 3), by any decoder pydicom finds."""
    syntax = _value(dataset.file_meta, "TransferSyntaxUID")
    try:
        decoder = get_decoder(syntax)
    except Exception as error:  # not quoted: it may be anything
        raise_if_it_may_pass(error)
        refuse("pixel data in an unknown transfer syntax", "one that pydicom decodes")

    high = _value(dataset, "HighBit")
    bits = dataset.BitsStored
    wrong = isinstance(high, int) and high != bits - 1
    if wrong and not syntax.is_encapsulated:  # pydicom would cut off the upper bits
        refuse(f"{bits} bits stored below bit {high}", f"bit {bits - 1} to be the highest")

    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        _allocate_what_a_jpeg_has(dataset, syntax)

    # which plugins would help, for whoever may install them
    further = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
    if "gdcm" in further:
        further += "; pip install 'mae-cxr[dicom]' brings gdcm"
    if not decoder.is_available:
        raise LacksPlugin(f"found {syntax.name} pixel data, expected a plugin that decodes it ({further})", plugins())

    try:
        stored = _decode_pixels(dataset, decoder)
    except UnreadableImage:
        raise
    except Exception as error:  # its text is long and may quote the file
        raise_if_it_may_pass(error)
        check_memory(dataset.Columns, dataset.Rows)  # a decoder may report a lack of memory as damaged content
        found = f"found {syntax.name} pixel data that cannot be decoded, expected intact data"
        if further:
            raise LacksPlugin(f"{found} or a further plugin ({further})", plugins()) from None
        raise UnreadableImage(found) from None

    # data of more than one frame would make several images
    shape = (dataset.Rows, dataset.Columns)
    if stored.shape[:2] != shape or stored[0, 0].size != dataset.SamplesPerPixel:
        refuse("pixel data of another size", f"one image of {shape[0]} rows and {shape[1]} columns")
    if syntax in LOSSLESS and not wrong:
        stored = _without_unused_bits(stored, bits)
    return stored


def _allocate_what_a_jpeg_has(dataset: Any, syntax: Any) -> None:
    """Allocate 8 bits for a JPEG of 8 bits, whatever the file says: decoders take the file at its word.

    Refuses the file if `BitsStored` is more than the JPEG has: its greys are then on another scale than its windows.
    """
    if dataset.BitsAllocated == 8:
        return
    try:
        bits = bits_of(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    except Exception as error:  # no frame to look at, which decoding will report
        raise_if_it_may_pass(error)
        return

    if bits == 8 and dataset.BitsStored > 8:
        refuse(f"8 bits in {syntax.name} pixel data", f"the {dataset.BitsStored} of {_named('BitsStored')}")
    if bits == 8:
        dataset.BitsAllocated = 8


def _without_unused_bits(stored: np.ndarray, bits: int) -> np.ndarray:
    """The numbers in the lowest bits of each cell; above these bits, older files keep an overlay.

    pydicom does this for uncompressed data and for RLE. After lossy compression, bits above them belong to a value that
    was missed by a little, and are kept.
    """
    unused = 8 * stored.itemsize - bits
    return (stored << unused) >> unused  # the way back repeats a signed number's sign


def _decode_pixels(dataset: Any, decoder: Any) -> np.ndarray:
    """Decode with Pillow or pydicom itself if possible, so that a store does not depend on what else is installed."""
    if not decoder.UID.is_encapsulated:
        return pixel_array(dataset)
    if RLELossless != decoder.UID:  # RLE alone may hold the two bytes of a scan's beginning by chance
        check_scans(dataset.PixelData)
    if dataset.PhotometricInterpretation == "RGB" and has_coarse_colours(dataset.PixelData):
        dataset.PhotometricInterpretation = "YBR_FULL_422"  # whatever the file calls them
    for plugin in {"pillow", "pydicom"} & set(decoder.available_plugins):
        try:
            return _decoded_by(dataset, plugin)
        except Exception as error:
            if may_pass(error) or len(decoder.available_plugins) == 1:
                raise

    most_bytes = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * 2
    return in_child(lambda: _decoded_by(dataset), most_bytes)


def _decoded_by(dataset: Any, plugin: str = "") -> np.ndarray:
    """Decode with that plugin, or with any. MemoryError or OSError if the system fails, which pydicom only logs."""
    logger = logging.getLogger("pydicom")
    listener = _Listener()
    logger.addHandler(listener)
    try:
        return pixel_array(dataset, decoding_plugin=plugin)
    except Exception:
        if listener.met is not None:
            raise listener.met from None
        raise
    finally:
        logger.removeHandler(listener)


class _Listener(logging.Handler):
    """Keeps a logged error that may pass."""

    met: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and may_pass(error):
            self.met = error


def plugins() -> str:
    """The packages here that decode compressed DICOM files, with their versions: `pillow 12.0.0, pydicom 3.0.1`.

    They are part of the reason why a file cannot be read. Only those that pydicom can use are named: others may be
    installed and not load.
    """
    syntaxes = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, *RLETransferSyntaxes)
    usable: set[str] = set()
    for syntax in syntaxes:
        with suppress(NotImplementedError):  # pydicom names more syntaxes than it decodes
            usable.update(get_decoder(syntax).available_plugins)

    found = []
    for package, plugin in PACKAGES.items():
        if plugin in usable:
            with suppress(metadata.PackageNotFoundError):
                found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


def in_child(decode: Callable[[], np.ndarray], most_bytes: int) -> np.ndarray:
    """What `decode` returns when run in a process of its own: GDCM ends its process over a damaged file.

    Raises RuntimeError if it crashed, failed or took longer than `SECONDS`, and NotNow if the system had no memory or
    descriptor for it, or killed it.
    """
    with mmap(-1, most_bytes + 4096) as shared:
        child = os.fork()
        if child == 0:
            _decode_and_exit(decode, shared)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        if ended in (PASSES, -signal.SIGKILL):  # nothing but the kernel or a person kills it
            raise NotNow("found its decoding stopped by the system (out of memory?), expected it to end")
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
    except BaseException as error:
        if may_pass(error):
            os._exit(PASSES)
    finally:
        os._exit(1)


def _modality(codes: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values → what the detector measured."""
    looked_up = _look_up(codes, "ModalityLUTSequence", dataset)
    if looked_up is not None:
        values, _ = looked_up
        return values
    slopes = [slope for slope in _decimals(dataset, "RescaleSlope") if slope]  # 0 would leave one grey
    intercepts = [intercept for intercept in _decimals(dataset, "RescaleIntercept") if intercept is not None]
    slope = slopes[0] if slopes else 1.0
    intercept = intercepts[0] if intercepts else 0.0
    return codes * slope + intercept


def _voi(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Values → 0…1 by the first view the file itself asks for; None if it asks for none."""
    looked_up = _look_up(values, "VOILUTSequence", dataset)
    if looked_up is not None:
        found, full_scale = looked_up
        return found / full_scale

    function = str(_value(dataset, "VOILUTFunction") or "LINEAR").upper()
    window = _window(dataset, least=1 if function == "LINEAR" else 0)
    if window is None:
        return None

    center, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
        center -= 0.5
        width -= 1
        if width == 0:
            return (values > center).astype(float)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _window(dataset: Any, least: float) -> tuple[float, float] | None:
    """The first of the file's windows that is valid: its width is above 0 and at least `least`.

    A linear window's width must be at least 1 (PS3.3 C.11.2.1.2.1).
    """
    pairs = zip(_decimals(dataset, "WindowCenter"), _decimals(dataset, "WindowWidth"), strict=False)
    for center, width in pairs:
        if center is not None and width is not None and width > 0 and width >= least:
            return center, width
    return None


def _decimals(dataset: Any, keyword: str) -> list[float | None]:
    """The numbers of a decimal element, None for what is none: blank, NaN, or written with a comma."""
    element = dataset.get_item(keyword)  # not converted yet: a bad value must not spoil the file
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


def _first(dataset: Any, keyword: str) -> float | None:
    """The number of an element, the first where it has several; None where there is none."""
    value = _value(dataset, keyword)
    if isinstance(value, MultiValue):
        value = value[0]
    return _finite(value)


def _look_up(values: np.ndarray, keyword: str, dataset: Any) -> tuple[np.ndarray, int] | None:
    """Values after a modality or VOI LUT, and its full scale; None where the file has none that can be used.

    Not by pydicom: that wraps indices of 8-bit tables at 256.
    """
    try:
        item = _value(dataset, keyword)[0]
        entries, first, bits = (int(number) for number in item.LUTDescriptor)
        table = _table(item.LUTData, entries, bits, dataset)
        largest = int(table.max())
    except Exception as error:  # it is missing, empty or no table
        raise_if_it_may_pass(error)
        return None

    first = _first_mapped(first, len(table), values)

    # a descriptor may promise more bits than the entries have: then viewers go by the largest entry
    if not 1 <= bits <= 16:
        bits = 16
    full_scale = max(2**bits - 1, largest)
    if 0 < largest < 2 ** (bits - 1):
        full_scale = largest

    # values outside of the table take its first or last entry
    places = np.clip(values - first, 0, len(table) - 1).astype(np.int64)
    return table[places].astype(float), full_scale


def _first_mapped(first: int, entries: int, values: np.ndarray) -> int:
    """The value that a LUT's first entry is for. Files write signed ones as unsigned and the other way round."""
    unsigned = first % 2**16
    if unsigned < 2**15:
        return first

    # these bits can be two numbers: take the one at which the table covers most values
    def met(start: int) -> int:
        return int(np.count_nonzero((values >= start) & (values < start + entries)))

    signed = unsigned - 2**16
    return max((first, unsigned, signed), key=met)  # as written, if that makes no difference


def _table(words: Any, entries: int, bits: int, dataset: Any) -> np.ndarray:
    """The entries of a LUT, uint8 or uint16 (n)."""
    if isinstance(words, bytes):
        _, little_endian = dataset.original_encoding
        words = np.frombuffer(words, "<u2" if little_endian else ">u2")
    table = np.atleast_1d(words).astype(np.int64).astype(np.uint16)
    if bits == 8 and len(table) * 2 - (entries or 2**16) % 2**16 in (0, 1):  # two entries in each word
        table = table.view(np.uint8)
    return table


def _without_padding(codes: np.ndarray, counts: np.ndarray, dataset: Any) -> np.ndarray:
    """The counts of pixels at each value, without those that are padding."""
    padding = _first(dataset, "PixelPaddingValue")
    limit = _first(dataset, "PixelPaddingRangeLimit")
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
