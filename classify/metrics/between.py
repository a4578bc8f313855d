"""Differences of one model's metric between two groups of cases, such as women and men."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from classify.metrics.checks import check_level, check_seeds, group_codes
from classify.metrics.differences import combined, difference_by_t, spreads_that_reach, square_and_add
from classify.metrics.estimates import Difference, Interval
from classify.metrics.influence import Influence, Model, influence
from classify.metrics.intervals import as_model, interval_of
from classify.metrics.patients import join, patients_of, seed_spread

NO_CASES = "undefined: a class has no cases"


def group_difference(
    labels: ArrayLike,
    scores: ArrayLike,
    in_a: ArrayLike,
    in_b: ArrayLike,
    name: str = "auc",
    thresholds: ArrayLike = 0.5,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    logits: ArrayLike | None = None,
) -> Difference:
    """The metric of scores (n,) or (s, n) among the cases `in_a` (n,) minus that among `in_b`, which share no case.

    The intervals of both groups are combined (MOVER: Zou and Donner 2008): variances alone do not do, as a small group
    without a mistake shows none. Patients may have cases in both, as with views: the correlation is that of their parts
    in both metrics (the influence functions). The variance of seeds is added, as in `auc_difference`.
    """
    labels, scores, thresholds = check_seeds(labels, scores, thresholds)
    check_level(level)
    members = [np.asarray(in_a, bool), np.asarray(in_b, bool)]
    if members[0].shape != labels.shape or members[1].shape != labels.shape or (members[0] & members[1]).any():
        raise ValueError("groups of cases must be of the cases' shape (n,), and no case may be in both")
    seeds = (len(scores), len(scores))
    if not all(inside.any() for inside in members):
        return Difference.unknown(np.nan, level, NO_CASES, seeds)

    codes = group_codes(groups, len(labels))
    model = as_model(scores, thresholds, logits)
    a, b = (_group(name, labels, model, codes, inside, level) for inside in members)
    estimates = a.estimates - b.estimates
    estimate = float(estimates.mean())
    note = a.interval.note or b.interval.note
    sides = square_and_add(a.interval, b.interval, _correlation(a.sums, b.sums))
    if np.isnan(sides).any():
        return Difference.unknown(estimate, level, note, seeds)

    of_seeds = seed_spread(estimates)
    same_cases = a.sums.any() and np.allclose(a.sums, b.sums, rtol=1e-12, atol=0)
    if estimate == 0 and same_cases:
        return difference_by_t(name, estimate, of_seeds, level, seeds)

    # the variance of seeds is added to that of each side
    of_patients = spreads_that_reach(sides, min(a.fewest, b.fewest), level)
    spreads = [join([side, of_seeds]) for side in of_patients]
    return combined(name, estimate, spreads, level, seeds, note)


class _Group(NamedTuple):
    """One group's metric by itself."""

    estimates: np.ndarray  # s
    interval: Interval  # over patients alone
    sums: np.ndarray  # m: the patients' parts, among all patients
    fewest: int  # patients in a stratum


def _group(name: str, labels: np.ndarray, model: Model, codes: np.ndarray, inside: np.ndarray, level: float) -> _Group:
    logits = None if model.logits is None else model.logits[:, inside]
    own = influence(name, labels[inside], as_model(model.scores[:, inside], model.thresholds, logits))
    parts = own.parts.mean(0)
    over_patients = Influence(own.estimates.mean(keepdims=True), parts[None], own.strata)
    return _Group(
        estimates=own.estimates,
        interval=interval_of(name, over_patients, group_codes(codes[inside], int(inside.sum())), level),
        sums=np.bincount(codes[inside], parts, int(codes.max()) + 1),
        fewest=int(patients_of(own.strata, codes[inside]).min()),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two groups' metrics, from the patients' parts in both (m,): 0 where no patient has cases in both."""
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0
