"""Calibration is the most likely temperature and intercept, and keeps order and reason whatever validation is like."""

import numpy as np
import pytest
from scipy.special import expit
from scored_cases import SIZES
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from classify.metrics import auc, expected_calibration_error
from classify.metrics.recalibration import TEMPERATURES, Calibration, fit_calibration, log_loss


def drawn(n: int, temperature: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels whose probability of abnormal is the sigmoid of logit / temperature + intercept, and the logits."""
    rng = np.random.default_rng([seed, n])
    logits = rng.normal(scale=2 * temperature, size=n)
    return (rng.random(n) < expit(logits / temperature + intercept)).astype(int), logits


@pytest.mark.parametrize(("temperature", "intercept"), [(1.0, 0.0), (3.0, -1.5), (0.2, 0.7), (20.0, 2.0)])
def test_temperature_and_intercept_of_the_truth_are_found(temperature, intercept):
    labels, logits = drawn(20_000, temperature, intercept)
    found = fit_calibration(labels, logits)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.intercept == pytest.approx(intercept, abs=0.06)
    assert expected_calibration_error(labels, found.probabilities(logits)) < 0.015


@pytest.mark.parametrize("n", [700, 5000])
def test_it_is_a_logistic_regression(n):
    labels, logits = drawn(n, 2.5, -0.5)
    found = fit_calibration(labels, logits)
    plain = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    assert 1 / found.temperature == pytest.approx(plain.coef_.item(), rel=20 / n)
    assert found.intercept == pytest.approx(plain.intercept_.item(), abs=20 / n)


def test_no_other_calibration_is_likelier():
    labels, logits = drawn(3000, 2.0, 1.0)
    found = fit_calibration(labels, logits)
    least = log_loss(labels, found.logits(logits))
    for temperature in (0.5, 0.9, 0.97, 1.03, 1.1, 2.0):
        for shift in (-1.0, -0.1, 0.1, 1.0):
            other = Calibration(found.temperature * temperature, found.intercept + shift)
            assert log_loss(labels, other.logits(logits)) > least


def test_calibration_keeps_every_order():
    rng = np.random.default_rng(0)
    for n in SIZES[1:]:
        labels = rng.permutation(np.arange(n) % 2)
        logits = np.round(rng.normal(size=n) * 5, 1)
        for sign in (1, -1):  # also where a high score means normal
            found = fit_calibration(labels, sign * logits)
            calibrated = found.logits(sign * logits)
            assert auc(labels, calibrated) == auc(labels, sign * logits)
            assert ((calibrated[:, None] > calibrated) == (sign * logits[:, None] > sign * logits)).all()


@pytest.mark.parametrize(
    "logits",
    [
        [-3.0, -2.0, 2.0, 3.0],  # separable
        [60.0, 61.0, 65.0, 66.0],  # saturated, one-sided, separable
        [-66.0, -65.0, -61.0, -60.0],
        [3.0, 2.0, -2.0, -3.0],  # the wrong way round
        [0.5, 0.5, 0.5, 0.5],  # constant
        [1e-9, 2e-9, 3e-9, 4e-9],
        [-1e6, -1.0, 1.0, 1e6],
        [1e30, 1e30, 1e30, 1e30],
    ],
)
@pytest.mark.parametrize("copies", [1, 50])
def test_odd_validations_leave_reasonable_numbers(logits, copies):
    labels = np.repeat([0, 0, 1, 1], copies)
    logits = np.repeat(logits, copies)
    found = fit_calibration(labels, logits)
    assert TEMPERATURES[0] <= found.temperature <= TEMPERATURES[1]
    assert np.isfinite(found.intercept)
    probabilities = found.probabilities(logits)
    assert probabilities.mean() == pytest.approx(0.5, abs=0.01)  # the share of abnormal cases
    assert log_loss(labels, found.logits(logits)) <= np.log(2) + 0.05  # hardly worse than just that share


def test_two_cases_say_little():
    found = fit_calibration([0, 1], [-1.0, 1.0])
    assert found.probabilities([-1.0, 1.0]) == pytest.approx([1 / 3, 2 / 3], abs=0.05)


def test_scores_that_say_nothing_keep_their_temperature():
    found = fit_calibration([0, 1, 1], [7.0, 7.0, 7.0])
    assert found.temperature == pytest.approx(1.0, rel=1e-4)
    assert found.probabilities(7.0) == pytest.approx((1 / 3 + 2 * 3 / 4) / 3, abs=1e-6)


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="needs normal and abnormal cases"):
        fit_calibration([1, 1, 1], [0.0, 1.0, 2.0])


@pytest.mark.parametrize("numbers", [(0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan)])
def test_what_is_no_calibration_is_refused(numbers):
    with pytest.raises(ValueError, match="wanted a number"):
        Calibration(*numbers)


def test_log_loss_is_scikit_learns_and_stays_finite():
    labels, logits = drawn(31, 1.0, 0.0)
    assert log_loss(labels, logits) == pytest.approx(sk.log_loss(labels, expit(logits)), rel=1e-12)
    assert log_loss([0, 1], [50.0, 60.0]) == pytest.approx(25.0)
