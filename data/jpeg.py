"""Progressive JPEG at 1/8 scale, where a block of 8 × 8 pixels becomes its mean: all other coefficients are left out.

Decoding them all takes several times as long as the rest of the reading, for nothing: the pixels are the same.
"""

import re

MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # inside a scan: neither a stuffed byte nor a restart
SCAN, QUANTIZERS, END = 0xDA, 0xDB, 0xD9


def means_only(data: bytes) -> bytes:
    """A progressive JPEG without its AC scans; at 1/8 scale it decodes to the same pixels, bit for bit."""
    kept, place = [data[:2]], 2
    while found := MARKER.search(data, place):
        start, kind = found.start(), data[found.start() + 1]
        if kind == END:
            kept.append(data[start:])
            break
        place = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if kind == SCAN:
            first_coefficient = data[place - 3 : place - 2]
            following = MARKER.search(data, place)
            place = following.start() if following else len(data)
            if first_coefficient != b"\0":
                continue
        segment = data[start:place]
        kept.append(_without_smoothing(segment) if kind == QUANTIZERS else segment)
    return b"".join(kept)


def _without_smoothing(quantizers: bytes) -> bytes:
    """Zeros for every AC quantizer: the one sign at which libjpeg does not guess the missing coefficients."""
    kept, tables = quantizers[:4], quantizers[4:]
    while tables:
        width = 1 + (tables[0] >> 4)  # bytes of an entry
        kept += tables[: 1 + width] + bytes(63 * width)
        tables = tables[1 + 64 * width :]
    return kept
