"""What `--dry-run` says of memory and time, held against real trainings: a table, and JSON with --json FILE.

    python benchmarks/forecast.py                        # every case, on an idle machine: about half an hour
    python benchmarks/forecast.py --cases tiny-28 resnet18-64
    python benchmarks/forecast.py --case 64 vit_tiny_patch8 32 --images 200 --epochs 2

Images are noise in a store. One process forecasts a case, and a whole command trains it in another. Its peak resident
memory is what the kernel says; its time runs from start to end. Ratios are forecast divided by
truth. `counted` is the number that `batch_size: auto` uses.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from results import report

# name → stage, image side, images a step, and further settings
CASES: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "tiny-28": ("pretrain", 28, 64, ("model.preset=vit_tiny_patch4",)),
    "tiny-64": ("pretrain", 64, 64, ("model.preset=vit_tiny_patch8",)),
    "small-96": ("pretrain", 96, 32, ("model.preset=vit_small_patch8",)),
    "base-224-4": ("pretrain", 224, 4, ("model.preset=vit_base_patch16",)),
    "base-224-16": ("pretrain", 224, 16, ("model.preset=vit_base_patch16",)),
    "tiny-28-full": ("finetune", 28, 64, ("model.preset=vit_tiny_patch4",)),
    "tiny-64-full": ("finetune", 64, 64, ("model.preset=vit_tiny_patch8",)),
    "tiny-64-linear": ("finetune", 64, 64, ("model.preset=vit_tiny_patch8", "finetune.mode=linear")),
    "base-224-4-full": ("finetune", 224, 4, ("model.preset=vit_base_patch16", "evaluate.batch_size=16")),
    "resnet18-64": ("finetune", 64, 64, ("finetune.model=resnet18",)),
    "resnet18-224": ("finetune", 224, 16, ("finetune.model=resnet18", "evaluate.batch_size=32")),
}
FORECAST = """
import json, sys
from data.config import load_config
from mae.engine.run import configure_torch
stage, path, *words = sys.argv[1:]
config = load_config(path, words)
configure_torch(config)
if stage == "pretrain":
    from mae.dry_run import forecast
    from mae.weights import resolve
    found = forecast(resolve(config))
else:
    from classify.dry_run import forecast
    found = forecast(config)
print(json.dumps({"counted": found.counted, "memory": found.memory, "seconds": found.seconds}))
"""
TRAIN = {
    "pretrain": "from mae.cli import pretrain; pretrain()",
    "finetune": "from classify.cli import finetune; finetune()",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--case", nargs=3, metavar=("SIDE", "PRESET", "BATCH"), help="a pretraining of your own sizes")
    parser.add_argument("--images", type=int, help="training images (default: 12 steps' worth)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    cases = {name: CASES[name] for name in arguments.cases}
    if arguments.case:
        side, preset, batch = arguments.case
        cases = {f"{preset}-{side}": ("pretrain", int(side), int(batch), (f"model.preset={preset}",))}

    result = {}
    print(f"{'case':18}{'counted':>10}{'memory':>10}{'true':>10}{'ratios':>14}{'time':>9}{'true':>9}{'ratio':>8}")
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            result[name] = compared(case, Path(folder), arguments.images or 12 * case[2], arguments.epochs)
        print(_line(name, result[name]), flush=True)
    report(arguments.json, arguments, result)


def _line(name: str, found: dict[str, float]) -> str:
    gb = [found[key] / 1e9 for key in ("counted_bytes", "forecast_bytes", "true_bytes")]
    counted, memory, truth = gb
    seconds, took = found["forecast_seconds"], found["true_seconds"]
    return (
        f"{name:18}{counted:>7.2f} GB{memory:>7.2f} GB{truth:>7.2f} GB{counted / truth:>7.2f}{memory / truth:>7.2f}"
        f"{seconds:>7.0f} s{took:>7.0f} s{seconds / took:>8.2f}"
    )


def compared(case: tuple[str, int, int, tuple[str, ...]], folder: Path, images: int, epochs: int) -> dict[str, float]:
    """What the forecast said, and what was true."""
    stage, side, batch, settings = case
    write_images(folder / "images", images, side)
    words = [
        *("data.source=table", f"data.root={folder}/images", f"data.store={folder}/stores", f"data.image_size={side}"),
        *(f"{stage}.batch_size={batch}", f"{stage}.epochs={epochs}", f"run={folder}/run", "device=cpu", *settings),
    ]
    config = folder / "config.yaml"
    config.write_text("data: {}\n", encoding="utf-8")

    # stores are made first: decoding is not measured here
    _run("from data.cli import prepare; prepare()", "--config", config, *words)
    said = json.loads(_run(FORECAST, stage, config, *words).splitlines()[-1])
    bytes_taken, seconds = _measured(TRAIN[stage], "--config", config, *words)
    return {
        "counted_bytes": said["counted"],
        "forecast_bytes": said["memory"],
        "true_bytes": bytes_taken,
        "forecast_seconds": said["seconds"],
        "true_seconds": seconds,
    }


def write_images(root: Path, train: int, side: int) -> None:
    """Images of noise: `train` to train on, a tenth as many for validation, and two for test."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    rows = []
    for split, count in (("train", train), ("validate", max(train // 10, 4)), ("test", 2)):
        for number in range(count):
            name = f"{split}{number}.png"
            Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8)).save(root / name)
            rows.append({"path": name, "label": number % 2, "split": split})
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)


def _run(code: str, *words: object) -> str:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=ROOT).stdout


def _measured(code: str, *words: object) -> tuple[int, float]:
    """Peak resident bytes, and seconds, of a process that runs alone."""
    start = time.monotonic()
    command = [sys.executable, "-c", code, *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.monotonic() - start


ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    main()
