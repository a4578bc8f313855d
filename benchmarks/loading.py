"""From the store to augmented batches: images per second, beside what is usual, and the time to a run's first batch.

    make bench                                           # or: python benchmarks/loading.py --batch 256
    python benchmarks/loading.py --json out.json

The ways take turns; medians are shown. The usual way is torch's DataLoader with a process per core, which opens small
JPEG files by Pillow and augments one image after the other. Cold means that the store is not in memory. The first batch
is timed in a process of its own, on a MIMIC-CXR-JPG of --rows images whose CSVs and store have the true shape.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ingest import JPEG, drawn
from manifest import write_csvs
from PIL import Image, ImageEnhance
from results import report
from torch.utils.data import DataLoader, Dataset

from data.augment import DRAWS, augment
from data.config import make_config
from data.draws import uniform
from data.environment import usable_cores
from data.image_files import ImageFiles
from data.loader import Data, Loader
from data.manifest import Manifest, open_manifest
from data.preparation import describe_store
from data.settings import AugmentSettings
from data.store import ImageStore
from data.store_integrity import described
from mae.engine.memory import keep_freed_memory

ALL = AugmentSettings(flip=0.5, erase=0.5)  # every kind of augmentation, at its default strength or more
USUAL = 1024  # files of the usual way, read several times
LARGE = 48  # of 2544 x 3056 pixels
FIRST_BATCH = """
import json, sys, time
from data.config import make_config
from data.loader import Loader, open_data
data = open_data(make_config({}, "benchmark", json.loads(sys.argv[1])).data)
opened = time.time()
batch = next(Loader(data, data.split("train"), 256, seed=0).epoch())
print(len(data.store), opened - float(sys.argv[2]), time.time() - float(sys.argv[2]), end=" ")
status = open("/proc/self/status", encoding="ascii")
print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""
COLUMNS = ("rows", "opened_seconds", "first_batch_seconds", "peak_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=20_000, help="images of the store that rates are measured on")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[377_110], help="images of the stores whose first batch is awaited"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shrink", type=float, default=1, help="divide the large files' sides by this")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    keep_freed_memory()  # as every training does
    with tempfile.TemporaryDirectory() as name:
        rates = measure_rates(Path(name), arguments)
        first = [measure_start(Path(name) / str(rows), rows, arguments) for rows in arguments.rows]

    for way, rate in rates.items():
        print(f"{way:64s} {rate:10,.0f} images/s")
    ratio = rates["from the store, all augmentation"] / rates["the usual way"]
    print(f"{'from the store, all augmentation, against the usual way':64s} {ratio:10.1f} times as fast")
    for row in first:
        print(f"{row['rows']:,.0f} images prepared: opened after {row['opened_seconds']:.1f} s, first batch ", end="")
        print(f"after {row['first_batch_seconds']:.1f} s, {row['peak_bytes'] / 1e9:.2f} GB at most")
    report(arguments.json, arguments, {"images_per_second": rates, "ratio": ratio, "first_batch": first})


# ---------------------------------------------------------------- rates


