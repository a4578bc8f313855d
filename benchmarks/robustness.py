"""What a classifier's AUC becomes when its validation images come as others might send them: a table, and JSON.

    python benchmarks/robustness.py "MAE=runs/a-seed0,runs/a-seed1" "ResNet-18=runs/b-seed0" --json out.json

A model is one run, or several whose mean logit is its answer. Each fault of tone, place, size or file is applied to the
8-bit images as the models read them, alike for all. Nothing is chosen by it and no test image is read. It tells which
of two models that are equal on clean images suffers more from another scanner, viewer or resize.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import report
from sklearn.metrics import roc_auc_score

from classify.cases import splits_of
from classify.report.tables import markdown
from classify.trained import Trained, load_trained
from data.augment import DRAWS, augment
from data.config import expand
from data.errors import UserError
from data.loader import Loader, open_data
from data.settings import AugmentSettings

AT_ONCE = 64
Fault = Callable[[np.ndarray], np.ndarray]  # 8-bit images (n 1 h w) → the same with the fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=RUN,…", help="folders of mae-finetune on the same data")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    names = [word.partition("=")[0] for word in arguments.models]
    teams = [[load_trained(run) for run in word.partition("=")[2].split(",")] for word in arguments.models]
    images, labels = validation_of([trained for team in teams for trained in team])

    rows: list[dict[str, Any]] = []
    for fault, made in FAULTS.items():
        spoilt = made(images)
        aucs = {name: auc(team, spoilt, labels) for name, team in zip(names, teams, strict=True)}
        rows.append({"fault": fault, "auc": aucs})

    print(markdown([{"Fault": row["fault"], **{name: f"{row['auc'][name]:.3f}" for name in names}} for row in rows]))
    del arguments.models  # without the folders, which are private
    report(arguments.json, arguments, {"n": len(labels), "abnormal": int(labels.sum()), "rows": rows})


def validation_of(models: list[Trained]) -> tuple[np.ndarray, np.ndarray]:
    """The models' validation images (n 1 h w) and labels (n); UserError where these are not the same for all."""
    first = models[0].config.data
    of_all = expand(first.root, "data.root"), first.image_size
    for model in models:
        settings = model.config.data
        if (expand(settings.root, "data.root"), settings.image_size) != of_all:
            raise UserError(f"{model.place}: found other images than those of {models[0].place}, expected the same")
    data = open_data(first)
    table = splits_of(data, models[0].config).validate
    images = np.concatenate([batch.images.numpy() for batch in Loader(data, table, AT_ONCE).epoch()])
    return images, table["label"].to_numpy(dtype=int)


def auc(team: list[Trained], images: np.ndarray, labels: np.ndarray) -> float:
    logits = np.mean([trained.logits(images) for trained in team], axis=0)
    return float(roc_auc_score(labels, logits))


# ---------------------------------------------------------------- faults


def changed(settings: AugmentSettings, **draws: float) -> Fault:
    """An augmentation by the same draws for every image: 0 and 1 are its ends, 0.5 changes nothing."""
    places = {"ratio": 1, "shift": 3, "angle": 6, "contrast": 8, "brightness": 9, "gamma": 10, "blur": 14}
    row = torch.full((DRAWS,), 0.5)
    for name, draw in draws.items():
        row[places[name]] = draw

    def fault(images: np.ndarray) -> np.ndarray:
        return augment(torch.from_numpy(images), settings, row.expand(len(images), -1)).numpy()

    return fault


def only(**settings: Any) -> AugmentSettings:
    """An augmentation that changes nothing but this."""
    none = dict.fromkeys(("rotation", "translation", "flip", "brightness", "contrast", "gamma", "blur", "erase"), 0.0)
    return AugmentSettings(**{"crop_scale": (1.0, 1.0), "crop_ratio": 1.0, **none, **settings})


def resized(images: np.ndarray) -> np.ndarray:
    """Through half the size, by nearest neighbours, like a viewer's thumbnail."""
    height, width = images.shape[2:]
    return redrawn(images, lambda picture: picture.resize((width // 2, height // 2), Image.Resampling.NEAREST))


def compressed(images: np.ndarray) -> np.ndarray:
    """As a JPEG of low quality."""

    def through(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=20)
        return Image.open(file)

    return redrawn(images, through)


def redrawn(images: np.ndarray, draw: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    height, width = images.shape[2:]
    pictures = [draw(Image.fromarray(image[0])).resize((width, height), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures])[:, None]


FAULTS: dict[str, Fault] = {
    "none": lambda images: images,
    "darker, by gamma 1.5": changed(only(gamma=0.5), gamma=1),
    "lighter, by gamma 0.67": changed(only(gamma=0.33), gamma=0),
    "half of the contrast": changed(only(contrast=0.5), contrast=0),
    "half more contrast": changed(only(contrast=0.5), contrast=1),
    "15 % brighter": changed(only(brightness=0.15), brightness=1),
    "15 % darker": changed(only(brightness=0.15), brightness=0),
    "blurred by 1 pixel": changed(only(blur=1.0), blur=1),
    "80 % of the area": changed(only(crop_scale=(0.8, 0.8))),
    "125 % of the area": changed(only(crop_scale=(1.25, 1.25))),
    "a fifth wider": changed(only(crop_ratio=1.44), ratio=0),
    "a fifth taller": changed(only(crop_ratio=1.44), ratio=1),
    "moved by 8 %": changed(only(translation=0.08), shift=1),
    "turned by 8°": changed(only(rotation=8.0), angle=1),
    "through half the size": resized,
    "JPEG of quality 20": compressed,
    "noise of 5 %": lambda images: noisy(images, 0.05),
    "inverted": lambda images: 255 - images,
}


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 255 * deviation, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
