"""Synthetic radiographs as a MIMIC-CXR-JPG 2.0.0 tree: patients, studies, reports, and the official CSVs."""

import glob
import json
import os
import shutil
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from data.errors import UserError
from data.labels import FINDINGS as COLUMNS
from data.locks import FILES, lives, locked
from data.phantom_drawing import DEVICES, FINDINGS, draw_anatomy, draw_lateral, draw_radiograph
from data.workers import Killed, run_jobs

DENIED = ("Pneumothorax", "Pleural Effusion", "Consolidation", "Edema")  # what a report likes to exclude
ABNORMAL_SHARE = 0.55  # of studies
UNCERTAIN_SHARE = 0.04  # of studies: the labeler hesitates
BLANK_SHARE = 0.03  # of studies: the report names nothing
LATERAL_SHARE = 0.03  # lateral images per frontal image
CHUNK = 16  # images a process draws between two reports
SMALLEST_TREE = 20  # images; fewer cannot fill three splits


def write_tree(root: Path, images: int, seed: int = 0, workers: int = 1) -> None:
    """Draw `images` frontal radiographs (and a few lateral ones) into a new MIMIC-CXR-JPG tree.

    The files depend on (images, seed) alone, byte for byte, not on `workers` (processes). The tree
    is drawn in a sibling folder and renamed when complete; its `phantom.json` says what it is.
    Raises ValueError for fewer than 20 images and FileExistsError when `root` is there and not empty.
    """
    root = Path(root)
    if images < SMALLEST_TREE:
        raise ValueError(f"images: {images} is too few for three splits, at least {SMALLEST_TREE}")
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; delete it to draw it again")
    _remove_what_the_killed_left(root)
    partial_root = root.with_name(f".{root.name}.{os.getpid()}.partial")
    partial_root.mkdir(parents=True)
    with locked(partial_root, f"{partial_root}: found another process that draws there, expected none", wait=False):
        try:
            _fill(partial_root, images, seed, workers)
            for name in FILES:
                (partial_root / name).unlink(missing_ok=True)
            partial_root.rename(root)
        finally:
            shutil.rmtree(partial_root, ignore_errors=True)


def _remove_what_the_killed_left(root: Path) -> None:
    """Remove abandoned drawings. An active one is locked, also by another machine; on this one, its process lives."""
    for left in root.parent.glob(f".{glob.escape(root.name)}.*.partial"):
        number = left.name.split(".")[-2]
        process = int(number) if number.isdecimal() else 0
        if process != os.getpid() and lives(process):
            continue
        with suppress(UserError, OSError), locked(left, f"{left}: found another process that draws there", wait=False):
            shutil.rmtree(left, ignore_errors=True)


def _fill(root: Path, images: int, seed: int, workers: int) -> None:
    rng = np.random.default_rng([seed, 0])
    studies = _plan_studies(rng, images)
    shots = _plan_images(rng, studies)
    for folder in shots["folder"].unique():
        (root / folder).mkdir(parents=True)
    _draw_all(root, shots, seed, workers)
    (root / "phantom.json").write_text(json.dumps({"images": images, "seed": seed}) + "\n", encoding="utf-8")
    _write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", _metadata(rng, shots))
    _write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", _split(rng, shots))
    chexpert = _chexpert(rng, studies)
    _write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", chexpert)
    _write_csv(root / "mimic-cxr-2.0.0-negbio.csv.gz", _disagree(rng, chexpert))


