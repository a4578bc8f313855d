"""The trainings of a grid, in this process or in several at a time; one that fails costs no other.

With several processes, each does one training and then ends. This process starts them, prints what they say with a
name before each line, and ends them when it ends itself. If a signal ends it, they end after a saved step. If it ends
without a word, they notice because their input closes.
"""

import contextlib
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NoReturn

import torch

from classify.evaluate import Evaluation, evaluate
from classify.finetune import finetune
from classify.settings import ClassifyConfig
from data.cli import Arguments, run_command
from data.config import make_config
from data.errors import Diverged, UserError, printable
from data.loader import Data, open_data
from data.settings import DataSettings
from data.signals import TRY_AGAIN
from data.writing import keep_private
from mae.pretrain import pretrain

DIVERGED = 3  # exit code of a process whose training diverged: trying again is no use
PATIENCE = 60  # seconds that processes have to end after this one was stopped
Share = Literal["private", "group"]
Open = Callable[[DataSettings], Data]


@dataclass(frozen=True)
class Work:
    """A pretraining, or a fine-tuning and how it is to be evaluated."""

    stage: Literal["pretrain", "finetune"]
    config: ClassifyConfig
    checkpoint: Path | None = None  # that a fine-tuning begins from
    evaluated: Mapping[str, Any] | None = None  # the overrides of its evaluation; None: it is trained alone


@dataclass(frozen=True)
class Task:
    """A piece of work that waits for others to end."""

    name: str
    begin: Callable[[], Work]  # called once those in `after` have ended; UserError if it cannot be done
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why something is not there, in one line."""

    line: str
    diverged: bool = False  # it would diverge again


Outcome = Evaluation | Failure | None


def run_tasks(
    tasks: list[Task], do: Callable[[str, Work], Outcome], outcomes: dict[str, Outcome], say: Callable[[str], None]
) -> None:
    """Do the tasks one after the other; `outcomes` gets each result by the task's name."""
    for number, task in enumerate(tasks, start=1):
        work = _begun(task, number, len(tasks), outcomes, say)
        if work is None:
            continue
        outcomes[task.name] = outcome = do(task.name, work)
        _say_failure(task, outcome, say)


def _begun(
    task: Task, number: int, count: int, outcomes: dict[str, Outcome], say: Callable[[str], None]
) -> Work | None:
    """A task's work; None if it cannot be done, which is then recorded as its outcome."""
    try:
        work = task.begin()
    except UserError as error:
        outcomes[task.name] = failure = Failure(str(error), isinstance(error, Diverged))
        _say_failure(task, failure, say)
        return None
    say(f"[{number}/{count}] {task.name}")
    return work


def _say_failure(task: Task, outcome: Outcome, say: Callable[[str], None]) -> None:
    if isinstance(outcome, Failure):
        say(f"failed: {task.name}: {outcome.line}")


# ---------------------------------------------------------------- one piece of work


def attempt(work: Work, data_of: Open) -> Outcome:
    """Do the work, or say why that is impossible. Errors that nobody has foreseen are shown in full on stderr."""
    try:
        return _do(work, data_of)
    except UserError as error:
        return Failure(str(error), isinstance(error, Diverged))
    except (MemoryError, torch.OutOfMemoryError):
        return _out_of_memory(work)
    except OSError as error:
        return Failure(f"{printable(error.filename or 'this machine')}: {error.strerror or error}")
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):  # torch's RuntimeError for it
            return _out_of_memory(work)
        traceback.print_exc()
        reason = str(error).strip() or "no reason given"
        return Failure(f"{type(error).__name__}: {printable(reason.splitlines()[0])}")
    finally:  # free the memory that a failed training held, for the next one
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _do(work: Work, data_of: Open) -> Evaluation | None:
    data = data_of(work.config.data)
    if work.stage == "pretrain":
        pretrain(work.config, data)
        return None
    run = finetune(work.config, work.checkpoint, data)
    if work.evaluated is None:
        return None
    return evaluate(run, dict(work.evaluated), data)


def _out_of_memory(work: Work) -> Failure:
    section = work.config.pretrain if work.stage == "pretrain" else work.config.finetune
    return Failure(
        f"{work.stage}.batch_size: found too little memory for {section.batch_size} images, expected more; free some, "
        f"or raise {work.stage}.optimizer.accumulate"
    )


# ---------------------------------------------------------------- several processes


