"""Bootstrap intervals and paired differences, cases or whole patients resampled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from classify.metrics.binary import HEADLINE, weighted_metrics
from classify.metrics.checks import check_level, check_logits, check_seeds, group_codes
from classify.metrics.estimates import Interval

BLOCK = 1 << 21  # resampled weights held in memory at a time


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
    intervals = bootstrap_intervals(
        labels,
        scores,
        metrics=(metric,),
        threshold=threshold,
        groups=groups,
        replicates=replicates,
        level=level,
        seed=seed,
    )
    return intervals[metric]


def bootstrap_intervals(
    labels: ArrayLike,
    scores: ArrayLike,
    metrics: Sequence[str] = HEADLINE,
    threshold: ArrayLike = 0.5,
    groups: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int | np.random.Generator = 0,
    logits: ArrayLike | None = None,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of several metrics over the same resamples, {name: Interval}.

    The percentile interval is used because it stays inside a metric's range and follows its skew
    (Efron and Tibshirani 1993, chapter 13). Cases are drawn with replacement; with `groups` (n,),
    such as patient ids, whole groups are (Field and Welsh 2007). Classes are not held fixed.

    scores (s, n) are s seeds of one model, threshold one number or (s,): the estimate is the mean of
    the metric over seeds, and each replicate draws seeds as well as cases, so the interval covers a
    new training run (with few seeds it is still too narrow: s draws of s understate their spread).

    Where scores are the sigmoid of `logits` (of the same shape), these order the cases, as in `binary_metrics`.

    Replicates where a metric is undefined (no positives, say) are left out and counted in
    `.undefined`; the interval is NaN when none remains.
    """
    labels, scores, thresholds = check_seeds(labels, scores, threshold)
    check_level(level)
    seeds = Seeds(scores, thresholds, check_logits(logits, scores))
    [model] = _bootstrap(labels, [seeds], metrics, groups=groups, replicates=replicates, seed=seed)

    intervals = {}
    for name, estimate, values in zip(metrics, model.estimates, model.replicates, strict=True):
        intervals[name] = Interval(
            float(estimate), _percentile_interval(values, level), level, undefined=int(np.isnan(values).sum())
        )
    return intervals


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
    differences = bootstrap_differences(
        labels,
        scores_a,
        scores_b,
        metrics=(metric,),
        thresholds=thresholds,
        groups=groups,
        replicates=replicates,
        level=level,
        seed=seed,
    )
    return differences[metric]


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
    logits: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
) -> dict[str, BootstrapDifference]:
    """Paired bootstrap of metric(a) - metric(b): both models meet the same resampled cases.

    Arguments as in `bootstrap_intervals`; `thresholds` and `logits` hold a's and b's, and a and b may have
    different numbers of seeds, which are drawn independently. The two-sided p-value is twice the
    smaller share of replicates on either side of 0. One is added to count and total so that the
    p-value is never 0 (Davison and Hinkley 1997, chapter 4); apart from that it agrees with the interval.
    """
    labels, scores_a, thresholds_a = check_seeds(labels, scores_a, thresholds[0], "scores_a")
    labels, scores_b, thresholds_b = check_seeds(labels, scores_b, thresholds[1], "scores_b")
    check_level(level)
    models = [
        Seeds(scores_a, thresholds_a, check_logits(logits[0], scores_a)),
        Seeds(scores_b, thresholds_b, check_logits(logits[1], scores_b)),
    ]
    of_a, of_b = _bootstrap(labels, models, metrics, groups=groups, replicates=replicates, seed=seed)

    differences = {}
    estimates = of_a.estimates - of_b.estimates
    resampled = of_a.replicates - of_b.replicates
    for name, estimate, values in zip(metrics, estimates, resampled, strict=True):
        differences[name] = BootstrapDifference(
            float(estimate),
            _percentile_interval(values, level),
            level,
            undefined=int(np.isnan(values).sum()),
            p_value=_two_sided(values),
        )
    return differences


# ------------------------------------------------------------ resampling
#
# m models, k metrics, r replicates, s seeds of a model, n cases.


class Seeds(NamedTuple):
    """The seeds of a model: scores (s, n), thresholds (s,), and what orders the cases (s, n)."""

    scores: np.ndarray
    thresholds: np.ndarray
    order_by: np.ndarray


class Resampled(NamedTuple):
    """The metrics of a model: estimates (k,) and replicates (k, r)."""

    estimates: np.ndarray
    replicates: np.ndarray


def _bootstrap(
    labels: np.ndarray,
    models: Sequence[Seeds],
    names: Sequence[str],
    groups: ArrayLike | None,
    replicates: int,
    seed: int | np.random.Generator,
) -> list[Resampled]:
    """The metrics of each model, all of them on the same resamples."""
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, wanted 1 or more")

    # the estimates are the metrics of a resample that holds every case once
    once = np.ones((1, len(labels)))
    estimates = [_by_seed(once, labels, model, names)[..., 0].mean(0) for model in models]

    # two streams: the resampled cases do not depend on how many seeds a model has
    case_draws, seed_draws = np.random.default_rng(seed).spawn(2)
    blocks: list[list[np.ndarray]] = [[] for _ in models]
    for weights in resamples(group_codes(groups, len(labels)), replicates, case_draws):
        for model, found in zip(models, blocks, strict=True):
            values = _by_seed(weights, labels, model, names)
            found.append(_seed_means(values, seed_draws))

    # a model's blocks, one after the other
    resampled = []
    for estimate, found in zip(estimates, blocks, strict=True):
        resampled.append(Resampled(estimate, np.concatenate(found, axis=-1)))
    return resampled


def resamples(codes: np.ndarray, replicates: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights (r, n) block by block: how often each case's group was drawn."""
    size = int(codes.max()) + 1
    step = max(1, BLOCK // max(len(codes), size))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = rng.integers(0, size, (rows, size))

        # all rows are counted at once, each in bins of its own
        bins = drawn + size * np.arange(rows)[:, None]
        counts = np.bincount(bins.ravel(), minlength=rows * size).reshape(rows, size)
        yield counts.astype(np.float64)[:, codes]


def _by_seed(weights: np.ndarray, labels: np.ndarray, model: Seeds, names: Sequence[str]) -> np.ndarray:
    """(s, k, r): every metric of every seed on every resample."""
    found = []
    for scores, threshold, order_by in zip(*model, strict=True):
        values = weighted_metrics(weights, labels, scores, threshold, names, order_by)
        found.append([values[name] for name in names])
    return np.array(found)


def _seed_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(s, k, r) → (k, r): the mean over s seeds drawn anew for each resample."""
    seeds, _, rows = values.shape
    drawn = rng.integers(0, seeds, (rows, seeds))

    # the mean of the drawn seeds, as a weighted mean of all seeds
    share = (drawn[:, :, None] == np.arange(seeds)).mean(1)  # r s
    return np.einsum("rs,skr->kr", share, values)


def _percentile_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The middle `level` of the values that are defined; NaN where there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _two_sided(differences: np.ndarray) -> float:
    """p-value: how rarely the difference lies on the other side of 0."""
    known = differences[~np.isnan(differences)]
    if not len(known):
        return np.nan

    # one is added to count and total, so that it is never 0
    smaller = min(np.sum(known <= 0), np.sum(known >= 0))
    return float(min(1.0, 2 * (smaller + 1) / (len(known) + 1)))
