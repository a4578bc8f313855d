"""Numbers that launchers such as torchrun write into the environment."""

import os

from data.errors import UserError


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
