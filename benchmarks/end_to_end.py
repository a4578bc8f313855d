"""mae-pretrain itself, from a store to the update, against its step alone: images per second of both.

    python benchmarks/end_to_end.py --device cuda --precision bf16 --batch 256
    python benchmarks/end_to_end.py --preset vit_tiny_patch16 --size 64 --batch 64 --json out.json

The command runs in a process of its own, on a store of noise, with all that it does: reading, copying, augmenting,
logging, validating. Its rate is the one that its own metrics.jsonl gives between two looks at the device, without the
first of the run. The step alone repeats the same update on a batch that is already on the device.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import report

from data.config import make_config
from data.loader import open_data
from mae.engine.memory import keep_freed_memory
from mae.engine.run import configure_torch
from mae.engine.update import Update
from mae.model import PRESETS
from mae.pretrain import pretrain_stage

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = "from mae.cli import pretrain; pretrain()"
HELD_OUT = 24  # images


def main() -> None:
    arguments = parser().parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: found no CUDA device (torch {torch.__version__}), expected one, or --device cpu")
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), arguments)

    print(f"{'step alone':24s} {result['step_alone']:10,.0f} images/s")
    print(f"{'from the store':24s} {result['from_the_store']:10,.0f} images/s")
    print(f"{'share':24s} {result['share_of_step_alone']:10.1%}")
    print(f"{'waiting for data':24s} {result['data_wait_share']:10.1%}")
    report(arguments.json, arguments, result)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--preset", choices=PRESETS, default="vit_base_patch16")
    add("--size", type=int, default=224, help="side of the images, pixels")
    add("--batch", type=int, default=64)
    add("--images", type=int, default=4096, help="images of the store, most of them to train on")
    add("--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="fp32")
    add("--compile", action="store_true")
    add("--epochs", type=int, default=4, help="each also saves last.pt, which takes a GPU longer than an epoch's steps")
    add("--json", type=Path, metavar="FILE")
    return parser


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = settings_for(folder, arguments)
    write_images(folder / "noise.npz", arguments)
    alone = step_alone(settings, arguments)

    epochs = arguments.epochs
    settings |= {"pretrain.epochs": epochs, "pretrain.validate_every": epochs}
    words = [f"{key}={value}" for key, value in settings.items()]
    config = folder / "config.yaml"
    config.write_text("data: {source: medmnist}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PRETRAIN, "--config", str(config), *words],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"error: mae-pretrain: {done.stderr.strip().splitlines()[-1]}")

    looks = looks_of(folder / "run/metrics.jsonl")[1:]
    rates = [look["train/images_per_second"] for look in looks]
    rate = statistics.harmonic_mean(rates)  # each look covers the same number of images
    return {
        "step_alone": alone,
        "from_the_store": rate,
        "share_of_step_alone": rate / alone,
        "data_wait_share": statistics.fmean(look["train/data_wait_share"] for look in looks),
        "peak_memory_gb": max(look["train/peak_memory_gb"] for look in looks),
        "looks": len(looks),
        "epochs": epochs,
    }


def looks_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "train/images_per_second" in row]


def settings_for(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    batches = (arguments.images - HELD_OUT) // arguments.batch
    return {
        "run": str(folder / "run"),
        "device": arguments.device,
        "precision": arguments.precision,
        "compile": arguments.compile,
        "data.source": "medmnist",
        "data.root": str(folder / "noise.npz"),
        "data.store": str(folder / "stores"),
        "data.image_size": arguments.size,
        "model.preset": arguments.preset,
        "pretrain.batch_size": arguments.batch,
        "pretrain.optimizer.warmup_epochs": 0,
        "pretrain.panel_images": 0,
        "engine.log_every": max(batches, 1),  # one look, at the end of an epoch
        "engine.save_minutes": 60,
    }


def write_images(path: Path, arguments: argparse.Namespace) -> None:
    """An archive of noise in MedMNIST's form: pixel values do not change the time, and its rows are decoded at once."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", arguments.images - HELD_OUT), ("val", HELD_OUT // 2), ("test", HELD_OUT // 2)):
        shape = (count, arguments.size, arguments.size)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(path, **arrays)


def step_alone(settings: dict[str, Any], arguments: argparse.Namespace) -> float:
    """Images per second of the update on a batch that is already on the device: the median of some rounds."""
    keep_freed_memory()  # as every training does
    config = make_config({}, "benchmark", settings | {"pretrain.epochs": 1})
    configure_torch(config)
    device = torch.device(arguments.device)
    stage = pretrain_stage(config, open_data(config.data), device)
    batch = next(stage.batches.epoch(0, 0)).to(device)
    update = Update(stage)
    stage.model.train()

    rounds, steps = (5, 10) if arguments.device == "cuda" else (3, 2)
    rates = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        for epoch in range(steps):
            numbers = update(batch, epoch)
        numbers.cpu()  # waits for the device
        if number:  # the first round warms up
            rates.append(steps * len(batch.images) / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    main()
