"""Miniature trees of the public data sets beside MIMIC-CXR-JPG: official folders, file names and CSV columns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from mimic_tree import build_mimic_tree, folders
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CHEXPERT_FINDINGS = (  # in the order of its CSVs
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
NIH_COLUMNS = {  # of Data_Entry_2017_v2020.csv; each line of the first edition ends with one more comma
    "Image Index": None,
    "Finding Labels": "No Finding",
    "Follow-up #": 0,
    "Patient ID": None,
    "Patient Age": 58,
    "Patient Gender": "M",
    "View Position": "PA",
    "OriginalImage[Width": 2682,
    "Height]": 2749,
    "OriginalImagePixelSpacing[x": 0.143,
    "y]": 0.143,
}


def radiograph(number: int, height: int = 40, width: int = 36) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 200, (height, width), dtype=np.uint8)


# ---------------------------------------------------------------- CheXpert


def build_chexpert_tree(
    parent: Path, name: str = "CheXpert-v1.0-small", patients: int = 20, images: bool = True
) -> Path:
    """Two studies a patient, the first with a lateral; patient n is sick where n % 3 == 0. Returns the tree's folder.

    The last quarter of the patients is in valid.csv. Rows blank in `AP/PA` are laterals.
    """
    parts = {
        "train": range(1, patients - patients // 4 + 1),
        "valid": range(patients - patients // 4 + 1, patients + 1),
    }
    for part, numbers in parts.items():
        rows = [row for number in numbers for row in _chexpert_patient(name, part, number)]
        (parent / name).mkdir(parents=True, exist_ok=True)
        write_chexpert_csv(parent / name / f"{part}.csv", rows)
        for number, row in enumerate(rows if images else []):
            path = parent / row["Path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(radiograph(number)).save(path)
    return parent / name


def write_chexpert_csv(path: Path, rows: Sequence[dict]) -> None:
    columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


def _chexpert_patient(name: str, part: str, number: int) -> list[dict]:
    folder = f"{name}/{part}/patient{number:05}"
    findings = {"Edema": 1.0, "Pleural Effusion": -1.0} if number % 3 == 0 else {"No Finding": 1.0}
    about = {"Sex": "Female", "Age": 68, **findings}
    views = [(1, 1, "Frontal", "AP"), (1, 2, "Lateral", None), (2, 1, "Frontal", "PA")]
    return [
        {
            "Path": f"{folder}/study{study}/view{view}_{side.lower()}.jpg",
            "Frontal/Lateral": side,
            "AP/PA": beam,
            **about,
        }
        for study, view, side, beam in views
    ]


# ---------------------------------------------------------------- NIH ChestX-ray14


def build_nih_tree(
    root: Path, labels: Sequence[str], flat: bool = False, version: str = "_v2020", images: bool = True
) -> pd.DataFrame:
    """An image per label list, two a patient; every fifth patient is in the test list. Returns the CSV's table."""
    rows = [
        {
            "Image Index": f"{1 + number // 2:08}_{number % 2:03}.png",
            "Finding Labels": label,
            "Follow-up #": number % 2,
            "Patient ID": 1 + number // 2,
            "View Position": ("PA", "AP")[number % 2],
        }
        for number, label in enumerate(labels)
    ]
    others = {name: value for name, value in NIH_COLUMNS.items() if rows and name not in rows[0]}
    table = pd.DataFrame(rows).assign(**others)[list(NIH_COLUMNS)]
    root.mkdir(parents=True, exist_ok=True)
    comma = "," if not version else ""
    text = table.to_csv(index=False).replace("\n", f"{comma}\n")
    (root / f"Data_Entry_2017{version}.csv").write_text(text)
    test = table["Patient ID"] % 5 == 0
    for file, part in (("train_val_list.txt", table[~test]), ("test_list.txt", table[test])):
        (root / file).write_text("\n".join(part["Image Index"]) + "\n")
    for number, name in enumerate(table["Image Index"] if images else []):
        folder = root / ("images" if flat else f"images_{1 + number % 12:03}/images")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(radiograph(number)).save(folder / name)
    return table


# ---------------------------------------------------------------- MIMIC-CXR, DICOM


def build_mimic_dicom_tree(root: Path, labels_root: Path, abnormal: Sequence[bool | None], **options) -> pd.DataFrame:
    """DICOM files, `cxr-record-list.csv.gz` and `cxr-study-list.csv.gz` below root; MIMIC-CXR-JPG's CSVs elsewhere."""
    metadata = build_mimic_tree(labels_root, [None] * len(abnormal), abnormal, **options)
    for folder in labels_root.glob("files"):
        folder.rename(labels_root / "no files")
    records = metadata[["subject_id", "study_id", "dicom_id"]]
    records = records.assign(
        path=[f"{f}/{i}.dcm" for f, i in zip(folders(metadata), metadata["dicom_id"], strict=True)]
    )
    root.mkdir(parents=True, exist_ok=True)
    records.to_csv(root / "cxr-record-list.csv.gz", index=False)
    studies = records[["subject_id", "study_id"]].assign(path=[f"{folder}.txt" for folder in folders(metadata)])
    studies.to_csv(root / "cxr-study-list.csv.gz", index=False)
    for number, path in enumerate(records["path"]):
        write_dicom(root / path, radiograph(number))
    return metadata


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """8-bit grey, uncompressed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path)
