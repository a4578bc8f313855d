"""Where console scripts begin: by a name that nobody's own file has. A user's `mae.py` would hide `mae.commands`."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_COMMANDS = Path(__file__).resolve().parent / "mae/commands.py"


def __getattr__(name: str) -> Any:  # PEP 562
    spec = spec_from_file_location("mae_cxr_commands", _COMMANDS)
    assert spec is not None and spec.loader is not None
    commands = module_from_spec(spec)
    spec.loader.exec_module(commands)
    return getattr(commands, name)
