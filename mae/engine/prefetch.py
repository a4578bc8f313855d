"""Batches read before their step needs them: for a GPU a thread reads them, and they are copied while it computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from typing import Any, TypeVar

import torch

from mae.engine.stage import Batch

Item = TypeVar("Item")
AnyBatch = TypeVar("AnyBatch", bound=Batch)
AHEAD = 2  # batches read beyond the one that is copied


def on_device(batches: Iterator[AnyBatch], device: torch.device) -> Generator[tuple[AnyBatch, AnyBatch], None, None]:
    """Each batch, and the same on the device, in order.

    On a CPU a batch is read when it is asked for: all cores compute. A GPU computes while the next batch is read,
    pinned and copied, so that neither waits for the other.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, batch.to(device)
        return

    number = _number(device)  # a new thread's current device is the first GPU, and it would take memory there

    def begin() -> None:
        torch.cuda.set_device(number)

    with closing(read_ahead(batches, AHEAD, begin, ready=lambda batch: batch.pin_memory())) as read:
        yield from _copied_ahead(read, device)


def _number(device: torch.device) -> int:
    """The GPU's number; `cuda` alone names none."""
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _copying_stream(number: int) -> torch.cuda.Stream:
    """A GPU's stream for copies, the same in all epochs: torch keeps what one stream has freed from all others."""
    return torch.cuda.Stream(number)


def read_ahead(
    batches: Iterator[Item],
    count: int,
    begin: Callable[[], None] = lambda: None,
    ready: Callable[[Item], Item] = lambda batch: batch,
) -> Generator[Item, None, None]:
    """The same batches in the same order; a thread reads up to `count` of them before they are asked for.

    begin: called in that thread first. ready: called there with each batch; returns what is handed on.
    """
    end = object()  # batches may be anything, None included

    def read() -> Any:
        batch = next(batches, end)
        return batch if batch is end else ready(batch)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=begin) as reader:
        try:
            coming = deque(reader.submit(read) for _ in range(count))
            while (batch := coming.popleft().result()) is not end:
                coming.append(reader.submit(read))
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)
            if isinstance(batches, Generator):  # it closes its files, and its own readers
                batches.close()


def _copied_ahead(
    batches: Generator[AnyBatch, None, None], device: torch.device
) -> Generator[tuple[AnyBatch, AnyBatch], None, None]:
    """Copy each batch on a separate stream while the one before it is computed.

    The copy waits for all work that the GPU was given before. The memory of a released batch is reused for the next but
    one, and the work on it must be over by then.
    """
    computing = torch.cuda.current_stream(device)
    copying = _copying_stream(_number(device))

    def copied(batch: AnyBatch) -> tuple[AnyBatch, AnyBatch]:
        copying.wait_stream(computing)
        with torch.cuda.stream(copying):
            return batch, batch.to(device)

    ready = None
    for batch in batches:
        following = copied(batch)
        if ready is not None:
            yield ready
        computing.wait_stream(copying)  # before the step that is asked for next
        ready = following
    if ready is not None:
        yield ready
