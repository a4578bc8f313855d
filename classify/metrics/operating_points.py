"""Sensitivity at a given specificity, the reverse, and predictive values where disease is rare or common.

A threshold that is found on the cases it is judged by flatters. The honest one is found on validation and applied
unchanged. It meets the target only approximately, so both rates are reported as they came out. Without validation, the
point is that of these cases' own ROC curve. It says so, and its interval includes the choice of the threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from classify.metrics.binary import candidate_thresholds, ratio
from classify.metrics.bootstrap import resamples
from classify.metrics.checks import check, check_level, check_seeds, group_codes
from classify.metrics.estimates import Interval
from classify.metrics.intervals import AS_ONE_CASE, ONE_PATIENT, metric_intervals, proportion_interval, score_interval
from classify.metrics.patients import Spread, join, patients_of, seed_spread

Rate = Literal["sensitivity", "specificity"]
RATES = tuple(percent / 100 for percent in range(1, 100))
RESAMPLES = 1000
CHOSEN = "met by choice of the threshold on these cases"


@dataclass(frozen=True)
class OperatingPoint:
    """Sensitivity and specificity at the thresholds (one for each seed) that `chosen_on` gave."""

    sensitivity: Interval
    specificity: Interval
    thresholds: tuple[float, ...]
    chosen_on: Literal["validation", "these cases"]


@dataclass(frozen=True)
class PredictiveValues:
    """How likely a case called abnormal is abnormal, and one called normal normal, at a prevalence."""

    prevalence: float
    ppv: Interval
    npv: Interval


# ------------------------------------------------------------ thresholds


def threshold_at_specificity(labels: ArrayLike, scores: ArrayLike, specificity: float) -> float:
    """The lowest threshold at which labels and scores (n,) have this specificity or more: for validation."""
    return _threshold(labels, scores, specificity, "specificity")


def threshold_at_sensitivity(labels: ArrayLike, scores: ArrayLike, sensitivity: float) -> float:
    """The highest threshold at which labels and scores (n,) have this sensitivity or more: for validation."""
    return _threshold(labels, scores, sensitivity, "sensitivity")


def _threshold(labels: ArrayLike, scores: ArrayLike, target: float, fixed: Rate) -> float:
    """Midway between two scores, as `choose_threshold` does."""
    labels, scores = check(labels, scores)
    _check_target(target, fixed)
    return _thresholds(labels, scores, [target], fixed)[0]


def _thresholds(labels: np.ndarray, scores: np.ndarray, targets: Sequence[float], fixed: Rate) -> list[float]:
    of_class = np.sort(scores[labels] if fixed == "sensitivity" else scores[~labels])
    if not len(of_class):
        raise ValueError(f"a threshold for {fixed} needs cases of both classes, found one class only")

    candidates = candidate_thresholds(scores)
    below = np.searchsorted(of_class, candidates) / len(of_class)  # rising
    found = []
    for target in targets:
        if fixed == "specificity":
            place = np.searchsorted(below, target - 1e-12, side="left")
        else:
            place = np.searchsorted(below, 1 - target + 1e-12, side="right") - 1
        found.append(float(candidates[place]))
    return found


def thresholds_by_rate(labels: ArrayLike, scores: ArrayLike) -> dict[Rate, list[float]]:
    """The thresholds of `RATES`, of each kind: kept from validation for any rate that is asked for later."""
    labels, scores = check(labels, scores)
    kinds: tuple[Rate, Rate] = ("sensitivity", "specificity")
    return {fixed: _thresholds(labels, scores, RATES, fixed) for fixed in kinds}


def operating_point(
    labels: ArrayLike,
    scores: ArrayLike,
    thresholds: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> OperatingPoint:
    """Both rates of scores (n,) or (s, n) at thresholds from validation: one, or one for each seed."""
    labels, scores, thresholds = check_seeds(labels, scores, thresholds)
    rates = metric_intervals(labels, scores, ("recall", "specificity"), thresholds, groups, level)
    return OperatingPoint(
        rates["recall"], rates["specificity"], tuple(float(each) for each in thresholds), chosen_on="validation"
    )


def _check_target(target: float, fixed: Rate) -> None:
    if not 0 < target < 1:
        raise ValueError(f"{fixed} is {target}, wanted between 0 and 1, such as 0.9")


# ------------------------------------------------------------ operating points


def sensitivity_at_specificity(
    labels: ArrayLike,
    scores: ArrayLike,
    specificity: float,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> OperatingPoint:
    """Sensitivity of scores (n,) or (s, n) at a specificity; of several seeds the mean, each at its own threshold.

    With `validation`, its labels (v,) and scores (v,) or (s, v), the threshold is found there, and both rates are those
    that it has on these cases: the honest way. Without, it is found on these cases: the point of their own ROC curve
    (the highest sensitivity whose specificity is no lower). Then patients are resampled, and each resample finds its
    own threshold.
    """
    return _operating_point(labels, scores, specificity, "specificity", validation, groups, level)


def specificity_at_sensitivity(
    labels: ArrayLike,
    scores: ArrayLike,
    sensitivity: float,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> OperatingPoint:
    """Specificity of scores (n,) or (s, n) at a sensitivity; as `sensitivity_at_specificity`."""
    return _operating_point(labels, scores, sensitivity, "sensitivity", validation, groups, level)


def _operating_point(
    labels: ArrayLike,
    scores: ArrayLike,
    target: float,
    fixed: Rate,
    validation: tuple[ArrayLike, ArrayLike] | None,
    groups: ArrayLike | None,
    level: float,
) -> OperatingPoint:
    labels, scores, _ = check_seeds(labels, scores, 0.5)
    check_level(level)
    if validation is None:
        found_on = [(labels, of_seed) for of_seed in scores]
    else:
        seen, seen_scores, _ = check_seeds(*validation, threshold=0.5, name="validation scores")
        if len(seen_scores) != len(scores):
            raise ValueError(f"validation scores are of {len(seen_scores)} seeds, scores of {len(scores)}")
        found_on = [(seen, of_seed) for of_seed in seen_scores]
    thresholds = tuple(_threshold(*cases, target, fixed) for cases in found_on)

    rates = metric_intervals(labels, scores, ("recall", "specificity"), thresholds, groups, level)
    sensitivity, specificity = rates["recall"], rates["specificity"]
    if validation is not None:
        return OperatingPoint(sensitivity, specificity, thresholds, chosen_on="validation")

    # what was fixed is no estimate; the other rate varies with the threshold, which each resample finds anew
    codes = group_codes(groups, len(labels))
    if fixed == "specificity":
        sensitivity = _with_choice(sensitivity, labels, scores, target, codes, level)
        specificity = _by_choice(specificity)
    else:
        specificity = _with_choice(specificity, ~labels, -scores, target, codes, level)
        sensitivity = _by_choice(sensitivity)
    return OperatingPoint(sensitivity, specificity, thresholds, chosen_on="these cases")


def _by_choice(rate: Interval) -> Interval:
    return Interval(rate.estimate, (np.nan, np.nan), rate.level, note=CHOSEN)


def _with_choice(
    rate: Interval, labels: np.ndarray, scores: np.ndarray, target: float, codes: np.ndarray, level: float
) -> Interval:
    """The interval of the rate among `labels` where the other class has the rate `target`."""
    if codes.max() == 0:
        return Interval(rate.estimate, (np.nan, np.nan), level, note=ONE_PATIENT)

    once = np.ones((1, len(labels)))
    estimates = np.array([_rate_at(once, labels, of_seed, target)[0] for of_seed in scores])
    resampled = []
    for weights in resamples(codes, RESAMPLES, np.random.default_rng(0)):
        resampled.append(np.mean([_rate_at(weights, labels, of_seed, target) for of_seed in scores], axis=0))

    patients = int(patients_of(labels[None], codes)[0])
    freedom = max(1, patients - 1)
    of_patients = Spread(float(np.nanvar(np.concatenate(resampled), ddof=1)), freedom, freedom)
    spread = join([of_patients, seed_spread(estimates)])
    if not (of_patients.variance > 0 and 0 < rate.estimate < 1):
        low, high = score_interval(rate.estimate, patients, float(t.ppf((1 + level) / 2, freedom)))
        return Interval(rate.estimate, (low, high), level, note=AS_ONE_CASE)
    low, high = proportion_interval("recall", rate.estimate, spread, cases=int(labels.sum()), level=level)
    return Interval(rate.estimate, (low, high), level)


def _rate_at(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, target: float) -> np.ndarray:
    """(r,): the highest share of `labels` called while at least `target` of the others is not; NaN without both."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # level cases are called together
    called = np.cumsum(weights[:, order] * labels[order], axis=1)  # r n
    wrong = np.cumsum(weights[:, order] * ~labels[order], axis=1)

    allowed = wrong[:, ends] <= ((1 - target) * wrong[:, -1:] + 1e-9)  # true up to somewhere, then false
    last = allowed.sum(1)  # how many ends may be called
    upto = np.concatenate([np.zeros((len(weights), 1)), called[:, ends]], axis=1)
    hits = np.take_along_axis(upto, last[:, None], axis=1)[:, 0]
    share = ratio(hits, called[:, -1])
    return np.where(wrong[:, -1] > 0, share, np.nan)


