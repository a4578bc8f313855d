"""Pure functions from arrays to metrics, intervals, paired tests and calibration.

Everywhere: `labels` (n,) are 0 normal, 1 abnormal; `scores` (n,) grow with abnormality, and
score >= threshold is called abnormal. Where several seeds of one model are compared, scores may be
(s, n) and thresholds (s,). Nothing is read, written or seeded globally; bad input is a ValueError.

Point estimates and resampled ones come from the same weighted formulas, so an interval always
belongs to its estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import binomtest, chi2, norm, rankdata

HEADLINE = ("accuracy", "precision", "f1", "recall", "auc")
BLOCK = 1 << 21  # resampled weights held in memory at a time

# ------------------------------------------------------------------------------------- results


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


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval; `undefined` counts bootstrap replicates left out."""

    estimate: float
    interval: tuple[float, float]
    level: float = 0.95
    undefined: int = 0


@dataclass(frozen=True)
class BootstrapDifference(Interval):
    """The difference a - b of one metric on the same resamples."""

    p_value: float = 1.0


@dataclass(frozen=True)
class DeLongTest:
    """The difference auc_a - auc_b; `aucs` are (auc_a, auc_b)."""

    estimate: float
    interval: tuple[float, float]
    p_value: float
    z: float
    standard_error: float
    aucs: tuple[float, float]
    level: float = 0.95


@dataclass(frozen=True)
class McNemarTest:
    """The difference accuracy_a - accuracy_b; `only_a` cases were right in a and wrong in b.

    `statistic` is chi-square, or the smaller discordant count where `exact`.
    """

    estimate: float
    interval: tuple[float, float]
    p_value: float
    statistic: float
    exact: bool
    only_a: int
    only_b: int
    level: float = 0.95


@dataclass(frozen=True)
class ReliabilityCurve:
    """Per equal-width bin (b,): mean score, share of positives (NaN where empty) and count."""

    edges: np.ndarray  # b+1
    mean_score: np.ndarray
    positive_rate: np.ndarray
    count: np.ndarray


# ------------------------------------------------------------------------- metrics at a threshold


