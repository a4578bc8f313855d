"""Where this checkout lies, the data shared beside it, and the environment of processes that tests start."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
WORLDS = Path(__file__).parent
SHARED = ROOT.parent / "shared/data"
ORIGINALS = SHARED / "kermany_originals"  # real JPEG radiographs


def as_module(path: str) -> ModuleType:
    """A script of this checkout, such as docs/settings_page.py, as a module."""
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_checkout(**more: str) -> dict[str, str]:
    """An environment in which a child process imports this checkout's packages, and what tests share."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(WORLDS)])} | more
