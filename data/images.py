"""FILE → one radiograph, 8-bit grey (h w): JPEG, PNG, DICOM and members of a MedMNIST archive.

The kind of a file is told by its first bytes, never by its name. Whatever is wrong with it ends in
`UnreadableImage`, one line `path: found X, expected Y`. Of a DICOM only the elements of `DICOM_TAGS` are
kept, and what pydicom says of them is not passed on: nothing about a patient can reach a message or a log.
An EXIF orientation is honoured, alpha is dropped, an embedded colour profile is ignored.
"""

import logging
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from PIL import Image, ImageOps

READER_VERSION = 1  # raise it whenever the same file would read differently: stores are then made anew
MAX_PIXELS = 150_000_000  # refused before allocation; below the point where Pillow itself refuses
MAX_BYTES = 2**30
TAILS = 0.005  # without a window, this share of the pixels is clipped at either end

Tone = Literal["window", "mimic_jpg"]
Resize = Literal["pad", "squash", "crop"]
TONES, RESIZES = get_args(Tone), get_args(Resize)
Extent = tuple[float, float]  # width and height of the radiograph in pixels of the array, maybe fractional

GREYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DICOM_TAGS = (
    *("TransferSyntaxUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter"),
    *("WindowWidth", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "PixelData"),
)


class UnreadableImage(ValueError):
    """This file is no radiograph we can read; the message says what was found and what was expected."""


def read_image(path: str | Path, *, tone: Tone = "window", at_least: int | None = None) -> np.ndarray:
    """The radiograph in `path` as uint8 (h w); `archive.npz#train_images/17` names a MedMNIST image.

    `at_least` lets a JPEG decode at 1/2, 1/4 or 1/8, its shorter side never below that many pixels.
    `tone` concerns DICOM only: `window` shows what a viewer shows, `mimic_jpg` what MIMIC-CXR-JPG holds.
    """
    return _read(path, tone, at_least, min)[0]


def read_fitted(path: str | Path, size: int, resize: Resize = "pad", tone: Tone = "window") -> np.ndarray:
    """`fit_image(read_image(path), size, resize)`, decoding a JPEG no larger than that needs."""
    image, extent = _read(path, tone, size, max if resize == "pad" else min)
    return fit_image(image, size, resize, extent)


