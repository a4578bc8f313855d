"""JPEG at 1/8 scale, where a block of 8 × 8 pixels becomes its mean: all other coefficients are left out.

Decoding them all takes several times as long as the rest of the reading, for nothing: the pixels are the same. From a
progressive file the scans that hold them are removed (`means_only`); in a baseline file they are skipped
(`block_means`).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import numpy as np

from data.refusal import refuse

MAX_SCANS = 200  # usual: 6 or 10
FAST = find_spec("numba") is not None
# how many samples each of three components has, across and down, in the header of a frame (T.81, B.2.2)
SAMPLING = re.compile(rb"\xff[\xc0-\xc2]\x00\x11.{5}\x03.(.)..(.)..(.).", re.DOTALL)
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # inside a scan: neither a stuffed byte nor a restart
# the second byte of the markers that we look at (T.81, table B.1)
SCAN = 0xDA
QUANTIZERS = 0xDB
END = 0xD9
TABLES = 0xC4
BASELINE = 0xC0
OTHER_TABLES = (0xC4, 0xC8, 0xCC)  # no frames, though their numbers lie among those of frames
RESTARTS = 0xDD
JFIF = 0xE0
ADOBE = 0xEE

HuffmanTable = tuple[bytes, bytes]  # how many codes have 1, 2, … 16 bits, and their symbols in this order


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of very many scans: each may be a few bytes, yet is decoded over the whole image."""
    scans = data.count(bytes([255, SCAN]))
    if scans > MAX_SCANS:
        refuse(f"{scans} scans", f"at most {MAX_SCANS}")


def has_coarse_colours(data: bytes) -> bool:
    """Whether a colour JPEG has fewer samples of its second and third component: they are YCbCr then, never RGB."""
    sampling = SAMPLING.search(data)
    return sampling is not None and len(set(sampling.groups())) > 1


def means_only(data: bytes) -> bytes:
    """A progressive JPEG without its AC scans; at 1/8 scale it decodes to the same pixels, bit for bit."""
    kept = [data[:2]]
    place = 2
    while found := MARKER.search(data, place):
        start = found.start()
        kind = data[start + 1]
        if kind == END:
            kept.append(data[start:])
            break

        place = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if kind == SCAN:
            # a scan reaches to the next marker, and holds means if it begins with coefficient 0
            first_coefficient = data[place - 3 : place - 2]
            following = MARKER.search(data, place)
            place = following.start() if following else len(data)
            if first_coefficient != b"\0":
                continue

        segment = data[start:place]
        if kind == QUANTIZERS:
            segment = _without_smoothing(segment)
        kept.append(segment)
    return b"".join(kept)


def _without_smoothing(quantizers: bytes) -> bytes:
    """Zeros for every AC quantizer: only then libjpeg does not guess the missing coefficients."""
    kept = quantizers[:4]  # marker and length
    tables = quantizers[4:]
    while tables:
        width = 1 + (tables[0] >> 4)  # bytes of an entry
        kept += tables[: 1 + width] + bytes(63 * width)
        tables = tables[1 + 64 * width :]
    return kept


