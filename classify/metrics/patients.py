"""Variance over patients and over seeds, and how many degrees of freedom it has."""

from typing import NamedTuple

import numpy as np

from classify.metrics.influence import Influence

LEAST_FREEDOM = 16  # below this, the fourth moment itself is too uncertain: docs/decisions.md, Evaluation


class Spread(NamedTuple):
    """The variance of an estimate with its degrees of freedom.

    `cautious` is fewer degrees where few patients make most of the variance, which is then poorly known.
    """

    variance: float
    freedom: float
    cautious: float


def patients_of(strata: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """How many patients have a case in each stratum, (k,)."""
    return np.array([len(np.unique(codes[members])) for members in strata])


def patient_spread(parts: np.ndarray, strata: np.ndarray, codes: np.ndarray) -> Spread:
    """Variance of the sum of parts (n,): patients are independent, the cases of a patient are not.

    For the AUC, whose strata (k, n) are the classes, this is Obuchowski's (1997) variance of clustered ROC data, and
    DeLong's where each case is a patient; for a ratio it is Taylor's with the factor m / (m - 1) for m patients. The
    variance of a stratum with one patient cannot be known: NaN.
    """
    size = int(codes.max()) + 1
    if len(strata) == 1:
        sums = _sums(parts, codes, size)[None]  # 1 m
    else:
        sums = np.stack([_sums(parts * members, codes, size) for members in strata])  # k m
    counts = patients_of(strata, codes)
    if counts.min() < 2:
        return Spread(np.nan, np.nan, np.nan)

    # patients vary within their own stratum only; a patient's sums in several strata vary together
    own = counts / (counts - 1) * (sums**2).sum(1)
    together = size / (size - 1) * float((sums.sum(0) ** 2).sum() - (sums**2).sum())
    variance = float(own.sum() + together)
    if variance <= 0:
        return Spread(0.0, float(counts.min() - 1), float(counts.min() - 1))

    freedom = float(own.sum() ** 2 / (own**2 / (counts - 1)).sum())
    seen = _freedom_by_kurtosis(sums.sum(0))
    return Spread(variance, freedom, min(freedom, max(seen, LEAST_FREEDOM)))


def _sums(parts: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """Sums by patient (m,); what remains from rounding alone is set to 0."""
    sums = np.bincount(codes, parts, size)
    rounding = 1e-12 * np.bincount(codes, np.abs(parts), size)
    return np.where(np.abs(sums) <= rounding, 0.0, sums)


def _freedom_by_kurtosis(sums: np.ndarray) -> float:
    """Degrees of freedom of Σ sums² from its own variance (Satterthwaite; Pan and Wall 2002).

    m for m normal sums, about 2 k where k of them make all of the variance.
    """
    squares = sums**2
    spread = (squares**2).sum() - squares.sum() ** 2 / len(sums)
    if spread <= 0:
        return float(len(sums))
    return float(2 * squares.sum() ** 2 / spread)


def seed_spread(estimates: np.ndarray) -> Spread:
    """Variance of the mean over seeds (s,); 0 for a single seed, which says nothing of it."""
    seeds = len(estimates)
    if seeds < 2:
        return Spread(0.0, np.inf, np.inf)
    return Spread(float(estimates.var(ddof=1) / seeds), seeds - 1, seeds - 1)


def join(spreads: list[Spread]) -> Spread:
    """The sum of independent variances, with Satterthwaite's (1946) degrees of freedom."""
    variances = np.array([spread.variance for spread in spreads])
    total = float(variances.sum())
    if not total > 0:
        return Spread(total, spreads[0].freedom, spreads[0].cautious)

    def satterthwaite(freedom: list[float]) -> float:
        below = float((variances**2 / np.array(freedom)).sum())
        return total**2 / below if below > 0 else np.inf

    return Spread(
        variance=total,
        freedom=satterthwaite([spread.freedom for spread in spreads]),
        cautious=satterthwaite([spread.cautious for spread in spreads]),
    )


def spread_of(found: Influence, codes: np.ndarray) -> tuple[Spread, Spread]:
    """The spread over patients of the mean over seeds, and that over seeds."""
    return patient_spread(found.parts.mean(0), found.strata, codes), seed_spread(found.estimates)
