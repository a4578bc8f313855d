"""Patients with several images, read by models whose AUC is known: data to try intervals and tests on.

A score is d for abnormal images, plus an effect of the patient and noise of the image; all models share a part of each.
The AUC fixes d; seeds of one architecture differ in it. Abnormal images cluster within patients too.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

from classify.metrics import Interval, auc, auc_difference, auc_interval, metric_intervals

ICC = 0.5  # correlation within a patient: of scores, and of what makes an image abnormal
SHARED = 0.5  # share of a score's noise that is the same for every model
MOST_IMAGES = 4
AREAS = (0.8, 0.9, 0.98, 0.998)
SIZES = (200, 700)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)


class Reads(NamedTuple):
    labels: np.ndarray  # n
    patients: np.ndarray  # n
    scores: np.ndarray  # k n: k trained models


class Seeds(NamedTuple):
    """d of an architecture's seeds is normally distributed."""

    mean: float
    deviation: float


def read(n: int, distances: np.ndarray, rng: np.random.Generator, prevalence: float = 0.5) -> Reads:
    """n images, scored by models of distances d (k,)."""
    sizes = rng.integers(1, MOST_IMAGES + 1, n)
    patients = np.repeat(np.arange(n), sizes)[:n]
    labels = _clustered(patients, 1, rng)[0] > norm.ppf(1 - prevalence)

    own = _clustered(patients, len(distances), rng)
    shared = _clustered(patients, 1, rng)
    noise = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own
    return Reads(labels.astype(int), patients, np.multiply.outer(distances, labels) + noise)


