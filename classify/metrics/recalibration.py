"""Logits → calibrated probabilities, by a temperature and an intercept fitted on validation."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit

from classify.metrics.checks import check

TEMPERATURES = (0.01, 100.0)  # beyond these, scores say nothing of the label, or everything
WEIGHT = 0.1  # of the penalty on temperatures far from 1, in cases' log losses


@dataclass(frozen=True)
class Calibration:
    """Calibrated logit = logit / temperature + intercept. It rises with the logit, so it keeps the order of cases.

    Without arguments it changes nothing. ValueError for impossible numbers.
    """

    temperature: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}, wanted a number above 0")
        if not np.isfinite(self.intercept):
            raise ValueError(f"intercept is {self.intercept}, wanted a number")

    def logits(self, logits: ArrayLike) -> np.ndarray:
        """Calibrated logits, of any shape."""
        return np.asarray(logits, dtype=np.float64) / self.temperature + self.intercept

    def probabilities(self, logits: ArrayLike) -> np.ndarray:
        """Calibrated probabilities of abnormal, of logits of any shape."""
        return np.asarray(expit(self.logits(logits)))

    def probability_of(self, score: float) -> float:
        """The calibrated probability for an uncalibrated `score`, 0 to 1."""
        with np.errstate(divide="ignore"):
            return float(self.probabilities(logit(score)))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def fit_calibration(labels: ArrayLike, logits: ArrayLike) -> Calibration:
    """The most likely temperature and intercept for labels and logits (n); a single class is an error.

    This is a logistic regression of the label on the logit (Platt 1999): the temperature of Guo et al. 2017 and an
    intercept, as prevalences and smoothed labels shift it. It has two safeguards, which fade as cases grow. First,
    labels count as (k + 1) / (k + 2), where k is the number of cases of the class (Platt): without this, cases that
    scores separate perfectly would ask for a temperature of 0. Second, a temperature far from 1 costs a little,
    a - 1 - log a for the slope a = 1 / temperature: without this, scores that are all equal, or fall where labels rise,
    would ask for none or a negative one.
    """
    labels, logits = check(labels, logits, "logits")
    abnormal = int(labels.sum())
    normal = len(labels) - abnormal
    if not (abnormal and normal):
        raise ValueError("calibrating needs normal and abnormal cases, found one class only")
    targets = np.where(labels, (abnormal + 1) / (abnormal + 2), 1 / (normal + 2))

    # at the best intercept for each temperature, the cost is convex in the slope, so it has one minimum
    def cost(log_slope: float) -> float:
        slope = np.exp(log_slope)
        calibrated = slope * logits + _intercept(slope * logits, targets)
        losses = np.logaddexp(0, calibrated) - targets * calibrated
        return float(losses.sum() + WEIGHT * (slope - 1 - log_slope))

    lowest, highest = -np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0])
    found = minimize_scalar(cost, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-7})
    temperature = float(np.exp(-found.x))
    return Calibration(temperature, _intercept(logits / temperature, targets))


def _intercept(scaled: np.ndarray, targets: np.ndarray) -> float:
    """The intercept at which the mean probability is the mean target, which is the most likely one."""
    wanted = targets.mean()

    # at these ends the mean is not above, or not below, what is wanted, as no single case is
    middle = float(logit(wanted))
    rounding = 1 + 1e-6 * float(np.abs(scaled).max())
    lowest = middle - float(scaled.max()) - rounding
    highest = middle - float(scaled.min()) + rounding
    return float(brentq(lambda intercept: expit(scaled + intercept).mean() - wanted, lowest, highest, xtol=1e-10))


def log_loss(labels: ArrayLike, logits: ArrayLike) -> float:
    """Mean log loss in nats, from the logits of abnormal: it stays finite where probabilities round to 1."""
    labels, logits = check(labels, logits, "logits")
    return float(np.logaddexp(0, np.where(labels, -logits, logits)).mean())