@dataclass
class _Child:
    """A process at work, and the last line in which it said what is wrong."""

    name: str
    process: "subprocess.Popen[bytes]"
    slot: int
    error: str = ""
    last: str = ""
    reader: Thread | None = field(default=None, repr=False)

    def outcome(self) -> Failure | None:
        """What came of it, once it has ended."""
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            why = " (out of memory?)" if code == -getattr(signal, "SIGKILL", 9) else ""
            return Failure(f"its process was killed by {_signal_name(-code)}{why}; the same command tries it again")
        if code == TRY_AGAIN:
            return Failure("its process was stopped by a signal; the same command goes on from what it has saved")
        if self.error:
            return Failure(self.error, diverged=code == DIVERGED)
        return Failure(f"its process ended with exit code {code}: {printable(self.last)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run_in_processes(
    tasks: list[Task],
    jobs: int,
    outcomes: dict[str, Outcome],
    private: tuple[list[str], Share],
    say: Callable[[str], None],
) -> None:
    """Do the tasks in up to `jobs` processes at a time, each as soon as those it waits for have ended.

    private: the credentialed data sets that their files are kept private for, and with whom these files are shared.
    """
    waiting = list(enumerate(tasks, start=1))
    running: dict[str, _Child] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    devices = _gpus()
    threads = max(torch.get_num_threads() // jobs, 1)
    try:
        while waiting or running:
            for entry in list(waiting):
                number, task = entry
                if len(running) == jobs or not all(name in outcomes for name in task.after):
                    continue
                waiting.remove(entry)
                work = _begun(task, number, len(tasks), outcomes, say)
                if work is None:
                    continue
                slot = min(set(range(jobs)) - {child.slot for child in running.values()})
                running[task.name] = _start(task.name, slot, work, devices, threads, private, ended)

            if running:
                child = running.pop(ended.get())
                outcomes[child.name] = child.outcome()
                _say_failure(next(task for task in tasks if task.name == child.name), outcomes[child.name], say)
    finally:
        _end(list(running.values()))


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use, [] without any."""
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible:
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _start(
    name: str,
    slot: int,
    work: Work,
    devices: list[str],
    threads: int,
    private: tuple[list[str], Share],
    ended: "queue.SimpleQueue[str]",
) -> _Child:
    # one GPU each, unless the config says which; processors are shared
    environment = dict(os.environ)
    alone_on_gpu = devices and work.config.device in ("auto", "cuda")
    if alone_on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]

    order = {
        "stage": work.stage,
        "config": work.config.model_dump(mode="json"),
        "checkpoint": str(work.checkpoint) if work.checkpoint else None,
        "evaluated": work.evaluated,
        "threads": None if alone_on_gpu else threads,
        "credentialed": private[0],
        "share": private[1],
    }

    # it imports these very packages; -P: the current folder, which may hold a `data.py`, is not searched first
    root = str(Path(__file__).parents[1])
    code = (
        f"import sys; root = {root!r}; root in sys.path or sys.path.insert(0, root); "
        "from classify.jobs import work; work()"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    child = _Child(name, process, slot)
    child.reader = Thread(target=_follow, args=(child, ended), daemon=True)
    child.reader.start()

    # it reads on for the rest of its life: when its input ends, this process has ended
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return child


def _follow(child: _Child, ended: "queue.SimpleQueue[str]") -> None:
    """Print what a process says, its name before each line, until it has ended."""
    assert child.process.stdout is not None
    for raw in child.process.stdout:
        line = raw.decode(errors="replace").rstrip("\r\n")
        child.last = line or child.last
        if line.startswith("error: "):
            child.error = line.removeprefix("error: ")
        print(f"[{child.name}] {line}", file=sys.stderr, flush=True)
    child.process.wait()
    ended.put(child.name)


def _end(children: list[_Child]) -> None:
    """Let processes that still run save their step and end; kill those that do not."""
    for child in children:
        with contextlib.suppress(OSError):
            child.process.terminate()
    for child in children:
        try:
            child.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        if child.process.stdin:
            with contextlib.suppress(OSError):
                child.process.stdin.close()
        if child.reader:
            child.reader.join(1)


# ---------------------------------------------------------------- inside such a process


def work() -> NoReturn:
    """What such a process does: one piece of work, described by its first line on stdin."""
    run_command(_work, None)


def _work(_: Arguments) -> None:
    line = sys.stdin.buffer.readline()
    if not line:  # the parent has ended before it said what to do
        raise SystemExit(1)
    order = json.loads(line)
    Thread(target=_end_with_parent, daemon=True).start()

    keep_private(order["credentialed"], order["share"])
    if order["threads"]:
        torch.set_num_threads(order["threads"])
    config = make_config(order["config"], "mae-compare")
    assert isinstance(config, ClassifyConfig)
    checkpoint = Path(order["checkpoint"]) if order["checkpoint"] else None

    outcome = attempt(Work(order["stage"], config, checkpoint, order["evaluated"]), open_data)
    if isinstance(outcome, Failure):
        print(f"error: {outcome.line}", file=sys.stderr)
        raise SystemExit(DIVERGED if outcome.diverged else 2)


def _end_with_parent() -> None:
    """Without this, a training that nobody waits for would go on, in a folder that the next grid needs."""
    while os.read(0, 1):  # not by sys.stdin, whose lock would be held when the interpreter ends
        pass
    os._exit(1)
