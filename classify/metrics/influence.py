"""How much each case moves a metric: the parts from which the variance over patients is made.

A metric of n cases is, nearly, its true value plus a sum of one part for each case (its influence function). Patients
are independent, so the variance of the metric is that of the patients' sums. For the AUC the parts are DeLong's
structural components, for shares of cases those of a ratio (Taylor linearisation), for average precision the
derivative by the case's weight (the infinitesimal jackknife).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from classify.metrics.binary import weighted_metrics
from classify.metrics.calibration import bin_numbers, fit_recalibration


class Influence(NamedTuple):
    """One metric of s seeds on n cases."""

    estimates: np.ndarray  # s
    parts: np.ndarray  # s n: each seed's sum to 0
    strata: np.ndarray  # k n: which cases the metric is an average over; abnormal and normal for the AUC


class Model(NamedTuple):
    """The seeds of a model on the same cases."""

    scores: np.ndarray  # s n
    thresholds: np.ndarray  # s
    order_by: np.ndarray  # s n: the logits, or without any the scores
    logits: np.ndarray | None  # s n


def influence(name: str, labels: np.ndarray, model: Model) -> Influence:
    """The parts of metric `name`; estimates are NaN where it is undefined."""
    if name in RATIOS:
        return _of_ratio(name, labels, model)
    if name not in OTHERS:
        raise ValueError(f"metric {name!r} is unknown; one of {', '.join((*RATIOS, *OTHERS))}")
    return OTHERS[name](labels, model)


ROUNDING = 1e-10  # of the parts themselves, and of what Newton's method leaves


def difference_of_parts(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """a - b; what remains from rounding alone is set to 0, as it is no variance."""
    parts = np.subtract(a, b, dtype=np.float64)
    return np.where(np.abs(parts) <= ROUNDING * np.add(np.abs(a), np.abs(b), dtype=np.float64), 0.0, parts)


# ------------------------------------------------------------ shares of cases, and means of cases


def _of_ratio(name: str, labels: np.ndarray, model: Model) -> Influence:
    """A metric that is one sum over cases divided by another."""
    estimates, parts, counted = [], [], np.zeros(len(labels), bool)
    once = np.ones((1, len(labels)))
    for scores, threshold, order_by in zip(model.scores, model.thresholds, model.order_by, strict=True):
        if name == "brier" and not are_probabilities(scores):
            estimates.append(np.nan)
            parts.append(np.zeros(len(labels)))
            continue
        above, below = RATIOS[name](labels, scores, threshold)
        estimate = weighted_metrics(once, labels, scores, threshold, (name,), order_by)[name][0]

        estimates.append(estimate)
        parts.append(difference_of_parts(above, estimate * below) / max(below.sum(), 1))
        counted |= below > 0
    return Influence(np.array(estimates), np.array(parts), counted[None])


def _accuracy(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    return (scores >= threshold) == labels, np.ones(len(labels))


def _precision(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    predicted = scores >= threshold
    return predicted & labels, predicted.astype(np.float64)


def _recall(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    return (scores >= threshold) & labels, labels.astype(np.float64)


def _specificity(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    return (scores < threshold) & ~labels, (~labels).astype(np.float64)


def _f1(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    predicted = scores >= threshold
    return 2.0 * (predicted & labels), predicted.astype(np.float64) + labels


def _brier(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    return (scores - labels) ** 2, np.ones(len(labels))


RATIOS = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "specificity": _specificity,
    "f1": _f1,
    "brier": _brier,
}


# ------------------------------------------------------------ the AUC and average precision


def _auc(labels: np.ndarray, model: Model) -> Influence:
    strata = np.stack([labels, ~labels])  # 2 n
    seeds = len(model.order_by)
    if not strata.any(1).all():
        return Influence(np.full(seeds, np.nan), np.zeros((seeds, len(labels))), strata)

    of_positives, of_negatives = structural_components(labels, model.order_by)
    estimates = of_positives.mean(1)
    parts = np.empty(model.order_by.shape)
    parts[:, labels] = (of_positives - estimates[:, None]) / of_positives.shape[1]
    parts[:, ~labels] = (of_negatives - estimates[:, None]) / of_negatives.shape[1]
    return Influence(estimates, parts, strata)


def structural_components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's V10 (k, n1) and V01 (k, n0) of k scores (k, n); the mean of each is the AUC."""
    positives = int(labels.sum())
    negatives = len(labels) - positives

    # a positive's rank among all, less its rank among positives, is how many negatives it beats
    overall = rankdata(scores, axis=-1)
    within_positives = rankdata(scores[:, labels], axis=-1)
    within_negatives = rankdata(scores[:, ~labels], axis=-1)
    of_positives = (overall[:, labels] - within_positives) / negatives
    of_negatives = 1 - (overall[:, ~labels] - within_negatives) / positives
    return of_positives, of_negatives


