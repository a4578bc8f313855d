"""MIMIC-CXR-JPG 2.0.0 and 2.1.0, and the DICOM files of MIMIC-CXR, as PhysioNet lays them out.

    files/p10/p10000032/s50414267/<dicom_id>.jpg, or .dcm
    mimic-cxr-2.0.0-metadata.csv.gz   mimic-cxr-2.0.0-split.csv.gz
    mimic-cxr-2.0.0-chexpert.csv.gz   mimic-cxr-2.0.0-negbio.csv.gz
    mimic-cxr-2.1.0-test-set-labeled.csv   (2.1.0 only: radiologists' labels of test studies)
    cxr-record-list.csv.gz                 (DICOM: the images, with their paths)

The CSVs may be unpacked and of any version; the newest is read. The DICOM data set has the record list alone: the
others are MIMIC-CXR-JPG's, put beside it or into `data.labels_root`. No image is looked for here.
"""

import re
from pathlib import Path

import pandas as pd

from data.config import expand
from data.errors import UserError
from data.labels import FINDINGS, NO_ROW, agree, judge, tally, with_no_finding
from data.places import require_folder
from data.settings import DataSettings
from data.sources import (
    SPLIT_WORDS,
    LeftOut,
    csv_columns,
    manifest_table,
    read_csv,
    read_findings,
    read_words,
    require_filled,
    require_numbers,
    require_unique,
)

