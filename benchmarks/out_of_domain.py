"""How many images of other kinds a classifier calls unknown: a table for each run, and JSON with --json FILE.

    python benchmarks/out_of_domain.py RUN … --images NAME=PATH … --json docs/results/domain.json

Judged besides the named images (files, folders, CSVs of paths): the run's own test images, by which nothing was chosen;
its validation images inverted, turned, mirrored; drawn patterns; photographs that matplotlib ships. Labels are not
read. Each distance is judged alone, by its own limit, and then all together, as `domain` judges. Two other distances
that were tried instead are judged too.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from results import report

from classify.domain import (
    AT_ONCE,
    MOST,
    Domain,
    Spread,
    directions,
    grey_levels,
    learn_domain,
    limit,
    reconstruction_errors,
)
from classify.trained import Trained, load_trained
from data.images import fit_image
from data.inputs import find_inputs, read_inputs
from data.loader import Data, Loader, open_data
from data.settings import DataSettings

TURNED = 200  # validation images that are inverted, turned, mirrored
DRAWN = 60  # of each pattern
NEIGHBOURS = 10
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (features, images) → (n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of mae-finetune, whose data can be opened")
    parser.add_argument("--images", action="append", default=[], metavar="NAME=PATH", help="images of another kind")
    parser.add_argument("--most", type=int, default=300, help="images of each kind (default 300)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    tables = {}
    for run in arguments.runs:
        tables[Path(run).name] = judged(run, arguments.images, arguments.most)

    # without the folders, which are private
    arguments.runs = list(tables)
    arguments.images = [word.partition("=")[0] for word in arguments.images]
    report(arguments.json, arguments, {"runs": tables})


def judged(run: str, named: list[str], most: int) -> list[dict[str, Any]]:
    """A row for each kind of image: how many there are, and in percent how many each distance calls unknown."""
    trained = load_trained(run)
    data = open_data(trained.config.data)
    domain = domain_of(trained, data)

    known = stored(data, "train", MOST)
    held_out = stored(data, "validate", MOST)
    distances = distances_of(domain, trained, known)
    features = trained.features(held_out)
    limits = {name: limit(distance(features, held_out)) for name, distance in distances.items()}

    kinds = {"own validation images": held_out, "own test images": stored(data, "test", most)}
    kinds |= turned(held_out[:TURNED]) | drawn(trained.config.data) | photographs(trained.config.data)
    for word in named:
        name, _, path = word.partition("=")
        kinds[name] = read(path, trained.config.data, most)

    rows = []
    for kind, images in kinds.items():
        if len(images) == 0:
            continue
        features = trained.features(images)
        row: dict[str, Any] = {"images": kind, "n": len(images)}
        row["domain"] = share(domain.scores(features, images) > 1)
        for name, distance in distances.items():
            row[name] = share(distance(features, images) > limits[name])
        rows.append(row)
        print(Path(run).name, *row.values(), sep=" | ", flush=True)
    return rows


def share(flagged: np.ndarray) -> float:
    return round(100 * float(flagged.mean()), 1)


def domain_of(trained: Trained, data: Data) -> Domain:
    """The domain that the run stores; for a run of an earlier version it is learned here and not saved."""
    checkpoint = trained.checkpoint
    found = Domain.of(checkpoint, trained.device)
    if found is None:
        meta, state = learn_domain(checkpoint, data, trained.device, checkpoint.meta["pretrained_from"])
        checkpoint.meta["domain"] = meta
        checkpoint.state["domain"] = state
        found = Domain.of(checkpoint, trained.device)
    assert found is not None, "too few validation images"
    return found


def distances_of(domain: Domain, trained: Trained, known: np.ndarray) -> dict[str, Distance]:
    """The three distances that `domain` takes together, and two that were tried in place of the first."""
    distances: dict[str, Distance] = {
        "features": lambda features, images: domain.features.distances(directions(features)),
        "grey levels": lambda features, images: domain.grey_levels.distances(grey_levels(images)),
    }
    model = domain.pretraining
    if model is not None:
        ratio = domain.kept.mask_ratio
        distances["reconstruction"] = lambda features, images: reconstruction_errors(model, images, ratio)

    # with lengths, and by neighbours
    of_known = trained.features(known)
    with_lengths = Spread.of(of_known.astype(np.float64))
    unit = directions(of_known)
    distances["features of any length"] = lambda features, images: with_lengths.distances(features)
    distances["features by neighbours"] = lambda features, images: to_neighbour(unit, directions(features))
    return distances


def to_neighbour(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(n): the distance to the tenth nearest of the known (m d), as Sun et al. 2022 take it."""
    squares = 2 - 2 * asked @ known.T  # n m
    return np.sqrt(np.partition(squares, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1].clip(min=0))