def fit_image(image: np.ndarray, size: int, resize: Resize = "pad", extent: Extent | None = None) -> np.ndarray:
    """uint8 (h w) → uint8 (size size), antialiased.

    `pad` keeps everything and centres it between black bars, `squash` stretches, `crop` keeps the central
    square. `extent`: where the radiograph ends inside the array, if a reduced decode left a fraction over.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize: found {resize!r}, expected one of {', '.join(RESIZES)}")
    width, height = extent or (image.shape[1], image.shape[0])
    left = top = 0.0
    target_w = target_h = size
    if resize == "pad":
        target_w = max(1, round(size * width / max(width, height)))
        target_h = max(1, round(size * height / max(width, height)))
    elif resize == "crop":
        side = min(width, height)
        left, top, width, height = (width - side) / 2, (height - side) / 2, side, side
    box = (left, top, left + width, top + height)
    resized = Image.fromarray(image).resize((target_w, target_h), Image.Resampling.LANCZOS, box, 3.0)
    fitted = np.zeros((size, size), np.uint8)
    y, x = (size - target_h) // 2, (size - target_w) // 2
    fitted[y : y + target_h, x : x + target_w] = resized
    return fitted


def _read(path: str | Path, tone: Tone, at_least: int | None, side: Callable) -> tuple[np.ndarray, Extent]:
    if tone not in TONES:
        raise ValueError(f"tone: found {tone!r}, expected one of {', '.join(TONES)}")
    try:
        with _quiet():
            if ".npz#" in str(path):
                return _whole(_archive_member(str(path)))
            data = _file_bytes(path)
            if data[128:132] == b"DICM" or data[:2] in (b"\x08\x00", b"\x02\x00"):  # the latter: no preamble
                return _whole(_read_dicom(data, tone))
            if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
                return _read_picture(data, at_least, side)
            _refuse("an empty file" if not data else "other bytes", "JPEG, PNG or DICOM")
    except UnreadableImage as reason:
        message = f"{path}: {reason}"
    except OSError as error:  # strerror: the file's trouble; without one it is Pillow's word on the content
        trouble = error.strerror.lower() if error.strerror else f"damaged content ({_one_line(error)})"
        message = f"{path}: found {trouble}, expected a readable image file"
    except Exception as error:
        message = f"{path}: found damaged content ({type(error).__name__}), expected an intact image file"
    raise UnreadableImage(_one_line(message))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and no log of pydicom's: it quotes odd values, and a damaged one may hold the name."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _refuse(found: str, expected: str) -> NoReturn:
    raise UnreadableImage(f"found {found}, expected {expected}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _whole(image: np.ndarray) -> tuple[np.ndarray, Extent]:
    return image, (image.shape[1], image.shape[0])


def _file_bytes(path: str | Path) -> bytes:
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would hang, a device would never end
        _refuse("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file", "an image file")
    if status.st_size > MAX_BYTES:
        _refuse(f"{status.st_size} bytes", f"at most {MAX_BYTES}")
    return Path(path).read_bytes()


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        _refuse(f"{width} x {height} pixels declared", f"1 to {MAX_PIXELS // 10**6} megapixels")


# JPEG and PNG


def _read_picture(data: bytes, at_least: int | None, side: Callable) -> tuple[np.ndarray, Extent]:
    try:
        image = Image.open(BytesIO(data), formats=("JPEG", "PNG"))
    except Image.DecompressionBombError:
        _refuse("far too many pixels declared", f"at most {MAX_PIXELS // 10**6} megapixels")
    except Image.UnidentifiedImageError:
        _refuse("a damaged header", "an intact JPEG or PNG")
    width, height = image.size
    _check_size(width, height)
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        _refuse(f"{image.n_frames} frames", "one")
    upright = image.getexif().get(0x0112, 1) == 1
    scale = 1
    if at_least and upright:
        scale = next(s for s in (8, 4, 2, 1) if s == 1 or side(width, height) // s >= at_least)
    drafted = image.draft("L", (max(1, width // scale), max(1, height // scale)))  # None: not a JPEG
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _whole(_stretch(np.asarray(image).astype(np.uint16)))
    grey = np.array(image.convert("L"))
    # the exact end matters: squashing 139 decoded columns where 138.25 are radiograph shifts every edge
    return (grey, drafted[1][2:]) if drafted and upright else _whole(grey)


def _stretch(stored: np.ndarray) -> np.ndarray:
    """16-bit PNG: nobody says how many of the bits are used, so it is shown as a DICOM without a window."""
    values = np.arange(2**16, dtype=float)
    return _to_bytes(_between_tails(values, np.bincount(stored.ravel(), minlength=2**16)))[stored]


# DICOM


def _read_dicom(data: bytes, tone: Tone) -> np.ndarray:
    """Every tone depends on the stored value alone: it is worked out once per value, not per pixel."""
    dataset = _parse_dicom(data)
    stored = _stored_values(dataset)
    if stored.ndim == 3:
        return np.array(Image.fromarray(stored).convert("L"))
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    index = stored.view(f"u{stored.itemsize}")
    codes = np.arange(2 ** (8 * stored.itemsize), dtype=index.dtype).view(stored.dtype).astype(float)
    negative = dataset.PhotometricInterpretation == "MONOCHROME1"
    values = _modality(codes, dataset)
    if tone == "mimic_jpg":
        return _equalized(values, np.bincount(index.ravel(), minlength=len(codes)), negative)[index]
    shown = _voi(values, dataset)
    if shown is None:
        counts = np.bincount(index.ravel(), minlength=len(codes))
        shown = _between_tails(values, _without_padding(codes, counts, dataset))
    # here and nowhere else: Presentation LUT Shape INVERSE only repeats what MONOCHROME1 says
    return _to_bytes(1 - shown if negative else shown)[index]


def _parse_dicom(data: bytes) -> Any:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True, specific_tags=list(DICOM_TAGS))
    except Exception:  # never its text: a damaged file could put anything into it
        _refuse("a damaged DICOM", "an intact one")
    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        _refuse("a DICOM without pixel data", "an image")
    _check_size(dataset.Rows, dataset.Columns)
    frames, bits, kind = (dataset.get(k) for k in ("NumberOfFrames", "BitsAllocated", "SamplesPerPixel"))
    if int(frames or 1) > 1:
        _refuse(f"{int(frames)} frames", "one")
    if bits != 8 and (bits, kind) != (16, 1):
        _refuse(f"{int(bits)} bits allocated", "8 or 16 (8 for colour)")
    known = GREYS if kind == 1 else COLOURS
    if dataset.get("PhotometricInterpretation") not in known:
        _refuse(f"{kind} samples in another photometric interpretation", " or ".join(known))
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def _stored_values(dataset: Any) -> np.ndarray:
    """uint8/int8/uint16/int16 (h w), or RGB uint8 (h w 3), by any decoder pydicom finds."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        _refuse("pixel data in an unknown transfer syntax", "one that pydicom decodes")
    plugins = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
    if not decoder.is_available:
        _refuse(f"{syntax.name} pixel data", f"a plugin that decodes it ({plugins})")
    try:
        return pixel_array(dataset)
    except Exception:  # its text is long and may quote the file
        hint = f"intact data or a further plugin ({plugins})" if plugins else "intact data"
        _refuse(f"{syntax.name} pixel data that cannot be decoded", hint)


