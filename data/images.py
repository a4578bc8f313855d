"""FILE → one radiograph, 8-bit grey (h w): JPEG, PNG, DICOM and members of a MedMNIST archive.

The kind of a file is told by its first bytes, never by its name. Whatever is wrong with it raises
`UnreadableImage`, one line `path: found X, expected Y`. An EXIF orientation is honoured, and so is what a
file says of pixels that are not square: a DICOM's spacings or aspect ratio, a PNG's pHYs, a JPEG's JFIF
density. Alpha is dropped; an embedded colour profile and a resolution in EXIF are ignored. Any of this that cannot be
read counts as absent.
"""

import logging
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from PIL import Image, ImageOps

from data.aspect import pixel_aspect
from data.extras import with_fewer_extras
from data.jpeg import bits_of, block_means, check_scans, means_only
from data.npz import STACK, holds_images, read_array
from data.refusal import (
    MAX_PIXELS,
    LacksPlugin,
    NotNow,
    UnreadableImage,
    check_memory,
    check_size,
    may_pass,
    refuse,
    trouble,
)
from data.settings import Resize, Size, Tone, height_and_width
from data.stand_ins import ENOUGH, pointing_link, stand_in
from data.tones import between_tails, to_bytes

READER_VERSION = 5  # raise it whenever the same file would read differently: stores are then made anew
MAX_BYTES = 2**30
SPARE = 1.4  # a reduced decode keeps this many times the wanted side: with less, a sharp image loses its edges

TONES = get_args(Tone)
RESIZES = get_args(Resize)
# shares of a colour's channels in its grey (ITU-R BT.601), in 65536ths, as Pillow rounds them
LUMA = {"R": 19595, "G": 38470, "B": 7471}
UPPER = {channel: share * 256 for channel, share in LUMA.items()}
# PNGs of 16 bits of which Pillow keeps the upper 8: modes that give both bytes, and the weight of each in the grey
WIDE: dict[str, dict[str, dict[str, int]]] = {
    "RGB;16B": {"RGB;16B": UPPER, "RGB;16L": LUMA},
    "RGBA;16B": {"RGBA;16B": UPPER, "RGBA;16L": LUMA},
    "LA;16B": {"RGBA": {"R": 256 * 65536, "G": 65536}},
}
Note = Callable[[bytes], object]
ONE_GREY = "found one grey in every pixel, expected a radiograph"
ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns
Extent = tuple[float, float]  # width and height of the radiograph in pixels of the array, maybe fractional


class Decoded(NamedTuple):
    """Pixels, and what they show: where the radiograph ends among them, and a pixel's height divided by its width."""

    image: np.ndarray  # uint8 (h w)
    extent: Extent
    aspect: float


def read_image(path: str | Path, *, tone: Tone = "window", at_least: int | None = None) -> np.ndarray:
    """The radiograph in `path` as uint8 (h w); `archive.npz#train_images/17` names a MedMNIST image.

    `at_least` lets a JPEG decode at 1/2, 1/4 or 1/8, its shorter side never below that many pixels.
    `tone` concerns DICOM only: `window` shows what a viewer shows, `mimic_jpg` what MIMIC-CXR-JPG holds.
    Pixels stay as they are stored, even if they are not square; `read_fitted` makes them square.
    """
    return _read(path, tone, at_least, of_sides=all).image


def read_fitted(
    path: str | Path, size: Size, resize: Resize = "pad", tone: Tone = "window", note: Note | None = None
) -> np.ndarray:
    """`fit_image(read_image(path), size, resize)` in square pixels, decoding a JPEG not much larger than needed.

    An image of one single grey is no radiograph, and is refused.

    `note` is called once with the bytes of the file (of an archive's member: its pixels), e.g. a hash's `update`.
    """
    height, width = height_and_width(size)
    at_least = (ceil(SPARE * height), ceil(SPARE * width))
    of_sides: OfSides = all
    if resize == "pad":
        of_sides = any  # one side may be shorter than the frame
    decoded = _read(path, tone, at_least, of_sides, note)
    if decoded.image.min() == decoded.image.max():  # whatever made it: the pixels, a window or a look-up table
        raise UnreadableImage(_one_line(f"{path}: {ONE_GREY}"))
    try:
        return fit_image(decoded.image, size, resize, decoded.extent, decoded.aspect)
    except MemoryError as error:
        raise _not_now(path, error) from None


def fit_pixels(pixels: Any, size: Size, resize: Resize = "pad") -> np.ndarray:
    """As `read_fitted`, for an image in memory: an array (h w), (h w 3) or (h w 4), or a picture of Pillow's.

    8 bits are grey levels as they are, 16 bits are stretched as those of a PNG. UnreadableImage for any other numbers,
    as it is not known which of them is white.
    """
    image, aspect = _grey_of_picture(pixels) if isinstance(pixels, Image.Image) else (_grey_of_array(pixels), 1.0)
    check_size(*image.shape)
    if image.min() == image.max():
        raise UnreadableImage(ONE_GREY)
    return fit_image(image, size, resize, aspect=aspect)


