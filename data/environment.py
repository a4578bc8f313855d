"""What launchers and schedulers give a process: numbers in its environment, and cores."""

import os

from data.errors import UserError


def usable_cores() -> int:
    """The cores that this process may use; all that the machine has, if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ranks_here() -> int:
    """How many ranks share this machine, as torchrun says."""
    return max(variable("LOCAL_WORLD_SIZE", 1), 1)


def variable(name: str, otherwise: int) -> int:
    """A number of the environment; UserError where it is none."""
    text = os.environ.get(name, "")
    if not text.strip():
        return otherwise
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment: found {name}={text!r}, expected a whole number") from None
