"""Python programs as real processes with torch already imported: forked from a server that has done nothing else.

Importing torch and its dependencies takes longer than most of what tests do with them. A forked program has a process,
a session, signals and an end of its own. This checkout's packages are imported too. Tests that depend on how Python
starts (a locale, an environment that libraries read on import) use `subprocess` instead.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from functools import cache
from pathlib import Path
from types import CodeType
from typing import IO, NoReturn

from checkout import in_checkout

from data.cli import leave

# our packages and what they import, but nothing that starts a thread
LOADED = ["torch", "torch.utils.tensorboard", "torch.export", "torch._dynamo", "safetensors.torch", "einops"]
LOADED += ["pandas", "scipy.stats", "sklearn.linear_model", "sklearn.metrics", "sklearn.pipeline", "pydantic.main"]
LOADED += ["matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.ImageDraw", "PIL.ImageOps", "yaml"]
LOADED += ["data.cli", "data.preparation", "mae.cli", "mae.pretrain", "mae.engine.loop"]
LOADED += ["classify.cli", "classify.compare", "classify.evaluate", "classify.finetune"]
PLACE = "FORKED_FROM"  # the environment variable that names the server's socket


class Forked:
    """Such a process, with the interface of `subprocess.Popen`: text on two pipes, and an empty stdin."""

    def __init__(
        self,
        program: "str | Path",
        *words: object,
        cwd: Path | None = None,
        start_new_session: bool = False,
        **environment: str,
    ):
        """program: code as for `python -c`, or the path of a script; environment: variables added to this one's."""
        out, err, end = os.pipe(), os.pipe(), os.pipe()
        server = _server()
        task = {
            "program": str(program),
            "script": isinstance(program, Path),
            "words": [str(word) for word in words],
            "cwd": str(cwd or Path.cwd()),
            "environment": in_checkout(**environment, **{PLACE: server.place}),
            "session": start_new_session,
        }
        self.pid = server.fork(task, [out[1], err[1], end[1]])
        for _, theirs in (out, err, end):
            os.close(theirs)
        self.stdout: IO[str] = os.fdopen(out[0], encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(err[0], encoding="utf-8")
        self.returncode: int | None = None
        self._end = end[0]  # the server writes the exit code there

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready, _, _ = select.select([self._end], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired("a forked program", timeout or 0)
            self.returncode = int(os.read(self._end, 20))
            os.close(self._end)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All of its output, once the last process that holds the pipes has ended."""
        found: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name=name: found.update({name: getattr(self, name).read()}), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("a forked program", timeout or 0)
        self.stdout.close()
        self.stderr.close()
        self.wait(timeout)
        return found["stdout"], found["stderr"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(program: "str | Path", *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program from its beginning to its end."""
    process = Forked(program, *words, cwd=cwd)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess([str(program), *map(str, words)], process.returncode, out, err)


# ---------------------------------------------------------------- the server, as a test sees it


class _Server:
    """A process that forks for this one, and for those it has forked; it ends with the test's process."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.place = os.environ.get(PLACE) or self._start()
        self.socket.connect(f"\0{self.place}")

    def _start(self) -> str:
        """Start a server; returns the name of the socket, on which it already listens."""
        name = f"mae-tests-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"\0{name}")
            listening.listen()
            handle = listening.fileno()
            command = [sys.executable, "-c", f"import forked; forked.run_to_the_end(forked.serve({handle}))"]
            environment = in_checkout(**{PLACE: name})
            self.process = subprocess.Popen(command, env=environment, pass_fds=[handle], stdin=subprocess.DEVNULL)
        return name

    def fork(self, task: dict, handles: list[int]) -> int:
        """Returns the new process's id; its output, errors and exit code go to these handles."""
        socket.send_fds(self.socket, [json.dumps(task).encode()], handles)
        return int(self.socket.recv(20))


@cache
def _server() -> _Server:
    return _Server()


def serve_all_below() -> None:
    """Start the server now, for this process and those that it starts; otherwise each would start its own."""
    os.environ[PLACE] = _server().place


# ---------------------------------------------------------------- the server itself


def serve(handle: int) -> "str | CodeType":
    """Fork for every task that arrives. Returns in the forked process alone, with the code to run there."""
    for name in LOADED:
        __import__(name)
    os.fsync = lambda handle: None  # as in tests/conftest.py
    gc.freeze()  # no garbage collection touches the shared memory

    listening = socket.socket(fileno=handle)
    clients: dict[int, socket.socket] = {}  # the first is the test's process
    alive: dict[int, tuple[int, int]] = {}  # a process's handle → its id, and the handle that is told its end
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in alive:
                poll.unregister(ready)
                _tell_end(ready, *alive.pop(ready))
                continue

            if ready == listening.fileno():
                client, _ = listening.accept()
                clients[client.fileno()] = client
                poll.register(client, select.POLLIN)
                continue

            message, handles, _, _ = socket.recv_fds(clients[ready], 1 << 20, 3)
            if not message:
                if ready == next(iter(clients)):
                    os._exit(0)
                poll.unregister(ready)
                clients.pop(ready).close()
                continue

            out, err, end = handles
            number = os.fork()
            if number == 0:
                ours = [listening.detach(), *(client.detach() for client in clients.values())]
                for other in (*ours, end, *alive, *(told for _, told in alive.values())):
                    os.close(other)
                return _begin(json.loads(message), out, err)
            os.close(out)
            os.close(err)
            watched = os.pidfd_open(number)
            alive[watched] = number, end
            poll.register(watched, select.POLLIN)
            clients[ready].send(str(number).encode())


def _tell_end(watched: int, number: int, told: int) -> None:
    os.close(watched)
    _, status = os.waitpid(number, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(told)


def _begin(task: dict, out: int, err: int) -> "str | CodeType":
    """Become the program: its output, folder, environment, arguments and main module."""
    if task["session"]:
        os.setsid()
    take_over({1: out, 2: err}, task["environment"])
    os.chdir(task["cwd"])

    main = sys.modules["__main__"].__dict__
    main.pop("forked")
    if not task["script"]:
        sys.argv = ["-c", *task["words"]]
        return task["program"]
    sys.argv = [task["program"], *task["words"]]
    sys.path[0] = str(Path(task["program"]).parent)
    main["__file__"] = task["program"]
    return compile(Path(task["program"]).read_text(encoding="utf-8"), task["program"], "exec")


def take_over(handles: dict[int, int], environment: dict[str, str]) -> None:
    """Use these handles and this environment in place of those that the process was forked with.

    handles: keyed by the number, 0 to 2, that each becomes.
    """
    for place, handle in handles.items():
        os.dup2(handle, place)
    for handle in set(handles.values()):
        os.close(handle)
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)


def run_to_the_end(code: "str | CodeType") -> NoReturn:
    """Run it as the main module's code and end as an interpreter does, but without tearing down modules (0.3 s)."""
    status: object = 0
    try:
        exec(code, sys.modules["__main__"].__dict__)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # waits for threads that are no daemons
    leave(status & 0xFF)