def fit_image(
    image: np.ndarray, size: Size, resize: Resize = "pad", extent: Extent | None = None, aspect: float = 1.0
) -> np.ndarray:
    """uint8 (h w) → uint8 of `size`, a square's side or (height, width), antialiased.

    `pad` keeps everything and centres it between black bars, `crop` keeps the central part of that shape; in both a
    disc stays round. `squash` stretches. `extent`: where the radiograph ends inside the array, if a reduced decode left
    a fraction of a pixel over. `aspect`: the height of the array's pixels divided by their width.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize: found {resize!r}, expected one of {', '.join(RESIZES)}")
    extent = extent or (image.shape[1], image.shape[0])
    frame_h, frame_w = height_and_width(size)

    # which part of the radiograph is shown: its shape in widths of a pixel, its place in pixels
    whole: Extent = (extent[0], extent[1] * aspect)
    part = whole
    if resize == "crop":
        part = _largest((frame_w, frame_h), whole)
    width = min(part[0], extent[0])  # rounding might exceed the image
    height = min(part[1] / aspect, extent[1])
    left = (extent[0] - width) / 2
    top = (extent[1] - height) / 2
    box = (left, top, left + width, top + height)

    # how large it is shown inside the frame
    shown: Extent = (frame_w, frame_h)
    if resize == "pad":
        shown = _largest(whole, shown)
    target_w = max(1, round(shown[0]))
    target_h = max(1, round(shown[1]))
    resized = Image.fromarray(image).resize((target_w, target_h), Image.Resampling.LANCZOS, box, reducing_gap=3.0)

    # centred between black bars
    fitted = np.zeros((frame_h, frame_w), np.uint8)
    y = (frame_h - target_h) // 2
    x = (frame_w - target_w) // 2
    fitted[y : y + target_h, x : x + target_w] = np.asarray(resized)
    return fitted


def _largest(shape: Extent, frame: Extent) -> Extent:
    """The largest width and height of the shape's aspect that fit into a frame."""
    if shape[0] * frame[1] > shape[1] * frame[0]:  # as wide as the frame
        return frame[0], frame[0] * shape[1] / shape[0]
    return frame[1] * shape[0] / shape[1], frame[1]


class OfSides(Protocol):
    """`all` or `any`: how many of an image's two sides must keep enough pixels."""

    def __call__(self, enough: tuple[bool, bool], /) -> bool: ...


def _read(path: str | Path, tone: Tone, at_least: Size | None, of_sides: OfSides, note: Note | None = None) -> Decoded:
    """Whatever is wrong with the file becomes UnreadableImage, in one line that names it."""
    if tone not in TONES:
        raise ValueError(f"tone: found {tone!r}, expected one of {', '.join(TONES)}")
    try:
        with quiet():
            return _read_content(path, tone, at_least, of_sides, note or _no_note)

    except LacksPlugin as reason:
        raise LacksPlugin(_one_line(f"{path}: {reason}"), reason.plugins) from None
    except UnreadableImage as reason:
        if may_pass(reason):
            raise NotNow(_one_line(f"{path}: {reason}")) from None
        message = f"{path}: {reason}"
    except ImportError as error:  # a library that cannot be loaded: for want of memory, or of descriptors
        raise _not_now(path, error) from None
    except (OSError, MemoryError) as error:  # strerror tells the file's trouble; without one Pillow tells the content's
        if may_pass(error):
            raise _not_now(path, error) from None
        says = f"damaged content ({_one_line(error)})"
        if isinstance(error, OSError) and error.strerror:
            says = pointing_link(Path(path)) or error.strerror.lower()
        message = f"{path}: found {says}, expected a readable image file"
    except Exception as error:
        message = f"{path}: found damaged content ({type(error).__name__}), expected an intact image file"
    raise UnreadableImage(_one_line(message))


def _not_now(path: str | Path, error: BaseException) -> NotNow:
    return NotNow(_one_line(f"{path}: found {trouble(error)}, expected a readable image file"))


def _no_note(content: bytes) -> None:
    pass


def _read_content(path: str | Path, tone: Tone, at_least: Size | None, of_sides: OfSides, note: Note) -> Decoded:
    """The kind of a file is told by its first bytes."""
    if ".npz#" in str(path):
        member = _archive_member(str(path))
        note(member.tobytes())
        return _whole(member)

    data = _file_bytes(path)
    note(data)
    if not data:
        refuse("an empty file", "JPEG, PNG or DICOM")
    if data[128:132] == b"DICM" or data[:2] in (b"\x08\x00", b"\x02\x00"):  # the latter: no preamble
        from data.dicom import read_dicom  # pydicom is loaded where a DICOM is met

        return _whole(*read_dicom(data, tone))
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        refuse(stand_in(data[:ENOUGH]) or "other bytes", "JPEG, PNG or DICOM")
    return _read_picture(data, at_least, of_sides)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and no log of pydicom's: it quotes odd values, and a damaged one may hold the patient's name."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _whole(image: np.ndarray, aspect: float = 1.0) -> Decoded:
    height, width = image.shape
    return Decoded(image, (width, height), aspect)


