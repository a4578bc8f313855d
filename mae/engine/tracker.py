"""Where a run's numbers go while it trains: metrics.jsonl, TensorBoard, and one line on the console."""

import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.writing import write_text
from mae.engine.curves import described, draw_point

START = b'{"step": '  # of a row


class Tracker:
    """Writes scalars below a run folder; on resume, what was logged after `step` is dropped.

    kind: of the run's checkpoints, by which the board tells losses apart.
    enabled: false, as on all ranks but the first, writes nothing; `board` is then None.
    """

    def __init__(self, folder: Path, step: int, enabled: bool = True, kind: str = ""):
        self.path = folder / "metrics.jsonl"
        self.kind = kind
        self.enabled = enabled
        self.complaints: set[str] = set()
        self.board: SummaryWriter | None = None
        if not enabled:
            return

        folder.mkdir(parents=True, exist_ok=True)
        self._drop_after(step)
        self.begin_again(step)

    def begin_again(self, step: int) -> None:
        """Open the board if it is not open, or no longer; points after `step` are no longer shown."""
        if not self.enabled or self.board is not None:
            return
        try:
            self.board = SummaryWriter(self.path.parent, purge_step=step + 1)  # also after a kill before any was saved
        except OSError as error:
            self._complain(f"{self.path.parent}: not shown in TensorBoard ({error.strerror or error})")

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [row for row in read_metrics(self.path.parent) if row["step"] <= step]
        write_text(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A row of metrics.jsonl, and a point of each curve on the board; values that are not finite are left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.note(step, **finite)
        self._curves(step, finite)

    def best(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of best.pt, on the board alone: the HParams tab shows them beside the last ones."""
        self._curves(step, {f"best/{name}": value for name, value in metrics.items()})

    def _curves(self, step: int, values: dict[str, float]) -> None:
        def draw(board: SummaryWriter) -> None:
            for name, value in values.items():
                tag, about = described(name, self.kind)
                draw_point(board, tag, about, value, step)

        self.draw(draw)

    def draw(self, picture: Callable[[SummaryWriter], object]) -> None:
        """Let `picture` write to the board, if there is one. Any failure in it is only a warning: the run goes on."""
        if self.board is None:
            return
        try:
            picture(self.board)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            self._complain(f"{self.path.parent}: not shown in TensorBoard ({reason.splitlines()[0]})")
            if isinstance(error, OSError):  # the board's thread has ended: it writes nothing any more
                board, self.board = self.board, None
                with suppress(Exception):
                    board.close()

    def note(self, step: int, **values: Any) -> None:
        """A row of metrics.jsonl alone."""
        if not self.enabled:
            return

        # opened anew for each row, so that a kill loses only the last one
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:  # a full disk must not end a run that goes well
            self._complain(f"{self.path}: {error.strerror}; rows are lost")

    def _complain(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self.complaints:
            tqdm.write(f"warning: {text}", file=sys.stderr)
        self.complaints.add(text)

    def close(self) -> None:
        self.draw(SummaryWriter.close)


def read_metrics(folder: Path, warn: bool = True) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first; [] where there is none.

    Lines that are no row of ours are left out, with a warning. A kill or a full disk may tear a row; the next row then
    follows the torn piece on the same line. warn: false if they have been read before.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []

    rows = []
    strange = 0
    for line in path.read_bytes().split(b"\n"):
        row = _row(line)
        if row is None and START in line:
            row = _row(line[line.rindex(START) :])
            strange += 1
        elif row is None and line.strip():
            strange += 1
        if row is not None:
            rows.append(row)
    if strange and warn:
        print(f"warning: {path}: found {strange} torn or foreign rows, expected none; left out", file=sys.stderr)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """A row, if it is one as `Tracker` writes them: a step, perhaps an epoch, and numbers whose names have a slash."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None

    # values that are not finite are left out, as in `Tracker.scalars`
    measured = {name: value for name, value in row.items() if "/" in name or name == "epoch"}
    if any(type(value) not in (int, float) for value in measured.values()):
        return None
    if any(type(value) is int and abs(value) >= 2**63 for value in (row["step"], *measured.values())):
        return None
    return {name: value for name, value in row.items() if name not in measured or math.isfinite(value)}


class Progress:
    """A progress bar on a terminal; elsewhere a line per epoch. enabled: false says nothing at all."""

    def __init__(self, name: str, images: int, done: int, enabled: bool = True):
        self.enabled = enabled
        self.terminal = enabled and sys.stderr.isatty()
        self.bar = tqdm(
            desc=name,
            total=images,
            initial=done,
            unit="image",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.terminal,
        )

    def advance(self, images: int) -> None:
        self.bar.update(images)

    def show(self, **numbers: Any) -> None:
        self.bar.set_postfix(numbers)

    def line(self, text: str) -> None:
        """Print what the bar would show, where there is no bar."""
        if not self.terminal:
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line in any case."""
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
