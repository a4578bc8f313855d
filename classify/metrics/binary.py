"""Metrics at a threshold, one by one and, weighted, for thousands of resamples at once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from classify.metrics.checks import check, check_logits, check_threshold

# what every table shows
HEADLINE = ("accuracy", "precision", "f1", "recall", "auc")
Rule = Literal["youden", "accuracy", "f1"]


@dataclass(frozen=True)
class BinaryMetrics:
    """Metrics at one threshold; fields are read as `m.auc` or `m["auc"]`, and `dict(m)` lists them."""

    n: int
    positives: int
    threshold: float
    accuracy: float
    precision: float
    recall: float
    specificity: float
    f1: float
    auc: float
    average_precision: float
    brier: float
    tn: int
    fp: int
    fn: int
    tp: int

    @property
    def confusion(self) -> tuple[int, int, int, int]:
        """(tn, fp, fn, tp), the order of scikit-learn's confusion_matrix(...).ravel()."""
        return self.tn, self.fp, self.fn, self.tp

    def keys(self) -> list[str]:
        return [field.name for field in fields(self)]

    def __getitem__(self, name: str) -> float:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


def binary_metrics(
    labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, logits: ArrayLike | None = None
) -> BinaryMetrics:
    """Metrics of scores (n,) against labels (n,) at one threshold.

    If scores are the sigmoid of `logits` (n,), the logits order the cases for AUC and average precision: above a logit
    of 37, scores of 64 bits round to 1, and different cases would tie.
    Ratios without a denominator are 0, as scikit-learn with zero_division=0 (precision when nothing
    is predicted abnormal, recall without positives); the AUC of a single class is NaN. The Brier score
    takes scores as probabilities.
    """
    labels, scores = check(labels, scores)
    check_threshold(threshold)
    order_by = check_logits(logits, scores)

    # the metrics of a resample that holds every case once
    once = np.ones((1, len(labels)))
    names = ("accuracy", "precision", "recall", "specificity", "f1", "auc", "average_precision", "brier")
    values = {}
    for name, value in weighted_metrics(once, labels, scores, threshold, names, order_by).items():
        values[name] = float(value[0])

    # as in scikit-learn, these are 0 without a positive or a negative, not undefined
    for name in ("recall", "specificity", "average_precision"):
        values[name] = float(np.nan_to_num(values[name]))

    counts = _confusion(once, labels, scores, threshold)
    return BinaryMetrics(
        n=len(labels),
        positives=int(labels.sum()),
        threshold=float(threshold),
        accuracy=values["accuracy"],
        precision=values["precision"],
        recall=values["recall"],
        specificity=values["specificity"],
        f1=values["f1"],
        auc=values["auc"],
        average_precision=values["average_precision"],
        brier=values["brier"],
        tn=int(counts.tn[0]),
        fp=int(counts.fp[0]),
        fn=int(counts.fn[0]),
        tp=int(counts.tp[0]),
    )


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | np.ndarray:
    """Area under the ROC curve, ties counted half; NaN where a class is missing.

    Without weights a float; with weights (n,) or (r, n), one AUC per row. Equals the midrank
    (Mann-Whitney) form and scikit-learn's roc_auc_score.
    """
    labels, scores = check(labels, scores)
    if weights is None:
        return float(_auc(np.ones((1, len(labels))), labels, scores)[0])

    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim > 2 or weights.shape[-1:] != labels.shape:
        raise ValueError(f"weights have shape {weights.shape}, wanted (n,) or (r, n), n = {len(labels)}")
    return _auc(np.atleast_2d(weights), labels, scores)


def choose_threshold(labels: ArrayLike, scores: ArrayLike, rule: Rule = "youden") -> float:
    """The threshold that maximises `rule` on labels and scores (n,): use it on validation only.

    Rules: youden (sensitivity + specificity - 1, the same choice as balanced accuracy; Youden 1950),
    accuracy, f1. The answer lies midway between two adjacent scores; at the ends it is the lowest
    score (all abnormal) or just above the highest (none). Among equally good thresholds the lowest
    wins, the one that misses fewest. One class only is an error.
    """
    labels, scores = check(labels, scores)
    positives = np.sort(scores[labels])
    negatives = np.sort(scores[~labels])
    if not (len(positives) and len(negatives)):
        raise ValueError("choosing a threshold needs normal and abnormal cases, found one class only")

    # true and false positives at every threshold that could be chosen
    candidates = candidate_thresholds(scores)
    tp = len(positives) - np.searchsorted(positives, candidates)
    fp = len(negatives) - np.searchsorted(negatives, candidates)

    # whole numbers, or one rounded division of them: ties are exact
    rules = {
        "youden": lambda: tp * len(negatives) - fp * len(positives),
        "accuracy": lambda: tp - fp,
        "f1": lambda: 2 * tp / (tp + fp + len(positives)),
    }
    if rule not in rules:
        raise ValueError(f"threshold rule {rule!r} is unknown; one of {', '.join(rules)}")

    # the first of equal maxima, which is the lowest threshold
    return float(candidates[np.argmax(rules[rule]())])