def _average_precision(labels: np.ndarray, model: Model) -> Influence:
    estimates, parts = [], []
    for order_by in model.order_by:
        estimate, of_cases = _precision_derivative(labels, order_by)
        estimates.append(estimate)
        parts.append(of_cases)
    return Influence(np.array(estimates), np.array(parts), labels[None])


def _precision_derivative(labels: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision, and its derivative by the weight of each case (n,).

    A case counts among those called abnormal at the score of every positive that is not above it: a positive raises
    the precision there by fp / (tp + fp)², a negative lowers it by tp / (tp + fp)².
    """
    positives = np.sort(scores[labels])
    negatives = np.sort(scores[~labels])
    if not len(positives):
        return np.nan, np.zeros(len(labels))

    tp = len(positives) - np.searchsorted(positives, positives, "left")
    fp = len(negatives) - np.searchsorted(negatives, positives, "left")
    precision = tp / (tp + fp)
    estimate = float(precision.mean())

    # sums over the positives that do not lie above a case: the first j of them
    raised = np.concatenate([[0], np.cumsum(fp / (tp + fp) ** 2)])
    lowered = np.concatenate([[0], np.cumsum(tp / (tp + fp) ** 2)])
    upto = np.searchsorted(positives, scores, "right")  # n
    own = precision[np.searchsorted(positives, scores[labels], "left")]

    parts = np.empty(len(labels))
    parts[labels] = own - estimate + raised[upto[labels]]
    parts[~labels] = -lowered[upto[~labels]]
    return estimate, parts / len(positives)


# ------------------------------------------------------------ calibration


def are_probabilities(scores: np.ndarray) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 1)


def _ece(labels: np.ndarray, model: Model) -> Influence:
    """The gap of each bin keeps its sign, so the parts are those of a mean."""
    nothing = np.full(len(model.scores), np.nan), np.zeros(model.scores.shape)
    everyone = np.ones((1, len(labels)), bool)
    if not are_probabilities(model.scores):
        return Influence(*nothing, everyone)

    estimates, parts = [], []
    for scores in model.scores:
        bins = bin_numbers(scores)
        gaps = np.bincount(bins, labels - scores)
        signed = np.sign(gaps)[bins] * (labels - scores)
        estimates.append(signed.mean())
        parts.append(difference_of_parts(signed, signed.mean()) / len(labels))
    return Influence(np.array(estimates), np.array(parts), everyone)


def _recalibration(slope: bool) -> Callable[[np.ndarray, Model], Influence]:
    def of_seeds(labels: np.ndarray, model: Model) -> Influence:
        estimates, parts = [], []
        logits = model.logits
        if logits is None:
            logits = np.full(model.scores.shape, np.nan)
        for of_seed in logits:
            estimate, of_cases = fit_recalibration(labels, of_seed, slope)
            estimates.append(estimate)
            parts.append(of_cases)
        return Influence(np.array(estimates), np.array(parts), np.ones((1, len(labels)), bool))

    return of_seeds


OTHERS: dict[str, Callable[[np.ndarray, Model], Influence]] = {
    "auc": _auc,
    "average_precision": _average_precision,
    "ece": _ece,
    "calibration_slope": _recalibration(slope=True),
    "calibration_intercept": _recalibration(slope=False),
}
