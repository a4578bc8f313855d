"""Where numbers go while a run runs: metrics.jsonl, TensorBoard, and one line on the console."""

import json
import sys
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mae.engine.checkpoint import replace_text


class Tracker:
    """Writes scalars below a run folder; on resume, what was logged after `step` is dropped."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        self._drop_after(step)
        self.board = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
        replace_text(self.path, "".join(f"{line}\n" for line in kept))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # the line a kill tore
        return float("inf")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first; [] where there is none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Progress:
    """A progress bar on a terminal; elsewhere a line per epoch."""

    def __init__(self, name: str, images: int, done: int):
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=images, initial=done, desc=name, unit="image", unit_scale=True, dynamic_ncols=True,
            disable=not self.terminal,
        )  # fmt: skip

    def advance(self, images: int) -> None:
        self.bar.update(images)

    def show(self, **numbers: Any) -> None:
        self.bar.set_postfix(numbers)

    def line(self, text: str) -> None:
        if not self.terminal:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()
