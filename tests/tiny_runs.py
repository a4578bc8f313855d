"""The smallest data set, config and runs that the tests of store and engine share."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data.config import Root, make_config

SETTINGS = {
    "device": "cpu",
    "threads": 1,
    "data.source": "table",
    "data.image_size": 12,
    "data.workers": 1,
    "model.patch_size": 4,
    "model.width": 12,
    "model.depth": 2,
    "model.heads": 3,
    "model.decoder_width": 8,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "pretrain.epochs": 4,
    "pretrain.batch_size": 5,
    "pretrain.optimizer.base_lr": 0.05,
    "pretrain.optimizer.warmup_epochs": 0.5,
    "pretrain.panel_images": 0,
    "finetune.epochs": 4,
    "finetune.batch_size": 7,
    "finetune.warmup_epochs": 0.5,
}


def write_table(root: Path, count: int = 60) -> pd.DataFrame:
    """PNG files and `manifest.csv` below root, two images a patient: of 60 40 train, 10 validate and 10 test."""
    rng, rows = np.random.default_rng(0), []
    root.mkdir(parents=True)
    for number in range(count):
        image = rng.integers(0, 200, (13, 17), dtype=np.uint8)
        image[2:7, 2:9] += 50 * (number % 3 == 0)
        Image.fromarray(image).save(root / f"{number:04}.png")
        split = ("train", "train", "train", "train", "validate", "test")[number // 2 % 6]
        row = {"path": f"{number:04}.png", "patient_id": f"p{number // 2}", "split": split}
        rows.append(row | {"label": int(number % 3 == 0)})
    table = pd.DataFrame(rows)
    table.to_csv(root / "manifest.csv", index=False)
    return table


def tiny_config(root: Path, **changed) -> Root:
    """A config of the images below `root`, drawn where there are none; `finetune__mode="linear"` is a dotted key."""
    if not (root / "images").exists():
        write_table(root / "images")
    places = {"run": str(root / "mae"), "data.root": str(root / "images"), "data.store": str(root / "stores")}
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    return make_config({}, "tests", SETTINGS | places | changed)