def _plan_studies(rng: np.random.Generator, images: int) -> pd.DataFrame:
    """One row per study: subject_id, study_id, findings, certainty, and how many frontals it has."""
    frontals = rng.choice([1, 2], size=images, p=[0.88, 0.12])
    frontals = frontals[: np.searchsorted(frontals.cumsum(), images) + 1]
    frontals[-1] -= frontals.sum() - images
    count = len(frontals)

    # patients have one to three studies; who is ill, and how surely that is stated, is drawn separately
    patient = np.repeat(np.arange(count), rng.choice([1, 2, 3], size=count, p=[0.75, 0.18, 0.07]))[:count]
    sick = rng.permutation(np.arange(count) < round(ABNORMAL_SHARE * count))
    certainty = rng.permutation(_certainty(count))

    return pd.DataFrame(
        {
            "subject_id": 10_000_000 + np.sort(_distinct(rng, patient[-1] + 1, 9_999_999))[patient],
            "study_id": 50_000_000 + _distinct(rng, count, 9_999_999),
            "frontals": frontals,
            "findings": [_sicken(rng) if ill else frozenset() for ill in sick],
            "devices": rng.random(count) < np.where(sick, 0.16, 0.12),
            "certainty": certainty,
        }
    )


def _certainty(count: int) -> np.ndarray:
    """How surely each study's findings are stated: "sure", "uncertain" or "blank"."""
    share = np.arange(count) / count
    uncertain, blank = share < UNCERTAIN_SHARE, share < UNCERTAIN_SHARE + BLANK_SHARE
    return np.select([uncertain, blank], ["uncertain", "blank"], "sure")


def _distinct(rng: np.random.Generator, count: int, top: int) -> np.ndarray:
    return rng.choice(top, size=count, replace=False)


def _sicken(rng: np.random.Generator) -> frozenset[str]:
    """One finding; in one study out of seven, two."""
    count = 2 if rng.random() < 1 / 7 else 1
    return frozenset(rng.choice(FINDINGS, size=count, replace=False, p=[0.4, 0.32, 0.28]).tolist())


def _plan_images(rng: np.random.Generator, studies: pd.DataFrame) -> pd.DataFrame:
    """One row per image; `number` seeds its drawing."""
    # a study's images stand together, its lateral one last
    lateral = rng.random(len(studies)) < LATERAL_SHARE
    shots = studies.loc[studies.index.repeat(studies["frontals"] + lateral)]
    last = ~shots.index.duplicated(keep="last")
    count = len(shots)

    frontal_view = rng.choice(["AP", "PA"], size=count, p=[0.6, 0.4])
    view = np.where(last & lateral[shots.index], rng.choice(["LATERAL", "LL"], size=count), frontal_view)

    folder = [
        f"files/p{str(subject)[:2]}/p{subject}/s{study}"
        for subject, study in zip(shots["subject_id"], shots["study_id"], strict=True)
    ]
    return shots.reset_index(drop=True).assign(
        number=np.arange(count),
        dicom_id=[_dicom_id(rng) for _ in range(count)],
        view=view,
        folder=folder,
        Rows=rng.integers(160, 197, count),
        Columns=rng.integers(160, 197, count),
    )


def _dicom_id(rng: np.random.Generator) -> str:
    digits = rng.bytes(20).hex()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


