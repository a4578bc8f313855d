"""Finds what makes the host wait for its device: on a GPU by CUDA itself, on a CPU by the operations called."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations that need a value, or a number of values, before they can go on
VALUES = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::unique_dim",
    "aten::_unique2",
}


class Waited(AssertionError):
    pass


class _NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name
        chosen_by_truth = name == "aten::index" and any(
            torch.is_tensor(part) and part.dtype == torch.bool for part in tree_leaves(args[1])
        )
        if name in VALUES or chosen_by_truth:
            raise Waited(f"{operation} waits for the device")

        result = operation(*args, **(kwargs or {}))
        crossed = {one.device.type for one in tree_leaves((args, result)) if torch.is_tensor(one) and one.dim()}
        if len(crossed) > 1:
            raise Waited(f"{operation} crosses from one device to another: {sorted(crossed)}")
        return result


class _NoLists(TorchFunctionMode):
    """A tensor made of Python numbers is copied to a GPU from memory that is not pinned, and that copy waits."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor):
            raise Waited(f"{function.__name__} copies to the device")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Raise an error if the code inside makes the host wait for the device."""
    if device.type != "cuda":
        with _NoLists(), _NoWaits():
            yield
        return

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise Waited(str(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
