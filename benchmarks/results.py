"""What every benchmark reports besides its numbers: the machine they were measured on, and the JSON that keeps them."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mae.engine.machine import processor
from mae.engine.run import environment
from mae.linear import onednn_product

SQUARE = 1024  # side of the matrix product that tells how fast the machine is


def report(path: Path | None, arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the machine; write settings, result and environment to `path` where one is given."""
    found = machine()
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in found["product_gflops"].items())
    print(f"{found['cpu']}, {found['threads']} threads; float32 products of {SQUARE}: {products} GFLOP/s")
    if path is None:
        return

    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "alone")}
    text = json.dumps({"settings": settings, **result, "environment": found}, indent=1, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Versions and commit, the processor's name, and how fast it multiplies matrices."""
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    products = {"torch.mm": _gflops(lambda: torch.mm(a, b))}
    onednn = onednn_product()
    if onednn is not None:
        products["oneDNN"] = _gflops(lambda: onednn(a, b, None, "none", [], ""))
    return environment() | {"cpu": processor(), "product_gflops": products}


def _gflops(multiply: Callable[[], object]) -> float:
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * SQUARE**3 / statistics.median(seconds[1:]) / 1e9
