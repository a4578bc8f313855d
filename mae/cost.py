"""What a training step costs, counted without computing it: arithmetic and memory.

`build` makes a model and its input and returns the function that computes the loss. It is called where tensors have
a shape but no values, so that even a model larger than the machine's memory is counted at once.

torch's operation counters and its tensors without storage are private. So they are looked up before use; if a torch
version lacks them, its public hooks count what they can see.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from mae.decoder import CrossDecoder
from mae.linear import onednn_product
from mae.transformer import Attention, CrossAttention

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    PRIVATE = True
except ImportError:
    PRIVATE = False

Build = Callable[[], Callable[[], Tensor]]
BESIDE = {"cpu": 110_000_000, "cuda": 500_000_000}  # bytes that a training takes beside its tensors
LOST = 1.08  # bytes taken for each byte of tensors, with what is lost between them
COPIED = 0.65  # bytes copied for each byte that convolutions read or make


def step_flops(build: Build, device: str = "meta") -> int:
    """Floating-point operations of the matrix products in a forward and a backward pass.

    On any device but meta the pass is really computed. A step that looks at values needs that, such as one with
    unknown labels.
    """
    with torch.device(device):
        loss = build()
        if PRIVATE:
            return _flops_by_torch(loss)
        return _flops_by_hooks(loss)


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors in here have a shape and a device but no values, so nothing is computed, if this torch can do that."""
    if not PRIVATE:
        yield
        return
    with FakeTensorMode():
        yield


def step_memory(build: Build) -> int:
    """Most bytes of tensors alive at once in a forward and a backward pass: weights, activations, gradients."""
    if PRIVATE:
        return _memory_by_torch(build)
    return _memory_by_hooks(build)


def forward_memory(build: Build) -> int:
    """The same for a forward pass without gradients, as in validation: nothing is kept for a backward pass."""
    if not PRIVATE:  # counts a training step, which keeps more
        return _memory_by_hooks(build)
    with FakeTensorMode(), _alive_tensors() as alive, torch.no_grad():
        build()()
    return alive.peak


def process_memory(counted: int, states: int, device: torch.device, convolved: int = 0) -> int:
    """Bytes that a training takes on its device.

    counted: bytes of its tensors in a step, weights and gradients included. states: bytes of its optimizer's state.
    convolved: how many of these bytes convolutions read or make. A CPU lays them out anew for that.

    Beside the tensors, libraries and threads take memory, and some is lost between tensors. The constants are
    measured: benchmarks/forecast.py compares them with real processes.
    """
    copied = COPIED * convolved if device.type == "cpu" else 0
    return round(BESIDE.get(device.type, BESIDE["cpu"]) + LOST * (counted + states) + copied)


# ---------------------------------------------------------------- by torch's own, private counters


def _flops_by_torch(loss: Callable[[], Tensor]) -> int:
    # torch's counter does not know the product of mae/linear.py
    known = {}
    product = onednn_product()
    if product is not None:
        known[product] = _linear_flops

    # fused attention is taken apart into its products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        loss().backward()
    return counter.get_total_flops()


def _linear_flops(tokens: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(tokens) * weight[0]


def _memory_by_torch(build: Build) -> int:
    with FakeTensorMode(), _alive_tensors() as alive:
        build()().backward()
    return alive.peak


class _Alive:
    """Bytes of the tensors that are alive, now and at most."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}  # of each storage that is alive
        self.now = 0
        self.peak = 0

    def see(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.bytes:  # a view shares its storage
            return

        self.bytes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.bytes.pop(key)


@contextmanager
def _alive_tensors() -> Iterator[_Alive]:
    """Sees every tensor that an operation returns."""
    alive = _Alive()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    alive.see(leaf.untyped_storage())
            return result

    with Watch():
        yield alive


# ---------------------------------------------------------------- by torch's public hooks


def _flops_by_hooks(loss: Callable[[], Tensor]) -> int:
    """Products of the modules that are called, each with those of its backward pass."""
    total = 0
    going_back = False

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        product, factors = _product(module, inputs, output)
        total += product
        if not going_back:  # in the backward pass, modules are called only to recompute activations
            total += product * sum(factor.requires_grad for factor in factors)

    # the hook applies to every module, so it must be removed
    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        value = loss()
        going_back = True
        value.backward()
    finally:
        handle.remove()
    return total


def _product(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[int, tuple[Tensor, ...]]:
    """Operations of a module's own product, and its factors: the gradient of each factor takes as many again."""
    if isinstance(module, nn.Linear):
        return 2 * output.numel() * module.in_features, (inputs[0], module.weight)
    if isinstance(module, nn.Conv2d):
        return 2 * output.numel() * module.weight[0].numel(), (inputs[0], module.weight)
    if isinstance(module, Attention | CrossAttention):
        batch, queries, width = output.shape
        keys = inputs[-1].shape[1]
        return 4 * batch * queries * keys * width, (output, output)  # the scores, and the sum weighted by them
    if isinstance(module, CrossDecoder):
        depths = inputs[0]
        return 2 * len(module.blocks) * depths.numel(), (depths, module.depth_weights)
    return 0, ()


def _memory_by_hooks(build: Build) -> int:
    """The larger of two: weights and what the forward pass keeps for the backward pass; weights and gradients."""
    storages: dict[int, torch.UntypedStorage] = {}  # by identity: a view shares its storage
    weights: dict[int, nn.Parameter] = {}

    # a backward pass needs the weights and what autograd saves
    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[id(storage)] = storage
        return tensor

    def see_weights(module: nn.Module, inputs: Any, output: Any) -> None:
        for weight in module.parameters(recurse=False):
            weights[id(weight)] = weight
            keep(weight)

    class FusedAttention(TorchFunctionMode):
        """Attention keeps what it reads. Without this it would also keep its scores, which happens only on meta."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is not F.scaled_dot_product_attention:
                return function(*args, **(kwargs or {}))
            for tensor in args:
                keep(tensor)
            with saved_tensors_hooks(_unchanged, _unchanged):
                return function(*args, **(kwargs or {}))

    handle = nn.modules.module.register_module_forward_hook(see_weights)
    try:
        with torch.device("meta"), FusedAttention(), saved_tensors_hooks(keep, _unchanged):
            build()()
    finally:
        handle.remove()

    # the backward pass frees activations while it makes gradients: the peak is at its beginning or at its end
    at_first = sum(storage.nbytes() for storage in storages.values())
    at_last = sum(weight.nbytes for weight in weights.values())
    at_last += sum(weight.nbytes for weight in weights.values() if weight.requires_grad)
    return max(at_first, at_last)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
