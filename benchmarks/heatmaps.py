"""Do heatmaps point at what decides? Deletion and insertion on validation images: a table, and JSON with --json FILE.

    python benchmarks/heatmaps.py runs/kermany-vit runs/nih-vit runs/kermany-resnet18 runs/nih-resnet18 --json out.json

The curves follow RISE (Petsiuk et al. 2018). Deletion: cells of an image become its mean grey, the hottest first,
and the probability of the class that the whole image was called falls. Insertion: cells come back into the blurred
image, the hottest first, and this probability rises. A map's score is the area under its insertion curve minus that
under its deletion curve. Cells of equal heat come in a random order.

The rule, declared before the numbers were known: for each kind of model (ViT, ResNet) the default is the method with
the highest mean score, all data sets weighing the same. It beats a fixed Gaussian, or a random order, only if the
paired 95 % interval of the difference, whole patients resampled, lies above 0 on every data set.

There are two further checks. `other images`: the order is that of the mean map of all other images by the run's best
method, which knows nothing of this one. `like random weights`: how a method's maps correlate with those of the same
network before any training (rank correlation of cells; Adebayo et al. 2018). A method whose maps do not change shows
the image, not the model.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from results import report
from scipy.stats import spearmanr
from torch import Tensor

from classify.cases import labelled_rows
from classify.explain import blurred, default_of, enlarged, grad_cam, heatmaps, methods_of
from classify.metrics.binary import auc
from classify.metrics.bootstrap import resamples
from classify.metrics.checks import group_codes
from classify.models.build import Model, build_model
from classify.models.classifier import Classifier
from classify.scores import full_precision
from classify.settings import ClassifyConfig
from classify.trained import load_trained
from data.loader import Loader, open_data
from mae.engine.optim import seeded
from mae.engine.run import commit

CELLS = 8  # a side: what is taken away at once
STEPS = 4  # of a curve
BLUR = 0.125  # sigma, share of a side
SEEDS = (0, 1)  # of the random order
LEVEL = 0.95
BASELINES = ("gaussian", "random")
LAYERS = (2, 3, 4)  # of a ResNet, that Grad-CAM may read
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of mae-finetune runs")
    parser.add_argument("--measured", nargs="*", type=Path, default=[], help="earlier JSONs, whose runs come first")
    parser.add_argument("--images", type=int, help="so many validation images, spread over their ids; else all")
    parser.add_argument("--replicates", type=int, default=2000, help="bootstrap replicates, patients resampled")
    parser.add_argument("--jobs", type=int, default=1, help="runs measured at a time, each with one thread")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    rows = [row for path in arguments.measured for row in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    work = partial(measure, images=arguments.images, replicates=arguments.replicates)
    if arguments.jobs > 1:
        with ProcessPoolExecutor(arguments.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            rows += pool.map(work, arguments.runs)
    else:
        rows += [work(run) for run in arguments.runs]

    for row in rows:
        print(f"{row['run']}: {row['model']}, AUC {row['auc']:.3f}, {row['n']} images of {row['patients']} patients")
        for name, found in row["methods"].items():
            print(f"  {name:20s} deletion {found['deletion']:.3f}  insertion {found['insertion']:.3f}", end="")
            print(f"  score {found['score']:+.3f}  minus Gaussian {shown(found['minus_gaussian'])}")
    winners = {kind: decide(kind, rows) for kind in sorted({row["kind"] for row in rows})}
    for kind, winner in winners.items():
        beaten = ", ".join(winner["beats"]) or "none of the baselines"
        print(f"{kind}: {winner['method']} has the highest mean score, {winner['score']:+.3f}; it beats {beaten}")
    report(arguments.json, arguments, {"commit": commit(), "runs": rows, "winners": winners})


def shown(difference: dict[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{difference['estimate']:+.3f} [{low:+.3f}, {high:+.3f}]"


def decide(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rule: see above."""
    of_kind = [row for row in rows if row["kind"] == kind]
    names = [name for name in of_kind[0]["methods"] if name not in (*BASELINES, "other images")]
    means = {name: float(np.mean([row["methods"][name]["score"] for row in of_kind])) for name in names}
    winner = max(names, key=lambda name: means[name])
    beats = []
    for baseline in BASELINES:
        if all(row["methods"][winner][f"minus_{baseline}"]["interval"][0] > 0 for row in of_kind):
            beats.append(baseline)
    return {"method": winner, "score": means[winner], "beats": beats, "means": means}


