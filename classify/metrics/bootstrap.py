"""Bootstrap intervals and paired differences, cases or whole patients resampled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from classify.metrics.binary import HEADLINE, weighted_metrics
from classify.metrics.checks import check_level, check_seeds, group_codes

BLOCK = 1 << 21  # resampled weights held in memory at a time


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
    labels, scores, thresholds = check_seeds(labels, scores, threshold)
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
    return bootstrap_differences(labels, scores_a, scores_b, names, thresholds, groups, replicates, level, seed)[metric]


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
    labels, *a = check_seeds(labels, scores_a, thresholds[0], "scores_a")
    labels, *b = check_seeds(labels, scores_b, thresholds[1], "scores_b")
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
    check_level(level)
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, wanted 1 or more")
    # two streams: the resampled cases do not depend on how many seeds a model has
    case_draws, seed_draws = np.random.default_rng(seed).spawn(2)
    once = np.ones((1, len(labels)))
    estimates = [_by_seed(once, labels, *model, names)[..., 0].mean(0) for model in models]
    blocks = [
        [_seed_means(_by_seed(weights, labels, *model, names), seed_draws) for model in models]
        for weights in _resamples(group_codes(groups, len(labels)), replicates, case_draws)
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
        weighted_metrics(weights, labels, row, threshold, names)
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
