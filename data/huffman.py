"""The entropy-coded scan of a baseline JPEG, read only for its blocks' means (ITU-T T.81, F.2.2), by numba.

libjpeg looks up one symbol at a time and keeps each coefficient. Here the bits up to the next mean are only counted, as
many symbols at a time as the next PEEK bits hold. That takes less than half the time.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

PEEK = 13  # a table of 16 kB stays in a core's nearest cache
LENGTH, COEFFICIENTS = 5, 4  # bits of a table's entry that tell the length of one code, and of several


def _compiled(function: Callable[..., Any]) -> Any:
    """Kept on disk for the next process, where there is a place for it."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@lru_cache(maxsize=16)
def codes(counts: bytes, symbols: bytes) -> np.ndarray:
    """(65536) uint16: length of the code that the next 16 bits begin with, and above it its symbol; 0: there is none.

    counts: how many codes have 1, 2, … 16 bits. Raises ValueError if there are more codes than there can be.
    """
    table = np.zeros(1 << 16, np.uint16)
    code = 0
    place = 0
    for length, count in enumerate(counts, start=1):
        for symbol in symbols[place : place + count]:
            if code >> length:
                raise ValueError("more codes than bits can tell apart")
            start = code << (16 - length)
            table[start : start + (1 << (16 - length))] = length | symbol << LENGTH
            code += 1
        place += count
        code <<= 1
    return table


@lru_cache(maxsize=16)
def short_codes(counts: bytes, symbols: bytes) -> np.ndarray:
    """(2^PEEK) uint16: `codes` for the next PEEK bits, 0 also where the code is longer."""
    table = codes(counts, symbols)[:: 1 << (16 - PEEK)]
    return np.where((table & 31) <= PEEK, table, 0).astype(np.uint16)


@lru_cache(maxsize=16)
def several(counts: bytes, symbols: bytes) -> np.ndarray:
    """(2^PEEK) uint16: the AC symbols that the next PEEK bits hold whole, all together.

    From the lowest bits up: how many bits they have, how many coefficients they stand for, and whether the last one
    ends the block; 0 where not even one is there whole.
    """
    table = codes(counts, symbols).astype(np.int64)
    ahead = np.arange(1 << PEEK)
    bits, coefficients, ended = (np.zeros_like(ahead) for _ in range(3))
    going = np.ones(len(ahead), bool)
    while going.any():
        entry = table[(ahead << (16 - PEEK + bits)) & 0xFFFF]
        length, zeros, size = entry & 31, entry >> (LENGTH + 4), (entry >> LENGTH) & 15
        whole = going & (length > 0) & (bits + length + size <= PEEK)

        # a symbol that ends the block is taken too; one that would go beyond the block is not
        end = whole & (size == 0) & (zeros != 15)
        going = whole & ~end & (coefficients + zeros < 63)
        bits += np.where(end | going, length + size, 0)
        coefficients += np.where(going, zeros + 1, 0)
        ended |= end
    return (bits | coefficients << COEFFICIENTS | ended << (COEFFICIENTS + 7)).astype(np.uint16)


@_compiled
def _fill(data: np.ndarray, place: int, ahead: Any, count: int, made_up: int) -> tuple[int, Any, int, int]:
    """At least 32 more bits of the scan; at a marker or the end, made-up zeros."""
    # four bytes at once, where none of them is 255
    if place + 4 <= len(data):
        word = np.uint32(0)
        for offset in range(4):
            word = word << np.uint32(8) | np.uint32(data[place + offset])
        if (~word - np.uint32(0x01010101)) & word & np.uint32(0x80808080) == 0:  # no byte is 255
            return place + 4, ahead | np.uint64(word) << np.uint64(32 - count), count + 32, made_up

    while count <= 56:
        byte = np.uint64(0)
        if place + 1 >= len(data) or (data[place] == 255 and data[place + 1] != 0):
            made_up += 8
        else:
            byte = np.uint64(data[place])
            place += 2 if data[place] == 255 else 1
        ahead |= byte << np.uint64(56 - count)
        count += 8
    return place, ahead, count, made_up


@_compiled
def read_means(
    data: np.ndarray,
    place: int,
    units: int,
    order: np.ndarray,
    dc: np.ndarray,
    short_dc: np.ndarray,
    ac: np.ndarray,
    together: np.ndarray,
    quantizer: int,
    means: np.ndarray,
) -> int:
    """Fill `means` (n) uint8 with the first component's, rounded as libjpeg does; returns the scan's end, or -1.

    data: (bytes) uint8 of the file, whose scan starts at `place`. order: (blocks) component of each block of one of
    the `units`. dc, ac: (components 65536) tables of `codes`, sizes in dc at most 11. short_dc, together: (components
    2^PEEK) of `short_codes` and `several`. quantizer: the means'. Reads and writes nothing outside of these arrays,
    whatever the scan says.
    """
    ahead: Any = np.uint64(0)  # the bits that come next, from the top
    count: Any = 0  # how many these are
    made_up: Any = 0  # how many of them are not in the file
    mean: Any = 0  # of the block before: each block codes the difference from it
    done = 0
    for _ in range(units):
        for component in order:
            if count <= 32:
                place, ahead, count, made_up = _fill(data, place, ahead, count, made_up)
            entry = np.int64(short_dc[component, ahead >> np.uint64(64 - PEEK)])
            if entry == 0:
                entry = np.int64(dc[component, ahead >> np.uint64(48)])
            length, size = entry & 31, entry >> LENGTH
            if length == 0 or made_up > 64:
                return -1
            ahead <<= np.uint64(length)
            # the block's mean, of luma alone
            if component == 0:
                if size:
                    value = np.int64(ahead >> np.uint64(64 - size))
                    mean += value if value >> (size - 1) else value - (1 << size) + 1
                means[done] = min(max(((mean * quantizer + 4) >> 3) + 128, 0), 255)
                done += 1
            ahead <<= np.uint64(size)
            count -= length + size

            # its other coefficients are passed over, several at a time where they fit
            coefficient: Any = 1
            while coefficient < 64:
                if count <= 32:
                    place, ahead, count, made_up = _fill(data, place, ahead, count, made_up)
                entry = np.int64(together[component, ahead >> np.uint64(64 - PEEK)])
                ended = entry >> (COEFFICIENTS + 7)
                following = coefficient + ((entry >> COEFFICIENTS) & 127)
                if entry and following <= 64 - ended:
                    ahead <<= np.uint64(entry & 15)
                    count -= entry & 15
                    coefficient = 64 if ended else following
                    continue

                # one symbol, of up to 16 bits
                entry = np.int64(ac[component, ahead >> np.uint64(48)])
                length, zeros, size = entry & 31, entry >> (LENGTH + 4), (entry >> LENGTH) & 15
                if length == 0:
                    return -1
                ahead <<= np.uint64(length + size)
                count -= length + size
                coefficient = 64 if size == 0 and zeros != 15 else coefficient + zeros + 1
            if coefficient > 64:
                return -1
    return place if 0 <= count - made_up < 8 else -1