# ---------------------------------------------------------------- images


def stored(data: Data, split: str, most: int) -> np.ndarray:
    """Up to `most` images (n 1 h w) of a split, drawn at random."""
    table = data.split(split)
    if len(table) > most:
        table = table.sample(most, random_state=0)
    return np.concatenate([batch.images.numpy() for batch in Loader(data, table, AT_ONCE).epoch()])


def read(path: str, settings: DataSettings, most: int) -> np.ndarray:
    """Up to `most` images from files, read as the run's own; unreadable ones are left out."""
    inputs = find_inputs([path], say=lambda line: None)
    if len(inputs) > most:
        places = np.random.default_rng(0).choice(len(inputs), most, replace=False)
        inputs = [inputs[place] for place in sorted(places)]
    parts = []
    for _, images, reasons in read_inputs(inputs, settings, workers=1):
        parts.append(images[[reason is None for reason in reasons]])
    return np.concatenate(parts)


def turned(images: np.ndarray) -> dict[str, np.ndarray]:
    """The same images (n 1 h w) as somebody might send them by mistake."""
    kinds = {
        "inverted": 255 - images,
        "upside down": images[..., ::-1, ::-1],
        "left and right exchanged": images[..., ::-1],
    }
    if images.shape[2] == images.shape[3]:
        kinds["on their side"] = np.rot90(images, axes=(2, 3))
    return {name: np.ascontiguousarray(kind) for name, kind in kinds.items()}


def drawn(settings: DataSettings) -> dict[str, np.ndarray]:
    """Patterns of no patient."""
    rng = np.random.default_rng(0)
    side = 256
    rows, columns = np.mgrid[0:side, 0:side] / side

    specks = (rng.random((DRAWN, side, side)) < 0.02) * 3
    ramps = [np.cos(turn) * columns + np.sin(turn) * rows for turn in np.linspace(0, 2 * np.pi, DRAWN)]
    boards = [(np.floor(columns * count) + np.floor(rows * count)) % 2 for count in np.linspace(2, 20, DRAWN)]
    clouds = [cloud(rng, side, slope) for slope in np.linspace(1, 2, DRAWN)]
    kinds = {
        "noise": list(rng.random((DRAWN, side, side)) * 255),
        "nearly black": list(specks),
        "nearly white": list(255 - specks),
        "ramps": [between(ramp) for ramp in ramps],
        "chessboards": [between(board) for board in boards],
        "clouds": [between(each) for each in clouds],
    }
    return {name: fitted(pictures, settings) for name, pictures in kinds.items()}


def cloud(rng: np.random.Generator, side: int, slope: float) -> np.ndarray:
    """Noise whose amplitudes fall with frequency, as those of natural images do."""
    frequency = np.fft.fftfreq(side)
    length = np.hypot(frequency[:, None], frequency[None])
    length[0, 0] = 1
    return np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / length**slope).real


def between(picture: np.ndarray) -> np.ndarray:
    """Grey levels from 0 to 255, its tails cut."""
    low, high = np.percentile(picture, (1, 99))
    return (picture - low) / (high - low) * 255


def photographs(settings: DataSettings) -> dict[str, np.ndarray]:
    """The photographs that matplotlib ships, and parts of them."""
    rng = np.random.default_rng(0)
    pictures = []
    for path in sorted(Path(matplotlib.get_data_path(), "sample_data").glob("*.[jp][pn]g")):
        whole = np.asarray(Image.open(path).convert("RGB").convert("L"))
        pictures.append(whole)
        for _ in range(12):
            side = int(min(whole.shape) * rng.uniform(0.4, 0.9))
            top = rng.integers(whole.shape[0] - side + 1)
            left = rng.integers(whole.shape[1] - side + 1)
            part = whole[top : top + side, left : left + side]
            if part.std() > 5:  # not an empty corner
                pictures.append(part)
    return {"photographs": fitted(pictures, settings)}


def fitted(pictures: list[np.ndarray], settings: DataSettings) -> np.ndarray:
    """Grey levels (h w) each → (n 1 h w) as the run reads images."""
    images = []
    for picture in pictures:
        levels = picture.clip(0, 255).astype(np.uint8)
        images.append(fit_image(levels, settings.image_size, settings.resize))
    return np.stack(images)[:, None]


if __name__ == "__main__":
    main()
