"""PNG and JPEG without the data beside their pixels, for files in which that is broken or too long to be read."""

from collections.abc import Collection, Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# the chunks that a PNG's pixels need, and those of an animation, which tell that there are several frames
PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
SHAPE = (b"eXIf", b"pHYs", b"tRNS")  # which side is up, the shape of a pixel, transparency
# the second bytes of a JPEG's markers (T.81, table B.1)
SCAN = 0xDA
JFIF = 0xE0
EXIF = 0xE1
ADOBE = 0xEE
EXTRAS = (*range(0xE0, 0xF0), 0xFE)  # applications' segments and comments
ADOBE_BYTES = 14  # of a segment that says how colours are stored, its length included


def with_fewer_extras(data: bytes) -> Iterator[bytes]:
    """The file with less beside its pixels: first with what says how they lie, then without that too.

    Yields nothing if there is nothing to leave out. Texts and colour profiles are never used, so they are never kept.
    """
    tried = data
    for shape in (True, False):
        fewer = _png(data, PIXELS + SHAPE if shape else PIXELS) if data.startswith(PNG) else _jpeg(data, shape)
        if fewer != tried:
            tried = fewer
            yield fewer


def _png(data: bytes, kept: Collection[bytes]) -> bytes:
    """The chunks of these kinds alone."""
    parts = [PNG]
    place = len(PNG)
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 12 + length  # its length, kind and checksum too
        if data[place + 4 : place + 8] in kept:
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _jpeg(data: bytes, shape: bool) -> bytes:
    """Without the segments before the first scan that it can do without; how colours are stored is kept."""
    parts = [data[:2]]
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        kind = data[place + 1]
        if kind == SCAN:
            break
        if kind == 0xFF:  # a fill byte
            place += 1
            continue

        length = int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + length
        needed = kind not in EXTRAS or (kind == ADOBE and length >= ADOBE_BYTES)
        if needed or (shape and kind in (JFIF, EXIF)):
            parts.append(data[place:end])
        place = end
    parts.append(data[place:])
    return b"".join(parts)
