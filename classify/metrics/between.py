"""Differences of one model's metric between two groups of cases, such as women and men."""

import numpy as np
from numpy.typing import ArrayLike

from classify.metrics.checks import check_level, check_seeds, group_codes
from classify.metrics.differences import combined, difference_by_t, square_and_add
from classify.metrics.estimates import Difference
from classify.metrics.influence import influence
from classify.metrics.intervals import ONE_PATIENT, as_model, interval_of
from classify.metrics.patients import join, patient_spread, patients_of, seed_spread

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

    Patients may have cases in both, as with views. So each patient's parts of the difference (the influence functions
    of both metrics) are summed, and the variance is that of these sums. The variance of seeds is added, as in
    `auc_difference`. Patients of a class vary only among those of this class in their own group. With fewer than ten of
    a class in a group the test rejects too often.
    """
    labels, scores, thresholds = check_seeds(labels, scores, thresholds)
    check_level(level)
    members = [np.asarray(in_a, bool), np.asarray(in_b, bool)]
    if members[0].shape != labels.shape or members[1].shape != labels.shape or (members[0] & members[1]).any():
        raise ValueError("groups of cases must be of the cases' shape (n,), and no case may be in both")
    if not all(inside.any() for inside in members):
        return Difference(np.nan, (np.nan, np.nan), level, note=NO_CASES, p_value=np.nan, seeds=(len(scores),) * 2)

    # each group's metric by itself, with its parts and strata at the places of its cases
    codes = group_codes(groups, len(labels))
    model = as_model(scores, thresholds, logits)
    found = []
    strata = []
    parts = np.zeros(len(labels))
    for sign, inside in zip((1, -1), members, strict=True):
        own = influence(name, labels[inside], as_model(scores[:, inside], thresholds, _of(model.logits, inside)))
        parts[inside] = sign * own.parts.mean(0)
        of_group = np.zeros((len(own.strata), len(labels)), bool)
        of_group[:, inside] = own.strata
        strata.append(of_group)
        found.append(own)

    estimates = found[0].estimates - found[1].estimates
    estimate = float(estimates.mean())
    seeds = (len(estimates), len(estimates))
    either = (members[0] | members[1])[None]
    if np.isnan(estimate) or patients_of(either, codes).min() < 2:
        note = ONE_PATIENT if not np.isnan(estimate) else NO_CASES
        return Difference(estimate, (np.nan, np.nan), level, note=note, p_value=np.nan, seeds=seeds)

    of_patients = patient_spread(parts, np.concatenate(strata), codes)
    if of_patients.variance > 0:
        return difference_by_t(name, estimate, join([of_patients, seed_spread(estimates)]), level, seeds)

    # neither varies, as with two AUCs of 1: the intervals of both groups are combined
    a, b = (
        interval_of(name, own, group_codes(codes[inside], int(inside.sum())), level)
        for own, inside in zip(found, members, strict=True)
    )
    sides = square_and_add(a, b)
    freedom = max(1.0, float(patients_of(either, codes).min() - 1))
    return combined(name, estimate, sides, max(sides), freedom, level, seeds)


def _of(logits: np.ndarray | None, inside: np.ndarray) -> np.ndarray | None:
    return None if logits is None else logits[:, inside]
