"""MIMIC-CXR-JPG 2.0.0 and 2.1.0, as PhysioNet lays it out.

    files/p10/p10000032/s50414267/<dicom_id>.jpg
    mimic-cxr-2.0.0-metadata.csv.gz   mimic-cxr-2.0.0-split.csv.gz
    mimic-cxr-2.0.0-chexpert.csv.gz   mimic-cxr-2.0.0-negbio.csv.gz
    mimic-cxr-2.1.0-test-set-labeled.csv   (2.1.0 only: radiologists' labels of test studies)

The CSVs may be unpacked and of any version; the newest is read. No image is looked for here.
"""

import re
from pathlib import Path

import pandas as pd

from data.config import UserError
from data.labels import AGREEMENTS, FINDINGS, NO_FINDING, RULES, agree, judge
from data.settings import DataSettings
from data.sources import (
    SPLIT_WORDS,
    csv_columns,
    manifest_table,
    read_csv,
    read_words,
    require_filled,
    require_folder,
    require_unique,
)

WHERE = "https://physionet.org/content/mimic-cxr-jpg (credentialed access)"
IDS = ("dicom_id", "subject_id", "study_id")
NAMES = {"dicom_id": "image_id", "subject_id": "patient_id", "ViewPosition": "view"}
AIRSPACE_OPACITY = "Airspace Opacity"  # the radiologists' name of Lung Opacity


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image of the metadata CSV, its study's label and findings, and notes of the counts.

    Raises UserError for a missing folder, CSV or column, and for values that are not official.
    """
    require_folder(root)
    if not (root / "files").is_dir():
        raise UserError(f"{root}/files: no such folder, expected files/p10/p10000032/…; get it from {WHERE}")
    images, notes = _read_images(root)
    studies, counts = _read_studies(settings, root, images["study_id"].unique())
    test = images.loc[images["split"] == "test", "study_id"].unique()
    readings = _read_radiologists(settings, root, studies, test)
    table = images.join(studies, on="study_id").assign(path=_paths(images, root))
    table = manifest_table(table.rename(columns=NAMES), settings.source, FINDINGS)
    return table, [*notes, *counts, *readings]


def _find_csv(root: Path, kind: str) -> Path | None:
    """The newest `mimic-cxr-<version>-<kind>.csv[.gz]`; of two equal ones the unpacked."""
    name = re.compile(rf"mimic-cxr-(\d+(?:\.\d+)*)-{kind}\.csv(\.gz)?")
    matches = [match for path in root.iterdir() if (match := name.fullmatch(path.name))]
    newest = max(matches, key=lambda m: ([int(n) for n in m[1].split(".")], not m[2]), default=None)
    return newest and root / newest[0]


def _need_csv(root: Path, kind: str) -> Path:
    if path := _find_csv(root, kind):
        return path
    raise UserError(f"{root}: found no mimic-cxr-*-{kind}.csv[.gz], expected it here; get it from {WHERE}")


def _read_images(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """dicom_id, subject_id, study_id, ViewPosition and split of each image that has a split."""
    path = _need_csv(root, "metadata")
    images = read_csv(path, [*IDS, "ViewPosition"])
    require_filled(images, IDS, path)
    images["split"] = images["dicom_id"].map(_read_splits(root))
    known = images["split"].notna()
    notes = [
        f"{path.name}: {len(images):,} images, {images['study_id'].nunique():,} studies, "
        f"{images['subject_id'].nunique():,} patients"
    ]
    if not known.all():
        notes.append(f"{(~known).sum():,} images left out: not in the split CSV")
    return images[known], notes


def _read_splits(root: Path) -> pd.Series:
    path = _need_csv(root, "split")
    table = read_csv(path, ["dicom_id", "split"])
    require_filled(table, table.columns, path)
    require_unique(table["dicom_id"], path)
    return read_words(table["split"], SPLIT_WORDS, path).set_axis(table["dicom_id"])


def _paths(images: pd.DataFrame, root: Path) -> pd.Series:
    subject, study, image = images["subject_id"], images["study_id"], images["dicom_id"]
    return f"{root}/files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + image + ".jpg"


def _read_studies(settings: DataSettings, root: Path, ids: pd.Index) -> tuple[pd.DataFrame, list[str]]:
    """Findings and label of these studies (index study_id), and each rule's count."""
    if settings.labeler != "agreement":
        return _read_labeler(settings, root, settings.labeler, ids)
    first, notes = _read_labeler(settings, root, "chexpert", ids)
    second, more = _read_labeler(settings, root, "negbio", ids)
    label, counts = agree(first["label"], second["label"])
    same = first.where(first == second).assign(label=label)
    return same, [
        *notes,
        *more,
        *(f"agreement: {AGREEMENTS[case]}: {n:,} studies" for case, n in counts.items()),
    ]


def _read_labeler(settings: DataSettings, root: Path, labeler: str, ids: pd.Index) -> tuple[pd.DataFrame, list[str]]:
    path = _need_csv(root, labeler)
    findings = _read_findings(path, FINDINGS)
    absent = len(ids) - int(findings.index.isin(ids).sum())
    findings = findings.reindex(ids)
    label, counts = judge(findings, settings.uncertain)
    counts["blank"] -= absent
    notes = _tell(labeler, counts, settings.uncertain)
    if absent:
        notes.append(f"{labeler}: not in {path.name} → unknown: {absent:,} studies")
    return findings.assign(label=label), notes


def _tell(labeler: str, counts: dict[str, int], uncertain: str) -> list[str]:
    """Each rule's count; under `negative` -1 is 0, and there is no rule about it."""
    meaning = {"unknown": "unknown", "positive": "abnormal"}.get(uncertain)
    rules = {rule: text.format(uncertain=meaning) for rule, text in RULES.items() if meaning or rule != "uncertain"}
    return [f"{labeler}: {text}: {counts[rule]:,} studies" for rule, text in rules.items()]


def _read_findings(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Finding columns by study_id; UserError for any value but 1, 0, -1 and blank."""
    findings = read_csv(path, ["study_id", *columns], numbers=columns)
    require_filled(findings, ["study_id"], path)
    require_unique(findings["study_id"], path)
    findings = findings.set_index("study_id")
    strange = findings.notna() & ~findings.isin([1, 0, -1])
    for column in columns:
        if strange[column].any():
            value = findings.loc[strange[column], column].iloc[0]
            raise UserError(f"{path}: column {column}: found {value:g}, expected 1, 0, -1 or blank")
    return findings


def _read_radiologists(settings: DataSettings, root: Path, studies: pd.DataFrame, test: pd.Index) -> list[str]:
    """Put the radiologists' findings and labels in the place of the labeler's, for test studies they read."""
    path = _find_csv(root, "test-set-labeled")
    if path is None:
        return []
    header = csv_columns(path)
    opacity = {} if "Lung Opacity" in header else {AIRSPACE_OPACITY: "Lung Opacity"}
    named = [name for name in header if opacity.get(name, name) in FINDINGS and name != NO_FINDING]
    findings = _read_findings(path, (NO_FINDING, *named)).rename(columns=opacity)
    findings = findings[findings.index.isin(test)].reindex(columns=list(FINDINGS))
    label, counts = judge(findings, settings.uncertain)
    studies.loc[findings.index] = findings.assign(label=label)
    note = f"{path.name}: radiologists' labels for {len(findings):,} of {len(test):,} test studies"
    return [note, *_tell("radiologists", counts, settings.uncertain)]
