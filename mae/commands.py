"""All commands by name, and what looks first whether `data`, `mae` and `classify` are this project's.

People name their own files by these words. A `data.py` beside a notebook or in PYTHONPATH hides our package, and then
whatever imports it fails far from the cause. So nothing of ours is imported here by name before it was looked for,
and the file in the way is named.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # where all three lie
PACKAGES = ("data", "mae", "classify")

# in which module the function of each command's name stands
COMMANDS = {
    "prepare": "data.cli",
    "pretrain": "mae.cli",
    "reconstruct": "mae.cli",
    "finetune": "classify.cli",
    "evaluate": "classify.cli",
    "compare": "classify.cli",
    "report": "classify.cli",
    "predict": "classify.cli",
    "embed": "classify.cli",
    "export": "classify.cli",
}


def __getattr__(name: str) -> Callable[..., None]:  # PEP 562: console scripts ask for mae.commands:pretrain
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_run, name)


def _run(name: str, argv: list[str] | None = None) -> None:
    getattr(import_module(COMMANDS[name]), name)(argv)


def check_packages() -> None:
    """Asked when `mae` is imported: ImportError where another's file hides one of our packages.

    A command, which imports `mae` before all else, ends with that line and exit code 2.
    """
    try:
        expect_own_packages()
    except ImportError as error:
        if not Path(sys.argv[0]).name.startswith("mae-"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def expect_own_packages() -> None:
    """ImportError naming the file that Python would import for one of our packages, where it is not ours."""
    for name in PACKAGES:
        found = _found(name)

        # a mere folder of that name goes before a package that is installed as editable, but not before one in sys.path
        if _is_no_code(found) and name not in sys.modules and str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))
            found = _found(name)
        if found is None or Path(found.origin or "").resolve() != ROOT / name / "__init__.py":
            raise ImportError(
                f"{_place(found, name)}: found a file that hides this project's package {name}, expected "
                f"{ROOT / name}; rename it, or work where Python does not find it (another folder, PYTHONPATH without "
                "this one)",
                name=name,
            )


def _found(name: str) -> ModuleSpec | None:
    """What Python would import, or has imported, by this name; nothing is imported."""
    try:
        return find_spec(name)
    except ValueError:  # a module that somebody made by hand
        return None


def _is_no_code(found: ModuleSpec | None) -> bool:
    return found is None or found.origin is None


def _place(found: ModuleSpec | None, name: str) -> str:
    """The file in the way, in one line."""
    if found is None:
        return f"sys.modules[{name!r}]"
    place = found.origin or next(iter(found.submodule_search_locations or []), name)
    return place if place.isprintable() else ascii(place)
