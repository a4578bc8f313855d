"""Ending well: a signal lets the current step finish and be saved."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mae.engine.distributed import is_main

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command, given again, goes on


class Stopped(SystemExit):
    """A run that a signal ended after its checkpoint was written; exit code 75."""

    def __init__(self, folder: Path, name: str, step: int):
        super().__init__(TRY_AGAIN)
        self.line = f"{folder}: stopped by {name} at step {step}, which is saved; the same command continues from it"


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list that gets the name of a signal which arrives; the second of its kind acts as it always did."""
    received: list[str] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        arrived = signal.Signals(number)
        received.append(arrived.name)
        signal.signal(arrived, handlers[arrived])

    # the loop looks at the list between two steps
    try:
        for number in SIGNALS:
            signal.signal(number, note)
    except ValueError:  # not the main thread: signals are someone else's
        handlers = {}

    try:
        yield received
    except Stopped as stopped:
        if is_main():
            print(stopped.line, file=sys.stderr)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