def binary_metrics(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> BinaryMetrics:
    """Metrics of scores (n,) against labels (n,) at one threshold.

    Ratios without a denominator are 0, as scikit-learn with zero_division=0 (precision when nothing
    is called abnormal, recall without positives); the AUC of a single class is NaN. The Brier score
    takes scores as probabilities.
    """
    labels, scores = _check(labels, scores)
    names = ("accuracy", "precision", "recall", "specificity", "f1", "auc", "average_precision", "brier")
    once = np.ones((1, len(labels)))
    values = {k: float(v[0]) for k, v in _weighted_metrics(once, labels, scores, threshold, names).items()}
    for name in ("recall", "specificity", "average_precision"):
        values[name] = float(np.nan_to_num(values[name]))
    tn, fp, fn, tp = (int(count[0]) for count in _confusion(once, labels, scores, threshold))
    counts = {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    return BinaryMetrics(len(labels), int(labels.sum()), float(threshold), **values, **counts)


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | np.ndarray:
    """Area under the ROC curve, ties counted half; NaN where a class is missing.

    Without weights a float; with weights (n,) or (r, n), one AUC per row. Equals the midrank
    (Mann-Whitney) form and scikit-learn's roc_auc_score.
    """
    labels, scores = _check(labels, scores)
    if weights is None:
        return float(_auc(np.ones((1, len(labels))), labels, scores)[0])
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim > 2 or weights.shape[-1:] != labels.shape:
        raise ValueError(f"weights have shape {weights.shape}, wanted (n,) or (r, n), n = {len(labels)}")
    return _auc(np.atleast_2d(weights), labels, scores)


def choose_threshold(labels: ArrayLike, scores: ArrayLike, rule: str = "youden") -> float:
    """The threshold that maximises `rule` on labels and scores (n,): use it on validation only.

    Rules: youden (sensitivity + specificity - 1, the same choice as balanced accuracy; Youden 1950),
    accuracy, f1. The answer lies midway between two adjacent scores; at the ends it is the lowest
    score (all abnormal) or just above the highest (none). Among equally good thresholds the lowest
    wins, the one that misses fewest. One class only is an error.
    """
    labels, scores = _check(labels, scores)
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
    if not (len(positives) and len(negatives)):
        raise ValueError("choosing a threshold needs normal and abnormal cases, found one class only")
    candidates = _candidate_thresholds(scores)
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
    return float(candidates[np.argmax(rules[rule]())])


def _candidate_thresholds(scores: np.ndarray) -> np.ndarray:
    distinct = np.unique(scores)
    low, high = distinct[:-1], distinct[1:]
    middle = low + (high - low) / 2
    middle = np.where(middle > low, middle, high)  # neighbouring floats have no midpoint
    return np.concatenate([distinct[:1], middle, [np.nextafter(distinct[-1], np.inf)]])


# ------------------------------------------------------------ the same metrics, weighted, in bulk
#
# weights (r, n) say how often each of n cases stands in each of r resamples. Undefined is NaN.


def _weighted_metrics(
    weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, threshold: float, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """{name: (r,)}; recall and average precision need a positive, specificity a negative, auc both.

    Precision without a call of abnormal is 0, not undefined: a collapsed model keeps its price.
    """
    tn, fp, fn, tp = _confusion(weights, labels, scores, threshold)
    formulas = {
        "accuracy": lambda: _ratio(tp + tn, tp + tn + fp + fn),
        "precision": lambda: _ratio(tp, tp + fp, empty=0.0),
        "recall": lambda: _ratio(tp, tp + fn),
        "specificity": lambda: _ratio(tn, tn + fp),
        "f1": lambda: _ratio(2 * tp, 2 * tp + fp + fn, empty=0.0),
        "auc": lambda: _auc(weights, labels, scores),
        "average_precision": lambda: _average_precision(weights, labels, scores),
        "brier": lambda: _ratio(weights @ (scores - labels) ** 2, weights.sum(1)),
    }
    for name in names:
        if name not in formulas:
            raise ValueError(f"metric {name!r} is unknown; one of {', '.join(formulas)}")
    return {name: formulas[name]() for name in names}


def _confusion(
    weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, threshold: float
) -> tuple[np.ndarray, ...]:
    """tn, fp, fn, tp, each (r,)."""
    called = scores >= threshold
    cells = np.stack([~labels & ~called, ~labels & called, labels & ~called, labels & called])  # 4 n
    return tuple((weights @ cells.T.astype(np.float64)).T)


def _auc(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(r,): each positive beats the negatives below it and half of those level with it."""
    positive, negative, below, upto = _order(labels, scores)
    lost = _cumulate(weights[:, negative])  # r n0+1
    won = weights[:, positive]  # r n1
    area = np.einsum("rp,rp->r", won, lost[:, below] + lost[:, upto]) / 2
    return _ratio(area, won.sum(1) * lost[:, -1])


def _average_precision(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(r,): precision at each positive's score, averaged over positives (a step-wise integral)."""
    positive, negative, below, _ = _order(labels, scores)
    hits, misses = _cumulate(weights[:, positive]), _cumulate(weights[:, negative])
    ranked = scores[positive]
    tp = hits[:, -1:] - hits[:, np.searchsorted(ranked, ranked, "left")]
    fp = misses[:, -1:] - misses[:, below]
    precision = _ratio(tp, tp + fp, empty=0.0)
    return _ratio(np.einsum("rp,rp->r", weights[:, positive], precision), hits[:, -1])


def _order(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    """Indices of positives and negatives by rising score, and, per positive, how many negatives
    lie below it and how many lie below or level."""
    order = np.argsort(scores, kind="stable")
    positive, negative = order[labels[order]], order[~labels[order]]
    below = np.searchsorted(scores[negative], scores[positive], "left")
    upto = np.searchsorted(scores[negative], scores[positive], "right")
    return positive, negative, below, upto


def _cumulate(weights: np.ndarray) -> np.ndarray:
    """(r, n) → (r, n+1): column j sums the first j."""
    total = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=total[:, 1:])
    return total


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = np.nan) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), empty), where=below > 0)


