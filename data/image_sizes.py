"""How large images are, by their headers alone: no pixel is decoded."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image

from data.npz import read_header

SAMPLE = 200  # images whose headers are read
PREAMBLE = 132  # bytes that tell a DICOM file


def sampled_sizes(paths: Sequence[str], seed: int = 0) -> np.ndarray:
    """(n 2) height and width of some of the images, the same ones each time; those that cannot be told are left out."""
    numbers = np.random.default_rng(seed).permutation(len(paths))[:SAMPLE]
    sizes = [image_size_of(paths[number]) for number in numbers]
    return np.array([size for size in sizes if size is not None], dtype=np.int64).reshape(-1, 2)


def image_size_of(path: str) -> tuple[int, int] | None:
    """Height and width as the file's header says; None where it does not."""
    with suppress(Exception), warnings.catch_warnings():  # a damaged header may raise anything
        warnings.simplefilter("ignore")
        if ".npz#" in path:
            return _in_archive(path)
        with Path(path).open("rb") as file:
            start = file.read(PREAMBLE)
        if start[128:] == b"DICM" or start[:2] in (b"\x08\x00", b"\x02\x00"):
            return _of_dicom(path)
        with Image.open(path) as image:
            return image.height, image.width
    return None


def _in_archive(path: str) -> tuple[int, int]:
    archive, _, member = path.rpartition("#")
    with ZipFile(archive) as opened:
        shape = read_header(opened, member.partition("/")[0]).shape
    return shape[1], shape[2]


def _of_dicom(path: str) -> tuple[int, int]:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["Rows", "Columns"])
    return int(header.Rows), int(header.Columns)
