"""Images per second of every part of the pipeline, in one process: a table, and JSON with --json FILE.

    make bench                                           # or: python benchmarks/throughput.py --size 224 --batch 16
    python benchmarks/throughput.py --json out.json

Parts are timed in turn, round by round, so that a machine whose speed drifts treats them alike; medians
are shown. Decoding is also shown as a ratio to what it replaces, Pillow's RGB decode and resize.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from results import report

from classify.models.classifier import build_classifier
from classify.models.resnet import build_resnet
from data.augment import DRAWS, augment
from data.draws import uniform
from data.images import read_fitted
from data.phantom_drawing import draw_radiograph
from data.settings import AugmentSettings
from mae.engine.optim import adamw, parameter_groups
from mae.model import build_mae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--preset", default="vit_tiny_patch16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        parts = decoding(Path(folder), arguments.size) | loading(arguments) | training(arguments)
        rates = measure(parts, arguments.rounds)

    ratio = rates["decode 2500x3000 JPEG, grey at reduced scale"] / rates["decode 2500x3000 JPEG, Pillow RGB + resize"]
    for name, rate in rates.items():
        print(f"{name:52s} {rate:10.1f} images/s")
    print(f"{'reduced grey decode against RGB decode':52s} {ratio:10.2f} times as fast")
    report(arguments.json, arguments, {"images_per_second": rates, "decode_ratio": ratio})


def measure(parts: dict[str, tuple[int, Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Median images per second of each part (images, call), after one call that does not count."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, (_, call) in parts.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: images / statistics.median(times[name]) for name, (images, _) in parts.items()}


def decoding(folder: Path, size: int) -> dict[str, tuple[int, Callable[[], object]]]:
    rng = np.random.default_rng(0)
    path = folder / "large.jpg"
    drawn = Image.fromarray(draw_radiograph(rng, frozenset({"Lung Opacity"}), 250, 300)).resize((2500, 3000))
    noisy = np.asarray(drawn, np.int16) + rng.normal(0, 2, (3000, 2500)).astype(np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return {
        "decode 2500x3000 JPEG, grey at reduced scale": (1, lambda: read_fitted(path, size, "squash")),
        "decode 2500x3000 JPEG, Pillow RGB + resize": (1, lambda: Image.open(path).convert("RGB").resize((size, size))),
    }


def loading(arguments: argparse.Namespace) -> dict[str, tuple[int, Callable[[], object]]]:
    rng = np.random.default_rng(0)
    batch = arguments.batch
    store = rng.integers(0, 256, (2048, arguments.size, arguments.size), dtype=np.uint8)
    rows = rng.integers(0, len(store), batch)
    numbers = torch.arange(batch)
    images = torch.from_numpy(store[rows][:, None])
    draws = uniform(0, "augment", 0, numbers, DRAWS)
    return {
        "gather a batch": (batch, lambda: torch.from_numpy(store[rows][:, None])),
        "augment a batch": (batch, lambda: augment(images, AugmentSettings(), draws)),
    }


def training(arguments: argparse.Namespace) -> dict[str, tuple[int, Callable[[], object]]]:
    images = torch.randn(arguments.batch, 1, arguments.size, arguments.size)
    mae = build_mae(arguments.preset, arguments.size, patch_size=arguments.patch)
    vit = build_classifier(build_mae(arguments.preset, arguments.size, patch_size=arguments.patch).encoder)
    return {
        "MAE pretraining step, 75 % masked": (arguments.batch, stepper(mae, lambda: mae(images).loss)),
        "ViT fine-tuning step": (arguments.batch, stepper(vit, lambda: vit(images).square().mean())),
        "ResNet-18 step": (arguments.batch, _resnet_stepper(images)),
    }


def _resnet_stepper(images: torch.Tensor) -> Callable[[], object]:
    resnet = build_resnet("resnet18")
    return stepper(resnet, lambda: resnet(images).square().mean())


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), (0.9, 0.95))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
