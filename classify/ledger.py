"""Who has looked at test labels: a line for each time, in the run's folder and beside the data's stores.

A test split that is looked at again and again becomes one more validation split. So every opening is kept and counted
over all runs on the same data: the same test images, whatever their labels.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.config import expand
from data.errors import printable
from data.locks import locked
from data.settings import DataSettings
from data.writing import append_line

LEDGER = "test_openings.jsonl"
TEXTS = ("time", "command", "run", "checkpoint", "split")  # what every line tells
LONGEST = 4096  # letters of a text
LARGEST = 2**26  # bytes that are read from the end of a ledger


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@dataclass(frozen=True)
class Opening:
    """A look at the labels of a test split."""

    run: str  # folder
    checkpoint: str  # digest of the weights
    split: str  # fingerprint of the test images
    n: int  # cases
    read_back: bool  # existing predictions that the ledger did not know, such as an earlier version's
    time: str = field(default_factory=_now)
    command: str = field(default_factory=_command)

    def of_same_weights(self, line: dict[str, Any]) -> bool:
        """Whether a ledger's line tells of the same weights on the same images."""
        return (line["checkpoint"], line["split"]) == (self.checkpoint, self.split)


def data_ledger(settings: DataSettings) -> Path:
    """The folder that keeps the ledger of a data set: that of its stores, or where they would be."""
    store = settings.store
    if store is False:
        store = DataSettings.model_fields["store"].default
    return Path(expand(store, "data.store"))


def record(opening: Opening, run: Path, beside_data: Path) -> None:
    """Enter an opening into both ledgers; one that reads back is entered only if the ledger lacks these weights.

    If the data's folder cannot be written to, a note says so, and the opening stands in the run's own ledger alone.
    """
    _enter(opening, run)  # which nobody else evaluates at the moment
    try:
        beside_data.mkdir(parents=True, exist_ok=True)
        if _is_known(opening, beside_data):
            return
        with locked(beside_data, f"waiting for another command that writes {beside_data / LEDGER}", wait=True):
            _enter(opening, beside_data)
    except OSError as error:
        reason = error.strerror or str(error)
        print(
            f"note: {beside_data / LEDGER}: not written ({reason}), so this opening of test stands in {run / LEDGER} "
            "alone",
            file=sys.stderr,
        )


def _is_known(opening: Opening, folder: Path) -> bool:
    """Whether it only reads predictions back that the ledger already knows."""
    return opening.read_back and any(opening.of_same_weights(line) for line in openings(folder))


def _enter(opening: Opening, folder: Path) -> None:
    if _is_known(opening, folder):
        return
    times = 1 + len(openings(folder, opening.split))
    append_line(folder / LEDGER, json.dumps(asdict(opening) | {"times": times}))


def openings(folder: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """The openings of test that a folder's ledger tells of, oldest first; [] where it has none.

    Only those of one test split if its fingerprint is given. Lines that are not ours are skipped.
    """
    path = Path(folder) / LEDGER
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - LARGEST, 0))
            text = file.read(LARGEST)
    except OSError:
        return []

    found = [line for line in map(_line, text.split(b"\n")) if line is not None]
    return [line for line in found if split in (None, line["split"])]


def _line(text: bytes) -> dict[str, Any] | None:
    """What a line tells, if it is one of ours, in a form that cannot harm a terminal."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in TEXTS):
        return None
    if any(type(line.get(name)) is not int for name in ("n", "times")):
        return None
    numbers = {name: line[name] for name in ("n", "times")}
    return {
        **{name: printable(line[name], LONGEST) for name in TEXTS},
        **numbers,
        "read_back": line.get("read_back") is True,
    }


def opened_text(lines: Sequence[dict[str, Any]]) -> str:
    """How often test was opened, by a ledger's lines on one split: to be shown beside every result on test."""
    checkpoints = len({line["checkpoint"] for line in lines})
    times = "once" if len(lines) == 1 else f"{len(lines):,} times"
    by = "1 checkpoint" if checkpoints == 1 else f"{checkpoints:,} checkpoints"
    return f"test opened {times} on this data by {by}"