def _modality(codes: np.ndarray, dataset: Any) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(codes, dataset.ModalityLUTSequence[0], dataset)[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return codes * float(slope if slope is not None else 1) + float(intercept or 0)


def _voi(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Values → 0…1 by the first view the file itself asks for; None if it asks for none."""
    if dataset.get("VOILUTSequence") and "LUTData" in dataset.VOILUTSequence[0]:
        found, full_scale = _look_up(values, dataset.VOILUTSequence[0], dataset)
        return found / full_scale
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is None or width is None or width <= 0:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
        center, width = center - 0.5, width - 1
    return np.clip((values - center) / max(width, 1e-6) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or isinstance(value, str | int | float):
        return None if value in (None, "") else float(value)
    return float(value[0]) if len(value) else None


def _look_up(values: np.ndarray, item: Any, dataset: Any) -> tuple[np.ndarray, int]:
    """Modality or VOI LUT and its full scale. Not pydicom's: that wraps indices of 8-bit tables at 256."""
    entries, first, bits = item.LUTDescriptor
    words = item.LUTData
    if isinstance(words, bytes):
        words = np.frombuffer(words, "<u2" if dataset.original_encoding[1] else ">u2")
    table = np.atleast_1d(words).astype(np.int64).astype(np.uint16)
    if bits == 8 and len(table) * 2 - (entries or 2**16) % 2**16 in (0, 1):  # two entries in each word
        table = table.view(np.uint8)
    full_scale = max(2**bits - 1, int(table.max()))
    return table[np.clip(values - first, 0, len(table) - 1).astype(np.int64)].astype(float), full_scale


def _without_padding(codes: np.ndarray, counts: np.ndarray, dataset: Any) -> np.ndarray:
    padding = _first(dataset.get("PixelPaddingValue"))
    if padding is None:
        return counts
    limit = _first(dataset.get("PixelPaddingRangeLimit"))
    ends = sorted((padding, padding if limit is None else limit))
    valid = np.where((codes >= ends[0]) & (codes <= ends[1]), 0, counts)
    return valid if valid.any() else counts


# TONES: value → brightness, given how many pixels hold each value


def _between_tails(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    share = TAILS * counts.sum()
    low = values[order][np.searchsorted(np.cumsum(counts[order]), share, side="right")]
    high = values[order[::-1]][np.searchsorted(np.cumsum(counts[order[::-1]]), share, side="right")]
    return np.clip((values - (low + high) / 2) / max(high - low, 1e-6) + 0.5, 0, 1)


def _equalized(values: np.ndarray, counts: np.ndarray, negative: bool) -> np.ndarray:
    """Min-max, truncated to 8 bit, then OpenCV's equalizeHist, as MIMIC-CXR-JPG was made (Johnson 2019)."""
    low, high = values[counts > 0].min(), values[counts > 0].max()
    levels = np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    levels = 255 - levels if negative else levels
    histogram = np.bincount(levels, weights=counts, minlength=256)
    above_darkest = np.cumsum(histogram) - histogram[np.flatnonzero(histogram)[0]]
    return np.rint(np.clip(above_darkest, 0, None) * 255 / max(above_darkest[-1], 1)).astype(np.uint8)[levels]


def _to_bytes(shown: np.ndarray) -> np.ndarray:
    return np.rint(shown * 255).astype(np.uint8)


# MEDMNIST


def _archive_member(path: str) -> np.ndarray:
    archive, _, member = path.rpartition("#")
    name, _, number = member.partition("/")
    status = Path(archive).stat()
    images = _archive_array(archive, name, status.st_mtime_ns, status.st_size)
    if not number.isdecimal() or int(number) >= len(images):
        _refuse(f"index {number!r:.20}", f"0 to {len(images) - 1}")
    image = images[int(number)]
    return np.array(image if image.ndim == 2 else Image.fromarray(image).convert("L"))


@lru_cache(maxsize=3)  # train, val and test; the time and size make a rewritten archive another one
def _archive_array(archive: str, name: str, _time: int, _size: int) -> np.ndarray:
    with np.load(archive, allow_pickle=False) as arrays:
        if name not in arrays:
            _refuse(f"no {name!r}", f"one of {', '.join(arrays)}")
        images = arrays[name]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        _refuse(f"{images.dtype} {images.shape}", "uint8 (n h w) or (n h w 3)")
    return images