WHERE = "https://physionet.org/content/mimic-cxr-jpg (credentialed access)"
IDS = ("dicom_id", "subject_id", "study_id")
NUMBERS = ("subject_id", "study_id")
NAMES = {"dicom_id": "image_id", "subject_id": "patient_id", "ViewPosition": "view", "StudyDate": "study_date"}
AIRSPACE_OPACITY = "Airspace Opacity"  # the radiologists' name of Lung Opacity
RECORDS = "cxr-record-list.csv"


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image of the metadata CSV or the record list, its study's label and findings, and notes.

    Raises UserError for a missing folder, CSV or column, and for values that are not official.
    """
    require_folder(root)
    if not (root / "files").is_dir():
        raise UserError(f"{root}/files: no such folder, expected files/p10/p10000032/…; get it from {WHERE}")
    labels = root if settings.labels_root is None else Path(expand(settings.labels_root, "data.labels_root"))
    if not labels.is_dir():
        raise UserError(f"data.labels_root: {labels}: no such folder")
    dates = ["StudyDate"] if settings.patients is not None else []  # the table of patients has ages of one year
    if settings.source == "mimic-cxr-dicom":
        images, notes = _read_dicom_images(root, labels, dates, alone=settings.labels_root is None)
    else:
        images, notes = _read_jpg_images(root, labels, dates)
    _require_one_patient_a_study(images, root)
    studies, counts = _read_labels(settings, labels, images)
    table = images.join(studies, on="study_id").rename(columns=NAMES)
    return manifest_table(table, settings.source, FINDINGS), [*notes, *counts]


def _find_csv(folder: Path, kind: str) -> Path | None:
    """The newest `mimic-cxr-<version>-<kind>.csv[.gz]`; of two equal ones the unpacked."""
    name = re.compile(rf"mimic-cxr-(\d+(?:\.\d+)*)-{kind}\.csv(\.gz)?")
    # an archive that was unpacked into a folder of its name is no CSV
    matches = [match for path in folder.iterdir() if (match := name.fullmatch(path.name)) and path.is_file()]
    newest = max(matches, key=lambda m: ([int(n) for n in m[1].split(".")], not m[2]), default=None)
    return newest and folder / newest[0]


def _need_csv(folder: Path, kind: str) -> Path:
    if path := _find_csv(folder, kind):
        return path
    raise UserError(f"{folder}: found no mimic-cxr-*-{kind}.csv[.gz], expected it here; get it from {WHERE}")


# ---------------------------------------------------------------- images


def _read_jpg_images(root: Path, labels: Path, dates: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """dicom_id, subject_id, study_id, ViewPosition, split and path of each image that has a split."""
    path = _need_csv(labels, "metadata")
    images = read_csv(path, [*IDS, "ViewPosition"], optional=dates)
    require_filled(images, IDS, path)
    for column in NUMBERS:
        require_numbers(images[column], path)
    images, notes = _with_splits(images, _need_csv(labels, "split"))
    ids = zip(images["subject_id"], images["study_id"], images["dicom_id"], strict=True)
    images["path"] = [f"{root}/files/p{who[:2]}/p{who}/s{study}/{image}.jpg" for who, study, image in ids]
    return images, [_count(path, images), *notes]


def _read_dicom_images(root: Path, labels: Path, dates: list[str], alone: bool) -> tuple[pd.DataFrame, list[str]]:
    """The same from the record list; view and split from MIMIC-CXR-JPG's CSVs where they are.

    `alone`: the settings do not name a folder of such CSVs.
    """
    path = next((root / name for name in (RECORDS, f"{RECORDS}.gz") if (root / name).is_file()), None)
    if path is None:
        raise UserError(f"{root}: found no {RECORDS}[.gz], expected it here; it comes with MIMIC-CXR")

    images = read_csv(path, [*IDS, "path"])
    require_filled(images, images.columns, path)
    for column in NUMBERS:
        require_numbers(images[column], path)
    images["path"] = f"{root}/" + images["path"]
    notes = [_count(path, images)]

    # what MIMIC-CXR-JPG adds, as far as it is there
    if metadata := _find_csv(labels, "metadata"):
        views = read_csv(metadata, ["dicom_id", "ViewPosition"], optional=["subject_id", *dates])
        require_unique(views["dicom_id"], metadata)
        _require_same_patients(views, images, "dicom_id", metadata)
        for column in views.columns.intersection(["ViewPosition", *dates]):
            images[column] = images["dicom_id"].map(views.set_index("dicom_id")[column])
    else:
        notes.append("no metadata CSV of MIMIC-CXR-JPG: views are unknown, laterals are among the images")
    if alone and not _find_csv(labels, "split"):
        return images, [*notes, "no split CSV of MIMIC-CXR-JPG: these splits are not the official ones"]
    images, more = _with_splits(images, _need_csv(labels, "split"))
    return images, notes + more


def _count(path: Path, images: pd.DataFrame) -> str:
    studies, patients = images["study_id"].nunique(), images["subject_id"].nunique()
    return f"{path.name}: {len(images):,} images, {studies:,} studies, {patients:,} patients"


def _with_splits(images: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The images that have a split, with it."""
    table = read_csv(path, ["dicom_id", "split"], optional=["subject_id"])
    require_filled(table, table.columns, path)
    require_unique(table["dicom_id"], path)
    _require_same_patients(table, images, "dicom_id", path)
    splits = read_words(table["split"], SPLIT_WORDS, path).set_axis(table["dicom_id"])
    images = images.assign(split=images["dicom_id"].map(splits))
    known = images["split"].notna()
    notes: list[str] = []
    unknown = int((~splits.index.isin(images["dicom_id"])).sum())
    if unknown:  # one of the two may be cut short
        notes.append(f"{path.name}: {unknown:,} images that no other table lists")
    if not known.all():
        notes.append(LeftOut(int((~known).sum()), "not in the split CSV"))
    return images[known], notes


def _require_one_patient_a_study(images: pd.DataFrame, place: Path) -> None:
    pairs = images[["study_id", "subject_id"]].drop_duplicates()
    if count := pairs.loc[pairs["study_id"].duplicated(), "study_id"].nunique():
        raise UserError(f"{place}: found studies of several patients ({count}), expected each to be of one")


def _require_same_patients(table: pd.DataFrame, images: pd.DataFrame, key: str, place: Path) -> None:
    """UserError where a table gives an image or a study to another patient: rows of its columns were mixed up.

    Labels and splits are joined by `key` alone, so they would be those of other images.
    """
    if "subject_id" not in table:
        return
    patients = images.drop_duplicates(key).set_index(key)["subject_id"]
    expected = table[key].map(patients)
    other = (expected.notna() & (expected != table["subject_id"])).to_numpy()
    if other.any():
        raise UserError(
            f"{place}: row {other.argmax() + 2}: found another subject_id than the images' table has for this {key}, "
            "expected the same"
        )


# ---------------------------------------------------------------- labels


