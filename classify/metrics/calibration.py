"""Calibration: do probabilities of abnormal mean what they say?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

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

    edges = np.linspace(0, 1, bins + 1)
    # a score on an edge belongs to the bin below it
    bin_of = np.digitize(scores, edges[1:-1], right=True)  # n
    count = np.bincount(bin_of, minlength=bins)
    mean_score = ratio(np.bincount(bin_of, scores, bins), count)
    positive_rate = ratio(np.bincount(bin_of, labels, bins), count)
    return ReliabilityCurve(edges, mean_score, positive_rate, count)


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> float:
    """Mean |share of positives - mean score| over equal-width bins, weighted by their cases.

    Guo et al. 2017, but on the probability of abnormal rather than of the predicted class,
    so that errors below 0.5 and above cannot cancel inside one bin.
    """
    curve = reliability_curve(labels, scores, bins)
    gaps = np.nan_to_num(np.abs(curve.positive_rate - curve.mean_score))
    return float(gaps @ curve.count / curve.count.sum())
