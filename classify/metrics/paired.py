"""Tests and intervals in closed form, for independent cases: DeLong, McNemar, Wilson."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import binomtest, chi2, norm

from classify.metrics.checks import as_binary, check, check_level
from classify.metrics.estimates import Interval
from classify.metrics.influence import structural_components


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


def delong_test(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95) -> DeLongTest:
    """Test of equal AUC of two scores (n,) of the same cases (DeLong, DeLong and Clarke-Pearson 1988).

    In O(n log n) by midranks (Sun and Xu 2014). Cases are taken as independent: with several images
    per patient score the study, or use `bootstrap_difference` with groups. Scores that order the
    cases alike give difference 0 and p 1. Needs two cases of each class.
    """
    check_level(level)
    labels, scores_a = check(labels, scores_a, "scores_a")
    labels, scores_b = check(labels, scores_b, "scores_b")
    of_positives, of_negatives = _delong_components(labels, np.stack([scores_a, scores_b]))

    # the error is that of the differences, case by case: both scores are of the same cases
    auc_a, auc_b = of_positives.mean(1)
    estimate = float(auc_a - auc_b)
    error = _delong_error(of_positives[0] - of_positives[1], of_negatives[0] - of_negatives[1])
    z = _standardise(estimate, error)
    reach = float(norm.ppf((1 + level) / 2)) * error
    return DeLongTest(
        estimate=estimate,
        interval=(max(-1.0, estimate - reach), min(1.0, estimate + reach)),
        p_value=float(2 * norm.sf(abs(z))),
        z=z,
        standard_error=error,
        aucs=(float(auc_a), float(auc_b)),
        level=level,
    )


def delong_interval(
    labels: ArrayLike, scores: ArrayLike, level: float = 0.95, transform: Literal["logit", "none"] = "logit"
) -> Interval:
    """Interval of one AUC from DeLong's variance, for scores (n,) of independent cases.

    transform "logit" works on the logit scale and stays inside (0, 1) (Pepe 2003, chapter 5);
    "none" is the symmetric interval most software prints, cut at 0 and 1. An AUC of exactly 0 or 1
    has zero variance, so both collapse to that point: report the counts instead.
    """
    check_level(level)
    labels, scores = check(labels, scores)
    of_positives, of_negatives = _delong_components(labels, scores[None])
    area = float(of_positives.mean())
    error = _delong_error(of_positives[0], of_negatives[0])
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
    positives = int(labels.sum())
    negatives = int((~labels).sum())
    if min(positives, negatives) < 2:
        raise ValueError(f"DeLong needs 2 cases of each class, found {positives} abnormal, {negatives} normal")

    return structural_components(labels, scores)


def _standardise(estimate: float, error: float) -> float:
    """estimate / error; a difference without any error is infinitely far from 0."""
    if error > 0:
        return estimate / error
    if estimate == 0:
        return 0.0
    return float(np.sign(estimate) * np.inf)


def _delong_error(of_positives: np.ndarray, of_negatives: np.ndarray) -> float:
    """Standard error from components, or from differences of components: equal ones give exactly 0."""
    variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    return float(np.sqrt(variance))


# ------------------------------------------------------------------------- McNemar and proportions


class CorrectCases(NamedTuple):
    """How many cases were predicted correctly, by which of the two."""

    both: int
    only_a: int
    only_b: int
    neither: int


def mcnemar_test(
    labels: ArrayLike,
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    exact: bool | None = None,
    level: float = 0.95,
) -> McNemarTest:
    """Test of equal accuracy of two sets of predictions (n,), each 0 or 1, of the same cases.

    McNemar 1947: only the discordant cases count. Fewer than 25 of them (or exact=True) are judged by
    the exact binomial, more by chi-square with Edwards' continuity correction, as R's mcnemar.test.
    The interval of the difference is Newcombe's score interval for paired proportions (1998,
    Statistics in Medicine 17:2635, method 10). Cases are taken as independent.
    """
    check_level(level)
    labels, predicted_a = check(labels, predictions_a, "predictions_a")
    labels, predicted_b = check(labels, predictions_b, "predictions_b")
    right_a = labels == as_binary("predictions_a", predicted_a)
    right_b = labels == as_binary("predictions_b", predicted_b)
    correct = CorrectCases(
        both=int(np.sum(right_a & right_b)),
        only_a=int(np.sum(right_a & ~right_b)),
        only_b=int(np.sum(right_b & ~right_a)),
        neither=int(np.sum(~right_a & ~right_b)),
    )

    if exact is None:
        exact = correct.only_a + correct.only_b < 25
    statistic, p_value = _mcnemar(correct.only_a, correct.only_b, exact)
    return McNemarTest(
        estimate=(correct.only_a - correct.only_b) / len(labels),
        interval=_newcombe_paired(correct, level),
        p_value=p_value,
        statistic=statistic,
        exact=exact,
        only_a=correct.only_a,
        only_b=correct.only_b,
        level=level,
    )


def _mcnemar(only_a: int, only_b: int, exact: bool) -> tuple[float, float]:
    """The statistic and the p-value."""
    discordant = only_a + only_b
    if discordant == 0:
        return 0.0, 1.0
    if exact:
        return float(min(only_a, only_b)), float(binomtest(only_a, discordant).pvalue)
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
    return statistic, float(chi2.sf(statistic, 1))


def _newcombe_paired(correct: CorrectCases, level: float) -> tuple[float, float]:
    """Interval of p_a - p_b: two Wilson intervals joined through their correlation phi."""
    n = sum(correct)
    a = wilson_interval(correct.both + correct.only_a, n, level)
    b = wilson_interval(correct.both + correct.only_b, n, level)

    # how far each interval reaches down and up
    a_down, a_up = a.estimate - a.interval[0], a.interval[1] - a.estimate
    b_down, b_up = b.estimate - b.interval[0], b.interval[1] - b.estimate

    # the difference is smallest where a is low and b is high; the more the two agree, the rarer that is
    phi = _newcombe_phi(correct)
    difference = a.estimate - b.estimate
    down = np.sqrt(a_down**2 - 2 * phi * a_down * b_up + b_up**2)
    up = np.sqrt(a_up**2 - 2 * phi * a_up * b_down + b_down**2)
    return float(difference - down), float(difference + up)


def _newcombe_phi(correct: CorrectCases) -> float:
    """Correlation of the two outcomes; a positive one is shrunk by a continuity correction."""
    both, only_a, only_b, neither = correct
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0

    cross: float = both * neither - only_a * only_b
    if cross > 0:
        cross = max(cross - sum(correct) / 2, 0)
    return cross / np.sqrt(float(margins))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927): for sensitivity, specificity, accuracy."""
    check_level(level)
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    found = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, (float(found.low), float(found.high)), level)
