"""What a training step costs, counted without computing it: arithmetic and memory.

`build` makes a model and its input and returns the function that computes the loss. It is called where tensors have
a shape but no values, so that a model larger than the machine is counted at once.

torch's counters of operations and its tensors without storage are not public. They are asked for before use; where a
torch lacks them, its public hooks count what they can see.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def step_flops(build: Build, device: str = "meta") -> int:
    """Floating-point operations of the matrix products in a forward and a backward pass.

    On another device than meta the pass is computed: a step that looks at values, as one with unknown labels does,
    needs it.
    """
    with torch.device(device), sdpa_kernel(SDPBackend.MATH):  # fused attention is taken apart into its products
        return _counted_by_torch(build) if PRIVATE else _counted_by_hooks(build)


def _counted_by_torch(build: Build) -> int:
    product = onednn_product()
    known = {} if product is None else {product: _linear_flops}  # torch's counter does not know it (mae/linear.py)
    loss = build()
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        loss().backward()
    return counter.get_total_flops()


def _linear_flops(tokens: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(tokens) * weight[0]


def step_memory(build: Build) -> int:
    """Most bytes of tensors alive at once in a forward and a backward pass: weights, activations, gradients."""
    if not PRIVATE:
        return _kept_for_backward(build)
    with FakeTensorMode(), _alive_tensors() as alive:
        build()().backward()
    return alive.peak


# ---------------------------------------------------------------- by torch's own, private counters


class _Alive:
    """Bytes of the tensors that are alive, now and at most."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}  # of each storage
        self.now = 0
        self.peak = 0

    def see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
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


def _counted_by_hooks(build: Build) -> int:
    """Products of linear layers, convolutions and attention; a backward pass takes twice the forward's."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += 2 * output.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            total += 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, Attention | CrossAttention):
            batch, asking, width = output.shape
            answering = inputs[-1].shape[1]
            total += 4 * batch * asking * answering * width  # scores, and the sum they weigh

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        build()().backward()
    finally:
        handle.remove()
    return 3 * total


def _kept_for_backward(build: Build) -> int:
    """Weights, their gradients, and the activations that the backward pass reads: a little less than the peak."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base  # a view shares the memory of what it is a view of
        kept[id(whole)] = whole
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        build()()
    gradients = [tensor for tensor in kept.values() if tensor.is_leaf and tensor.requires_grad]
    return sum(tensor.nbytes for tensor in [*kept.values(), *gradients])
