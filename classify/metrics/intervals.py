"""Intervals of one model's metrics: over patients, and over seeds where there are several."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, t

from classify.metrics.binary import HEADLINE
from classify.metrics.checks import check_level, check_logits, check_seeds, group_codes
from classify.metrics.estimates import Interval
from classify.metrics.influence import Influence, Model, influence
from classify.metrics.patients import Spread, join, patients_of, spread_of

PROPORTIONS = ("accuracy", "precision", "recall", "specificity", "f1")
ANY_SIZE = ("calibration_slope", "calibration_intercept")
ONE_PATIENT = "no interval: all cases are one patient's"
AS_ONE_CASE = "no variance between patients to be seen: each counts as one case"
NOTHING_CALLED = "no case is called abnormal: 0 by convention"


def auc_interval(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Interval of the AUC of scores (n,), or of the mean AUC of s seeds (s, n), by clustered DeLong on the logit scale.

    The variance over patients, `groups` (n,), is Obuchowski's (1997, Biometrics 53:567); without groups it is DeLong's.
    The variance of s seeds, S²/s, is added. The quantile is of Student's t with Satterthwaite's degrees of freedom.
    With one seed the interval is that of this trained model.

    Towards 1/2 the degrees of freedom also follow the fourth moment: near 1 a few patients make the variance, and it is
    underestimated just where the AUC comes out high. An AUC of 0 or 1, equal scores for all, or a single patient of a
    class show no variance. The interval is then Newcombe's score interval (2006, Statistics in Medicine 25:559, method
    5), with as many cases as patients, and `note` says so. One class or one patient: NaN, and `note` says why.
    """
    return metric_intervals(labels, scores, names=("auc",), groups=groups, level=level)["auc"]


def metric_intervals(
    labels: ArrayLike,
    scores: ArrayLike,
    names: Sequence[str] = HEADLINE,
    thresholds: ArrayLike = 0.5,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    logits: ArrayLike | None = None,
) -> dict[str, Interval]:
    """{name: Interval} of metrics of scores (n,) or (s, n), at one threshold or one for each seed.

    The names are the metrics of `BinaryMetrics`, and ece, calibration_slope, calibration_intercept (from `logits`). The
    AUC is that of `auc_interval`. Accuracy, precision, recall and specificity have Wilson's score interval with the
    effective number of cases p(1-p)/variance, at most the cases there are (Korn and Graubard 1998; Dean and Pagano
    2015). F1 is a function of the share tp/(tp+fp+fn) and gets its interval through it. Average precision, Brier and
    ece are taken on the logit scale, slope and intercept as they are. All variances are those of patients plus those of
    seeds. The estimate of ece grows as cases get fewer, by more than its interval tells.
    """
    labels, scores, thresholds = check_seeds(labels, scores, thresholds)
    check_level(level)
    codes = group_codes(groups, len(labels))
    model = as_model(scores, thresholds, logits)
    return {name: interval_of(name, influence(name, labels, model), codes, level) for name in names}


class CalibrationLine(NamedTuple):
    """Logistic recalibration: slope 1 and intercept 0 for calibrated probabilities.

    A slope below 1 says that they are too extreme; an intercept above 0 that they are too low.
    """

    slope: Interval
    intercept: Interval


def calibration_slope_intercept(
    labels: ArrayLike, logits: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95
) -> CalibrationLine:
    """Slope of the logistic regression of labels on logits (n,) or (s, n), and the intercept at a fixed slope of 1.

    The latter is called calibration in the large (Cox 1958; Van Calster et al. 2019). The intervals use the sandwich
    variance over patients, `groups` (n,). The slope of logits that separate the classes is infinite: NaN, with a note.
    """
    labels, logits, _ = check_seeds(labels, logits, 0.0, "logits")
    names = ("calibration_slope", "calibration_intercept")
    found = metric_intervals(labels, expit(logits), names, groups=groups, level=level, logits=logits)
    return CalibrationLine(slope=found[names[0]], intercept=found[names[1]])


def as_model(scores: np.ndarray, thresholds: np.ndarray, logits: ArrayLike | None) -> Model:
    order_by = check_logits(logits, scores)
    if logits is not None:
        return Model(scores, thresholds, order_by, logits=order_by)
    return Model(scores, thresholds, order_by, logits=None)


def interval_of(name: str, found: Influence, codes: np.ndarray, level: float) -> Interval:
    """The interval of one metric from its influence."""
    estimate = float(found.estimates.mean())
    if np.isnan(estimate):
        return Interval(estimate, (np.nan, np.nan), level, note=_why_undefined(name))
    if codes.max() == 0:
        return Interval(estimate, (np.nan, np.nan), level, note=ONE_PATIENT)

    of_patients, of_seeds = spread_of(found, codes)
    if not of_patients.variance > 0:
        low, high = _without_variance(name, estimate, found, codes, level)
        low, high = _beside_seeds(estimate, (low, high), of_seeds, level)
        return Interval(estimate, (low, high), level, note=AS_ONE_CASE if found.strata.any() else NOTHING_CALLED)

    spread = join([of_patients, of_seeds])
    if name in PROPORTIONS:
        low, high = proportion_interval(name, estimate, spread, int(found.strata.sum()), level)
    elif name in ANY_SIZE:
        reach = t.ppf((1 + level) / 2, spread.cautious) * np.sqrt(spread.variance)
        low, high = estimate - reach, estimate + reach
    else:
        low, high = _on_logit_scale(estimate, spread, level)
    return Interval(estimate, (float(low), float(high)), level)