def _file_bytes(path: str | Path) -> bytes:
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        refuse("a folder", "an image file")
    if not stat.S_ISREG(status.st_mode):  # a pipe would hang, a device would never end
        refuse("no regular file", "an image file")
    if status.st_size > MAX_BYTES:
        refuse(f"{status.st_size} bytes", f"at most {MAX_BYTES}")
    return Path(path).read_bytes()


# ---------------------------------------------------------------- JPEG and PNG


def _read_picture(data: bytes, at_least: Size | None, of_sides: OfSides) -> Decoded:
    """Metadata that cannot be read is left out, so that it does not cost the pixels."""
    try:
        return _read_pixels(data, at_least, of_sides)
    except Exception:
        for fewer in with_fewer_extras(data):
            with suppress(Exception):  # the first error is the one that is reported
                return _read_pixels(fewer, at_least, of_sides)
        raise


def _read_pixels(data: bytes, at_least: Size | None, of_sides: OfSides) -> Decoded:
    image = _open_picture(data)
    check_size(*image.size)
    try:
        if image.format == "PNG":
            return _read_png(image, data)
        return _read_jpeg(image, data, at_least, of_sides)
    except OSError:  # libjpeg reports damaged content also when it gets no memory
        check_memory(*image.size)
        raise


def _aspect(image: Any, density: tuple[float, float] | None) -> float:
    """A pixel's height divided by its width, once the image is turned upright; `density`: pixels across and down."""
    aspect = None
    if density is not None:
        across, down = density
        aspect = pixel_aspect(across, down)
    if aspect is None:
        return 1.0
    if image.getexif().get(ORIENTATION) in TURNED:
        return 1 / aspect
    return aspect


def _read_png(image: Any, data: bytes) -> Decoded:
    """Grey of 8 bits as it is, grey of 16 bits stretched; colours are turned to grey of as many bits."""
    if getattr(image, "n_frames", 1) > 1:
        refuse(f"{image.n_frames} frames", "one")

    for tile in image.tile:  # gone once the image is loaded
        if tile[3] in WIDE:
            wide = Image.fromarray(_wide_grey(data, WIDE[tile[3]]))
            image.load()  # metadata may follow the pixels
            wide.info = image.info
            image = wide

    aspect = _aspect(image, image.info.get("aspect") or image.info.get("dpi"))  # either is pHYs
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _whole(_stretch(np.asarray(image).astype(np.uint16)), aspect)
    return _whole(np.array(image.convert("L")), aspect)


def _wide_grey(data: bytes, shares: dict[str, dict[str, int]]) -> np.ndarray:
    """The grey of a PNG's 16-bit colours, uint16 (h w), from the halves of `WIDE` that Pillow decodes one by one."""
    total: Any = 2**15  # so that the last step rounds
    for raw_mode, channels in shares.items():
        half = _open_picture(data)
        [(codec, box, offset, _)] = half.tile
        half.tile = [(codec, box, offset, raw_mode)]
        for channel, share in channels.items():
            part = np.asarray(half.getchannel(channel)).astype(np.uint32)
            part *= share
            part += total
            total = part
    return (total >> 16).astype(np.uint16)


