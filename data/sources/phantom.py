"""Source `phantom`: synthetic radiographs, drawn if there are none, and read as the MIMIC-CXR-JPG tree they are."""

import json
from pathlib import Path

import pandas as pd

from data.environment import usable_cores
from data.errors import UserError
from data.phantom import write_tree
from data.settings import DataSettings
from data.sources import mimic_cxr


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """The drawing in `root`, made now where there is none.

    Raises UserError if `root` holds anything but a drawing of these settings.
    """
    wanted = {"images": settings.phantom.images, "seed": settings.phantom.seed}
    notes: list[str] = []
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        _draw(root, wanted, settings.workers or usable_cores())
        notes.append(f"drew {wanted['images']:,} phantom radiographs into {root}")

    found = _record(root)
    if found != wanted:
        held = f"a phantom of {_phrase(found)}" if found else "no phantom.json"
        raise UserError(
            f"{root}: found {held}, expected a phantom of {_phrase(wanted)}; choose another data.root or delete it"
        )
    table, counts = mimic_cxr.read(settings, root)
    return table, notes + counts


def _draw(root: Path, wanted: dict[str, int], workers: int) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_tree(root, wanted["images"], wanted["seed"], workers)
    except OSError:  # another process drew it meanwhile
        if _record(root) is None:
            raise


def _record(root: Path) -> dict[str, int] | None:
    try:
        return json.loads((root / "phantom.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _phrase(record: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items())
