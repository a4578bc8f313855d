"""Networks of shapes without values, which tell sizes before memory is taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks built inside lie on torch's meta device, and no initial values are drawn for them."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Leaves normal draws out: on the meta device they draw nothing, but make torch import its compiler (a second)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.normal_:
            return args[0]
        if function is nn.init.normal_:
            return kwargs["tensor"]
        return function(*args, **kwargs)