def _why_undefined(name: str) -> str:
    if name.startswith("calibration"):
        return "undefined: needs the logits, and classes that these do not separate"
    if name in ("brier", "ece"):
        return "undefined: the scores are no probabilities"
    return "undefined: a class has no cases"


def _on_logit_scale(estimate: float, spread: Spread, level: float) -> tuple[float, float]:
    """Towards 1/2 with the cautious degrees of freedom: on that side intervals near 0 and 1 miss the truth."""
    if not 0 < estimate < 1:  # seeds or patients vary, but their mean is 0 or 1: nothing to transform
        reach = t.ppf((1 + level) / 2, spread.cautious) * np.sqrt(spread.variance)
        return max(0.0, estimate - reach), min(1.0, estimate + reach)

    inward = t.ppf((1 + level) / 2, spread.cautious)
    outward = t.ppf((1 + level) / 2, spread.freedom)
    down, up = (inward, outward) if estimate >= 0.5 else (outward, inward)
    error = np.sqrt(spread.variance) / (estimate * (1 - estimate))
    return float(expit(logit(estimate) - down * error)), float(expit(logit(estimate) + up * error))


# ------------------------------------------------------------ proportions


def proportion_interval(name: str, estimate: float, spread: Spread, cases: int, level: float) -> tuple[float, float]:
    """Wilson's interval for as many independent cases as would have the variance found."""
    variance = spread.variance
    share = estimate
    if name == "f1":  # a function of the share tp / (tp + fp + fn)
        share = estimate / (2 - estimate)
        variance *= (2 / (2 - estimate) ** 2) ** 2

    effective = min(share * (1 - share) / variance, cases)
    low, high = score_interval(share, effective, float(t.ppf((1 + level) / 2, spread.freedom)))
    if name == "f1":
        low, high = 2 * low / (1 + low), 2 * high / (1 + high)
    return low, high


def score_interval(share: float, cases: float, quantile: float) -> tuple[float, float]:
    """Score interval of a share of `cases`, a number that need not be whole."""
    if cases <= 0:
        return 0.0, 1.0
    pull = quantile**2 / cases
    middle = (share + pull / 2) / (1 + pull)
    reach = np.sqrt(pull * share * (1 - share) + pull**2 / 4) / (1 + pull)
    low = 0.0 if share == 0 else float(middle - reach)
    high = 1.0 if share == 1 else float(middle + reach)
    return max(0.0, low), min(1.0, high)


# ------------------------------------------------------------ where nothing varies


def _without_variance(
    name: str, estimate: float, found: Influence, codes: np.ndarray, level: float
) -> tuple[float, float]:
    """The interval where patients show no variance: each of them is taken as one case."""
    quantile = float(norm.ppf((1 + level) / 2))
    patients = patients_of(found.strata, codes)
    if name == "auc":
        return newcombe_auc(estimate, patients[0], patients[1], quantile)
    if name in ANY_SIZE:
        return np.nan, np.nan
    if name == "f1":
        low, high = score_interval(estimate / (2 - estimate), patients[0], quantile)
        return 2 * low / (1 + low), 2 * high / (1 + high)
    return score_interval(estimate, patients[0], quantile)


def newcombe_auc(area: float, positives: int, negatives: int, quantile: float) -> tuple[float, float]:
    """Newcombe's score interval of an AUC: all true values whose own error reaches the AUC found."""
    low = _newcombe_low(area, positives, negatives, quantile)
    high = 1 - _newcombe_low(1 - area, positives, negatives, quantile)
    return low, high


def _newcombe_low(area: float, positives: int, negatives: int, quantile: float) -> float:
    """The lower end; the upper one is that of the opposite scores."""
    if area == 0:
        return 0.0

    def excess(true: float) -> float:
        """Squared distance minus squared reach; for an area of 1, without the factor 1 - true that both share."""
        half = (positives + negatives) / 2 - 1
        shape = 1 + half * ((1 - true) / (2 - true) + true / (1 + true))
        reach = quantile**2 * true * shape / (positives * negatives)  # variance of Hanley and McNeil 1982
        if area == 1:
            return (1 - true) - reach
        return (area - true) ** 2 - reach * (1 - true)

    return float(brentq(excess, 0.0, area))


def _beside_seeds(
    estimate: float, interval: tuple[float, float], of_seeds: Spread, level: float
) -> tuple[float, float]:
    """An interval over patients, widened by the reach of seeds; both are independent, so squares add."""
    if not of_seeds.variance > 0:
        return interval
    reach = float(t.ppf((1 + level) / 2, of_seeds.freedom)) * np.sqrt(of_seeds.variance)
    low = estimate - np.hypot(estimate - interval[0], reach)
    high = estimate + np.hypot(interval[1] - estimate, reach)
    return max(0.0, float(low)), min(1.0, float(high))