# ---------------------------------------------------------------- one run


def measure(run: Path, images: int | None, replicates: int) -> dict[str, Any]:
    """Every method's curves on the run's validation images."""
    trained = load_trained(run, device="cpu")
    config, model = trained.config, trained.model

    # the images, by id
    data = open_data(config.data)
    table = labelled_rows(data.split("validate"), "validate", config.data.target)
    table = table.sort_values("image_id")
    table = table.iloc[np.linspace(0, len(table) - 1, min(images or len(table), len(table))).round().astype(int)]
    pixels = torch.cat([batch.images for batch in Loader(data, table, BATCH).epoch()])  # n 1 h w
    patients = group_codes(table["patient_id"].to_numpy(), len(table))

    # maps, as cells, and their curves
    judge = Judge(model, pixels)
    maps = {name: cells_of(model, pixels, name) for name in candidates(model)}
    curves = {name: judge(order_of(found, seed=0)) for name, found in maps.items()}
    best = max((name for name in maps if name != "gaussian"), key=lambda name: curves[name]["score"].mean())
    others = (maps[best].sum(axis=0) - maps[best]) / max(len(pixels) - 1, 1)
    curves["other images"] = judge(order_of(others, seed=0))
    randoms = [judge(order_of(np.zeros_like(others), seed)) for seed in SEEDS]
    curves["random"] = {name: np.mean([curve[name] for curve in randoms], axis=0) for name in randoms[0]}

    methods: dict[str, Any] = {}
    for name, curve in curves.items():
        methods[name] = {key: float(values.mean()) for key, values in curve.items()}
        for baseline in (*BASELINES, "other images"):
            difference = curve["score"] - curves[baseline]["score"]
            key = f"minus_{baseline.replace(' ', '_')}"
            methods[name][key] = interval(difference, patients, replicates)
    for name, found in like_random_weights(model, config, pixels, maps).items():
        methods[name]["like_random_weights"] = found
    return {
        "run": run.name,
        "kind": config.finetune.model if config.finetune.model == "vit" else "resnet",
        "model": f"{config.finetune.model}, {config.finetune.mode}",
        "default": default_of(model),
        "best": best,
        "n": len(pixels),
        "patients": int(patients.max()) + 1,
        "abnormal": float((table["label"] == 1).mean()),
        "auc": float(auc(table["label"].to_numpy(), judge.logits.double().numpy())),
        "data": data.manifest.fingerprint(),
        "config": described(config),
        "weights": trained.digest,
        "methods": methods,
    }


def described(config: ClassifyConfig) -> dict[str, Any]:
    """The settings of a config that determine the weights, without paths."""
    settings = config.model_dump(mode="json")
    kept = {key: settings[key] for key in ("seed", "model", "pretrain", "finetune")}
    kept["finetune"] = {key: value for key, value in kept["finetune"].items() if key not in ("run", "init")}
    return kept | {"data": {key: settings["data"][key] for key in ("image_size", "resize", "sample")}}


def candidates(model: Model) -> list[str]:
    """The methods that look at the image, what else was tried, and the Gaussian."""
    names = [name for name in methods_of(model) if name not in ("random", "grad_cam")]
    if isinstance(model, Classifier):
        return ["gradient_tokens", *names]
    return [*(f"grad_cam of layer {layer}" for layer in LAYERS), *names]


def cells_of(model: Model, pixels: Tensor, name: str) -> np.ndarray:
    """(n cells): the mean heat of each cell."""
    method: Any = name
    if name == "gradient_tokens":
        method = gradient_tokens
    if name.startswith("grad_cam of layer"):
        method = partial(grad_cam, layer=int(name[-1]))
    heat = heatmaps(model, pixels, method)  # n h w
    mean = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(heat)[:, None], CELLS)
    return mean.flatten(1).numpy()


