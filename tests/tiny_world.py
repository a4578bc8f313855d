"""A tiny world the command tests share: 60 radiograph-like squares, a pretraining and a classifier of it."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

SIZE = 32
MODEL = {
    "patch_size": 16,
    "width": 24,
    "depth": 1,
    "heads": 3,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
# as on a command line: the smallest runs that go all the way
TINY = [
    "device=cpu",
    f"data.image_size={SIZE}",
    "data.workers=1",
    *(f"model.{name}={size}" for name, size in MODEL.items()),
    *("pretrain.epochs=1", "pretrain.batch_size=16", "pretrain.optimizer.warmup_epochs=0"),
    *("finetune.epochs=1", "finetune.batch_size=8", "finetune.warmup_epochs=0"),
    "evaluate.replicates=100",
]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def call(main: Callable, *argv: object) -> Outcome:
    """Run a command's `main` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    return Outcome(stop.value.code, out.getvalue(), err.getvalue())


def succeed(main: Callable, *argv: object) -> str:
    """Run a command that must succeed; returns what it printed."""
    outcome = call(main, *argv)
    assert outcome.code == 0, outcome.err
    return outcome.out


@dataclass(frozen=True)
class World:
    """A folder with a data set, its config and runs, all below `root`."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def config(self) -> Path:
        return self.root / "tiny.yaml"

    @property
    def pretrained(self) -> Path:
        return self.root / "runs/mae/last.pt"

    @property
    def classifier(self) -> Path:
        return self.root / "runs/mae-full"


def radiograph(abnormal: bool, rng: np.random.Generator, size: int = 40) -> np.ndarray:
    """Noise (h w) uint8 with a brighter square where something is wrong."""
    image = rng.normal(110, 25, (size, size))
    if abnormal:
        image[5:20, 5:20] += 60
    return image.clip(0, 255).astype(np.uint8)


def write_table(root: Path, count: int = 60, seed: int = 0) -> pd.DataFrame:
    """PNG files and `manifest.csv` below root: two images a patient, 40 train, 10 validate, 10 test."""
    rng, rows = np.random.default_rng(seed), []
    root.mkdir(parents=True)
    for number in range(count):
        abnormal = number % 5 < 2
        Image.fromarray(radiograph(abnormal, rng)).save(root / f"{number:03}.png")
        split = ("train", "train", "train", "train", "validate", "test")[number // 2 % 6]
        rows.append(
            {"path": f"{number:03}.png", "label": int(abnormal), "patient_id": f"p{number // 2}", "split": split}
        )
    table = pd.DataFrame(rows)
    table.to_csv(root / "manifest.csv", index=False)
    return table


def make_world(root: Path) -> World:
    """The data set and a config of it, with nothing trained."""
    world = World(root)
    write_table(world.images)
    values = "\n".join(f"  {name}: {size}" for name, size in MODEL.items())
    world.config.write_text(f"""
run: {root}/runs/mae
device: cpu
data: {{source: table, root: {world.images}, image_size: {SIZE}, store: {root}/stores, workers: 1}}
model:
{values}
pretrain: {{epochs: 1, batch_size: 16, optimizer: {{warmup_epochs: 0}}}}
finetune: {{epochs: 1, batch_size: 8, warmup_epochs: 0}}
evaluate: {{replicates: 100}}
""")
    return world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A pretrained and fine-tuned world; tests read it and write elsewhere."""
    from classify.cli import finetune
    from mae.cli import pretrain

    world = make_world(tmp_path_factory.mktemp("world"))
    succeed(pretrain, "--config", world.config)
    succeed(finetune, "--checkpoint", world.pretrained)
    return world
