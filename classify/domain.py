"""Is this image of the kind that a classifier knows? How far it lies from the training images, and how far is too far.

There are three distances, because each misses what another sees: of the features that the head reads, of coarse grey
levels, and the masked autoencoder's error, if the pretraining is at hand. Only means and covariances of training images
are kept. Limits are chosen on validation images, so that at most 5 % of these exceed them. Labels play no part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from classify.models.build import Model, build_model
from classify.scores import full_precision
from classify.start import config_of, file_digest
from data.draws import uniform
from data.errors import UserError
from data.loader import Data, Loader
from mae.engine import distributed
from mae.engine.checkpoint import Checkpoint, NotSaved, load_checkpoint, save_checkpoint
from mae.engine.optim import with_weights_of
from mae.engine.run import holding
from mae.masking import take
from mae.model import MaskedAutoencoder, normalize_patches
from mae.patches import patchify
from mae.reconstruct import model_of as autoencoder_of

SHARE = 0.05  # of validation images that may be called unknown
FEWEST = 20  # validation images that are needed to ensure that
MOST = 2_000  # images of a split that are looked at, drawn by the run's seed
DIRECTIONS = 256  # of a covariance that are kept; the others share one variance
SIDE = 8  # cells of an image's coarse grey levels, along each side
MASKS = 3  # the reconstruction error is the mean over these, the same for every image
ROUNDING = 1e-3  # other batches and machines round differently, which must not make an image unknown
AT_ONCE = 64  # images in a forward pass
TINY = 1e-10  # the least variance: of features that are all the same, say
SPREADS = ("features", "grey_levels")
Positive = Annotated[float, Field(gt=0)]


# ---------------------------------------------------------------- what is measured


def directions(features: np.ndarray) -> np.ndarray:
    """Features (n d) at length 1: those of unknown images are often short, and so near by plain distance."""
    features = np.asarray(features, dtype=np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)  # n 1
    return features / np.maximum(length, 1e-12)


def grey_levels(images: np.ndarray | Tensor) -> np.ndarray:
    """8-bit images (n 1 h w) → (n 2·SIDE²): each cell's mean, and the logarithm of how its grey levels spread."""
    parts = []
    for some in torch.as_tensor(images).cpu().split(AT_ONCE):
        levels = some.double() / 255  # n 1 h w
        mean = F.adaptive_avg_pool2d(levels, SIDE).flatten(1)  # n s·s
        square = F.adaptive_avg_pool2d(levels.square(), SIDE).flatten(1)
        spread = (square - mean.square()).clamp(min=0).sqrt()
        parts.append(torch.cat([mean, (spread + 0.01).log()], dim=1))
    return torch.cat(parts).numpy()


def reconstruction_errors(model: MaskedAutoencoder, images: np.ndarray | Tensor, mask_ratio: float) -> np.ndarray:
    """8-bit images (n 1 h w) → (n): the mean squared error of hidden patches under a few fixed masks."""
    device = model.encoder.mean.device
    noise = uniform(0, "domain", 0, torch.arange(MASKS, device=device), model.patches)  # k p
    parts = []
    with torch.no_grad(), full_precision(device):
        for some in torch.as_tensor(images).split(AT_ONCE):
            pixels = model.encoder.standardize(some.to(device))  # b c h w
            errors = [_errors(model, pixels, mask_ratio, mask.expand(len(pixels), -1)) for mask in noise]
            parts.append(torch.stack(errors).mean(0).double().cpu())
    return torch.cat(parts).numpy()


def _errors(model: MaskedAutoencoder, pixels: Tensor, mask_ratio: float, noise: Tensor) -> Tensor:
    """Standardised images (b c h w) and mask noise (b p) → each image's error (b), as the pretraining's loss has it."""
    found = model(pixels, mask_ratio, noise)
    target = take(patchify(pixels, model.encoder.patch_size), found.masked)  # b m p·p·c
    if model.norm_pixel_loss:
        target = normalize_patches(target)
    return (found.pred - target).square().mean(dim=(1, 2))


