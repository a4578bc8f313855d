"""From a file to the store: time per core, beside Pillow's RGB decode and other decoders, and the price in quality.

    make bench                                           # or: python benchmarks/ingest.py --size 224
    python benchmarks/ingest.py --json out.json
    pip install simplejpeg opencv-python-headless        # then these are timed too

A reading is: open the file, hash it, decode, fit to the size, write the store's row. Milliseconds are processor time
of one core, so other programs on the machine do not count. The ways are timed in turn, each twice in a row, as files
follow each other. The second time counts, and medians are shown. Two processes against one is wall time and needs an
idle machine.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from results import report

from data import jpeg
from data.environment import usable_cores
from data.images import SPARE, fit_image, read_fitted, read_image
from data.phantom_drawing import draw_radiograph
from data.preparation import CHUNK
from data.store import decode_rows
from data.workers import run_jobs

JPEG, DICOM = (3056, 2544), (3000, 2500)  # height and width of most of MIMIC-CXR, and of a usual detector
KINDS = {
    "grey, quality 90": ("L", {"quality": 90}),
    "grey, quality 95": ("L", {"quality": 95}),
    "colour 4:2:0, quality 90": ("RGB", {"quality": 90}),
    "progressive, quality 90": ("L", {"quality": 90, "progressive": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the stored images, pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1600, help="images for two processes against one")
    parser.add_argument("--shrink", type=float, default=1, help="divide the files' sides by this, for a quick look")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = {kind: save_jpeg(folder, kind, arguments) for kind in KINDS}
        jpeg_rows = {kind: time_jpeg(path, arguments) for kind, path in jpegs.items()}
        dicom_ms = time_dicom(folder, arguments)
        processes = time_processes(jpegs["grey, quality 90"], arguments)

    show(jpeg_rows, dicom_ms, processes)
    report(arguments.json, arguments, {"jpeg": jpeg_rows, "dicom_ms": dicom_ms, "processes": processes})


def show(jpeg_rows: dict[str, dict], dicom_ms: dict[str, float], processes: dict[str, float]) -> None:
    for kind, row in jpeg_rows.items():
        print(f"JPEG, {kind}: {row['bytes'] / 1e6:.2f} MB")
        for way, milliseconds in row["ms"].items():
            print(f"  {way:44s} {milliseconds:8.1f} ms   {milliseconds / row['ms']['to the store']:6.2f}")
        print(f"  {'mean difference to full decode and Lanczos':44s} {row['difference']:8.2f} grey levels")
    for shown, milliseconds in dicom_ms.items():
        print(f"{'DICOM, 12 bit, uncompressed, ' + shown:46s} {milliseconds:8.1f} ms")
    for count, rate in processes.items():
        print(f"{'JPEG, grey, quality 90, ' + count:46s} {rate:8.1f} images/s, wall time")
    print(f"{'all processes against one':46s} {max(processes.values()) / processes['one process']:8.2f}")


def median_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time of each call, the second of two in a row: none pays for what another one left."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.process_time()
            call()
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def drawn(shape: tuple[int, int], shrink: float) -> np.ndarray:
    """Brightness 0…1 of a radiograph with a detector's noise."""
    height, width = (max(64, round(side / shrink)) for side in shape)
    rng = np.random.default_rng(0)
    small = Image.fromarray(draw_radiograph(rng, frozenset({"Lung Opacity"}), 250, 300))
    return np.asarray(small.resize((width, height)), float) / 255 + rng.normal(0, 2 / 255, (height, width))


def row_of_a_store(folder: Path, size: int) -> np.ndarray:
    return np.lib.format.open_memmap(folder / "row.npy", "w+", np.uint8, (1, size, size))


def to_store(path: Path, store: np.ndarray) -> None:
    digest = hashlib.sha256()
    store[0] = read_fitted(path, store.shape[1], "squash", note=digest.update)
    digest.hexdigest()


# JPEG


def save_jpeg(folder: Path, kind: str, arguments: argparse.Namespace) -> Path:
    mode, options = KINDS[kind]
    path = folder / f"{kind}.jpg"
    grey = (drawn(JPEG, arguments.shrink) * 255).clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).convert(mode).save(path, **options)
    return path


