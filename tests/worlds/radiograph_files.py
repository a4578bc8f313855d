"""Files of known content for the tests of the reader."""

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

H, W = 150, 190
PATIENT = "Aurelian^Zephyrine"


def scene(top: float, height: int = H, width: int = W) -> np.ndarray:
    """A smooth thing with an edge, 0…top, not symmetric in any direction."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    waves = 0.5 + 0.25 * np.sin(5 * x + y) + 0.2 * np.cos(7 * y * x) + 0.05 * (x > 0.6)
    return waves * top


STORED = scene(3800).astype(np.uint16) + 100  # of 12 bits
CURVE = (4095 * np.linspace(0, 1, 4096) ** 2).astype(np.uint16)  # a look-up table of 12 bits


def dicom(pixels: np.ndarray, *, bits: int = 12, photometric: str = "MONOCHROME2", **elements) -> FileDataset:
    """A DICOM of the given stored values; `elements` by keyword, e.g. WindowCenter=2000."""
    meta = FileMetaDataset()
    syntax = elements.pop("syntax", ExplicitVRLittleEndian)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.PatientName = PATIENT
    image.Rows, image.Columns = pixels.shape[:2]
    image.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        image.PlanarConfiguration = 0
    image.PhotometricInterpretation = photometric
    image.BitsAllocated = 8 * pixels.itemsize
    image.BitsStored, image.HighBit = bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    if syntax == RLELossless:
        image.compress(RLELossless, encoding_plugin="pydicom")
    return image


def lut(entries: np.ndarray, first: int, bits: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 2**16, first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return [item]


def save(image: FileDataset, path: Path) -> Path:
    image.save_as(path)
    return path


def picture(image: np.ndarray | Image.Image, path: Path, **options) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path
