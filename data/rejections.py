"""What is said of files that cannot be read: how many, why, and what may help; the most frequent reason first."""

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from data.errors import printable
from data.refusal import without_path
from data.writing import read_csv

MOST = 3  # reasons that are told
LONGEST = 160  # characters of one
GDCM = "GDCM may help: pip install 'mae-cxr[dicom]', then mae-prepare again"
ANOTHER = "a further plugin may help (rejected.csv names them), then mae-prepare again"


def read_rejections(folder: Path) -> list[dict[str, str]]:
    """The lines of a store's `rejected.csv`: image_id, path, reason; the plugins then, if another one would help."""
    return list(read_csv(folder / "rejected.csv"))


def rejection_lines(folder: Path, images: int, plugins: str) -> list[str]:
    """What to say of a finished store of so many images; nothing if all could be read. plugins: those of today."""
    lines = read_rejections(folder)
    if not lines:
        return []
    said = [f"{len(lines):,} unreadable files are listed in {folder / 'rejected.csv'}"]

    # reasons that differ in numbers alone are one
    kinds = Counter(_kind(line, plugins) for line in lines)
    examples = {_kind(line, plugins): _why(line, plugins) for line in reversed(lines)}
    for kind, count in kinds.most_common(MOST):
        said.append(f"{count:,} of {images:,} unreadable, {examples[kind]}")
    others = sum(count for _, count in kinds.most_common()[MOST:])
    if others:
        said[-1] += f"; {others:,} more for other reasons"
    return said


def waiting_for_plugins(lines: Collection[dict[str, str]], plugins: str) -> list[str]:
    """The paths of rejected files that lacked a plugin, if the plugins have changed since."""
    return [line["path"] for line in lines if line.get("plugins") and line["plugins"] != plugins]


def _kind(line: dict[str, str], plugins: str) -> str:
    return re.sub(r"\d+", "0", _why(line, plugins))


def _why(line: dict[str, str], plugins: str) -> str:
    """The reason without the path before it; for a missing plugin, how to get one."""
    if line.get("plugins"):
        return ANOTHER if "python-gdcm" in plugins or "gdcm" not in line["reason"] else GDCM
    return printable(without_path(line["reason"], line["path"]), LONGEST)