# ------------------------------------------------------------ predictive values


def predictive_values(sensitivity: Interval, specificity: Interval, prevalence: float) -> PredictiveValues:
    """PPV and NPV at a stated prevalence, by Bayes' rule from the likelihood ratios.

    Intervals are those of the ratios sensitivity / (1 - specificity) and (1 - sensitivity) / specificity, made of
    the two rates' own intervals (MOVER: Donner and Zou 2012), which hold at rates of 0 and 1. The prevalence is taken
    as known. Where nothing is called abnormal there is no PPV: NaN, and `note` says so.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence is {prevalence}, wanted between 0 and 1, such as 0.1")
    if sensitivity.level != specificity.level:
        raise ValueError(f"levels differ: sensitivity {sensitivity.level}, specificity {specificity.level}")

    odds = prevalence / (1 - prevalence)
    level = sensitivity.level
    return PredictiveValues(
        prevalence,
        ppv=_posterior(sensitivity, _complement(specificity), odds, level, "abnormal"),
        npv=_posterior(specificity, _complement(sensitivity), 1 / odds, level, "normal"),
    )


def _complement(rate: Interval) -> Interval:
    return Interval(1 - rate.estimate, (1 - rate.interval[1], 1 - rate.interval[0]), rate.level, note=rate.note)


def _posterior(right: Interval, wrong: Interval, odds: float, level: float, called: str) -> Interval:
    """odds · right / (odds · right + wrong), and its interval."""
    if right.estimate == wrong.estimate == 0:
        return Interval(np.nan, (np.nan, np.nan), level, note=f"undefined: no case is called {called}")

    def probability(likelihood_ratio: float) -> float:
        return 1.0 if np.isinf(likelihood_ratio) else odds * likelihood_ratio / (odds * likelihood_ratio + 1)

    estimate = odds * right.estimate / (odds * right.estimate + wrong.estimate)
    low, high = _ratio_interval(right, wrong)
    note = "; ".join(dict.fromkeys(note for note in (right.note, wrong.note) if note))
    return Interval(float(estimate), (probability(low), probability(high)), level, note=note)


def _ratio_interval(above: Interval, below: Interval) -> tuple[float, float]:
    """Interval of above / below from the intervals of both, which are of different patients (Donner and Zou 2012)."""
    ends = (*above.interval, *below.interval)
    if np.isnan(ends).any():
        return np.nan, np.nan
    product = above.estimate * below.estimate

    # the smallest ratio: above low, below high; written so that a rate of 0 divides nothing by 0
    (low, high), (least, most) = above.interval, below.interval
    numerator = low * (2 * above.estimate - low)
    root = np.sqrt(max(0.0, product**2 - numerator * most * (2 * below.estimate - most)))
    smallest = numerator / (product + root) if numerator > 0 else 0.0

    denominator = least * (2 * below.estimate - least)
    root = np.sqrt(max(0.0, product**2 - high * (2 * above.estimate - high) * denominator))
    largest = (product + root) / denominator if denominator > 0 else np.inf
    return float(smallest), float(largest)
