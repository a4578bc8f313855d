"""Commands as real processes: starting them, catching them at a moment, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked_jobs
from checkout import in_checkout
from forked import Forked

from data.signals import SIGNALS

ROOMS = {"prepare": "data.cli", "pretrain": "mae.cli", "finetune": "classify.cli"}
ROOMS |= dict.fromkeys(("evaluate", "compare", "export"), "classify.cli")
Process = subprocess.Popen | Forked


def start(command: str, *words: object, **settings: object) -> subprocess.Popen:
    """A command in a session of its own, as a scheduler starts it; settings: `data__workers=2` is a dotted key."""
    return subprocess.Popen(
        [sys.executable, "-c", *_code_and_words(command, words, settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=in_checkout(),
        start_new_session=True,
    )


def start_forked(command: str, *words: object, **settings: object) -> Forked:
    """The same with torch already imported: for tests that do not care how a process begins."""
    return Forked(*_code_and_words(command, words, settings), start_new_session=True)


def start_forked_jobs(*words: object) -> Forked:
    """The same for mae-compare and the processes that it starts."""
    return Forked(forked_jobs.PROGRAM, *words, start_new_session=True)


def _code_and_words(command: str, words: tuple, settings: dict) -> list[str]:
    code = f"from {ROOMS[command]} import {command}; {command}()"
    return [code, *map(str, words), *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]


def when(process: Process, happens: Callable[[], object], seconds: float = 100, every: float = 0.002) -> None:
    """Wait until something happens while the process is alive; looks every so many seconds."""
    end = time.monotonic() + seconds
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(every)


def listens(process: Process) -> bool:
    """Whether the process has set its signal handlers, the last of them too."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (SIGNALS[-1] - 1) & 1)


def members(process: Process) -> list[int]:
    """The living processes of its session, itself included."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = place.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # just gone
            continue
        if int(session) == process.pid and state != "Z":
            found.append(int(place.parent.name))
    return found


def ended(process: Process) -> tuple[int, str]:
    """Exit code and stderr, once every process that it started has ended too."""
    _, errors = process.communicate(timeout=100)  # the last process to hold its output has ended
    until = time.monotonic() + 10
    while members(process):
        assert time.monotonic() < until, [Path(f"/proc/{number}/cmdline").read_bytes() for number in members(process)]
        time.sleep(0.01)
    return process.returncode, errors


def send(process: Process, number: signal.Signals, to_all: bool) -> None:
    """Send a signal to the process alone, as `kill` does, or to all it started, as terminals and schedulers do."""
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