# ----------------------------------------------------------------------------------- bootstrap


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    metric: str = "auc",
    threshold: ArrayLike = 0.5,
    groups: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int | np.random.Generator = 0,
) -> Interval:
    """`bootstrap_intervals` of one metric."""
    return bootstrap_intervals(labels, scores, (metric,), threshold, groups, replicates, level, seed)[metric]


def bootstrap_intervals(
    labels: ArrayLike,
    scores: ArrayLike,
    metrics: Sequence[str] = HEADLINE,
    threshold: ArrayLike = 0.5,
    groups: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int | np.random.Generator = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of several metrics over the same resamples, {name: Interval}.

    The percentile interval is used because it stays inside a metric's range and follows its skew
    (Efron and Tibshirani 1993, chapter 13). Cases are drawn with replacement; with `groups` (n,),
    such as patient ids, whole groups are (Field and Welsh 2007). Classes are not held fixed.

    scores (s, n) are s seeds of one model, threshold one number or (s,): the estimate is the mean of
    the metric over seeds, and each replicate draws seeds as well as cases, so the interval covers a
    new training run (with few seeds it is still too narrow: s draws of s understate their spread).

    Replicates where a metric is undefined (no positives, say) are left out and counted in
    `.undefined`; the interval is NaN when none remains.
    """
    labels, scores, thresholds = _check_seeds(labels, scores, threshold)
    model = [(scores, thresholds)]
    estimates, resampled = _bootstrap(labels, model, metrics, groups, replicates, level, seed)
    return {
        name: Interval(float(estimate), *_percentile(values, level))
        for name, estimate, values in zip(metrics, estimates[0], resampled[0], strict=True)
    }


def bootstrap_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    metric: str = "auc",
    thresholds: tuple[ArrayLike, ArrayLike] = (0.5, 0.5),
    groups: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int | np.random.Generator = 0,
) -> BootstrapDifference:
    """`bootstrap_differences` of one metric."""
    names = (metric,)
    return bootstrap_differences(
        labels, scores_a, scores_b, names, thresholds, groups, replicates, level, seed
    )[metric]


def bootstrap_differences(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    metrics: Sequence[str] = HEADLINE,
    thresholds: tuple[ArrayLike, ArrayLike] = (0.5, 0.5),
    groups: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int | np.random.Generator = 0,
) -> dict[str, BootstrapDifference]:
    """Paired bootstrap of metric(a) - metric(b): both models meet the same resampled cases.

    Arguments as in `bootstrap_intervals`; `thresholds` holds a's and b's, and a and b may have
    different numbers of seeds, which are drawn independently. The two-sided p-value is twice the
    smaller share of replicates on either side of 0, one added to count and total so that it is
    never 0 (Davison and Hinkley 1997, chapter 4); up to that one it agrees with the interval.
    """
    labels, *a = _check_seeds(labels, scores_a, thresholds[0], "scores_a")
    labels, *b = _check_seeds(labels, scores_b, thresholds[1], "scores_b")
    estimates, resampled = _bootstrap(labels, [a, b], metrics, groups, replicates, level, seed)
    estimate, difference = estimates[0] - estimates[1], resampled[0] - resampled[1]
    return {
        name: BootstrapDifference(float(center), *_percentile(values, level), _two_sided(values))
        for name, center, values in zip(metrics, estimate, difference, strict=True)
    }


def _bootstrap(
    labels: np.ndarray,
    models: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    groups: ArrayLike | None,
    replicates: int,
    level: float,
    seed: int | np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (m, k) and replicates (m, k, r) of k metrics for m models of (scores, thresholds)."""
    _check_level(level)
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, wanted 1 or more")
    # two streams: the resampled cases do not depend on how many seeds a model has
    case_draws, seed_draws = np.random.default_rng(seed).spawn(2)
    once = np.ones((1, len(labels)))
    estimates = [_by_seed(once, labels, *model, names)[..., 0].mean(0) for model in models]
    blocks = [
        [_seed_means(_by_seed(weights, labels, *model, names), seed_draws) for model in models]
        for weights in _resamples(_group_codes(groups, len(labels)), replicates, case_draws)
    ]
    return np.stack(estimates), np.concatenate(blocks, axis=-1)


def _resamples(codes: np.ndarray, replicates: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights (r, n) block by block: how often each case's group was drawn."""
    size = int(codes.max()) + 1
    step = max(1, BLOCK // max(len(codes), size))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        yield counts.astype(np.float64)[:, codes]


def _by_seed(
    weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """(s, k, r): every metric of every seed on every resample."""
    each = [
        _weighted_metrics(weights, labels, row, threshold, names)
        for row, threshold in zip(scores, thresholds, strict=True)
    ]
    return np.array([[values[name] for name in names] for values in each])


def _seed_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(s, k, r) → (k, r): the mean over s seeds drawn anew for each resample."""
    seeds, _, rows = values.shape
    drawn = rng.integers(0, seeds, (rows, seeds))
    share = (drawn[:, :, None] == np.arange(seeds)).mean(1)  # r s
    return np.einsum("rs,skr->kr", share, values)


def _percentile(values: np.ndarray, level: float) -> tuple[tuple[float, float], float, int]:
    """The interval, the level and the number of undefined values: the tail of an Interval."""
    known = values[~np.isnan(values)]
    undefined = len(values) - len(known)
    if not len(known):
        return (np.nan, np.nan), level, undefined
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high)), level, undefined


def _two_sided(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    if not len(known):
        return np.nan
    smaller = min(np.sum(known <= 0), np.sum(known >= 0))
    return float(min(1.0, 2 * (smaller + 1) / (len(known) + 1)))


# --------------------------------------------------------------------------------- DeLong's test


def delong_test(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95
) -> DeLongTest:
    """Test of equal AUC of two scores (n,) of the same cases (DeLong, DeLong and Clarke-Pearson 1988).

    In O(n log n) by midranks (Sun and Xu 2014). Cases are taken as independent: with several images
    per patient score the study, or use `bootstrap_difference` with groups. Scores that order the
    cases alike give difference 0 and p 1. Needs two cases of each class.
    """
    _check_level(level)
    labels, scores_a = _check(labels, scores_a, "scores_a")
    labels, scores_b = _check(labels, scores_b, "scores_b")
    of_positives, of_negatives = _delong_components(labels, np.stack([scores_a, scores_b]))
    aucs = of_positives.mean(1)
    estimate = float(aucs[0] - aucs[1])
    error = _delong_error(of_positives[0] - of_positives[1], of_negatives[0] - of_negatives[1])
    z = _standardise(estimate, error)
    reach = float(norm.ppf((1 + level) / 2)) * error
    interval = (max(-1.0, estimate - reach), min(1.0, estimate + reach))
    return DeLongTest(
        estimate, interval, float(2 * norm.sf(abs(z))), z, error, (float(aucs[0]), float(aucs[1])), level
    )


def delong_interval(
    labels: ArrayLike, scores: ArrayLike, level: float = 0.95, transform: str = "logit"
) -> Interval:
    """Interval of one AUC from DeLong's variance, for scores (n,) of independent cases.

    transform "logit" works on the logit scale and stays inside (0, 1) (Pepe 2003, chapter 5);
    "none" is the symmetric interval most software prints, cut at 0 and 1. An AUC of exactly 0 or 1
    has zero variance, so both collapse to that point: report the counts instead.
    """
    _check_level(level)
    labels, scores = _check(labels, scores)
    of_positives, of_negatives = _delong_components(labels, scores[None])
    area, error = float(of_positives.mean()), _delong_error(of_positives[0], of_negatives[0])
    reach = np.array([-1, 1]) * norm.ppf((1 + level) / 2) * error
    if transform not in ("logit", "none"):
        raise ValueError(f"transform {transform!r} is unknown; one of logit, none")
    if transform == "none" or not 0 < area < 1:
        low, high = np.clip(area + reach, 0, 1)
    else:
        low, high = expit(logit(area) + reach / (area * (1 - area)))
    return Interval(area, (float(low), float(high)), level)


def _delong_components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Structural components V10 (k, n1) and V01 (k, n0) of k scores (k, n); the mean of each is the AUC."""
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if min(positives, negatives) < 2:
        raise ValueError(
            f"DeLong needs 2 cases of each class, found {positives} abnormal, {negatives} normal"
        )
    overall = rankdata(scores, axis=-1)
    within_positives = rankdata(scores[:, labels], axis=-1)
    within_negatives = rankdata(scores[:, ~labels], axis=-1)
    of_positives = (overall[:, labels] - within_positives) / negatives
    of_negatives = 1 - (overall[:, ~labels] - within_negatives) / positives
    return of_positives, of_negatives


def _standardise(estimate: float, error: float) -> float:
    if error > 0:
        return estimate / error
    return float(np.sign(estimate) * np.inf) if estimate else 0.0


def _delong_error(of_positives: np.ndarray, of_negatives: np.ndarray) -> float:
    """Standard error from components, or from differences of components: equal ones give exactly 0."""
    variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    return float(np.sqrt(variance))


# ------------------------------------------------------------------------- McNemar and proportions


def mcnemar_test(
    labels: ArrayLike,
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    exact: bool | None = None,
    level: float = 0.95,
) -> McNemarTest:
    """Test of equal accuracy of two sets of predictions (n,), each 0 or 1, of the same cases.

    McNemar 1947: only the discordant cases speak. Fewer than 25 of them (or exact=True) are judged by
    the exact binomial, more by chi-square with Edwards' continuity correction, as R's mcnemar.test.
    The interval of the difference is Newcombe's score interval for paired proportions (1998,
    Statistics in Medicine 17:2635, method 10). Cases are taken as independent.
    """
    _check_level(level)
    labels, called_a = _check(labels, predictions_a, "predictions_a")
    labels, called_b = _check(labels, predictions_b, "predictions_b")
    right_a = labels == _binary("predictions_a", called_a)
    right_b = labels == _binary("predictions_b", called_b)
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    both, neither = int(np.sum(right_a & right_b)), int(np.sum(~right_a & ~right_b))
    exact = only_a + only_b < 25 if exact is None else exact
    statistic, p_value = _mcnemar(only_a, only_b, exact)
    interval = _newcombe_paired(both, only_a, only_b, neither, level)
    return McNemarTest(
        (only_a - only_b) / len(labels), interval, p_value, statistic, exact, only_a, only_b, level
    )


def _mcnemar(only_a: int, only_b: int, exact: bool) -> tuple[float, float]:
    discordant = only_a + only_b
    if discordant == 0:
        return 0.0, 1.0
    if exact:
        return float(min(only_a, only_b)), float(binomtest(only_a, discordant).pvalue)
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
    return statistic, float(chi2.sf(statistic, 1))


def _newcombe_paired(both: int, only_a: int, only_b: int, neither: int, level: float) -> tuple[float, float]:
    """Interval of p_a - p_b: two Wilson intervals joined through their correlation phi."""
    n = both + only_a + only_b + neither
    a, b = wilson_interval(both + only_a, n, level), wilson_interval(both + only_b, n, level)
    a_down, a_up = a.estimate - a.interval[0], a.interval[1] - a.estimate
    b_down, b_up = b.estimate - b.interval[0], b.interval[1] - b.estimate
    phi = _newcombe_phi(both, only_a, only_b, neither)
    difference = a.estimate - b.estimate
    down = np.sqrt(a_down**2 - 2 * phi * a_down * b_up + b_up**2)
    up = np.sqrt(a_up**2 - 2 * phi * a_up * b_down + b_down**2)
    return float(difference - down), float(difference + up)


def _newcombe_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of the two outcomes; a positive one is shrunk by a continuity correction."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    if cross > 0:
        cross = max(cross - (both + only_a + only_b + neither) / 2, 0)
    return cross / np.sqrt(float(margins)) if margins else 0.0


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927): for sensitivity, specificity, accuracy."""
    _check_level(level)
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    found = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, (float(found.low), float(found.high)), level)


# ---------------------------------------------------------------------------------- calibration


def reliability_curve(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> ReliabilityCurve:
    """Mean score against share of positives in equal-width bins ((b-1)/bins, b/bins] of [0, 1].

    Scores (n,) are probabilities of abnormal; 0 falls in the first bin.
    """
    labels, scores = _check(labels, scores)
    if bins < 1:
        raise ValueError(f"bins is {bins}, wanted 1 or more")
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"scores must be probabilities, found {scores.min():g} to {scores.max():g}")
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(scores, edges[1:-1], right=True)
    count = np.bincount(place, minlength=bins)
    mean_score = _ratio(np.bincount(place, scores, bins), count)
    positive_rate = _ratio(np.bincount(place, labels, bins), count)
    return ReliabilityCurve(edges, mean_score, positive_rate, count)


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> float:
    """Mean |share of positives - mean score| over equal-width bins, weighted by their cases.

    Guo et al. 2017, but on the probability of abnormal rather than of the predicted class,
    so that errors below 0.5 and above cannot cancel inside one bin.
    """
    curve = reliability_curve(labels, scores, bins)
    gaps = np.nan_to_num(np.abs(curve.positive_rate - curve.mean_score))
    return float(gaps @ curve.count / curve.count.sum())


# ------------------------------------------------------------------------------------- checking


def _check(labels: ArrayLike, scores: ArrayLike, name: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) as bool and scores (n,) as float64, or a ValueError that says what is wrong."""
    labels = _binary("labels", _finite("labels", labels))
    scores = _finite(name, scores)
    for what, array in (("labels", labels), (name, scores)):
        if array.ndim != 1:
            raise ValueError(f"{what} have shape {array.shape}, wanted one number per case")
    if len(labels) != len(scores):
        raise ValueError(f"{name} have {len(scores)} cases, labels {len(labels)}")
    return labels, scores


def _check_seeds(
    labels: ArrayLike, scores: ArrayLike, threshold: ArrayLike, name: str = "scores"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), scores (s, n) and thresholds (s,)."""
    scores = np.atleast_2d(_finite(name, scores))
    if scores.ndim != 2:
        raise ValueError(f"{name} have shape {scores.shape}, wanted (n,) or (seeds, n)")
    labels, _ = _check(labels, scores[0], name)
    thresholds = np.asarray(threshold, dtype=np.float64)
    if thresholds.shape not in ((), (len(scores),)):
        raise ValueError(f"thresholds of shape {thresholds.shape} for {len(scores)} seeds of {name}")
    return labels, scores, np.broadcast_to(thresholds, len(scores))


def _finite(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a regular array of numbers") from None
    if array.size == 0:
        raise ValueError(f"{name} are empty")
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise ValueError(f"{name} hold {broken} NaN or infinite values; drop those cases first")
    return array


def _binary(name: str, values: np.ndarray) -> np.ndarray:
    strange = values[(values != 0) & (values != 1)]
    if strange.size:
        raise ValueError(f"{name} must be 0 or 1, found {strange.flat[0]:g}")
    return values == 1


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted between 0 and 1, such as 0.95")


def _group_codes(groups: ArrayLike | None, n: int) -> np.ndarray:
    """(n,) whole numbers naming each case's group, in order of first appearance."""
    if groups is None:
        return np.arange(n)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups have shape {groups.shape}, wanted ({n},)")
    if any(group is None or group != group for group in groups.tolist()):
        raise ValueError("groups hold missing values; every case needs its patient")
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes]
