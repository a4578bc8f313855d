"""Which files of a data set are on disk: looked for once, by many threads, and remembered beside the stores."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError, as_withheld_here, quoted
from data.refusal import may_pass, raise_if_it_may_pass, trouble
from data.writing import writing

THREADS = 16  # a network file system answers many questions at once
CHUNK = 2048  # files a thread looks for at a time


@dataclass(frozen=True, eq=False)
class Look:
    """Which files of one source were found."""

    root: Path
    key: str  # a hash of the root and the paths asked for
    there: np.ndarray  # (n) bool, in the order asked
    recalled: bool = False

    def require_some(self) -> None:
        """UserError where every file is missing."""
        if len(self.there) and not self.there.any():
            raise UserError(
                f"{self.root}: found none of the {len(self.there):,} images that its CSVs list, expected some"
            )

    def remember(self, folder: Path) -> None:
        """Keep this in `folder` for later commands."""
        if self.recalled or not self.there.any():
            return
        path = _place(folder, self.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path, shared=True) as file:
            np.save(file, self.there)


def look_for(paths: Sequence[str], root: Path, memory: Path | None) -> Look:
    """Which of these files exist: as remembered in the folder `memory`, else by asking the disk.

    What is remembered stays the same for the runs that depend on it, even if a download goes on meanwhile.
    """
    asked = "\n".join([str(root.resolve()), *paths])
    key = hashlib.sha256(asked.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    if memory is not None:
        there = _recall(_place(memory, key), len(paths))
        if there is not None:
            return Look(root, key, there, recalled=True)
    return Look(root, key, exist(paths))


def _place(folder: Path, key: str) -> Path:
    return folder / "on-disk" / f"{key}.npy"


def _recall(path: Path, count: int) -> np.ndarray | None:
    try:
        there = np.load(path)
    except (OSError, ValueError, EOFError) as error:  # missing or damaged: the disk is asked
        raise_if_it_may_pass(error)  # a run that depends on what was found must not use anything else
        return None
    if there.dtype != bool or there.shape != (count,):
        return None
    return there


def exist(paths: Sequence[str]) -> np.ndarray:
    """(n) bool: which files are there, as the disk says now."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    there: list[bool] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(as_withheld_here(_exist_here), chunks):
            there += found
    return np.array(there, bool)


def _exist_here(paths: Sequence[str]) -> list[bool]:
    return [is_there(path) for path in paths]


def is_there(path: str) -> bool:
    """Whether a file is there; UserError where the system cannot tell just now: it would be left out for good."""
    try:
        os.stat(path)  # noqa: PTH116 (Path objects take four times as long)
    except OSError as error:
        if may_pass(error):
            place = quoted(path, "a file that the tables list")
            raise UserError(
                f"{place}: found {trouble(error)}, expected to learn whether it is there; run again"
            ) from None
        return False
    except ValueError:  # no name for a file
        return False
    return True
