"""ROC, precision-recall and reliability curves of a model's seeds, with bands.

Bands are pointwise: each says where its own point may lie. The variance over patients is that of resampled patients.
The variance over seeds is added, as for every interval here. Reliability's bands are over patients alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from classify.metrics.binary import ratio
from classify.metrics.bootstrap import resamples
from classify.metrics.calibration import bin_numbers
from classify.metrics.checks import check_level, check_seeds, group_codes
from classify.metrics.intervals import proportion_interval, score_interval
from classify.metrics.patients import Spread, join, patient_spread, patients_of, seed_spread

RESAMPLES = (40, 200)  # of a band, which is read by eye; fewer where many cases make it narrow
DRAWN = 4_000_000  # cases in all resamples together, about
FALSE_POSITIVE_RATES = np.linspace(0, 1, 61) ** 2  # closer where curves are steep
RECALLS = np.linspace(0, 1, 61)[1:]


@dataclass(frozen=True)
class Curve:
    """Points (k,) of a curve, the mean over seeds, and its band (k,), NaN where there is none."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class CurveOfBins:
    """Per bin that has cases: mean score, share of positives with its band, and how many cases, over all seeds."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


def roc_band(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95) -> Curve:
    """Sensitivity by 1 - specificity, of scores (n,) or (s, n): the highest that is reached at that rate or less."""
    return _curve(labels, scores, groups, level, FALSE_POSITIVE_RATES, _sensitivities)


def precision_recall_band(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> Curve:
    """Precision by recall, of scores (n,) or (s, n): where that recall is reached first."""
    return _curve(labels, scores, groups, level, RECALLS, _precisions)


# hits and false alarms (e,) among the highest scores, and where to look (k,) → rates (k,)
Rates = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _sensitivities(hits: np.ndarray, alarms: np.ndarray, at: np.ndarray) -> np.ndarray:
    if not (hits[-1] and alarms[-1]):
        return np.full(len(at), np.nan)
    last = np.searchsorted(alarms, at * alarms[-1] + 1e-9, side="right") - 1
    shares = np.append(hits, 0.0) / hits[-1]  # place -1: no case is called
    return np.asarray(shares[last])


def _precisions(hits: np.ndarray, alarms: np.ndarray, at: np.ndarray) -> np.ndarray:
    if not hits[-1]:
        return np.full(len(at), np.nan)
    first = np.searchsorted(hits, at * hits[-1] - 1e-9, side="left")
    return np.asarray(hits[first] / (hits[first] + alarms[first]))


def _curve(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None, level: float, at: np.ndarray, rates: Rates
) -> Curve:
    labels, scores, _ = check_seeds(labels, scores, 0.5)
    check_level(level)
    codes = group_codes(groups, len(labels))

    once = np.ones((1, len(labels)))
    estimates = np.array([_rates(once, labels, of_seed, at, rates)[0] for of_seed in scores])  # s k
    y = estimates.mean(0)
    unknown = np.full(len(at), np.nan)
    if codes.max() == 0 or np.isnan(y).any():
        return Curve(at, y, unknown, unknown)

    # patients are drawn anew, the same for all seeds
    drawn = []
    replicates = int(np.clip(DRAWN // len(labels), *RESAMPLES))
    for weights in resamples(codes, replicates, np.random.default_rng(0)):
        drawn.append(np.mean([_rates(weights, labels, of_seed, at, rates) for of_seed in scores], axis=0))
    resampled = np.concatenate(drawn)  # r k
    variances = np.nanvar(resampled, axis=0, ddof=1)

    patients = int(patients_of(labels[None], codes)[0])
    bands = []
    for place, variance in enumerate(variances):
        of_patients = Spread(float(variance), max(1, patients - 1), max(1, patients - 1))
        bands.append(_band(float(y[place]), of_patients, estimates[:, place], int(labels.sum()), patients, level))
    low, high = np.array(bands).T
    return Curve(at, y, low, high)


def _rates(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, at: np.ndarray, rates: Rates) -> np.ndarray:
    """(r k): rates on each resample; cases are called in order of their scores, ties together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(weights[:, order] * labels[order], axis=1)[:, ends]  # r e
    alarms = np.cumsum(weights[:, order] * ~labels[order], axis=1)[:, ends]
    return np.array([rates(hits[row], alarms[row], at) for row in range(len(weights))])


def _band(
    estimate: float, of_patients: Spread, estimates: np.ndarray, cases: int, patients: int, level: float
) -> tuple[float, float]:
    spread = join([of_patients, seed_spread(estimates)])
    if spread.variance > 0 and 0 < estimate < 1:
        return proportion_interval("recall", estimate, spread, cases, level)
    return score_interval(estimate, patients, float(t.ppf((1 + level) / 2, of_patients.freedom)))


# ------------------------------------------------------------ scores that come true


def reliability_band(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, bins: int = 10, level: float = 0.95
) -> CurveOfBins:
    """Share of positives by mean score in equal-width bins, all seeds (s, n) together; bands are over patients."""
    labels, scores, _ = check_seeds(labels, scores, 0.5)
    check_level(level)
    codes = group_codes(groups, len(labels))
    bin_of = np.array([bin_numbers(of_seed, bins) for of_seed in scores])  # s n

    found = []
    for number in range(bins):
        inside = bin_of == number  # s n
        times = inside.sum(0)  # n
        count = int(times.sum())
        if not count:
            continue
        share = float(ratio(np.array(times @ labels), np.array(count)))
        members = times > 0
        spread = patient_spread(times * (labels - share) / count, members[None], codes)
        patients = int(patients_of(members[None], codes)[0])
        low, high = np.nan, np.nan
        if patients > 1:
            low, high = _band(share, spread, np.array([share]), int(members.sum()), patients, level)
        found.append((scores[inside].mean(), share, low, high, count))
    return CurveOfBins(*np.array(found).T)
