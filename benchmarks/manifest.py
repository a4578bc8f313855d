"""Seconds and memory from MIMIC-CXR-JPG's CSVs to a manifest, at their true size: a table, and JSON with --json FILE.

    python benchmarks/manifest.py                        # 377,110 images, 227,835 studies, 65,379 patients
    python benchmarks/manifest.py --files --json out.json     # empty files too: with looking which are on disk

The CSVs are made here, with the official names, columns and shape and with random contents. Each measurement runs
in a process of its own, so that its peak of memory is its own; medians over --rounds are shown.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from results import report

from data.labels import FINDINGS

PER_STUDY, PER_PATIENT = 377_110 / 227_835, 227_835 / 65_379  # images, studies
VIEWS = {"AP": 0.390, "PA": 0.255, "LATERAL": 0.219, "LL": 0.093, "": 0.043}  # about MIMIC-CXR's
MEASURE = """
import resource, sys, time
from pathlib import Path
start = time.perf_counter()
from data.manifest import open_manifest
from data.settings import DataSettings
imported, spent = time.perf_counter(), time.process_time()
manifest = open_manifest(DataSettings(source="mimic-cxr-jpg", root=sys.argv[1], store=sys.argv[2], labeler=sys.argv[3]))
opened, spent = time.perf_counter(), time.process_time() - spent
manifest.fingerprint()
told = time.perf_counter()
manifest.breakdown()
counted = time.perf_counter()
for look in manifest.looks:
    look.remember(Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(len(manifest.table), imported - start, opened - imported, spent, told - opened, counted - told, peak)
"""
COLUMNS = ("rows", "import_seconds", "open_seconds", "open_cpu_seconds", "fingerprint_seconds", "table_seconds")
COLUMNS += ("peak_bytes",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=377_110)
    parser.add_argument("--files", action="store_true", help="make an empty file for every image, and look for them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mimic"
        write_csvs(root, arguments.images, arguments.files)
        result = {case: measure(root, Path(folder), *case, arguments.rounds) for case in cases(arguments.files)}

    for (labeler, look), found in result.items():
        print(f"{labeler}, {look}: {found['rows']:,.0f} rows of {arguments.images:,}")
        print(f"    import {found['import_seconds']:.2f} s, open {found['open_seconds']:.2f} s", end="")
        print(f" ({found['open_cpu_seconds']:.2f} s of CPU)", end="")
        print(f", fingerprint {found['fingerprint_seconds']:.2f} s, table {found['table_seconds']:.2f} s", end="")
        print(f", peak {found['peak_bytes'] / 1e9:.2f} GB")
    report(arguments.json, arguments, {", ".join(case): found for case, found in result.items()})


def cases(files: bool) -> list[tuple[str, str]]:
    """Labeler, and how the files are found."""
    looks = ["files looked for", "files remembered"] if files else ["no files"]
    return [("chexpert", look) for look in looks] + [("agreement", looks[-1])]


def measure(root: Path, folder: Path, labeler: str, look: str, rounds: int) -> dict[str, float]:
    """Medians of one case."""
    lines = []
    for number in range(rounds):
        store = folder / (f"stores-{number}" if look == "files looked for" else "stores-0")
        command = [sys.executable, "-c", MEASURE, str(root), str(store), labeler]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parents[1])
        lines.append([float(word) for word in done.stdout.split()])
    return {name: statistics.median(values) for name, values in zip(COLUMNS, zip(*lines, strict=True), strict=True)}


def write_csvs(root: Path, images: int, files: bool = False, seed: int = 0) -> None:
    """The four gzipped CSVs of MIMIC-CXR-JPG 2.0.0 below root, and `files/`, empty or with empty files."""
    rng = np.random.default_rng(seed)

    # images of studies of patients, with numbers like the official ones
    studies = _spread(rng, images, max(1, round(images / PER_STUDY)))
    patients = _spread(rng, len(studies), max(1, round(len(studies) / PER_PATIENT)))
    subject = np.repeat(10_000_000 + np.sort(rng.choice(10**7 - 1, len(patients), replace=False)), patients)
    study = 50_000_000 + rng.choice(10**7 - 1, len(studies), replace=False)
    ids = pd.DataFrame({"subject_id": np.repeat(subject, studies), "study_id": np.repeat(study, studies)})
    ids.insert(0, "dicom_id", _dicom_ids(rng, images))

    (root / "files").mkdir(parents=True)
    _write(root, "metadata", _metadata(rng, ids))
    part = np.array(["train", "validate", "test"])[rng.choice(3, len(patients), p=[0.98, 0.01, 0.01])]
    _write(root, "split", ids[["dicom_id", "study_id", "subject_id"]].assign(split=_by_patient(ids, part, patients)))

    labels = pd.DataFrame({"subject_id": subject, "study_id": study})
    for labeler in ("chexpert", "negbio"):
        marks = rng.choice([1.0, 0.0, -1.0, np.nan], (len(study), len(FINDINGS)), p=[0.1, 0.06, 0.02, 0.82])
        _write(root, labeler, pd.concat([labels, pd.DataFrame(marks, columns=list(FINDINGS))], axis=1))
    if files:
        _touch(root, ids)


def _spread(rng: np.random.Generator, total: int, groups: int) -> np.ndarray:
    """Sizes of groups, each at least 1, that sum to total."""
    return 1 + np.bincount(rng.integers(0, groups, total - groups), minlength=groups)


def _by_patient(ids: pd.DataFrame, part: np.ndarray, patients: np.ndarray) -> np.ndarray:
    return part[pd.factorize(ids["subject_id"])[0]]


def _dicom_ids(rng: np.random.Generator, count: int) -> list[str]:
    digits = rng.bytes(20 * count).hex()
    ids = (digits[start : start + 40] for start in range(0, 40 * count, 40))
    return ["-".join(one[part : part + 8] for part in range(0, 40, 8)) for one in ids]


def _metadata(rng: np.random.Generator, ids: pd.DataFrame) -> pd.DataFrame:
    count = len(ids)
    view = np.array([*VIEWS], object)[rng.choice(len(VIEWS), count, p=[*VIEWS.values()])]
    return ids.assign(
        PerformedProcedureStepDescription="CHEST (PA AND LAT)",
        ViewPosition=view,
        Rows=rng.integers(2000, 3100, count),
        Columns=rng.integers(2000, 3100, count),
        StudyDate=rng.integers(21_100_101, 22_091_231, count),
        StudyTime=rng.integers(0, 240_000_000, count) / 1000,
        ProcedureCodeSequence_CodeMeaning="CHEST (PA AND LAT)",
        ViewCodeSequence_CodeMeaning="postero-anterior",
        PatientOrientationCodeSequence_CodeMeaning="Erect",
    )


def _write(root: Path, kind: str, table: pd.DataFrame) -> None:
    table.to_csv(
        root / f"mimic-cxr-2.0.0-{kind}.csv.gz", index=False, compression={"method": "gzip", "compresslevel": 1}
    )


def _touch(root: Path, ids: pd.DataFrame) -> None:
    for image, subject, study in ids.itertuples(index=False):
        folder = root / f"files/p{str(subject)[:2]}/p{subject}/s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image}.jpg").touch()


if __name__ == "__main__":
    main()
