"""Ending well: a signal ends any command with exit code 75, and the same command, given again, resumes.

Outside the training loop a signal raises an exception, as Ctrl-C does: files and processes are released on the way out.
The loop has signals noted instead, and stops after a saved step. Light: commands import it before anything else.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, Timer
from types import FrameType
from typing import Any

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
GRACE = 20.0  # seconds a command has to end by itself; Slurm and torchrun kill after 30

# signals by which schedulers, shells and terminals say that time is up; a system need not have all of them
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

Handler = Callable[[int, FrameType | None], None]


class Stopped(SystemExit):
    """A signal ended the command; exit code 75. `line` says so to the user; of several ranks, one `speaks`."""

    def __init__(self, line: str, speaks: bool = True):
        super().__init__(TRY_AGAIN)
        self.line = line
        self.speaks = speaks


@contextmanager
def stopping_on_signals(for_good: bool) -> Iterator[None]:
    """A signal that arrives inside the block raises `Stopped`; later ones do nothing.

    for_good: the process is about to end after the block, so signals do nothing from then on. If the main thread cannot
    react to the signal, say in torch's wait for other ranks, the process is ended after GRACE seconds.
    """
    raised: list[Stopped] = []
    numbers: list[int] = []
    hook = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if _Now.starting_child:
            _Now.late = number
            return
        _set_all(signal.SIG_IGN)
        numbers.append(number)
        raised.append(Stopped(_ended_by(number)))
        raise raised[0]

    def ignored(what: Any) -> None:
        if raised and what.exc_value is raised[0]:  # where nothing can be raised, as in a __del__: again in a moment
            raised.clear()
            _set_all(stop)
            Timer(0.01, signal.raise_signal, [numbers[-1]]).start()
        else:
            hook(what)

    before = _set_all(stop)
    if before:
        sys.unraisablehook = ignored
    ended = Event()
    with _watched(ended):
        try:
            yield
        except BaseException as error:
            if not raised or isinstance(error, Stopped):
                raise
            raise raised[0] from None  # a library that was at work failed on the way out
        finally:
            ended.set()
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if for_good else handler)


@contextmanager
def noting_signals() -> Iterator[list[str]]:
    """A list that gets the name of each signal that arrives; the caller looks at it between two steps.

    A second Ctrl-C acts as it did before. If the caller did not stop for a noted signal, it takes effect at the end.
    """
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived = signal.Signals(number)
        received.append(arrived.name)
        if arrived == signal.SIGINT:
            signal.signal(arrived, before[arrived])

    before = _set_all(note)
    _Now.noting = bool(before)
    try:
        yield received
    finally:
        _Now.noting = False
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(signal.Signals[received[0]])


def ignore_in_child() -> None:
    """For a child process: its parent decides whether it stops. SIGTERM stays the parent's way to end it."""
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def held_back() -> Iterator[None]:
    """For starting child processes: signals wait until the block ends.

    A terminal's signals go to all processes. They wait for the child too, until it calls `ignore_in_child`; and it
    would complain if its parent left before telling it what to do.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return

    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _Now.starting_child = True  # another thread may receive the signal, and ours act on it
    try:
        yield
    finally:
        _Now.starting_child = False
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if _Now.late is not None:
        late, _Now.late = _Now.late, None
        signal.raise_signal(late)


# ---------------------------------------------------------------- handlers


class _Now:
    """What goes on in this process."""

    noting = False  # signals are noted: a step may take longer than GRACE, and is worth waiting for
    starting_child = False
    kept = "what is finished is kept, the same command goes on from it"
    late: int | None = None  # the signal that arrived meanwhile


def _ended_by(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}; {_Now.kept}"


@contextmanager
def beginning_anew() -> Iterator[None]:
    """If a signal stops the block, its work has to be done from the start again, and the message says so."""
    before = _Now.kept
    _Now.kept = "the same command begins anew"
    try:
        yield
    finally:
        _Now.kept = before


def _set_all(handler: "Handler | signal.Handlers") -> "dict[signal.Signals, Handler | int | None]":
    """Set the handler of every signal; returns those before. {} outside the main thread: signals are someone else's."""
    before = {}
    for number in SIGNALS:
        now = signal.getsignal(number)
        if number == getattr(signal, "SIGHUP", None) and now is signal.SIG_IGN:
            continue  # nohup's promise
        try:
            signal.signal(number, handler)
        except ValueError:
            return {}
        before[number] = now
    return before


@contextmanager
def _watched(ended: Event) -> Iterator[None]:
    """A thread that hears signals even while the main thread is deep inside a library."""
    here, there = socket.socketpair()
    there.setblocking(False)
    try:
        earlier = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    except ValueError:  # not the main thread
        here.close()
        there.close()
        yield
        return

    Thread(target=_see_to_it, args=(here, ended), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        there.close()


def _see_to_it(reader: socket.socket, ended: Event) -> None:
    """End the process where a signal has not done so after GRACE seconds."""
    while number := reader.recv(1):
        if number[0] not in SIGNALS or _Now.noting or ended.wait(GRACE):
            continue
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{_ended_by(number[0])}\n".encode())
        os._exit(TRY_AGAIN)
    reader.close()
