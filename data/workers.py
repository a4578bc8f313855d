"""Processes that read images. Light: every one of them imports this."""

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

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
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_process)


def _begin_process() -> None:
    for interrupt in (signal.SIGINT, signal.SIGUSR1):  # a terminal's Ctrl-C and Slurm's warning reach all processes
        signal.signal(interrupt, signal.SIG_IGN)
    # without this a process would wait for ever on a parent that was killed
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