def measure_rates(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Median images per second of each way, after one turn that does not count."""
    data = random_store(folder / "store", arguments.images, arguments.size)
    usual = UsualWay(folder / "small", arguments.size, arguments.batch)
    files = large_files(folder / "large", arguments)

    height, width = (f"{side / arguments.shrink:.0f}" for side in JPEG)
    ways: dict[str, Callable[[], int]] = {
        "from the store, no augmentation": lambda: gathered(data, arguments, batches=40),
        "from the store, cold, no augmentation": lambda: gathered(forgotten(data), arguments, batches=10),
        "from the store, all augmentation": lambda: augmented(data, arguments, batches=8),
        "the usual way": usual.epoch,
        f"from files of {width} x {height} pixels, no augmentation": lambda: gathered(files, arguments, batches=1),
    }

    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(arguments.rounds + 1):
        for way, read in ways.items():
            start = time.perf_counter()
            images = read()
            if number:
                taken[way].append(images / (time.perf_counter() - start))
    return {way: statistics.median(rates) for way, rates in taken.items()}


def gathered(data: Data, arguments: argparse.Namespace, batches: int) -> int:
    loader = Loader(data, data.split("train"), arguments.batch, seed=0)
    return sum(len(batch.images) for batch in islice(loader.epoch(), batches))


def augmented(data: Data, arguments: argparse.Namespace, batches: int) -> int:
    """As in a training step."""
    count = 0
    for batch in islice(Loader(data, data.split("train"), arguments.batch, seed=0).epoch(), batches):
        draws = uniform(0, "augment", 0, batch.numbers, DRAWS)
        count += len(augment(batch.images, ALL, draws))
    return count


def random_store(folder: Path, count: int, size: int) -> Data:
    """A store of noise; pixel values do not change the time."""
    write_store(folder, [str(number) for number in range(count)], size)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    rng = np.random.default_rng(0)
    for start in range(0, count, 1000):
        images[start : start + 1000] = rng.integers(0, 256, (min(1000, count - start), size, size), dtype=np.uint8)
    images.flush()
    return Data(all_train(range(count)), ImageStore(folder))


def write_store(folder: Path, image_ids: list[str], size: int, description: dict | None = None) -> None:
    """The files of a finished store; its pixels are a hole in a sparse file."""
    folder.mkdir(parents=True)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(image_ids), size, size)).flush()
    digests = [f"{row:032}" for row in range(len(image_ids))]
    index = pd.DataFrame({"image_id": image_ids, "row": range(len(image_ids)), "bytes": 1, "digest": digests})
    index.to_csv(folder / "index.csv", index=False)
    (folder / "rejected.csv").write_text("image_id,path,reason\n", encoding="utf-8")
    description = description or described({"source": "benchmark"})
    (folder / "store.json").write_text(json.dumps(description), encoding="utf-8")


def all_train(numbers: range) -> Manifest:
    names = [str(number) for number in numbers]
    table = pd.DataFrame({"image_id": names, "path": names, "split": "train", "label": np.nan})
    return Manifest(table, (), credentialed=False)


def forgotten(data: Data) -> Data:
    """The same data, after the system has dropped its pixels from memory."""
    folder = data.store.folder
    del data.store.images  # the system keeps what is mapped
    with (folder / "images.npy").open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # elsewhere it stays in memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data.store.images = np.load(folder / "images.npy", mmap_mode="r")
    return data


def large_files(folder: Path, arguments: argparse.Namespace) -> Data:
    """JPEG files as large as most of MIMIC-CXR's, without a store."""
    folder.mkdir()
    picture = Image.fromarray((drawn(JPEG, arguments.shrink) * 255).clip(0, 255).astype(np.uint8))
    for number in range(LARGE):
        picture.save(folder / f"{number}.jpg", quality=95)
    settings = {"data.source": "images", "data.root": str(folder), "data.image_size": arguments.size}
    config = make_config({}, "benchmark", settings | {"data.store": False})
    manifest = all_train(range(LARGE))
    manifest = replace(manifest, table=manifest.table.assign(path=[f"{folder}/{n}.jpg" for n in range(LARGE)]))
    return Data(manifest, ImageFiles(config.data, manifest))


# ---------------------------------------------------------------- the usual way


class UsualWay(Dataset):
    """What one would write first: images are opened and augmented one by one."""

    def __init__(self, folder: Path, size: int, batch: int):
        folder.mkdir()
        self.size, self.paths = size, [folder / f"{number}.jpg" for number in range(USUAL)]
        picture = Image.fromarray((drawn((256, 256), 1) * 255).clip(0, 255).astype(np.uint8))
        for path in self.paths:
            picture.save(path, quality=95)
        cores = usable_cores()
        self.loader = DataLoader(self, batch, shuffle=True, num_workers=cores, persistent_workers=True)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        draw = torch.rand(8).tolist()
        image = Image.open(self.paths[number]).convert("L").rotate(14 * draw[0] - 7, Image.Resampling.BILINEAR)
        width, height = image.size
        side = (0.7 + 0.3 * draw[1]) ** 0.5
        left, top = draw[2] * (1 - side) * width, draw[3] * (1 - side) * height
        box = (left, top, left + side * width, top + side * height)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        image = ImageEnhance.Contrast(image).enhance(0.8 + 0.4 * draw[4])
        image = ImageEnhance.Brightness(image).enhance(0.9 + 0.2 * draw[5])
        gamma = 0.8 + 0.4 * draw[6]
        image = image.point([round(255 * (grey / 255) ** gamma) for grey in range(256)])
        pixels = torch.from_numpy(np.array(image))[None]
        return pixels.flip(2) if draw[7] < 0.5 else pixels

    def epoch(self) -> int:
        return sum(len(images) for images in self.loader)


# ---------------------------------------------------------------- the first batch


def measure_start(folder: Path, rows: int, arguments: argparse.Namespace) -> dict[str, float]:
    """From starting Python to the first batch of a prepared MIMIC-CXR-JPG, all views: medians."""
    write_csvs(folder / "mimic", rows)
    settings = {"data.source": "mimic-cxr-jpg", "data.root": str(folder / "mimic"), "data.views": []}
    settings |= {"data.store": str(folder / "stores"), "data.image_size": arguments.size}
    config = make_config({}, "benchmark", settings)
    table = open_manifest(config).table
    description = describe_store(config.data, table)
    name = f"mimic-cxr-jpg-{arguments.size}px-{description['fingerprint'][:12]}"
    write_store(folder / "stores" / name, sorted(table["image_id"]), arguments.size, description)
    lines = list(starts(settings, arguments.rounds))
    return {name: statistics.median(values) for name, values in zip(COLUMNS, zip(*lines, strict=True), strict=True)}


def starts(settings: dict, rounds: int) -> Iterator[list[float]]:
    for _ in range(rounds):
        command = [sys.executable, "-c", FIRST_BATCH, json.dumps(settings), str(time.time())]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parents[1])
        yield [float(word) for word in done.stdout.split()]


if __name__ == "__main__":
    main()