@dataclass(frozen=True)
class Spread:
    """Where training images lie, as a mean and a covariance, and how far from there others do (Mahalanobis).

    The covariance is shrunk towards equal variances, the more the fewer its images (Ledoit and Wolf 2004), so it has
    full rank for any number of them. Of many directions the widest are kept; the others share one variance.
    """

    mean: Tensor  # d
    axes: Tensor  # k d, orthonormal
    variances: Tensor  # k
    rest: Tensor  # (): the variance along every other direction

    @classmethod
    def of(cls, rows: np.ndarray) -> "Spread":
        """The spread of training images (n d), two of them at least."""
        from sklearn.covariance import ledoit_wolf_shrinkage  # here: it changes os.environ, and only trainings need it

        n, d = rows.shape
        mean = rows.mean(axis=0)
        away = rows - mean
        covariance = away.T @ away / n

        # Ledoit and Wolf's estimate is 0 for two images, which lie on a line; few images are shrunk anyway
        shrinkage = max(ledoit_wolf_shrinkage(away, assume_centered=True), 1 / n)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)

        # the widest directions one by one, the others together
        variances, axes = np.linalg.eigh(covariance)  # rising
        variances = variances[::-1].clip(min=TINY)
        kept = variances[:DIRECTIONS]
        others = variances[DIRECTIONS:]
        rest = others.mean() if len(others) else TINY
        numbers = (mean, axes.T[::-1][:DIRECTIONS].copy(), kept, np.asarray(rest))
        return cls(*(torch.from_numpy(part.astype(np.float32)) for part in numbers))

    def distances(self, rows: np.ndarray) -> np.ndarray:
        """(n d) → (n)."""
        away = rows - self.mean.double().numpy()  # n d
        along = away @ self.axes.double().numpy().T  # n k
        squares = (along**2 / self.variances.double().numpy()).sum(axis=1)
        if len(self.axes) < len(self.mean):
            across = (away**2).sum(axis=1) - (along**2).sum(axis=1)
            squares += across.clip(min=0) / self.rest.double().item()
        return np.sqrt(squares)


# ---------------------------------------------------------------- how far is too far


def limit(scores: np.ndarray, share: float = SHARE) -> float:
    """The score that at most `share` of these (n) exceed, and on average at most `share` of others like them.

    That is the ⌈(n + 1)(1 - share)⌉-th smallest (split conformal prediction); ValueError if n is too small for one.
    """
    place = math.ceil((len(scores) + 1) * (1 - share) - 1e-9)
    if place > len(scores):
        raise ValueError(f"found {len(scores)} scores, expected at least {math.ceil(1 / share) - 1}")
    return float(np.sort(scores)[place - 1])


class _Pretraining(BaseModel):
    """A checkpoint file, known by its content."""

    model_config = ConfigDict(strict=True)

    file: str
    digest: str