def _draw_all(root: Path, shots: pd.DataFrame, seed: int, workers: int) -> None:
    rows: list[dict[Any, Any]] = shots.to_dict("records")
    jobs = [(root, seed, rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]

    bar = tqdm(total=len(rows), desc="drawing radiographs", unit="image", disable=None)
    with bar, closing(run_jobs(_draw_some, jobs, workers)) as drawn:
        try:
            for count in drawn:
                bar.update(count)
        except Killed:
            raise UserError(
                f"{root}: found processes that draw killed, expected them to live; is memory full?"
            ) from None


def _draw_some(root: Path, seed: int, rows: list[dict[Any, Any]]) -> int:
    for row in rows:
        _draw_one(root, seed, row)
    return len(rows)


def _draw_one(root: Path, seed: int, row: dict[Any, Any]) -> None:
    rng = np.random.default_rng([seed, 1, row["number"]])
    if row["view"] in ("AP", "PA"):
        anatomy = draw_anatomy(np.random.default_rng([seed, 2, row["subject_id"]]))
        findings = row["findings"] | ({DEVICES} if row["devices"] else set())
        pixels = draw_radiograph(rng, findings, row["Rows"], row["Columns"], anatomy)
    else:
        pixels = draw_lateral(rng, row["Rows"], row["Columns"])
    Image.fromarray(pixels).save(root / row["folder"] / f"{row['dicom_id']}.jpg", quality=90)


def _metadata(rng: np.random.Generator, shots: pd.DataFrame) -> pd.DataFrame:
    """The official columns; a study has one date and one procedure."""
    count = len(shots)

    # an AP image is taken at the bedside, so its whole study was
    portable = (shots["view"] == "AP").groupby(shots["study_id"]).transform("any")
    procedure = np.where(portable, "CHEST (PORTABLE AP)", "CHEST (PA AND LAT)")
    names = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral", "LL": "left lateral"}

    # dates are shifted into the future, as MIMIC's are
    day = pd.Timestamp("2110-01-01") + pd.to_timedelta(shots["study_id"] % 36_500, unit="D")
    hour, minute, second = rng.integers(0, [[24], [60], [60]], (3, count))
    return pd.DataFrame(
        {
            "dicom_id": shots["dicom_id"],
            "subject_id": shots["subject_id"],
            "study_id": shots["study_id"],
            "PerformedProcedureStepDescription": procedure,
            "ViewPosition": shots["view"],
            "Rows": shots["Rows"],
            "Columns": shots["Columns"],
            "StudyDate": day.dt.strftime("%Y%m%d"),
            "StudyTime": hour * 10_000 + minute * 100 + second + rng.integers(0, 1000, count) / 1000,
            "ProcedureCodeSequence_CodeMeaning": procedure,
            "ViewCodeSequence_CodeMeaning": shots["view"].map(names),
            "PatientOrientationCodeSequence_CodeMeaning": np.where(portable, "Recumbent", "Erect"),
        }
    )


def _split(rng: np.random.Generator, shots: pd.DataFrame) -> pd.DataFrame:
    """Seven patients in ten train, one validates, two test."""
    patients = rng.permutation(shots["subject_id"].unique())
    share = np.arange(len(patients)) / len(patients)
    names = np.select([share < 0.2, share < 0.3], ["test", "validate"], "train")
    split = shots["subject_id"].map(dict(zip(patients, names, strict=True)))
    return shots[["dicom_id", "study_id", "subject_id"]].assign(split=split)


def _chexpert(rng: np.random.Generator, studies: pd.DataFrame) -> pd.DataFrame:
    """What a labeler reads in each study's report: 1 stated, 0 denied, -1 uncertain, blank unsaid."""
    rows = [_read_report(rng, *study) for study in studies[["findings", "devices", "certainty"]].to_numpy()]
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=float)
    return pd.concat([studies[["subject_id", "study_id"]], table], axis=1)


def _read_report(rng: np.random.Generator, findings: frozenset[str], devices: bool, certainty: str) -> dict[str, float]:
    """The columns one report fills; the others stay blank."""
    if certainty == "blank":
        return {}
    said = {name: 0.0 for name in DENIED if rng.random() < 0.3}
    said |= {DEVICES: 1.0} if devices else {}
    if certainty == "uncertain":
        return said | dict.fromkeys(findings or [str(rng.choice(FINDINGS))], -1.0)
    if not findings:
        return said | {"No Finding": 1.0}
    if "Lung Opacity" in findings and rng.random() < 0.3:
        said |= {"Pneumonia": -1.0}
    return said | dict.fromkeys(findings, 1.0)


def _disagree(rng: np.random.Generator, table: pd.DataFrame, share: float = 0.03) -> pd.DataFrame:
    """The second labeler hesitates over a few statements where the first was sure."""
    values = table[list(COLUMNS)]
    doubts = (values == 1.0) & (rng.random(values.shape) < share)
    doubts["No Finding"] = False  # never uncertain in the real tables
    return table.assign(**values.mask(doubts, -1.0))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    # a fixed time in the gzip header, or equal tables would differ on disk
    table.to_csv(path, index=False, lineterminator="\n", compression={"method": "gzip", "mtime": 0})
