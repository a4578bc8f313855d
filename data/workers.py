"""Processes that read images. Light: every one of them imports this."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from data.signals import held_back, ignore_in_child

FEW = 8  # jobs for which starting processes costs more than it saves


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[Any]:
    """The results of `function(*job)`, in whatever order they are ready."""
    if workers <= 1 or len(jobs) <= FEW:
        for job in jobs:
            yield function(*job)
        return

    with start_processes(workers) as pool:
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()
        finally:  # an interrupt does not wait for what is left
            pool.shutdown(cancel_futures=True)


def start_processes(workers: int) -> ProcessPoolExecutor:
    """A pool of processes. Signals to stop are their parent's to follow."""
    return _Pool(workers, get_context("spawn"), initializer=_begin_process)


class _Pool(ProcessPoolExecutor):
    """A pool whose processes hear no signal from their first moment on."""

    def submit(self, *job: Any, **named: Any) -> Future[Any]:
        with held_back():  # a process is started when there is something to do
            return super().submit(*job, **named)


def _begin_process() -> None:
    ignore_in_child()
    # without this a process would wait for ever on a parent that was killed
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