def block_means(data: bytes) -> np.ndarray | None:
    """The grey that libjpeg decodes at 1/8 scale, uint8 (h w), bit for bit; None where libjpeg has to do it itself.

    It has to if numba is not installed (extra `fast`), and for any file but a whole baseline JPEG of one scan, grey or
    in JFIF's colours, without restarts.
    """
    if not FAST:
        return None
    huffman = _huffman()
    if huffman is None:
        return None

    try:
        frame, tables, place = _header(data)
        dc = [tables[0, number] for number, _ in frame.tables]  # of each component
        ac = [tables[1, number] for _, number in frame.tables]
        if any(max(symbols, default=0) > 11 for _, symbols in dc):
            return None

        # what the reader looks up: DC codes, long and short, and AC codes, one and several at a time
        lookups = (
            _stacked(huffman.codes, dc),
            _stacked(huffman.short_codes, dc),
            _stacked(huffman.codes, ac),
            _stacked(huffman.several, ac),
        )
    except (LookupError, ValueError):
        return None

    across, down = frame.units
    high, wide = frame.luma
    means = np.empty(across * down * high * wide, np.uint8)
    content = np.frombuffer(data, np.uint8)
    end = huffman.read_means(content, place, across * down, frame.order, *lookups, frame.quantizer, means)
    if end < 0 or data[end : end + 2] != bytes([255, END]):
        return None

    # units stand one after the other, each a block of rows and columns
    grey = means.reshape(down, across, high, wide).swapaxes(1, 2).reshape(down * high, across * wide)
    return np.ascontiguousarray(grey[: -(-frame.height // 8), : -(-frame.width // 8)])


def _stacked(make: Callable[[bytes, bytes], np.ndarray], tables: list[HuffmanTable]) -> np.ndarray:
    """What `make` makes of each component's table."""
    return np.stack([make(counts, symbols) for counts, symbols in tables])


@lru_cache(maxsize=1)
def _huffman() -> ModuleType | None:
    """The reader by numba, which takes a third of a second to load; None if numba does not know this numpy yet."""
    try:
        from data import huffman
    except ImportError:
        return None
    return huffman


def bits_of(data: bytes) -> int | None:
    """Bits of a sample, from the frame's header; None where there is none before the pixels."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 < len(data):
        kind = data[place + 1]
        if kind == SCAN:
            return None
        if 0xC0 <= kind <= 0xCF and kind not in OTHER_TABLES:
            return data[place + 4]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


class _Frame(NamedTuple):
    """The geometry of an image: a unit holds the blocks of all components that cover the same pixels."""

    height: int
    width: int
    quantizer: int  # of the luma's means
    luma: tuple[int, int]  # blocks of luma in a unit, down and across
    units: tuple[int, int]  # across and down
    order: np.ndarray  # component of each block of a unit
    tables: list[tuple[int, int]]  # DC and AC table of each component


def _header(data: bytes) -> tuple[_Frame, dict[tuple[int, int], HuffmanTable], int]:
    """Frame, Huffman tables by (class, number), place of the scan; LookupError or ValueError where it is not for us."""
    place = 2
    quantizers: dict[int, int] = {}
    tables: dict[tuple[int, int], HuffmanTable] = {}
    frame = b""
    jfif = False
    while True:
        if data[place] != 255:
            raise ValueError("no marker")
        kind = data[place + 1]
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + size]
        place += 2 + size

        # tables may stand in one segment or in several
        if kind == SCAN:
            return _frame(frame, body, quantizers, jfif), tables, place
        if kind == QUANTIZERS:
            while body:
                bytes_each = 1 + (body[0] >> 4)
                quantizers[body[0] & 15] = int.from_bytes(body[1 : 1 + bytes_each], "big")
                body = body[1 + 64 * bytes_each :]
        elif kind == TABLES:
            while body:
                count = sum(body[1:17])
                tables[divmod(body[0], 16)] = body[1:17], body[17 : 17 + count]
                body = body[17 + count :]
        elif kind == BASELINE and not frame:
            frame = body
        elif kind == JFIF:
            jfif = jfif or body.startswith(b"JFIF\0")
        elif kind in (RESTARTS, ADOBE) or 0xC0 <= kind <= 0xCF:  # other frames, arithmetic coding
            raise ValueError("not for us")


def _frame(frame: bytes, scan: bytes, quantizers: dict[int, int], jfif: bool) -> _Frame:
    """The geometry of the image; ValueError where it is none that we read."""
    height = int.from_bytes(frame[1:3], "big")
    width = int.from_bytes(frame[3:5], "big")
    count = frame[5]
    names = frame[6::3]
    samplings = [divmod(sampling, 16) for sampling in frame[7::3]]
    quantizer = quantizers[frame[8]]

    # whatever libjpeg decodes in another way is left to it
    if frame[0] != 8 or scan[0] != count or scan[1 : 1 + 2 * count : 2] != names or not height * width:
        raise ValueError("not 8 bits, not all in one scan, or empty")
    if count == 1:
        samplings = [(1, 1)]  # a lone component has no units
    elif count != 3 or not jfif:
        raise ValueError("neither grey nor surely YCbCr")
    if any(0 in sampling for sampling in samplings):
        raise ValueError("a component without blocks")
    wide, high = samplings[0]
    if any(across > wide or down > high for across, down in samplings):
        raise ValueError("luma of less than full size")

    return _Frame(
        height=height,
        width=width,
        quantizer=quantizer,
        luma=(high, wide),
        units=(-(-width // (8 * wide)), -(-height // (8 * high))),  # rounded up
        order=np.repeat(np.arange(count), [across * down for across, down in samplings]),
        tables=[divmod(numbers, 16) for numbers in scan[2 : 2 + 2 * count : 2]],
    )
