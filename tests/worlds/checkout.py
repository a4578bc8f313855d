"""Where this checkout lies, the data shared beside it, and the environment of processes that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORLDS = Path(__file__).parent
SHARED = ROOT.parent / "shared/data"
ORIGINALS = SHARED / "kermany_originals"  # real JPEG radiographs


def in_checkout(**more: str) -> dict[str, str]:
    """An environment in which a child process imports this checkout's packages, and what tests share."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(WORLDS)])} | more
