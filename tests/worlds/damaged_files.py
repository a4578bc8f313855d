"""Image files of every kind, and copies of them that are damaged in any way."""

import random
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, features
from png_files import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, png
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from radiograph_files import PATIENT, dicom, lut, picture, save, scene

KINDS_OF_VALUES = ("US", "SS", "UL", "IS", "DS", "CS", "LO", "UI", "OB", "OW", "SQ", "UN", "AT", "FD")
VALUES = (
    b"",
    b"\0",
    b"\xff\xff",
    b"\0\0\0\0\0\0\0\0",
    b"NaN ",
    b"-1",
    b"1\\2\\3\\4",
    b"99999999999 ",
    PATIENT.encode(),
)


def whole_files(folder: Path) -> dict[str, bytes]:
    """One intact file of each kind."""
    grey, twelve = scene(250).astype(np.uint8), scene(4000).astype(np.uint16)
    colour = Image.fromarray(np.stack([grey, grey[::-1], grey // 2], -1))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        picture(grey, folder / "grey.jpg"),
        picture(colour, folder / "colour.jpg", exif=exif),
        picture(colour, folder / "progressive.jpg", progressive=True),
        picture(colour.convert("CMYK"), folder / "four.jpg"),
        picture(scene(250, 700, 900).astype(np.uint8), folder / "large.jpg"),
        picture(grey, folder / "8.png"),
        picture(twelve, folder / "16.png"),
        picture(colour.convert("P"), folder / "palette.png"),
        *dicoms(folder, grey, twelve, np.asarray(colour)),
    ]
    wide = twelve[..., None] * 16
    (folder / "interlaced.png").write_bytes(png(wide, GREY, 16, interlaced=True))
    (folder / "16 alpha.png").write_bytes(png(wide.repeat(2, -1), GREY_ALPHA, 16))
    (folder / "16 colours.png").write_bytes(png(wide.repeat(3, -1), COLOUR, 16))
    (folder / "16 both.png").write_bytes(png(wide.repeat(4, -1), COLOUR_ALPHA, 16, interlaced=True))
    files += [*sorted(folder.glob("16 *.png")), folder / "interlaced.png"]
    return {path.name: path.read_bytes() for path in files}


def dicoms(folder: Path, grey: np.ndarray, twelve: np.ndarray, colour: np.ndarray) -> list[Path]:
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    curve = np.arange(4096, dtype=np.uint16)
    tables = {"VOILUTSequence": lut(curve, 0, 12), "ModalityLUTSequence": lut(curve, 0, 12)}
    explicit = dicom(twelve, **window, PixelPaddingValue=0, PixelSpacing=[0.2, 0.1], RescaleSlope=2)
    big = dicom(twelve.astype(">u2"), **window)
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(folder / "big.dcm", big)  # save_as would refuse
    deflated = dicom(twelve, **window)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return [
        save(explicit, folder / "explicit.dcm"),
        folder / "big.dcm",
        save(deflated, folder / "deflated.dcm"),
        save(dicom(twelve, **tables, syntax=ImplicitVRLittleEndian), folder / "implicit.dcm"),
        save(dicom(twelve, **window, syntax=RLELossless), folder / "rle.dcm"),
        save(dicom(colour, bits=8, photometric="RGB"), folder / "colour.dcm"),
        *encapsulated_files(folder, grey),
    ]


def encapsulated_files(folder: Path, grey: np.ndarray) -> list[Path]:
    picture(grey, folder / "stream.jpg")
    files = [save(encapsulated(folder / "stream.jpg", JPEGBaseline8Bit), folder / "jpeg.dcm")]
    if features.check("jpg_2000"):
        picture(grey, folder / "stream.j2k")
        files.append(save(encapsulated(folder / "stream.j2k", JPEG2000Lossless), folder / "j2k.dcm"))
    return files


def encapsulated(stream: Path, syntax: str) -> FileDataset:
    """A DICOM that holds a compressed picture."""
    image = dicom(scene(250).astype(np.uint8), bits=8)
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate([stream.read_bytes()])
    image["PixelData"].VR = "OB"
    return image


# ---------------------------------------------------------------- damage


def damaged(name: str, files: dict[str, bytes], rng: random.Random) -> bytes:
    """A copy with one to three kinds of damage; half of it near the start, where the headers are."""
    data = bytearray(files[name])
    if name.endswith(".dcm") and rng.random() < 0.5:
        data = bytearray(edited(files[name], rng))
    else:
        for _ in range(rng.randint(1, 3)):
            damage(data, rng, files)
    return bytes(data)


def damage(data: bytearray, rng: random.Random, files: dict[str, bytes]) -> None:
    reach = len(data) if rng.random() < 0.5 else min(len(data), 1500)
    at = rng.randrange(reach) if reach else 0
    some = rng.randint(1, 60)
    kind = rng.choice(("cut", "flip", "bytes", "zeros", "remove", "repeat", "insert", "swap"))
    if kind == "cut":
        del data[at:]
    elif kind == "flip" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for place in rng.sample(range(reach), min(reach, 12)):
            data[place] = rng.choice((0, 255, rng.randrange(256)))
    elif kind == "zeros":
        data[at : at + some] = bytes(len(data[at : at + some]))
    elif kind == "remove":
        del data[at : at + some]
    elif kind == "repeat":
        data[at:at] = data[at : at + rng.randint(1, 3000)]
    elif kind == "insert":
        data[at:at] = rng.randbytes(some)
    else:  # the rest of another file
        data[at:] = rng.choice(sorted(files.values()))[at:]


def edited(whole: bytes, rng: random.Random) -> bytes:
    """A well-formed DICOM in which one to three elements are missing or hold something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what is done here
        return _edited(pydicom.dcmread(BytesIO(whole)), rng) or whole[: rng.randrange(len(whole))]


def _edited(image: FileDataset, rng: random.Random) -> bytes | None:
    """None if not even pydicom can write it."""
    for _ in range(rng.randint(1, 3)):
        dataset = rng.choice((image, image, image, image.file_meta))
        tag = rng.choice(sorted(dataset.keys()))
        value = rng.choice((*VALUES, rng.randbytes(rng.randint(1, 12)), rng.randbytes(rng.randint(1, 12))))
        raw = RawDataElement(tag, rng.choice(KINDS_OF_VALUES), len(value), value, 0, False, True)
        del dataset[tag]
        if rng.random() < 0.8:
            dataset._dict[tag] = raw

    stream = BytesIO()
    try:
        pydicom.dcmwrite(stream, image, enforce_file_format=False)
    except Exception:
        return None
    return stream.getvalue()
