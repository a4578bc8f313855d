"""Processes that read images. Light: every one of them imports this."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Lock, Thread
from typing import Any

from data.errors import UserError
from data.signals import held_back, ignore_in_child

FEW = 8  # jobs for which starting processes costs more than it saves
MOMENT = 0.2  # seconds until the system is asked for a process again
TRIES = 2  # at a job alone in a process, before it is given up
Job = tuple[Any, ...]
_hiding = Lock()


class Killed(UserError):
    """Jobs whose process was killed each time, though it did nothing else; all others are done."""

    def __init__(self, jobs: Sequence[Job]):
        super().__init__(
            f"data.workers: found a process killed {TRIES} times at the same work, expected it to live; "
            "run again with more memory free"
        )
        self.jobs = jobs


def run_jobs(function: Callable[..., Any], jobs: Sequence[Job], workers: int) -> Generator[Any]:
    """The results of `function(*job)`, in whatever order they are ready.

    A process that is killed costs only time: the jobs in progress are done again, one after the other. Raises Killed,
    after all else is done, if that kills processes too. If the system starts none, this process does the work.
    """
    if workers <= 1 or len(jobs) <= FEW:
        yield from _here(function, jobs)
        return

    left = list(jobs)
    killed: list[Job] = []
    while left:
        pool = start_processes(workers)
        if isinstance(pool, ThisProcess):
            yield from _here(function, left)
            break

        left = yield from _in_parallel(pool, function, left)
        if not left:
            break
        if not _processes_live():
            _say("found every process killed as it starts, so this one does the work alone")
            yield from _here(function, left)
            break

        # the jobs in progress are among the first that are left; one of them may kill its process
        _say("found a process killed (out of memory?), so what was in work is done again")
        suspects = left[: 2 * workers + 1]
        left = left[len(suspects) :]
        try:
            yield from run_one_by_one(function, suspects)
        except Killed as again:
            killed += again.jobs
    if killed:
        raise Killed(killed)


def run_one_by_one(function: Callable[..., Any], jobs: Iterable[Job]) -> Generator[Any]:
    """The results of `function(*job)`, each from another process, which does nothing else meanwhile.

    Raises Killed, after all else is done, if that process is killed each time.
    """
    killed = []
    pool: Executor | None = None

    # a process serves until it is killed; another one then tries its job
    try:
        for job in jobs:
            for _ in range(TRIES):
                pool = pool or start_processes(1)
                try:
                    result = pool.submit(function, *job).result()
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = None
                else:
                    yield result
                    break
            else:
                killed.append(job)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)

    if killed:
        raise Killed(killed)


def _here(function: Callable[..., Any], jobs: Iterable[Job]) -> Generator[Any]:
    for job in jobs:
        yield function(*job)


def _in_parallel(pool: Executor, function: Callable[..., Any], jobs: Sequence[Job]) -> Generator[Any, None, list[Job]]:
    """Yields results; returns the jobs that are left, in order, because a process was killed."""
    numbers: dict[Future[Any], int] = {}
    left = set(range(len(jobs)))
    with pool:
        try:
            for number, job in enumerate(jobs):
                numbers[pool.submit(function, *job)] = number
        except (BrokenProcessPool, OSError):  # one was killed already, or one more cannot be started
            pass

        try:
            for future in as_completed(numbers):
                if isinstance(future.exception(), BrokenProcessPool):
                    continue
                left.remove(numbers[future])
                yield future.result()
        finally:  # an interrupt does not wait for what is left
            pool.shutdown(cancel_futures=True)
    return [jobs[number] for number in sorted(left)]


# ---------------------------------------------------------------- processes


def start_processes(workers: int) -> Executor:
    """A pool of processes, fewer if the system refuses so many. They leave signals to stop to their parent.

    One process is asked for twice: a file that kills whoever reads it is better not read by this one.
    """
    reason: Exception | None = None
    asked = 0
    for number in (*_halves(workers), 1):
        if number == asked:  # the same once more
            time.sleep(MOMENT)
        asked = number
        try:
            pool = _start(number)
        except (OSError, ImportError, NotImplementedError) as error:  # no semaphores, no room, no more processes
            reason = error
        else:
            if number < workers:
                _say(f"found {number} of {workers} processes started ({reason}), so these do the work")
            return pool
    _say(f"found no way to start processes ({reason}), so this one does the work alone")
    return ThisProcess()


def _halves(number: int) -> Iterator[int]:
    """7, 3, 1"""
    while number > 0:
        yield number
        number //= 2


class _Pool(ProcessPoolExecutor):
    """A pool whose processes hear no signal from their first moment on, its helper for semaphores included."""

    def __init__(self, *arguments: Any, **named: Any):
        with held_back():
            super().__init__(*arguments, **named)

    def submit(self, *job: Any, **named: Any) -> Future[Any]:
        with held_back(), _without_main():  # a process is started when there is something to do
            return super().submit(*job, **named)


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that is started here does not import the user's script, which would run it again.

    A script without `if __name__ == "__main__"` would call `prepare` again, and wait for ever for the folder that its
    parent holds. All functions that a process runs for us are in modules of ours.
    """
    main = sys.modules["__main__"]
    with _hiding:  # two threads at once would restore what the other has changed
        before = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
        main.__spec__ = None  # multiprocessing looks at these two
        main.__dict__.pop("__file__", None)
        try:
            yield
        finally:
            main.__dict__.update(before)


def _start(workers: int) -> ProcessPoolExecutor:
    pool = _Pool(workers, get_context("spawn"), initializer=_begin_process)
    try:
        for _ in range(workers):  # a pool starts a process when it gets a job and none is idle
            pool.submit(os.getpid)
    except BrokenProcessPool:  # its user finds out
        pass
    except OSError:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return pool


class ThisProcess(Executor):
    """Stands in for a pool where the system starts no processes: a job is done when it is submitted."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _processes_live() -> bool:
    """Whether a process with nothing to do stays alive."""
    with start_processes(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:
            return False
    return True


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _begin_process() -> None:
    ignore_in_child()
    # without this a process would wait for ever on a parent that was killed
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
