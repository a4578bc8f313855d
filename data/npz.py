"""Arrays of a MedMNIST archive: what their headers declare is checked against the file before anything is read."""

import zipfile
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

LARGE = 2**26  # bytes beyond which an array's compression is checked
RATIO = 100  # times that images may be compressed; radiographs are by less than ten
STACK = "uint8 (n h w), (n h w 1) or (n h w 3)"  # what images are kept as


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_header(archive: zipfile.ZipFile, name: str) -> Header:
    """The header of an array; ValueError where it is none, or declares what the file does not have."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, dtype = readers[version](file)
        except Exception as error:  # a stranger's header may raise anything
            raise ValueError(f"{name}: found no header of an array ({type(error).__name__})") from None
        start = file.tell()

    if dtype.hasobject:  # such an array is never read
        return Header(shape, dtype)
    if not all(side >= 0 for side in shape):
        raise ValueError(f"{name}: found the shape {shape}, expected sides of 0 or more")
    wanted = start + prod(shape) * dtype.itemsize
    if member.file_size != wanted:
        raise ValueError(f"{name}: found {member.file_size:,} bytes, expected {wanted:,} for {shape}")
    if wanted > max(LARGE, RATIO * member.compress_size):
        raise ValueError(f"{name}: found {member.compress_size:,} bytes that unpack to {wanted:,}, expected images")
    return Header(shape, dtype)


def holds_images(array: Header | np.ndarray) -> bool:
    """Whether an array is a `STACK` of grey or colour images."""
    return array.dtype == np.uint8 and len(array.shape) in (3, 4) and array.shape[3:] in ((), (1,), (3,))


def read_array(path: str | Path, name: str) -> np.ndarray:
    """An array of the archive; KeyError where it has none of that name, ValueError as `read_header`."""
    with zipfile.ZipFile(path) as archive:
        read_header(archive, name)
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
