"""Is acting by the model worth more than treating all or none (Vickers and Elkin 2006)?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from classify.metrics.checks import check_level, check_seeds, group_codes
from classify.metrics.influence import difference_of_parts
from classify.metrics.intervals import score_interval
from classify.metrics.patients import join, patient_spread, seed_spread


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefits (k,), in true positives per case, at threshold probabilities (k,); bands (k,) at `level`.

    `advantage` is the model's net benefit minus that of treating all or treating none, whichever is better.
    """

    thresholds: np.ndarray
    net_benefit: np.ndarray
    low: np.ndarray
    high: np.ndarray
    treat_all: np.ndarray
    treat_all_low: np.ndarray
    treat_all_high: np.ndarray
    treat_none: np.ndarray
    advantage: np.ndarray
    advantage_low: np.ndarray
    advantage_high: np.ndarray
    level: float


def decision_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    thresholds: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> DecisionCurve:
    """Net benefit tp/n - fp/n · p/(1-p) of calling cases of probability p or more abnormal, at thresholds p (k,).

    Probabilities (n,) or (s, n) should be calibrated. Bands are pointwise, over patients, `groups` (n,), and seeds. The
    prevalence is that of these cases.
    """
    labels, probabilities, _ = check_seeds(labels, probabilities, 0.5, "probabilities")
    check_level(level)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(f"probabilities must lie in 0 to 1, found {probabilities.min():g} to {probabilities.max():g}")
    thresholds = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if thresholds.ndim != 1 or not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError("thresholds of a decision curve must be probabilities between 0 and 1, without these")
    codes = group_codes(groups, len(labels))

    model, everyone, advantage = [], [], []
    for threshold in thresholds:
        harm = threshold / (1 - threshold)
        worth = labels - harm * ~labels  # n: of calling a case abnormal
        of_model = (probabilities >= threshold) * worth  # s n
        default = worth if worth.mean() > 0 else np.zeros(len(labels))
        model.append(_mean_with_band(of_model, harm, codes, level))
        everyone.append(_mean_with_band(worth[None], harm, codes, level))
        advantage.append(_mean_with_band(of_model - default, harm, codes, level))

    net_benefit, low, high = np.array(model).T
    treat_all, treat_all_low, treat_all_high = np.array(everyone).T
    gain, gain_low, gain_high = np.array(advantage).T
    return DecisionCurve(
        thresholds=thresholds,
        net_benefit=net_benefit,
        low=low,
        high=high,
        treat_all=treat_all,
        treat_all_low=treat_all_low,
        treat_all_high=treat_all_high,
        treat_none=np.zeros(len(thresholds)),
        advantage=gain,
        advantage_low=gain_low,
        advantage_high=gain_high,
        level=level,
    )


def _mean_with_band(values: np.ndarray, harm: float, codes: np.ndarray, level: float) -> tuple[float, float, float]:
    """Mean of values (s, n) over seeds and cases, and its interval over patients and seeds."""
    means = values.mean(1)
    estimate = float(means.mean())
    if codes.max() == 0:
        return estimate, np.nan, np.nan

    parts = difference_of_parts(values.mean(0), estimate) / values.shape[1]
    of_patients = patient_spread(parts, np.ones((1, len(codes)), bool), codes)
    if not of_patients.variance > 0:
        # no case is called, or all are alike: others may be as frequent as a share of 0 in so many patients allows
        patients = int(codes.max()) + 1
        unseen = score_interval(0.0, patients, float(t.ppf((1 + level) / 2, patients - 1)))[1]
        return estimate, estimate - harm * unseen, estimate + unseen

    spread = join([of_patients, seed_spread(means)])
    reach = float(t.ppf((1 + level) / 2, spread.cautious)) * np.sqrt(spread.variance)
    return estimate, estimate - reach, estimate + reach
