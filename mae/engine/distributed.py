"""Ranks: torchrun's processes, which share each batch; a process of its own is rank 0 of 1."""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from data.config import UserError


def launched() -> bool:
    """Whether torchrun (or whoever sets its variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process speaks and writes for all, before and after they have met."""
    return int(os.environ.get("RANK", "0")) == 0 if launched() else True


@contextmanager
def together(device: torch.device, minutes: float = 30) -> Iterator[None]:
    """Meet the other ranks, if there are any; gloo on CPU, NCCL on CUDA.

    Raises UserError where a rank was lost: what it had to say stands in its own output.
    """
    if not launched() or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Its functions' defaults keep the group there is at import, and with it gloo's threads: one that still lets go
    # of a tensor when the interpreter ends aborts the process. DDP imports it later.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=minutes))
    here = rank()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise UserError(f"rank {here}: lost another rank ({str(error).splitlines()[0]}); see its output") from None
    finally:
        distributed.destroy_process_group()


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """The model to train with: itself, or among several ranks one that averages gradients over them."""
    if ranks() == 1:
        return model
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        if device.type != "cuda":
            raise UserError(
                f"device: found {ranks()} ranks on cpu and a model with batch normalisation, expected cuda, "
                "or one process: batch statistics of ranks are shared on CUDA only"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with warnings.catch_warnings():  # its successor's name is not in every torch we support
        warnings.simplefilter("ignore", FutureWarning)
        return Replica(model, broadcast_buffers=False)


class Replica(DistributedDataParallel):
    """DDP that shows the model's own attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)


def shard() -> tuple[int, int]:
    """Which images are this rank's: every `ranks()`-th, from number `rank()` on."""
    return rank(), ranks()


def add(value: Tensor) -> Tensor:
    """The sum over the ranks, on each of them."""
    if ranks() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """The mean over the ranks, on each of them."""
    return add(value) / ranks() if ranks() > 1 else value


def anyone(said: bool, device: torch.device) -> bool:
    """Whether any rank says so, on each of them."""
    return bool(add(torch.tensor(float(said), device=device)) > 0) if ranks() > 1 else said


def gather(part: Any) -> list[Any]:
    """What each rank brings, in the order of ranks, on each of them."""
    parts = [part]
    if ranks() > 1:
        parts = [None] * ranks()
        distributed.all_gather_object(parts, part)
    return parts


def interleave(part: Tensor) -> Tensor:
    """Each rank's every-`ranks()`-th row, on CPU → all rows in order, on each of them."""
    parts = gather(part)
    whole = part.new_empty(sum(len(each) for each in parts), *part.shape[1:])
    for number, each in enumerate(parts):
        whole[number :: len(parts)] = each
    return whole


def wait() -> None:
    """Until every rank is here."""
    if ranks() > 1:
        distributed.barrier()
