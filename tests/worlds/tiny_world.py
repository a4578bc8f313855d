"""The tiny world that tests share: 60 radiograph-like squares, settings for a small model, and runs made of both.

In this process a test takes `tiny_config`; on a command line, `TINY` or the config file of a `World`.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from classify.settings import ClassifyConfig
from data.config import make_config

if TYPE_CHECKING:  # torch is imported by those who need it
    from data.loader import Data

SIDE = 40  # of a file's image, in pixels
MODEL = {
    "patch_size": 4,
    "width": 12,
    "depth": 2,
    "heads": 3,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
SETTINGS = {
    "device": "cpu",
    "threads": 1,
    "product": "onednn",  # only its own tests measure which product is faster
    "data.image_size": 12,
    "data.workers": 1,
    **{f"model.{name}": size for name, size in MODEL.items()},
    "compare.seeds": [0],
}
ONE_SEED = "compare:\n  seeds: [0]\n"  # how a config file says so
# Long enough to learn something: 8 updates an epoch in stage one, 5 in stage two, where 5 images are left over.
FOUR_EPOCHS = {
    "pretrain.epochs": 4,
    "pretrain.batch_size": 5,
    "pretrain.optimizer.base_lr": 0.05,
    "pretrain.optimizer.warmup_epochs": 0.5,
    "pretrain.panel_images": 0,
    "finetune.epochs": 4,
    "finetune.batch_size": 7,
    "finetune.optimizer.warmup_epochs": 0.5,
}
# The shortest runs that go all the way.
ONE_EPOCH = {
    "pretrain.epochs": 1,
    "pretrain.batch_size": 16,
    "pretrain.optimizer.warmup_epochs": 0,
    "finetune.epochs": 1,
    "finetune.batch_size": 8,
    "finetune.optimizer.warmup_epochs": 0,
    "evaluate.split": "test",
}
TINY = [f"{key}={value}" for key, value in (SETTINGS | ONE_EPOCH).items()]  # as on a command line


# ---------------------------------------------------------------- images and their table


def radiograph(abnormal: bool, rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Noise (h w) uint8 with a brighter square where something is wrong."""
    image = rng.normal(110, 25, (side, side))
    if abnormal:
        image[5:20, 5:20] += 60
    return image.clip(0, 255).astype(np.uint8)


def write_table(root: Path, count: int = 60, seed: int = 0) -> pd.DataFrame:
    """PNG files and `manifest.csv` below root, two images a patient: of 60 images 40 train, 10 validate and 10 test."""
    rows = []
    root.mkdir(parents=True)
    for number, picture in enumerate(_pictures(count, seed)):
        (root / f"{number:04}.png").write_bytes(picture)
        split = ("train", "train", "train", "train", "validate", "test")[number // 2 % 6]
        row = {"path": f"{number:04}.png", "label": _label(number), "patient_id": f"p{number // 2}", "split": split}
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(root / "manifest.csv", index=False)
    return table


def _label(number: int) -> int:
    return int(number % 5 < 2)


@cache  # drawn and packed once: this takes longest in making a table
def _pictures(count: int, seed: int) -> list[bytes]:
    """The PNG files of a table."""
    rng, files = np.random.default_rng(seed), []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(radiograph(bool(_label(number)), rng)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def other_split(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the validation images for testing, and the other way round."""
    return table.assign(split=table["split"].replace({"test": "validate", "validate": "test"}))


# ---------------------------------------------------------------- configs


def places(root: Path, run: str) -> dict[str, str]:
    """The settings that say where everything lies below `root`."""
    return {
        "run": f"{root}/{run}",
        "data.source": "table",
        "data.root": f"{root}/images",
        "data.store": f"{root}/stores",
    }


def tiny_config(root: Path, **changed) -> ClassifyConfig:
    """A config of the images below `root`, drawn if missing; `finetune__mode="linear"` is a dotted key."""
    if not (root / "images").exists():
        write_table(root / "images")
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    return make_config({}, "tests", SETTINGS | FOUR_EPOCHS | places(root, "mae") | changed)


def write_config(path: Path, settings: dict[str, object]) -> Path:
    """Dotted settings as YAML, each section in a line."""
    tree: dict = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    path.write_text(yaml.safe_dump(tree, default_flow_style=None, sort_keys=False, width=1000))
    return path


# ---------------------------------------------------------------- commands


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


def files(root: Path) -> dict[Path, tuple[int, int]]:
    """Every file with time and size, but no store's lock, which every reader opens."""
    found = (path for path in root.rglob("*") if path.is_file() and path.name != "lock")
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def mistake(main: Callable, *argv: object, keep: Path) -> str:
    """Run a command that must refuse in one line and leave all files below `keep` as they are."""
    before = files(keep)
    outcome = call(main, *argv)
    assert outcome.code == 2
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in outcome.err + outcome.out
    after = files(keep)
    assert {path: after.get(path) for path in before} == before
    return line


# ---------------------------------------------------------------- a world of them


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

    @property
    def data(self) -> list[str]:
        """What a command must be told about a run copied to another folder, where its own paths do not count."""
        return [f"data.root={self.images}", f"data.store={self.root}/stores"]


def make_world(root: Path) -> World:
    """The data set and a config of it, with nothing trained."""
    world = World(root)
    write_table(world.images)
    write_config(world.config, places(root, "runs/mae") | SETTINGS | ONE_EPOCH)
    return world


def edit_table(world: World, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
    """Write a changed copy of the world's CSV beside it; returns the override that reads it."""
    table = pd.read_csv(world.images / "manifest.csv")
    change(table).to_csv(world.images / f"{name}.csv", index=False)
    return f"data.table={name}.csv"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A pretrained and fine-tuned world; tests read it and write elsewhere."""
    from classify.cli import finetune
    from mae.cli import pretrain

    world = make_world(tmp_path_factory.mktemp("world"))
    succeed(pretrain, "--config", world.config)
    succeed(finetune, "--checkpoint", world.pretrained)
    return world


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the configs, images and runs of a module's tests."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def opened(place: Path) -> "Data":
    """The images of `place`, prepared."""
    from data.loader import open_data

    return open_data(tiny_config(place).data)