class _Kept(BaseModel):
    """What a checkpoint's `meta` holds of its domain; the spreads stand in its `state`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    limits: list[Positive]  # of features, grey levels and, where there is one, reconstruction error
    together: list[Positive]  # limits of the largest ratio among the first, the first two, all three
    train_images: int
    validate_images: int
    pretraining: _Pretraining | None = None
    mask_ratio: float = 0.75


@dataclass(frozen=True)
class Domain:
    """What a classifier remembers of its training images, and which distance from them is too large."""

    place: str
    features: Spread
    grey_levels: Spread
    kept: _Kept
    pretraining: MaskedAutoencoder | None = None  # None where it is not at hand
    note: str = ""  # a remark to make once, or empty

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> "Domain | None":
        """What a classifier's checkpoint remembers; None if it remembers nothing (`why_unknown` says why).

        Its pretraining is used if it still lies where it was, or in a folder of the same name beside the run folder.
        """
        meta = checkpoint.meta.get("domain")
        if not meta or "reason" in meta:
            return None
        kept, spreads = _read(checkpoint, meta)
        model, note = None, ""
        if kept.pretraining:
            model = _at_hand(checkpoint, kept.pretraining, torch.device(device))
            if model is None:
                note = (
                    f"{kept.pretraining.file}: not there, or another one by now, so images are judged without its "
                    "reconstruction error"
                )
        return cls(checkpoint.place, spreads[0], spreads[1], kept, model, note)

    def scores(self, features: np.ndarray, images: np.ndarray | Tensor | None = None) -> np.ndarray:
        """(n): distances as shares of what is allowed; above 1 an image is unlike those that the classifier knows.

        features: (n d), what the head sees. images: their 8-bit images (n 1 h w); without them features alone are
        judged, by their own limit.
        """
        measured = [self.features.distances(directions(features))]
        if images is None:
            return self._shares(measured)
        measured.append(self.grey_levels.distances(grey_levels(images)))
        if self.pretraining is not None:
            measured.append(reconstruction_errors(self.pretraining, images, self.kept.mask_ratio))
        return self._shares(measured)

    def _shares(self, measured: Sequence[np.ndarray]) -> np.ndarray:
        """The largest of the distances that could be measured, as a share of their joint limit."""
        return _largest(measured, self.kept.limits) / self.kept.together[len(measured) - 1]


def _largest(measured: Sequence[np.ndarray], limits: Sequence[float]) -> np.ndarray:
    """Several scores (n each) → the largest as a share of its limit (n)."""
    shares = [scores / most for scores, most in zip(measured, limits, strict=False)]
    return np.max(shares, axis=0)


def why_unknown(checkpoint: Checkpoint) -> str:
    """Why a checkpoint cannot tell which images it knows, in a line."""
    if "domain" not in checkpoint.meta:
        return f"{checkpoint.place}: of an earlier version, which kept nothing of its training images; train again"
    meta = checkpoint.meta["domain"]
    if not meta:
        return f"{checkpoint.place}: known images are remembered in best.pt, when the training has ended"
    return f"{checkpoint.place}: {meta['reason']}"


# ---------------------------------------------------------------- read back


def _read(checkpoint: Checkpoint, meta: Mapping[str, Any]) -> tuple[_Kept, list[Spread]]:
    """What a checkpoint holds; UserError where its parts do not belong together."""
    try:
        kept = _Kept.model_validate(meta)
        spreads = [Spread(**checkpoint.state["domain"][name]) for name in SPREADS]
        measured = len(SPREADS) + (kept.pretraining is not None)
        head = "head.weight" if "head.weight" in checkpoint.weights else "fc.weight"
        widths = (checkpoint.weights[head].shape[1], 2 * SIDE * SIDE)
        sound = len(kept.limits) == len(kept.together) == measured and all(map(_is_sound, spreads, widths))
    except (ValidationError, KeyError, TypeError, AttributeError, ValueError):
        sound = False

    if not sound:
        raise UserError(
            f"{checkpoint.place}: meta.domain: found what is no memory of training images, expected limits, means and "
            "covariances; train again"
        )
    return kept, spreads


def _is_sound(spread: Spread, width: int) -> bool:
    """Whether it is a valid spread of rows of this width."""
    k, d = spread.axes.shape
    shapes = (tuple(spread.mean.shape), tuple(spread.variances.shape), tuple(spread.rest.shape))
    return d == width and shapes == ((d,), (k,), ()) and bool((spread.variances > 0).all() and spread.rest > 0)


def _at_hand(checkpoint: Checkpoint, kept: _Pretraining, device: torch.device) -> MaskedAutoencoder | None:
    """The pretraining that a classifier began from; None unless the very same file is there."""
    where = Path(kept.file)
    beside = Path(checkpoint.place).resolve().parent.parent / where.parent.name / where.name  # moved together
    for path in (where, beside):
        if path.is_file() and file_digest(path) == kept.digest:
            return autoencoder_of(load_checkpoint(path, "mae")).to(device)
    return None


# ---------------------------------------------------------------- learnt when a training has ended


def remember_domain(folder: Path, data: Data, device: torch.device, pretraining: str | Path | None) -> None:
    """Add to the best.pt of a finished run what it needs to tell which images it knows, once.

    pretraining: the checkpoint that the run began from. Of several ranks, the first one does it for all.
    """
    best = folder / "best.pt"
    if not distributed.is_main():
        return
    checkpoint = load_checkpoint(best, "classifier")
    if not _is_owed(checkpoint):
        return

    with holding(folder):
        meta, state = learn_domain(checkpoint, data, device, pretraining)
        checkpoint = replace(
            checkpoint, meta={**checkpoint.meta, "domain": meta}, state={**checkpoint.state, "domain": state}
        )
        try:
            save_checkpoint(checkpoint, best)
        except NotSaved as error:
            raise UserError(
                f"{error}: found no way to write which images it knows, so the run is not finished; mend that and give "
                "the same command again"
            ) from None


def _is_owed(checkpoint: Checkpoint) -> bool:
    """Whether it is still to be learnt; checkpoints of earlier versions have no such entry and stay as they are."""
    return checkpoint.meta.get("domain", "never") is None


def learn_domain(
    checkpoint: Checkpoint, data: Data, device: torch.device, pretraining: str | Path | None
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What a checkpoint keeps in `meta` and in `state`: spreads of training images, and limits from validation images.

    If they cannot be learnt, `meta` holds the reason.
    """
    config = config_of(checkpoint)
    model = with_weights_of(checkpoint, lambda: build_model(config)).to(device).eval()
    autoencoder = None
    began_from = None
    if pretraining is not None:
        start = load_checkpoint(pretraining, "mae")
        autoencoder = autoencoder_of(start).to(device)
        began_from = _Pretraining(file=start.place, digest=file_digest(start.place) or "")
    ratio = config.pretrain.mask_ratio

    # what is measured of images that trained it, and of others
    seen = _look(model, _drawn(data, "train", config.seed), device)
    asked = _look(model, _drawn(data, "validate", config.seed), device, autoencoder, ratio)
    if len(seen.features) < 2 or len(asked.features) < FEWEST:
        reason = (
            f"found {len(seen.features):,} training and {len(asked.features):,} validation images, expected at least 2 "
            f"and {FEWEST} to tell which images it knows"
        )
        return {"reason": reason}, {}
    if not (np.isfinite(seen.features).all() and np.isfinite(asked.features).all()):
        return {"reason": "found features that are not finite, expected numbers"}, {}

    # where training images lie, and how far from there validation images do
    spreads = [Spread.of(seen.features), Spread.of(seen.grey_levels)]
    measured = [spreads[0].distances(asked.features), spreads[1].distances(asked.grey_levels)]
    if asked.errors is not None:
        measured.append(asked.errors)

    # the limits: few validation images exceed them, in one distance or in several at once
    limits = [max(limit(scores), TINY) for scores in measured]
    together = []
    for count in range(1, len(measured) + 1):
        together.append(limit(_largest(measured[:count], limits)) * (1 + ROUNDING))
    kept = _Kept(
        limits=limits,
        together=together,
        train_images=len(seen.features),
        validate_images=len(asked.features),
        pretraining=began_from,
        mask_ratio=ratio,
    )
    state = {name: vars(spread) for name, spread in zip(SPREADS, spreads, strict=True)}
    return kept.model_dump(mode="json"), state


