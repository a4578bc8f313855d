"""By which of torch's float32 products a CPU computes linear layers: the faster one at the model's shapes.

Neither is the faster one everywhere. On AMD's processors with AVX-512 oneDNN's is twice as fast as MKL's; on those with
AVX2 alone MKL's is faster by a quarter at small shapes. Results differ in their last bits, so a run keeps its choice.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from mae.linear import Linear, Product, onednn_product

ROWS = 256  # of tokens, at most: more take longer to measure and compare alike
ROUNDS = 3  # of which the fastest counts: others only ever slow a product down
NEAR = 0.025  # products that differ by less are a tie, which oneDNN wins: a choice should not hang on noise


@dataclass(frozen=True, order=True)
class Shape:
    """A linear layer's product: tokens (rows inputs) · weightᵀ (inputs outputs)."""

    rows: int
    inputs: int
    outputs: int


def configure_products(model: nn.Module, product: Product) -> None:
    """Let the model's linear layers compute float32 on CPU by this product."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.product = product


def product_for(build: Callable[[], tuple[nn.Module, Callable[[], object]]]) -> Product:
    """The faster product for a model's step here; `build` makes both, on tensors without values.

    Within a process the same shapes get the same answer.
    """
    if onednn_product() is None:
        return "blas"
    return _faster(frozenset(linear_shapes(build).items()))


def linear_shapes(build: Callable[[], tuple[nn.Module, Callable[[], object]]]) -> Counter[Shape]:
    """How many linear layers of each shape a step computes; nothing is computed."""
    shapes: Counter[Shape] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, Linear)
        rows = output.numel() // layer.out_features
        shapes[Shape(rows, layer.in_features, layer.out_features)] += 1

    with torch.device("meta"):
        model, step = build()
        handles = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, Linear)]
        step()
    for handle in handles:
        handle.remove()
    return shapes


@cache
def _faster(shapes: frozenset[tuple[Shape, int]]) -> Product:
    seconds = seconds_of_products(dict(shapes))
    if seconds["blas"] < (1 - NEAR) * seconds["onednn"]:
        return "blas"
    return "onednn"


def seconds_of_products(shapes: Mapping[Shape, int]) -> dict[Product, float]:
    """Seconds of all layers' products, forwards and backwards, by each library; rows beyond `ROWS` are scaled."""
    total: dict[Product, float] = {"onednn": 0.0, "blas": 0.0}
    for shape, layers in sorted(shapes.items()):
        weight_of_shape = layers * max(shape.rows / ROWS, 1)
        for product, seconds in _measured(shape).items():
            total[product] += weight_of_shape * seconds
    return total


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
