"""Finds a comparison's folder without importing the code that reads it, and identifies the pictures in it."""

import hashlib
from pathlib import Path

from data.config import expand
from data.errors import UserError


def comparison_file(folder: str | Path) -> Path:
    """The comparison.json of a folder; UserError where there is none."""
    folder = Path(expand(str(folder), "command line"))
    path = folder / "comparison.json"
    if not path.is_file():
        found = "no comparison.json" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: found {found}, expected the folder of a mae-compare that has ended")
    return path


def picture_digest(content: bytes) -> str:
    """A digest that identifies a picture as the one that was drawn."""
    return hashlib.sha256(content).hexdigest()[:16]