class _Looks(NamedTuple):
    """What was measured of images."""

    features: np.ndarray  # n d, of length 1
    grey_levels: np.ndarray  # n s
    errors: np.ndarray | None  # n


def _drawn(data: Data, split: str, seed: int) -> Loader:
    """The split's images, labelled or not; if there are many, a part of them, the same each time."""
    table = data.split(split)
    if len(table) > MOST:
        places = np.random.default_rng(seed).choice(len(table), MOST, replace=False)
        table = table.iloc[np.sort(places)]
    return Loader(data, table, AT_ONCE)


def _look(
    model: Model,
    loader: Loader,
    device: torch.device,
    autoencoder: MaskedAutoencoder | None = None,
    mask_ratio: float = 0.75,
) -> _Looks:
    """Of the loader's images that can be read, batch by batch: they may be large."""
    features, levels, errors = [], [], []
    for batch in loader.epoch():
        readable = ~np.isin(batch.numbers.numpy(), list(loader.store.unreadable))
        images = batch.images[torch.from_numpy(readable)]  # b 1 h w
        if not len(images):
            continue
        with torch.no_grad(), full_precision(device):
            found = model.features(model.standardize(images.to(device)))  # b d
        features.append(directions(found.float().cpu().numpy()))
        levels.append(grey_levels(images))
        if autoencoder is not None:
            errors.append(reconstruction_errors(autoencoder, images, mask_ratio))
    return _Looks(_joined(features), _joined(levels), _joined(errors) if autoencoder is not None else None)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0)
