"""Ranks: torchrun's processes, which share each batch; a process by itself is rank 0 of 1."""

import importlib
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.environment import ranks_here, variable
from data.errors import UserError

Answer = TypeVar("Answer")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def launched() -> bool:
    """Whether torchrun (or whoever sets its variables) started this process as one of several."""
    return variable("WORLD_SIZE", 1) > 1


def check_launch() -> None:
    """UserError if the ranks cannot meet, as far as one rank can tell; called before anything is opened."""
    if not launched() or dist.is_initialized():  # they have met, and the first one holds the port
        return
    size = variable("WORLD_SIZE", 1)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "").strip():
            raise UserError(
                f"environment: found WORLD_SIZE={size} without {name}, expected all that torchrun sets; start with "
                "torchrun, or as docs/cluster.md does, or unset WORLD_SIZE for one process"
            )

    # impossible numbers
    number = variable("RANK", 0)
    port = variable("MASTER_PORT", 0)
    ranks_here()  # needed later, so checked now
    if not 0 <= number < size:
        raise UserError(f"environment: found RANK={number}, expected 0 to {size - 1} with WORLD_SIZE={size}")
    if not 0 < port < 2**16:
        raise UserError(f"environment: found MASTER_PORT={port}, expected 1 to 65535")

    # the first rank listens for the others, unless torchrun does so itself
    host = os.environ["MASTER_ADDR"]
    torchrun_listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        socket.getaddrinfo(host, port)
        if number == 0 and not torchrun_listens:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", port))
                listener.listen()
    except OSError as error:
        raise UserError(
            f"environment: found MASTER_ADDR={host} MASTER_PORT={port} unusable ({error.strerror or error}), expected "
            "the first rank's machine and a free port there"
        ) from None


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_wanted() -> int:
    """How many ranks there will be once they have met."""
    return max(variable("WORLD_SIZE", 1), 1)


def local_rank() -> int:
    """Number of this process on its machine: which GPU is its own."""
    return variable("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this process prints and writes for all ranks; valid before and after they have met."""
    return not launched() or variable("RANK", 0) == 0


@contextmanager
def process_group(device: torch.device, minutes: float = 30) -> Iterator[None]:
    """Meet the other ranks, if there are any; gloo on CPU, NCCL on CUDA.

    Raises UserError if a rank was lost; the reason is in that rank's own output. NCCL does not notice that: there
    whoever started the ranks ends them, or the time is up.
    """
    if not launched() or dist.is_initialized():
        yield
        return

    # This module's default arguments keep the group that exists at import, and with it gloo's threads. If such a thread
    # releases a tensor while the interpreter ends, the process aborts. DDP would import the module later, with a group.
    importlib.import_module("torch.distributed.nn.functional")

    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    except (RuntimeError, ValueError) as error:  # a taken port, ranks that never came, …
        raise UserError(
            f"environment: rank {variable('RANK', 0)} of {variable('WORLD_SIZE', 1)} did not meet the others "
            f"({str(error).splitlines()[0]}), expected all of them within {minutes:g} minutes; see their output"
        ) from None

    # a rank that loses another one says so in one line; its own errors are shown in full
    here = rank()
    failed = True
    try:
        with _kept_on_failure(dist.group.WORLD):
            yield
        failed = False
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise UserError(f"rank {here}: lost another rank ({str(error).splitlines()[0]}); see its output") from None
    finally:
        # NCCL ends a group when all ranks end it; one that fails alone would wait, its reason unsaid
        if backend != "nccl" or not failed:
            dist.destroy_process_group()


_FAILED: list[Any] = []  # groups


@contextmanager
def _kept_on_failure(group: Any) -> Iterator[None]:
    """Hold a group for good if the training in it fails.

    A traceback keeps DDP's reducer for longer than the group. As the last to hold it, the reducer would end the group
    with Python's lock in hand, and wait for a thread of gloo's that may be waiting for this lock: for ever (issue 56297
    of pytorch).
    """
    try:
        yield
    except BaseException:
        _FAILED.append(group)
        raise


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model to train with: itself for one rank; for several, a wrapper that averages gradients over them."""
    if world_size() == 1:
        return model

    # batch statistics are those of the whole batch
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        if device.type != "cuda":
            raise UserError(
                f"device: found {world_size()} ranks on cpu and a model with batch normalisation, expected cuda, "
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
    """This rank's share of the images: every `world_size()`-th, starting at number `rank()`."""
    return rank(), world_size()


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over the ranks, on each of them."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over the ranks, on each of them."""
    if world_size() == 1:
        return value
    return all_reduce_sum(value) / world_size()


def any_rank(said: bool, device: torch.device) -> bool:
    """Whether any rank says so; all ranks get the same answer."""
    if world_size() == 1:
        return said
    votes = all_reduce_sum(torch.tensor(float(said), device=device))
    return bool(votes > 0)


def all_gather_objects(part: Any) -> list[Any]:
    """Each rank's part, in the order of ranks, on all ranks."""
    if world_size() == 1:
        return [part]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, part)
    return parts


def told_to_all(choose: Callable[[], Answer]) -> Answer:
    """The first rank's choice, or its UserError, on all ranks: on other machines or a moment later it might differ."""
    answer: Answer | None = None
    problem = ""
    if rank() == 0:
        try:
            answer = choose()
        except UserError as error:
            problem = str(error)
    [(answer, problem), *_] = all_gather_objects((answer, problem))
    if problem:
        raise UserError(problem)
    assert answer is not None
    return answer


def all_gather_rows(part: Tensor) -> Tensor:
    """Each rank's every-`world_size()`-th row, on CPU → all rows in order, on all ranks."""
    parts = all_gather_objects(part)
    length = sum(len(rows) for rows in parts)
    whole = part.new_empty(length, *part.shape[1:])
    for rank_of_rows, rows in enumerate(parts):
        whole[rank_of_rows :: len(parts)] = rows
    return whole


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()
