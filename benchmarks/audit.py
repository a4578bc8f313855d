"""Seconds and memory of the leak audit, by the number of images: a table, and JSON with --json FILE.

    python benchmarks/audit.py --images 10000 20000 40000 --json out.json

Stores hold drawn radiographs, each with a smooth field of its own, so that they look alike as radiographs do (the
correlation of two is printed). 96 % train, 1 % validate, 3 % test, about as in MIMIC-CXR; a few test images are copies
of training images. Each number of images runs in a process of its own. Memory is the peak of what Python and numpy
allocate, without the store's pages, which the system may take back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from loading import all_train, write_store
from PIL import Image
from results import report

from data.audit import audit
from data.phantom_drawing import draw_radiograph
from data.store import ImageStore

DRAWN = 500
FIELD = 25.0  # grey levels, of the smooth field
COPIES = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.images[0], arguments.size)))
        return

    rows = [in_a_process(count, arguments.size) for count in arguments.images]
    for row in rows:
        print(
            f"{row['images']:9,} images: {row['seconds']:6.1f} s, {row['peak_bytes'] / 1e9:.2f} GB besides the store's "
            f"pages, {row['found']} of {COPIES} copies found; two images correlate {row['correlation']:.2f}"
        )
    report(arguments.json, arguments, {"audits": rows})


def in_a_process(count: int, size: int) -> dict:
    command = [sys.executable, __file__, "--alone", "--images", str(count), "--size", str(size)]
    return json.loads(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


def measure(count: int, size: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        write_store(Path(name) / "store", [str(number) for number in range(count)], size)
        correlation = fill(Path(name) / "store/images.npy", size)

        # most images train, as in the large data sets
        manifest = all_train(range(count))
        share = np.arange(count) / count
        manifest.table["split"] = np.select([share < 0.96, share < 0.97], ["train", "validate"], "test")

        store = ImageStore(Path(name) / "store")
        start = time.perf_counter()
        found = audit(manifest, store)
        seconds = time.perf_counter() - start

        tracemalloc.start()  # takes time itself
        audit(manifest, store)
        _, peak = tracemalloc.get_traced_memory()
    copies = sum(len(pair["twins"]) for pair in found["across"])
    return {"images": count, "seconds": seconds, "peak_bytes": peak, "found": copies, "correlation": correlation}


def fill(path: Path, size: int) -> float:
    """Write the pixels; returns the mean correlation of two images."""
    rng = np.random.default_rng(0)
    images = np.load(path, mmap_mode="r+")
    drawn = [draw_radiograph(rng, frozenset(), size, size).astype(np.float32) for _ in range(min(DRAWN, len(images)))]
    for number in range(len(images)):
        field = Image.fromarray(rng.normal(0, FIELD, (8, 8)).astype(np.float32)).resize((size, size))
        images[number] = ((drawn[0] + drawn[number % len(drawn)]) / 2 + np.asarray(field)).clip(0, 255)
    images[-COPIES:] = images[:COPIES]

    some = images[:DRAWN].reshape(min(DRAWN, len(images)), -1).astype(np.float32)
    return float(np.corrcoef(some)[np.triu_indices(len(some), 1)].mean())


if __name__ == "__main__":
    main()
