"""`--launch`: the same command in several processes of this machine, a rank each, and one process that watches them.

torchrun does the same, but answers every failure with exit code 1 and gives its processes 30 seconds to end. Here the
command ends with a rank's own exit code: 75 if a signal ended it after a saved step, 2 for a user's mistake. Light:
this runs before torch is imported, which only counting GPUs needs.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from data.environment import usable_cores, variable
from data.errors import UserError
from data.signals import TRY_AGAIN, noting_signals

PATIENCE = 20.0  # seconds that ranks have to notice that one of them has failed
SAVING = 600.0  # seconds that they have to end after a signal has ended one: they agree on a step, and save it
LOOK_EVERY = 0.05  # seconds

# -P: the current folder, which may hold a `data.py`, is not searched first
RANK = (
    "import sys; root = {root!r}; root in sys.path or sys.path.insert(0, root); sys.argv[0] = {prog!r}; "
    "from mae.engine.launch import end_with_parent; end_with_parent({parent}); from {module} import {name}; {name}()"
)


def ranks_to_launch(asked: str, device: str) -> int:
    """How many processes `--launch` means: the number given; with auto one for each GPU, or 1 without GPUs.

    device: the config's.
    """
    if variable("WORLD_SIZE", 1) > 1:
        raise UserError(
            f"command line: found --launch and WORLD_SIZE={os.environ['WORLD_SIZE']}, expected one of them: torchrun "
            "and --launch do the same"
        )
    if asked != "auto" and not (asked.isascii() and asked.isdigit() and int(asked) > 0):
        raise UserError(f"command line: --launch: found {asked!r}, expected auto or a number of processes, 1 or more")

    number = 0 if asked == "auto" else int(asked)
    if number == 1 or device == "cpu":
        return max(number, 1)
    if device not in ("auto", "cuda"):
        raise UserError(f"command line: --launch: found device={device}, expected auto, cuda or cpu: each has its own")
    return _on_gpus(number, device)


def _on_gpus(number: int, device: str) -> int:
    """The number, or for 0 one for each GPU; UserError if there are fewer GPUs."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number > gpus and (gpus or device == "cuda"):
        raise UserError(
            f"command line: --launch: found {number} with {gpus} GPUs here, expected at most as many, or auto"
        )
    return number or max(gpus, 1)


def launch(module: str, name: str, words: Sequence[str], ranks: int) -> NoReturn:
    """Run a command in `ranks` processes and exit as they do. words: its command line, --launch included."""
    code = RANK.format(
        root=str(Path(__file__).parents[2]), prog=f"mae-{name}", parent=os.getpid(), module=module, name=name
    )
    command = [sys.executable, "-P", "-c", code, *without_launch(words)]
    raise SystemExit(run_ranks([command] * ranks))


def without_launch(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    is_value = False
    for word in words:
        if not is_value and word != "--launch" and not word.startswith("--launch="):
            kept.append(word)
        is_value = word == "--launch" and not is_value
    return kept


def run_ranks(commands: Sequence[list[str]]) -> int:
    """The exit code of the first rank that fails, once all have ended; 0 where none does.

    Signals are passed on, as often as they come. Ranks have sessions of their own, so a terminal's signals reach this
    process alone. Otherwise one Ctrl-C would arrive twice, and the second Ctrl-C ends a run without saving.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    with noting_signals() as signals:
        try:
            port = _free_port()
            for number, command in enumerate(commands):
                environment = _environment(number, len(commands), port)
                ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
            raise SystemExit(_minded(ranks, signals))
        except SystemExit as end:
            _end(ranks)
            return end.code if isinstance(end.code, int) else 1
        except BaseException:
            _end(ranks)
            raise


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun would set for a rank; processors are shared, unless OMP_NUM_THREADS is set."""
    share = max(usable_cores() // ranks, 1)
    return {"OMP_NUM_THREADS": str(share), **os.environ} | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _minded(ranks: "list[subprocess.Popen[bytes]]", signals: list[str]) -> int:
    """Wait until all have ended, or one has failed and the others do not follow in time; the first failure's code."""
    code = 0
    passed_on = 0
    until = float("inf")
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < until:
        for name in signals[passed_on:]:
            _send(ranks, signal.Signals[name])
            passed_on += 1
        if not code:
            code = _first_failure(ranks)
            if code:
                until = time.monotonic() + (SAVING if code == TRY_AGAIN else PATIENCE)
        time.sleep(LOOK_EVERY)
    return code or _first_failure(ranks)


def _first_failure(ranks: "list[subprocess.Popen[bytes]]") -> int:
    """The exit code of a failed rank, or 0. A killed rank is named here, as it cannot say anything itself."""
    codes = [rank.poll() for rank in ranks]
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            print(f"error: rank {number}: its process was killed by signal {-code}; {_why(-code)}", file=sys.stderr)
            return 1
    failed = [code for code in codes if code]
    return failed[0] if failed else 0


def _why(number: int) -> str:
    out_of_memory = number == getattr(signal, "SIGKILL", 9)
    return "out of memory? the same command goes on from what is saved" if out_of_memory else "see its output"


def _send(ranks: "list[subprocess.Popen[bytes]]", number: int) -> None:
    for rank in ranks:
        with contextlib.suppress(OSError):  # just ended
            rank.send_signal(number)


def _end(ranks: "list[subprocess.Popen[bytes]]") -> None:
    """Ask the ranks that still run to end, then kill those that do not."""
    running = [rank for rank in ranks if rank.poll() is None]
    _send(running, signal.SIGTERM)
    for rank in running:
        try:
            rank.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def end_with_parent(parent: int) -> None:
    """In a rank, before all else: if the parent is killed, the rank gets SIGTERM, and saves its step (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent is gone already
        raise SystemExit(TRY_AGAIN)
