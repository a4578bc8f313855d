"""A credentialed hospital whose files and tables are full of marks, so that whatever leaks can be found.

Every text has `MARK` in it: names, numbers of patients, file names, private elements, and text where DICOM wants
numbers. `DATE` is the one date. Ids also contain `ID`: only the files that must hold ids may contain it.
"""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from radiograph_files import dicom
from tiny_world import radiograph

MARK = "Zq7Mark"
ID = f"{MARK}Id"
DATE = "18991231"
SIDE = 24  # of an image, in pixels


def write_hospital(root: Path, count: int = 60) -> Path:
    """`count` DICOM files, the last three of them unreadable, and their table."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    rows = []
    for number in range(count):
        abnormal = number % 5 < 2
        name = f"{ID}-{number:04}.dcm"
        spoil = {57: "SamplesPerPixel", 58: "PhotometricInterpretation", 59: "Rows"}.get(number)
        write_dicom(root / name, radiograph(abnormal, rng, SIDE), spoil)
        rows.append(
            {
                "path": name,
                "label": int(abnormal),
                "image_id": f"{ID}-image-{number:04}",
                "patient_id": f"{ID}-patient-{number // 2}",
                "study_id": f"{ID}-study-{number}",
                "split": ("train", "train", "train", "train", "validate", "test")[number // 2 % 6],
                "surname": f"{MARK}-surname",
            }
        )
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return root


def write_dicom(path: Path, pixels: np.ndarray, spoil: str | None = None) -> None:
    """A radiograph among marks; `spoil` names a required element that holds a mark too."""
    image = dicom(pixels, bits=8)
    image.PatientName = f"{MARK}^Name"
    image.PatientID = f"{MARK}Number"
    image.AccessionNumber = f"{MARK}Acc"
    image.InstitutionName = f"{MARK} Hospital"
    image.ImageComments = f"{MARK} comment"
    image.PatientBirthDate = image.StudyDate = image.AcquisitionDate = DATE

    # private elements, and text in numeric ones that decoding can do without
    block = image.private_block(0x0011, f"{MARK} Maker", create=True)
    block.add_new(0x01, "LO", f"{MARK} private")
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "PixelSpacing", "NumberOfFrames", "HighBit"):
        image.add_new(keyword, "LO", f"{MARK}{keyword}"[:16])
    if spoil:
        image.add_new(spoil, "LO", f"{MARK}{spoil}")
    image.save_as(path)


def everything_written(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below `root` with its content, and every member of an archive (checkpoints are archives)."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            content = path.read_bytes()
            yield path, name.encode() + content
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for member in archive.namelist():
                        yield path, member.encode() + archive.read(member)
