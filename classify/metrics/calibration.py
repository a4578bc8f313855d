"""Calibration: do probabilities of abnormal mean what they say?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from classify.metrics.binary import ratio
from classify.metrics.checks import check


@dataclass(frozen=True)
class ReliabilityCurve:
    """Per equal-width bin (b,): mean score, share of positives (NaN where empty) and count."""

    edges: np.ndarray  # b+1
    mean_score: np.ndarray
    positive_rate: np.ndarray
    count: np.ndarray


def reliability_curve(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> ReliabilityCurve:
    """Mean score against share of positives in equal-width bins ((b-1)/bins, b/bins] of [0, 1].

    Scores (n,) are probabilities of abnormal; 0 falls in the first bin.
    """
    labels, scores = check(labels, scores)
    if bins < 1:
        raise ValueError(f"bins is {bins}, wanted 1 or more")
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"scores must be probabilities, found {scores.min():g} to {scores.max():g}")

    bin_of = bin_numbers(scores, bins)
    count = np.bincount(bin_of, minlength=bins)
    mean_score = ratio(np.bincount(bin_of, scores, bins), count)
    positive_rate = ratio(np.bincount(bin_of, labels, bins), count)
    return ReliabilityCurve(np.linspace(0, 1, bins + 1), mean_score, positive_rate, count)


def bin_numbers(scores: np.ndarray, bins: int = 15) -> np.ndarray:
    """The bin of each score (n,): one on an edge belongs to the bin below it."""
    return np.digitize(scores, np.linspace(0, 1, bins + 1)[1:-1], right=True)


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> float:
    """Mean |share of positives - mean score| over equal-width bins, weighted by their cases.

    Guo et al. 2017, but on the probability of abnormal rather than of the predicted class,
    so that errors below 0.5 and above cannot cancel inside one bin.
    """
    curve = reliability_curve(labels, scores, bins)
    gaps = np.nan_to_num(np.abs(curve.positive_rate - curve.mean_score))
    return float(gaps @ curve.count / curve.count.sum())


# ------------------------------------------------------------ logistic recalibration

STEPS = 100  # of Newton's method; a fit that exists needs about ten


def fit_recalibration(labels: np.ndarray, logits: np.ndarray, slope: bool) -> tuple[float, np.ndarray]:
    """Slope of the logistic regression of labels on logits, or without `slope` the intercept at a fixed slope of 1.

    Also the part of each case in it (n,), from the score of the likelihood. NaN where no finite fit exists: one class,
    logits that separate the classes, or logits that are all the same.
    """
    nothing = np.nan, np.zeros(len(labels))
    if not np.isfinite(logits).all() or labels.all() or not labels.any():
        return nothing
    if slope and _separated(labels, logits):
        return nothing

    # the slope is fitted on a standard scale, on which Newton's steps are well behaved
    scale = max(logits.std(), np.finfo(float).tiny) if slope else 1.0
    design = np.ones((len(labels), 1))
    offset = logits
    if slope:
        design = np.stack([np.ones(len(labels)), (logits - logits.mean()) / scale], axis=1)  # n 2
        offset = np.zeros(len(labels))

    fitted = _fit_logistic(design, labels, offset)
    if fitted is None:
        return nothing
    coefficients, information = fitted
    residual = labels - expit(design @ coefficients + offset)
    parts = np.linalg.solve(information, (design * residual[:, None]).T)  # k n
    return float(coefficients[-1] / scale), parts[-1] / scale


def _separated(labels: np.ndarray, logits: np.ndarray) -> bool:
    """Whether a threshold separates the classes, ties on it allowed: the slope would be infinite or arbitrary."""
    positives, negatives = logits[labels], logits[~labels]
    return bool(positives.min() >= negatives.max() or positives.max() <= negatives.min())


def _fit_logistic(design: np.ndarray, labels: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Coefficients (k,) and information (k, k) by Newton's method, steps halved while they do not help."""
    coefficients = np.zeros(design.shape[1])
    loss = _logistic_loss(design @ coefficients + offset, labels)
    for _ in range(STEPS):
        predicted = expit(design @ coefficients + offset)
        gradient = design.T @ (labels - predicted)
        information = (design * (predicted * (1 - predicted))[:, None]).T @ design
        if not np.linalg.cond(information) < 1 / np.finfo(float).eps:
            return None
        step = np.linalg.solve(information, gradient)

        # the loss is convex: a step that is too long is halved
        while True:
            moved = _logistic_loss(design @ (coefficients + step) + offset, labels)
            if moved <= loss + 1e-12 * abs(loss) or np.abs(step).max() < 1e-12:
                break
            step = step / 2
        coefficients = coefficients + step
        loss = moved
        if np.abs(step).max() < 1e-10:
            return coefficients, information
    return None


def _logistic_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.logaddexp(0, logits).sum() - logits[labels].sum())