def _clustered(patients: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Standard normal (rows, n), correlated by ICC within a patient."""
    of_patients = rng.normal(size=(rows, patients.max() + 1))[:, patients]
    return np.sqrt(ICC) * of_patients + np.sqrt(1 - ICC) * rng.normal(size=(rows, len(patients)))


def distance(area: float) -> float:
    """d of a model with this AUC."""
    return float(np.sqrt(2) * norm.ppf(area))


def seeds_of(area: float, deviation: float) -> Seeds:
    """Seeds whose AUCs have this mean and standard deviation."""

    def excess(spread: float) -> float:
        return _moments(area, spread)[1] - deviation

    if deviation == 0:
        return Seeds(distance(area), 0.0)
    spread = brentq(excess, 1e-6, 5)
    return Seeds(_mean_distance(area, spread), spread)


def _mean_distance(area: float, spread: float) -> float:
    # the mean of Φ(d/√2) over normally distributed d is Φ(mean of d / √(2 + variance))
    return float(norm.ppf(area) * np.sqrt(2 + spread**2))


def _moments(area: float, spread: float) -> tuple[float, float]:
    """Mean and standard deviation of the seeds' AUCs, by Gauss–Hermite quadrature."""
    areas = norm.cdf((_mean_distance(area, spread) + spread * NODES) / np.sqrt(2))
    shares = WEIGHTS / WEIGHTS.sum()
    mean = float(areas @ shares)
    return mean, float(np.sqrt((areas - mean) ** 2 @ shares))


@cache
def standard_error(area: float, n: int, trials: int = 400) -> float:
    """Standard deviation of one model's AUC over sets of n images."""
    rng = np.random.default_rng([1, n])
    found = []
    for _ in range(trials):
        labels, _, scores = read(n, np.array([distance(area)]), rng)
        found.append(auc(labels, scores[0]))
    return float(np.std(found))


# ------------------------------------------------------------ what intervals and tests do there


class Rates(NamedTuple):
    """Shares of trials, in percent."""

    below: float  # the whole interval lies below the truth
    above: float
    rejected: float  # p < 0.05
    seconds: float

    @property
    def covered(self) -> float:
        return 100 - self.below - self.above

    def as_dict(self) -> dict[str, float]:
        numbers = {"covered": self.covered, **self._asdict()}
        return {name: round(number, 2) for name, number in numbers.items()}


def coverage_of_one(area: float, n: int, trials: int) -> Rates:
    """Does the interval of one model's AUC hold the truth?"""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        reads = read(n, np.array([distance(area)]), rng)
        return auc_interval(reads.labels, reads.scores[0], reads.patients), area

    return _rates(trial, trials, seed=[2, n])


def two_architectures(
    area: float, n: int, trials: int, seeds: int, deviation: float, other: float | None = None
) -> Rates:
    """The AUC difference of two architectures of `seeds` seeds, whose AUCs deviate by `deviation` standard errors.

    Both have the same mean AUC, or b has `other`. If the deviation is 0, these are two trained models.
    """
    other = area if other is None else other
    a = seeds_of(area, deviation * standard_error(area, n))
    b = seeds_of(other, deviation * standard_error(other, n))
    means = np.repeat([a.mean, b.mean], seeds)
    deviations = np.repeat([a.deviation, b.deviation], seeds)

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        reads = read(n, means + deviations * rng.normal(size=2 * seeds), rng)
        found = auc_difference(reads.labels, reads.scores[:seeds], reads.scores[seeds:], reads.patients)
        return found, area - other

    return _rates(trial, trials, seed=[3, n, seeds])


def coverage_of_metrics(area: float, n: int, trials: int) -> dict[str, float]:
    """How often the intervals of the other metrics hold the truth, in percent."""
    d = distance(area)
    truths = true_metrics(d)
    covered = dict.fromkeys(truths, 0)
    rng = np.random.default_rng([4, n])
    for _ in range(trials):
        reads = read(n, np.array([d]), rng)
        logits = d * reads.scores[0] - d**2 / 2  # true log odds
        found = metric_intervals(reads.labels, expit(logits), tuple(truths), 0.5, reads.patients, logits=logits)
        for name, truth in truths.items():
            low, high = found[name].interval
            covered[name] += low <= truth <= high
    return {name: 100 * count / trials for name, count in covered.items()}


def true_metrics(d: float) -> dict[str, float]:
    """Metrics of correct probabilities, at threshold 1/2 and prevalence 1/2, where score d/2 is the threshold."""
    right = float(norm.cdf(d / 2))
    grid = np.linspace(-9, 9 + d, 200_001)
    of_abnormal, of_normal = norm.pdf(grid - d), norm.pdf(grid)
    precision = norm.sf(grid - d) / (norm.sf(grid - d) + norm.sf(grid))
    probability = expit(d * grid - d**2 / 2)
    squared = (of_abnormal * (1 - probability) ** 2 + of_normal * probability**2) / 2
    step = grid[1] - grid[0]
    return {
        "accuracy": right,
        "precision": right,
        "recall": right,
        "specificity": right,
        "f1": right,
        "average_precision": float((of_abnormal * precision).sum() * step),
        "brier": float(squared.sum() * step),
        "calibration_slope": 1.0,
        "calibration_intercept": 0.0,
    }


def cell(area: float, n: int, trials: int) -> dict[str, Any]:
    """Everything at one AUC and one number of images."""

    def seeds(count: int, deviation: float, other: float | None = None) -> dict[str, float]:
        return two_architectures(area, n, trials, seeds=count, deviation=deviation, other=other).as_dict()

    other = 1 - 2 * (1 - area)  # twice as far from 1
    return {
        "area": area,
        "n": n,
        "trials": trials,
        "one model": coverage_of_one(area, n, trials).as_dict(),
        "two trained models": seeds(1, 0),
        "three seeds, SD 1 SE": seeds(3, 1),
        "three seeds, SD 2 SE": seeds(3, 2),
        "one seed, SD 1 SE": seeds(1, 1),
        "one seed, SD 2 SE": seeds(1, 2),
        "two trained models that differ": seeds(1, 0, other),
        "three seeds, SD 2 SE, that differ": seeds(3, 2, other),
        "metrics": coverage_of_metrics(area, n, trials),
    }


def line_of(found: dict[str, Any]) -> str:
    """A cell in two lines: coverage and type I error in percent."""
    tests = [
        f"{name} {found[name]['rejected']:.1f} (covers {found[name]['covered']:.1f})"
        for name in found
        if "seed" in name or "trained" in name
    ]
    metrics = ", ".join(f"{name} {covered:.1f}" for name, covered in found["metrics"].items())
    one = found["one model"]
    return (
        f"AUC {found['area']:g}, n {found['n']}: interval covers {one['covered']:.1f} "
        f"(misses {one['below']:.1f} below, {one['above']:.1f} above); rejects: {'; '.join(tests)}\n"
        f"  covered: {metrics}"
    )


def _rates(trial: Callable[[np.random.Generator], tuple[Interval, float]], trials: int, seed: list[int]) -> Rates:
    rng = np.random.default_rng(seed)
    start = time.process_time()
    below = above = rejected = 0
    for _ in range(trials):
        found, truth = trial(rng)
        below += found.interval[1] < truth
        above += found.interval[0] > truth
        rejected += getattr(found, "p_value", 1.0) < 0.05
    return Rates(
        below=100 * below / trials,
        above=100 * above / trials,
        rejected=100 * rejected / trials,
        seconds=time.process_time() - start,
    )
