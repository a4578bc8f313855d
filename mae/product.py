"""Which of torch's float32 products computes linear layers on a CPU: the faster one at the model's shapes.

Neither is faster everywhere. On AMD's processors with AVX-512, oneDNN's is twice as fast as MKL's. On those with AVX2
alone, MKL's is faster by a quarter at small shapes. Results differ in their last bits, so a run keeps its choice.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from data.config import change_config
from data.writing import write_text
from mae.cost import Build, without_values
from mae.engine import distributed
from mae.engine.machine import processor
from mae.engine.run import settings_of_run
from mae.linear import Linear, Product, onednn_product
from mae.settings import MAEConfig

Kind = TypeVar("Kind", bound=MAEConfig)
PRODUCTS = get_args(Product)

ROWS = 256  # of tokens, at most: more take longer to measure, and the comparison stays the same
ROUNDS = 3  # the fastest counts: other processes can only slow a product down
NEAR = 0.025  # products that differ by less are a tie, which oneDNN wins: noise should not decide


@dataclass(frozen=True, order=True)
class Shape:
    """A linear layer's product: tokens (rows inputs) · weightᵀ (inputs outputs)."""

    rows: int
    inputs: int
    outputs: int


def configure_products(model: nn.Module, product: str) -> None:
    """Let the model's linear layers compute float32 on CPU by this product; auto leaves them as they are."""
    if product == "auto":
        return
    for module in model.modules():
        if isinstance(module, Linear):
            module.product = product  # type: ignore[assignment]


def with_product(config: Kind, folder: Path, device: torch.device, build: Build) -> Kind:
    """The config with auto replaced by a product: the one of the run in the folder or, for a new run, the faster one.

    build: makes a model on tensors without values, and returns its step. With several ranks, the first one chooses
    for all. On a GPU, in other precisions and with torch.compile there is nothing to choose, and auto stays.
    """
    chosen_here = config.product == "auto" and device.type == "cpu" and config.precision == "fp32"
    if not chosen_here or config.compile:
        return config

    def choose() -> str:
        made = settings_of_run(folder)
        if made:  # a run of an earlier version names no product, and used oneDNN's
            return made["product"] if made.get("product") in PRODUCTS else Linear.product
        return faster_product(linear_shapes(build))

    return change_config(config, {"product": distributed.told_to_all(choose)})


def linear_shapes(build: Build) -> Counter[Shape]:
    """How many linear layers of each shape a step computes; nothing is computed."""
    shapes: Counter[Shape] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, Linear):
            rows = output.numel() // layer.out_features
            shapes[Shape(rows, layer.in_features, layer.out_features)] += 1

    # the hook applies to every module, so it must be removed
    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        with without_values(), torch.device("cpu"):  # a named device, as part of a classifier asks for it
            build()()
    finally:
        handle.remove()
    return shapes


def faster_product(shapes: Mapping[Shape, int]) -> Product:
    """The product that computes these layers faster here.

    The first answer on a machine is kept for its user. If both are nearly as fast, a second measurement might choose
    otherwise, and a second run of the same config would differ in its last bits.
    """
    if onednn_product() is None:
        return "blas"
    place = _answer_place(shapes)
    answer = _kept_answer(place)
    if answer is None:
        seconds = seconds_of_products(shapes)
        answer = "blas" if seconds["blas"] < (1 - NEAR) * seconds["onednn"] else "onednn"
        _keep_answer(place, answer)
    return _kept_answer(place) or answer  # another process may have been first


def _answer_place(shapes: Mapping[Shape, int]) -> Path:
    """The file for the answer: one for each machine, torch and step."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(given) if given.startswith("/") else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111 (no error)
    asked = [processor(), torch.__version__, *map(str, sorted(shapes.items()))]
    return folder / "mae-cxr/products" / hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]


def _kept_answer(place: Path) -> Product | None:
    with suppress(OSError, UnicodeDecodeError):
        text = place.read_text(encoding="ascii")
        return next((product for product in PRODUCTS if product == text), None)
    return None


def _keep_answer(place: Path, answer: Product) -> None:
    """Keep the answer, unless another process was first. Without a place for it, each process measures."""
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    if not place.is_absolute():  # the user has no home
        return
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(temporary, answer)
        try:
            place.hardlink_to(temporary)
        finally:
            temporary.unlink()


def seconds_of_products(shapes: Mapping[Shape, int]) -> dict[Product, float]:
    """Processor seconds of all layers' products, forwards and backwards, by each library, on one thread.

    It is the thread's own time, so that the machine's other work counts for neither. Rows beyond `ROWS` are scaled.
    """
    total: dict[Product, float] = {"onednn": 0.0, "blas": 0.0}
    with _one_thread():
        for shape, layers in sorted(shapes.items()):
            weight_of_shape = layers * max(shape.rows / ROWS, 1)
            for product, seconds in _measured(shape).items():
                total[product] += weight_of_shape * seconds
    return total


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measured(shape: Shape) -> dict[Product, float]:
    """Seconds of one layer's forward and backward pass by each product, the fastest of some alternating rounds."""
    layer = Linear(shape.inputs, shape.outputs)
    tokens = torch.zeros(min(shape.rows, ROWS), shape.inputs, requires_grad=True)  # zeros multiply as fast as others
    gradient = torch.zeros(len(tokens), shape.outputs)

    fastest: dict[Product, float] = {}
    for number in range(ROUNDS + 1):  # the first one warms up
        order: tuple[Product, Product] = ("onednn", "blas") if number % 2 else ("blas", "onednn")
        for product in order:
            layer.product = product
            start = time.thread_time()
            layer(tokens).backward(gradient)
            seconds = time.thread_time() - start
            if number:
                fastest[product] = min(seconds, fastest.get(product, seconds))
    return fastest
