"""Patients with several images, read by models whose AUC is known: what intervals and tests are tried on.

A score is d for abnormal, plus an effect of the patient, plus noise of the image, each effect partly shared by all
models. d is fixed by the AUC; seeds of one architecture differ in it. Abnormal images cluster within patients too.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

ICC = 0.5  # of scores, and of what makes an image abnormal, within a patient
SHARED = 0.5  # share of a score's noise that is the same for every model
MOST_IMAGES = 4
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)


class Reads(NamedTuple):
    labels: np.ndarray  # n
    patients: np.ndarray  # n
    scores: np.ndarray  # k n: k trained models


class Seeds(NamedTuple):
    """d of an architecture's seeds is normal."""

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
    # the mean of Φ(d/√2) over normal d is Φ of its mean over √(2 + variance)
    return float(norm.ppf(area) * np.sqrt(2 + spread**2))


def _moments(area: float, spread: float) -> tuple[float, float]:
    """Mean and standard deviation of the seeds' AUCs, by Gauss and Hermite."""
    areas = norm.cdf((_mean_distance(area, spread) + spread * NODES) / np.sqrt(2))
    shares = WEIGHTS / WEIGHTS.sum()
    mean = float(areas @ shares)
    return mean, float(np.sqrt((areas - mean) ** 2 @ shares))


@cache
def standard_error(area: float, n: int, trials: int = 400) -> float:
    """Standard deviation of one model's AUC over sets of n images."""
    from classify.metrics import auc

    rng = np.random.default_rng([1, n])
    found = []
    for _ in range(trials):
        labels, _, scores = read(n, np.array([distance(area)]), rng)
        found.append(auc(labels, scores[0]))
    return float(np.std(found))
