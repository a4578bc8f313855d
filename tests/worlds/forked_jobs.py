"""`mae-compare --jobs` in a forked process that forks its own processes: they begin with torch imported too.

They run the same code that a user's grid gives its interpreters.
"""

import atexit
import os
import signal
import subprocess
import threading
from types import SimpleNamespace
from typing import IO, ClassVar, NoReturn

import forked

from data.signals import SIGNALS

PROGRAM = "import forked_jobs; forked_jobs.compare()"


def compare() -> None:
    import classify.cli
    import classify.jobs

    classify.jobs.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": Job})  # type: ignore[assignment]
    classify.cli.compare()


class Job:
    """Replaces `subprocess.Popen` in `classify.jobs`: a process with its pipes, killed and waited for."""

    started: ClassVar["list[Job]"] = []

    def __init__(self, command: list[str], env: dict[str, str], **pipes: int):
        """command: an interpreter, options and code; pipes: stdin and one for all output, as `classify.jobs` wants."""
        theirs, ours = os.pipe(), os.pipe()
        self.stdin: IO[bytes] = os.fdopen(theirs[1], "wb")
        self.stdout: IO[bytes] = os.fdopen(ours[0], "rb")
        self.returncode: int | None = None
        self.waiting = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(command, env, theirs[0], ours[1])
        os.close(theirs[0])
        os.close(ours[1])
        Job.started.append(self)

    def _become(self, command: list[str], env: dict[str, str], stdin: int, stdout: int) -> NoReturn:
        """Run the command's code to its end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for other in [*Job.started, self]:  # a job would not see its stdin end while this process holds the pipe
            other.stdin.close()
        forked.take_over({0: stdin, 1: stdout, 2: stdout}, env)
        atexit._clear()  # drop the exit handlers of the grid's own process
        forked.run_to_the_end(command[-1])

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, however long that takes."""
        with self.waiting:
            if self.returncode is None:
                _, status = os.waitpid(self.pid, 0)
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