def time_jpeg(path: Path, arguments: argparse.Namespace) -> dict:
    size = arguments.size
    store = row_of_a_store(path.parent, size)
    ways = {
        "Pillow RGB + resize": lambda: Image.open(path).convert("RGB").resize((size, size)),
        "to the store": lambda: to_store(path, store),
    }
    if jpeg.FAST:
        ways["to the store, without numba"] = lambda: without_numba(path, store)
    for name, decode in other_decoders().items():
        ways[f"{name}, reduced, same hash and resize"] = lambda decode=decode: by_another(path, decode, store)
    full = fit_image(read_image(path), size, "squash").astype(float)
    difference = float(np.abs(read_fitted(path, size, "squash") - full).mean())
    return {"bytes": path.stat().st_size, "ms": median_ms(ways, arguments.rounds), "difference": difference}


def without_numba(path: Path, store: np.ndarray) -> None:
    jpeg.FAST = False
    to_store(path, store)
    jpeg.FAST = True


def by_another(path: Path, decode: Callable[[bytes, int], np.ndarray], store: np.ndarray) -> None:
    data, size = path.read_bytes(), store.shape[1]
    hashlib.sha256(data).hexdigest()
    grey = Image.fromarray(decode(data, ceil(SPARE * size)))
    store[0] = grey.resize((size, size), Image.Resampling.LANCZOS)


def other_decoders() -> dict[str, Callable[[bytes, int], np.ndarray]]:
    """The decoders from the package index that are installed: (file, least side) → grey at a reduced scale."""
    known = {"simplejpeg": by_simplejpeg, "cv2": by_opencv}
    return {name: decode for name, decode in known.items() if find_spec(name)}


def by_simplejpeg(data: bytes, least: int) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "GRAY", min_height=least, min_width=least)[:, :, 0]


def by_opencv(data: bytes, least: int) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    flags = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
    side = min(Image.open(BytesIO(data)).size)
    scale = next((scale for scale in flags if side // scale >= least), 1)
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags.get(scale, cv2.IMREAD_GRAYSCALE))


# DICOM


def time_dicom(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    stored = (drawn(DICOM, arguments.shrink) * 4000).clip(0, 4095).astype(np.uint16)
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    kinds = {"window": window, "no window": {}, "MONOCHROME1": window | {"PhotometricInterpretation": "MONOCHROME1"}}
    paths = {kind: save_dicom(folder / f"{kind}.dcm", stored, elements) for kind, elements in kinds.items()}
    store = row_of_a_store(folder, arguments.size)
    calls = {kind: lambda path=path: to_store(path, store) for kind, path in paths.items()}
    return median_ms(calls, arguments.rounds)


def save_dicom(path: Path, stored: np.ndarray, elements: dict) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[path.name])
    image = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelData = stored.tobytes()
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    image.save_as(path)
    return path


# processes


def time_processes(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Images per second of mae-prepare's own pool while all its processes have work: medians of three turns."""
    rows = range(arguments.images)
    images = path.parent / "images.npy"
    np.lib.format.open_memmap(images, "w+", np.uint8, (len(rows), arguments.size, arguments.size)).flush()
    jobs = []
    for start in range(0, len(rows), CHUNK):
        chunk = [(row, str(path), None) for row in rows[start : start + CHUNK]]
        jobs.append((str(images), chunk, arguments.size, "squash", "window"))

    counts = {"one process": 1}
    if usable_cores() > 1:
        counts["two processes"] = 2
    turns = [{name: steady_rate(jobs, count) for name, count in counts.items()} for _ in range(3)]
    return {name: statistics.median(turn[name] for turn in turns) for name in counts}


def steady_rate(jobs: list[tuple], workers: int) -> float:
    results = run_jobs(decode_rows, jobs, workers)
    for _ in range(len(jobs) // 4):  # by then every process has started
        next(results)
    start = time.perf_counter()
    images = sum(len(next(results)) for _ in range(len(jobs) - len(jobs) // 4 - workers))
    rate = images / (time.perf_counter() - start)
    results.close()
    return rate


if __name__ == "__main__":
    main()