def _read_jpeg(image: Any, data: bytes, at_least: Size | None, of_sides: OfSides) -> Decoded:
    """Decoded at the smallest scale that keeps `at_least` pixels of all (or any) of its sides."""
    width, height = image.size
    if image.mode == "CMYK" and "adobe" not in image.info:  # only Adobe's mark says that 0 is full ink
        refuse("four colours without Adobe's mark", "grey, or colours whose polarity is known")
    upright = image.getexif().get(ORIENTATION, 1) == 1
    aspect = _aspect(image, image.info.get("jfif_density"))
    scale = 1
    if at_least and upright and aspect == 1:  # else its sides in pixels do not tell how large it is shown
        scale = _scale(width, height, at_least, of_sides)

    # at 1/8 only the blocks' means are wanted
    if "progressive" in image.info:
        check_scans(data)
        if scale == 8:
            data = means_only(data)
            image = _open_picture(data)
    elif scale == 8:
        means = block_means(data)
        if means is not None:
            return Decoded(means, (width / scale, height / scale), aspect)

    image.decodermaxblock = len(data)  # in one piece: out of data, libjpeg begins a scan's row again
    drafted = image.draft("L", (max(1, width // scale), max(1, height // scale)))
    if not drafted:
        refuse("a JPEG without pixels", "an intact one")
    ImageOps.exif_transpose(image, in_place=True)
    grey = np.array(image.convert("L"))
    if not upright:
        return _whole(grey, aspect)
    # the exact end matters: squashing 139 decoded columns where 138.25 are radiograph shifts every edge
    _, (_, _, right, bottom) = drafted
    return Decoded(grey, (right, bottom), aspect)


def _scale(width: int, height: int, at_least: Size, of_sides: OfSides) -> int:
    """By how much a JPEG's decoder may divide the sides."""
    least_h, least_w = height_and_width(at_least)
    for scale in (8, 4, 2):
        if of_sides((width // scale >= least_w, height // scale >= least_h)):
            return scale
    return 1


def _open_picture(data: bytes) -> Any:
    """Pillow's image of the file: of a class of its own for each format, with that format's attributes."""
    try:
        return Image.open(BytesIO(data), formats=("JPEG", "PNG"))
    except Image.DecompressionBombError:
        refuse("far too many pixels declared", f"at most {MAX_PIXELS // 10**6} megapixels")
    except Image.UnidentifiedImageError:
        bits = bits_of(data)
        if bits not in (None, 8):
            refuse(f"a JPEG of {bits} bits", "8 bits; a PNG or a DICOM may have more")
        refuse("a damaged header", "an intact JPEG or PNG")


def _stretch(stored: np.ndarray) -> np.ndarray:
    """16 bits of a PNG: how many of them are used is not known, so it is shown as a DICOM without a window."""
    values = np.arange(2**16, dtype=float)
    counts = np.bincount(stored.ravel(), minlength=2**16)
    return to_bytes(between_tails(values, counts))[stored]


# ---------------------------------------------------------------- in memory


def _grey_of_array(pixels: Any) -> np.ndarray:
    pixels = np.asarray(pixels)
    colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if not (pixels.ndim == 2 or colour):
        refuse(f"an array of shape {pixels.shape}", "(h w) of grey levels, or (h w 3) of colours")
    if 0 in pixels.shape:
        refuse("an array without pixels", "an image")
    if pixels.dtype == np.uint16 and not colour:
        return _stretch(pixels)
    if pixels.dtype != np.uint8:
        refuse(
            f"{pixels.dtype} numbers", "uint8 (0 black, 255 white), or uint16 of grey: others do not say what is white"
        )
    if colour:
        return np.array(Image.fromarray(pixels).convert("L"))
    return pixels


def _grey_of_picture(picture: Any) -> tuple[np.ndarray, float]:
    """Grey levels as a file of such a picture would give them, and the height of a pixel divided by its width."""
    try:
        return _grey_and_aspect(picture)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow reads an opened file only now
        refuse(f"damaged content ({_one_line(error)})", "an intact picture of grey levels or colours")


def _grey_and_aspect(picture: Any) -> tuple[np.ndarray, float]:
    about = picture.info
    density = about.get("aspect") or about.get("jfif_density")
    if picture.format == "PNG":
        density = density or about.get("dpi")
    aspect = _aspect(picture, density)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F":
        refuse("a picture of fractional numbers", "8 or 16 bits: others do not say what is white")
    if not upright.mode.startswith("I"):
        return np.array(upright.convert("L")), aspect
    values = np.asarray(upright)
    if values.min() < 0 or values.max() >= 2**16:
        refuse("a picture of more than 16 bits", "8 or 16 bits: others do not say what is white")
    return _stretch(values.astype(np.uint16)), aspect


# ---------------------------------------------------------------- MedMNIST


def _archive_member(path: str) -> np.ndarray:
    archive, _, member = path.rpartition("#")
    name, _, number = member.partition("/")
    status = Path(archive).stat()
    images = _archive_array(archive, name, status.st_mtime_ns, status.st_size)
    if not number.isdecimal() or int(number) >= len(images):
        refuse(f"index {number!r:.20}", f"0 to {len(images) - 1}")
    image = images[int(number)]
    if image.ndim == 3 and image.shape[2] == 1:
        return np.array(image[:, :, 0])
    if image.ndim == 3:
        return np.array(Image.fromarray(image).convert("L"))
    return np.array(image)


@lru_cache(maxsize=3)  # train, val and test; the time and size make a rewritten archive another one
def _archive_array(archive: str, name: str, _time: int, _size: int) -> np.ndarray:
    with zipfile.ZipFile(archive) as members:
        names = [member.removesuffix(".npy") for member in members.namelist()]
    if name not in names:
        refuse(f"no {name!r}", f"one of {', '.join(names)}")
    images = read_array(archive, name)
    if not holds_images(images):
        refuse(f"{images.dtype} {images.shape}", STACK)
    return images
