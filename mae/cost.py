"""What a training step costs, counted without computing it: arithmetic and memory.

`build` makes a model and its input and returns the function that computes the loss. It is called where tensors have
a shape but no values, so that a model larger than the machine is counted at once.
"""

import math
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Build = Callable[[], Callable[[], Tensor]]


def step_flops(build: Build, device: str = "meta") -> int:
    """Floating-point operations of the matrix products in a forward and a backward pass.

    The counter does not know the fused attention of CPUs, which is taken apart into its products, nor oneDNN's
    product (mae/linear.py). On another device than meta the pass is computed: a step that looks at values,
    as one with unknown labels does, needs it.
    """
    known = {torch.ops.mkldnn._linear_pointwise: _linear_flops} if torch.backends.mkldnn.is_available() else {}
    with torch.device(device), sdpa_kernel(SDPBackend.MATH):
        loss = build()
        with FlopCounterMode(display=False, custom_mapping=known) as counter:
            loss().backward()
    return counter.get_total_flops()


def _linear_flops(tokens: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(tokens) * weight[0]


def step_memory(build: Build) -> int:
    """Most bytes of tensors alive at once in a forward and a backward pass: weights, activations, gradients."""
    with FakeTensorMode(), _Alive() as alive:
        build()().backward()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, now and at most."""

    def __init__(self):
        super().__init__()
        self.bytes: dict[int, int] = {}  # of each storage
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.bytes:  # a view shares its storage
            self.bytes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.bytes.pop(key)