def candidate_thresholds(scores: np.ndarray) -> np.ndarray:
    """The lowest score, all midpoints of neighbouring scores, and just above the highest."""
    distinct = np.unique(scores)
    low, high = distinct[:-1], distinct[1:]
    middle = low + (high - low) / 2
    middle = np.where(middle > low, middle, high)  # neighbouring floats have no midpoint
    return np.concatenate([distinct[:1], middle, [np.nextafter(distinct[-1], np.inf)]])


# ------------------------------------------------------------ the same metrics, weighted, in bulk
#
# weights (r, n) say how often each of n cases stands in each of r resamples. Undefined is NaN.


def weighted_metrics(
    weights: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    names: Sequence[str],
    order_by: np.ndarray,
) -> dict[str, np.ndarray]:
    """{name: (r,)}; recall and average precision need a positive, specificity a negative, auc both.

    `order_by` (n) orders the cases: the scores, or the logits they are made of.
    Precision is 0, not undefined, if nothing is predicted abnormal: so a collapsed model is penalised.
    """
    tn, fp, fn, tp = _confusion(weights, labels, scores, threshold)
    formulas = {  # functions, so that only what is asked for is computed
        "accuracy": lambda: ratio(tp + tn, tp + tn + fp + fn),
        "precision": lambda: ratio(tp, tp + fp, empty=0.0),
        "recall": lambda: ratio(tp, tp + fn),
        "specificity": lambda: ratio(tn, tn + fp),
        "f1": lambda: ratio(2 * tp, 2 * tp + fp + fn, empty=0.0),
        "auc": lambda: _auc(weights, labels, order_by),
        "average_precision": lambda: _average_precision(weights, labels, order_by),
        "brier": lambda: ratio(weights @ (scores - labels) ** 2, weights.sum(1)),
    }

    for name in names:
        if name not in formulas:
            raise ValueError(f"metric {name!r} is unknown; one of {', '.join(formulas)}")
    return {name: formulas[name]() for name in names}


class Confusion(NamedTuple):
    """How many cases of each resample fall in each cell, (r,)."""

    tn: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tp: np.ndarray


def _confusion(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, threshold: float) -> Confusion:
    predicted = scores >= threshold
    cells = np.stack(
        [
            ~labels & ~predicted,
            ~labels & predicted,
            labels & ~predicted,
            labels & predicted,
        ]
    )  # 4 n
    return Confusion(*(weights @ cells.T.astype(np.float64)).T)


def _auc(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(r,): each positive beats the negatives below it and half of those level with it."""
    ranking = _ranking(labels, scores)
    positives = weights[:, ranking.positive]  # r n1
    negatives = _cumulate(weights[:, ranking.negative])  # r n0+1

    # the mean of how many lie below and how many lie below or level: ties count half
    area = np.einsum("rp,rp->r", positives, negatives[:, ranking.below] + negatives[:, ranking.upto]) / 2
    return ratio(area, positives.sum(1) * negatives[:, -1])


def _average_precision(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(r,): precision at each positive's score, averaged over positives (a step-wise integral)."""
    ranking = _ranking(labels, scores)
    positives = _cumulate(weights[:, ranking.positive])  # r n1+1
    negatives = _cumulate(weights[:, ranking.negative])  # r n0+1

    # if a positive's score is the threshold, all cases that do not lie below it are predicted abnormal
    ranked = scores[ranking.positive]
    tp = positives[:, -1:] - positives[:, np.searchsorted(ranked, ranked, "left")]
    fp = negatives[:, -1:] - negatives[:, ranking.below]
    precision = ratio(tp, tp + fp, empty=0.0)
    return ratio(np.einsum("rp,rp->r", weights[:, ranking.positive], precision), positives[:, -1])


class Ranking(NamedTuple):
    positive: np.ndarray  # indices of the positives (n1) by rising score
    negative: np.ndarray  # and of the negatives (n0)
    below: np.ndarray  # for each positive (n1): how many negatives lie below it
    upto: np.ndarray  # and how many lie below or level


def _ranking(labels: np.ndarray, scores: np.ndarray) -> Ranking:
    order = np.argsort(scores, kind="stable")
    positive = order[labels[order]]
    negative = order[~labels[order]]
    return Ranking(
        positive,
        negative,
        below=np.searchsorted(scores[negative], scores[positive], "left"),
        upto=np.searchsorted(scores[negative], scores[positive], "right"),
    )


def _cumulate(weights: np.ndarray) -> np.ndarray:
    """(r, n) → (r, n+1): column j sums the first j."""
    total = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=total[:, 1:])
    return total


def ratio(above: np.ndarray, below: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """above / below; `empty` where there is nothing below."""
    return np.divide(above, below, out=np.full(np.shape(below), empty), where=below > 0)
