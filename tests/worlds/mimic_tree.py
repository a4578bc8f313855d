"""A miniature MIMIC-CXR-JPG tree: official folders, file names and CSV columns, pixels of the caller."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
SPLIT_OF_PATIENT = ("train",) * 7 + ("validate",) + ("test",) * 2


def build_mimic_tree(
    root: Path,
    images: Sequence[Path | np.ndarray | None],
    abnormal: Sequence[bool | None],
    views: Sequence[str | None] = ("AP", "PA"),
    version: str = "2.0.0",
    compress: bool = False,
) -> pd.DataFrame:
    """Write a tree of one study per image and two studies per patient; returns its metadata table.

    `images` are JPEG files to copy, uint8 arrays (h w) to encode, or None for a file that is absent.
    `abnormal` gives each study's label (None: blank row), `views` repeats. Of ten patients seven
    train, one validates and two test.
    """
    metadata = pd.DataFrame([_describe(number, views) for number in range(len(images))])
    for folder, name, image in zip(folders(metadata), metadata["dicom_id"], images, strict=True):
        _place(image, root / folder / f"{name}.jpg")
    split = [SPLIT_OF_PATIENT[number // 2 % 10] for number in range(len(images))]
    ids = metadata[["subject_id", "study_id"]]
    labels = pd.concat([ids, pd.DataFrame([_findings(sick) for sick in abnormal], columns=list(FINDINGS))], axis=1)
    tables = {
        "metadata": metadata,
        "split": metadata[["dicom_id", "study_id", "subject_id"]].assign(split=split),
        "chexpert": labels,
        "negbio": labels,
    }
    for kind, table in tables.items():
        write_mimic_csv(root, kind, table, version, compress)
    return metadata


def write_mimic_csv(root: Path, kind: str, table: pd.DataFrame, version: str = "2.0.0", compress: bool = False) -> Path:
    """Write one of the tree's CSVs under its official name."""
    path = root / f"mimic-cxr-{version}-{kind}.csv{'.gz' if compress else ''}"
    table.to_csv(path, index=False)
    return path


def folders(metadata: pd.DataFrame) -> list[str]:
    """`files/p10/p10000032/s50414267` of each row."""
    ids = zip(metadata["subject_id"].astype(str), metadata["study_id"], strict=True)
    return [f"files/p{subject[:2]}/p{subject}/s{study}" for subject, study in ids]


def _describe(number: int, views: Sequence[str | None]) -> dict:
    digits = hashlib.sha1(str(number).encode()).hexdigest()
    return {
        "dicom_id": "-".join(digits[start : start + 8] for start in range(0, 40, 8)),
        "subject_id": 10_000_032 + 77_777 * (number // 2),
        "study_id": 50_414_267 + 1_001 * number,
        "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
        "ViewPosition": views[number % len(views)],
        "Rows": 3056,
        "Columns": 2544,
        "StudyDate": 21800506,
        "StudyTime": 213014.531,
        "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
        "ViewCodeSequence_CodeMeaning": "postero-anterior",
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }


def _findings(sick: bool | None) -> dict[str, float]:
    if sick is None:
        return {}
    return {"Lung Opacity": 1.0, "Pneumonia": 1.0} if sick else {"No Finding": 1.0}


def _place(image: Path | np.ndarray | None, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        Image.fromarray(image).save(path, quality=95)
    elif image is not None:
        shutil.copyfile(image, path)