def _read_labels(settings: DataSettings, labels: Path, images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Findings, label and rule of the images' studies (index study_id), and each rule's count."""
    ids = pd.Index(images["study_id"].unique())
    needed = "negbio" if settings.labeler == "negbio" else "chexpert"
    if settings.source == "mimic-cxr-dicom" and settings.labels_root is None and not _find_csv(labels, needed):
        return pd.DataFrame(index=ids), [f"no {needed} CSV of MIMIC-CXR-JPG: there are no labels"]
    studies, notes = _read_studies(settings, labels, images)
    return studies, notes + _read_radiologists(settings, labels, studies, images)


def _read_studies(settings: DataSettings, labels: Path, images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    if settings.labeler != "agreement":
        return _read_labeler(settings, labels, settings.labeler, images)
    first, notes = _read_labeler(settings, labels, "chexpert", images)
    second, more = _read_labeler(settings, labels, "negbio", images)
    label, case = agree(first["label"], second["label"], settings.target)
    same = first[list(FINDINGS)].where(first[list(FINDINGS)] == second[list(FINDINGS)])
    return same.assign(label=label, rule=case), [*notes, *more, *_tell("agreement", case)]


def _read_labeler(
    settings: DataSettings, labels: Path, labeler: str, images: pd.DataFrame
) -> tuple[pd.DataFrame, list[str]]:
    path = _need_csv(labels, labeler)
    findings = _read_findings(path, FINDINGS, images)
    ids = pd.Index(images["study_id"].unique())
    listed = pd.Series(ids).isin(findings.index).to_numpy()
    findings = findings.reindex(ids)
    label, rule = judge(findings, settings.uncertain, settings.target)
    notes = _tell(labeler, rule[listed])
    if not listed.all():
        notes.append(f"{labeler}: not in {path.name} → unknown: {(~listed).sum():,} studies")
        rule = rule.cat.add_categories(NO_ROW).where(listed, NO_ROW)
    return findings.assign(label=label, rule=rule), notes


def _tell(who: str, rule: pd.Series) -> list[str]:
    """Each rule's count."""
    return [f"{who}: {text}: {count:,} studies" for text, count in tally(rule).items()]


def _read_findings(path: Path, columns: tuple[str, ...], images: pd.DataFrame) -> pd.DataFrame:
    """Finding columns by study_id."""
    ids = ["study_id"]
    if "subject_id" in csv_columns(path):
        ids.append("subject_id")
    findings = read_findings(path, ids, columns)
    require_filled(findings, ids, path)
    for column in ids:
        require_numbers(findings[column], path)
    require_unique(findings["study_id"], path)
    _require_same_patients(findings, images, "study_id", path)
    return findings.set_index("study_id")[list(columns)]


def _read_radiologists(settings: DataSettings, labels: Path, studies: pd.DataFrame, images: pd.DataFrame) -> list[str]:
    """Put the radiologists' findings and labels in the place of the labeler's, for test studies they read."""
    path = _find_csv(labels, "test-set-labeled")
    if path is None:
        return []

    header = csv_columns(path)
    opacity = {} if "Lung Opacity" in header else {AIRSPACE_OPACITY: "Lung Opacity"}
    findings = _read_findings(path, tuple(name for name in header if opacity.get(name, name) in FINDINGS), images)
    findings = with_no_finding(findings.rename(columns=opacity))
    if settings.target not in {None, *findings}:
        raise UserError(f"{path}: found columns {', '.join(header)}, expected {settings.target}, which is data.target")

    test = pd.Index([])
    if "split" in images:
        test = pd.Index(images.loc[images["split"] == "test", "study_id"].unique())
    findings = findings[findings.index.isin(test)].reindex(columns=list(FINDINGS))
    label, rule = judge(findings, settings.uncertain, settings.target)
    _replace(studies, findings.assign(label=label, rule=rule))
    note = f"{path.name}: radiologists' labels for {len(findings):,} of {len(test):,} test studies"
    return [note, *_tell("radiologists", rule)]


def _replace(studies: pd.DataFrame, rows: pd.DataFrame) -> None:
    new = [name for name in rows["rule"].cat.categories if name not in studies["rule"].cat.categories]
    studies["rule"] = studies["rule"].cat.add_categories(new)
    for column in rows:
        studies.loc[rows.index, column] = rows[column].astype(studies[column].dtype)