def gradient_tokens(model: Model, images: Tensor, sign: Tensor) -> Tensor:
    """Σ gradient × token before the last block, as Grad-CAM is carried over to ViTs; tried, but not offered."""
    assert isinstance(model, Classifier)
    encoder = model.encoder
    tokens = encoder.embed_kept(images, None)  # b 1+n d
    for block in encoder.blocks[:-1]:
        tokens = block(tokens)

    found = []
    keep = encoder.blocks[-1].norm1.register_forward_hook(lambda module, inputs, normed: found.append(normed))
    with torch.enable_grad():
        last = encoder.blocks[-1](tokens.detach().requires_grad_())
        logits = model.classify(encoder.norm(last))
        [gradient] = torch.autograd.grad((sign * logits).sum(), found)
    keep.remove()
    of_patches = reduce(gradient * found[0].detach(), "b n d -> b n", "sum")[:, 1:]
    return rearrange(of_patches, "b (h w) -> b h w", h=encoder.grid[0])


def like_random_weights(
    model: Model, config: ClassifyConfig, pixels: Tensor, maps: dict[str, np.ndarray]
) -> dict[str, float]:
    """Rank correlation of an image's cells between trained and random weights; mean over images."""
    some = pixels[: 2 * BATCH]
    with seeded(config.seed + 1):
        untrained = build_model(config).eval()
    found = {}
    for name in maps:
        if name == "gaussian":
            continue
        pairs = zip(maps[name][: len(some)], cells_of(untrained, some, name), strict=True)
        correlations = [spearmanr(a, b).statistic for a, b in pairs if a.std() and b.std()]
        found[name] = float(np.mean(correlations)) if correlations else float("nan")
    return found


# ---------------------------------------------------------------- curves


def whole(model: Model, pixels: Tensor) -> Tensor:
    """(n) logits of 8-bit images."""
    with torch.no_grad(), full_precision(pixels.device):
        return torch.cat([model(model.standardize(some)) for some in pixels.split(BATCH)])


def order_of(cells: np.ndarray, seed: int) -> np.ndarray:
    """(n cells): the place of each cell, 0 for the hottest; ties in a random order."""
    draws = np.random.default_rng(seed).random(cells.shape)
    order = np.lexsort((draws, -cells), axis=1)
    return order.argsort(axis=1)


class Judge:
    """The images of a run, with what replaces their deleted cells; the ends of curves are the same for every method."""

    def __init__(self, model: Model, pixels: Tensor):
        self.model = model
        self.pixels = pixels.float()  # n 1 h w
        self.grey = reduce(self.pixels, "n 1 h w -> n 1 1 1", "mean").expand_as(pixels)
        self.blurred = blurred(self.pixels, BLUR)

        self.logits = whole(model, pixels)
        self.sign = torch.where(self.logits >= 0, 1.0, -1.0)
        self.ends = {id(each): self.probability(each) for each in (self.pixels, self.grey, self.blurred)}

    def __call__(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Areas under the curves of each image, (n) each: deletion, insertion, and their difference."""
        hottest = torch.from_numpy(places).reshape(-1, CELLS, CELLS)
        deletion = self.area(hottest, self.grey, into=self.pixels)
        insertion = self.area(hottest, self.pixels, into=self.blurred)
        return {"deletion": deletion, "insertion": insertion, "score": insertion - deletion}

    def area(self, hottest: Tensor, cells: Tensor, into: Tensor) -> np.ndarray:
        """(n): area under the curve of the called class, while `cells` come into `into`, the hottest first."""
        found = [self.ends[id(into)]]
        for count in np.linspace(0, CELLS**2, STEPS + 1).round()[1:-1]:
            here = enlarged(hottest < count, self.pixels.shape[2:])
            found.append(self.probability(torch.where(here, cells, into)))
        found.append(self.ends[id(cells)])
        return np.trapezoid(found, dx=1 / STEPS, axis=0)

    def probability(self, images: Tensor) -> np.ndarray:
        """(n): of the class that the whole image is called."""
        logits = whole(self.model, images.round().clamp(0, 255).byte())
        return (self.sign * logits).double().sigmoid().numpy()


def interval(difference: np.ndarray, patients: np.ndarray, replicates: int) -> dict[str, Any]:
    """The mean of differences (n) with its percentile interval, whole patients resampled."""
    means = []
    for weights in resamples(patients, replicates, np.random.default_rng(0)):
        means.append(weights @ difference / weights.sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"estimate": float(difference.mean()), "interval": [float(low), float(high)]}


if __name__ == "__main__":
    main()
