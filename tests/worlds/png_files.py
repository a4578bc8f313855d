"""PNGs of every kind, written as the standard says (PNG, third edition): Pillow cannot write 16-bit colours."""

import struct
import zlib

import numpy as np

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # 11.2.1
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples: np.ndarray, kind: int, bits: int, *, interlaced: bool = False, before: bytes = b"") -> bytes:
    """A PNG of samples (h w channels); `before`: chunks before the pixels."""
    height, width = samples.shape[:2]
    parts = [samples]
    if interlaced:
        parts = [samples[top::down, left::right] for left, top, right, down in PASSES]
    lines = [b"\0" + _packed(line, bits) for part in parts if part.size for line in part]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _packed(line: np.ndarray, bits: int) -> bytes:
    if bits == 16:
        return line.astype(">u2").tobytes()
    ones = np.unpackbits(line.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(ones).tobytes()
