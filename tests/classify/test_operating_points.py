"""Thresholds meet what was asked; predictive values follow Bayes, decision curves their definition, slopes a fit."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scored_cases import sample
from sklearn import metrics as sk

from classify.metrics import (
    RATES,
    Interval,
    binary_metrics,
    calibration_slope_intercept,
    decision_curve,
    metric_intervals,
    operating_point,
    predictive_values,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    threshold_at_sensitivity,
    threshold_at_specificity,
    thresholds_by_rate,
    wilson_interval,
)

# ---------------------------------------------------------------- thresholds and operating points


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("target", [0.01, 0.5, 0.8, 0.99])
def test_no_better_threshold_meets_the_target(target, levels):
    labels, scores = sample(41, 3, levels)
    at = [binary_metrics(labels, scores, threshold) for threshold in [*scores, 2.0]]

    found = binary_metrics(labels, scores, threshold_at_specificity(labels, scores, target))
    assert found.specificity >= target
    assert found.recall == max(m.recall for m in at if m.specificity >= target)

    found = binary_metrics(labels, scores, threshold_at_sensitivity(labels, scores, target))
    assert found.recall >= target
    assert found.specificity == max(m.specificity for m in at if m.recall >= target)


@pytest.mark.parametrize("levels", [None, 6])
def test_what_validation_leaves_behind_is_the_threshold_of_each_rate(levels):
    labels, scores = sample(37, 5, levels)
    kept = thresholds_by_rate(labels, scores)
    for place, rate in enumerate(RATES):
        assert kept["specificity"][place] == threshold_at_specificity(labels, scores, rate)
        assert kept["sensitivity"][place] == threshold_at_sensitivity(labels, scores, rate)

    labels, scores = sample(53, 7)
    place = RATES.index(0.9)
    honest = sensitivity_at_specificity(labels, scores, 0.9, validation=sample(37, 5, levels))
    assert operating_point(labels, scores, kept["specificity"][place]) == honest


def test_a_target_that_cases_meet_exactly_is_met():
    labels, scores = np.repeat([0, 1], 10), np.arange(20) / 20
    for tenths in range(1, 10):
        threshold = threshold_at_specificity(labels, scores, 1 - tenths / 10)
        assert binary_metrics(labels, scores, threshold).fp == tenths


def test_the_threshold_of_validation_is_applied_as_it_is():
    labels, scores = sample(200)
    seen = sample(101, 5, lift=2)
    found = sensitivity_at_specificity(labels, scores, 0.9, seen)
    threshold = threshold_at_specificity(*seen, 0.9)
    rates = metric_intervals(labels, scores, ("recall", "specificity"), threshold)
    assert (found.sensitivity, found.specificity) == (rates["recall"], rates["specificity"])
    assert found.thresholds == (threshold,) and found.chosen_on == "validation"


def test_test_cases_do_not_move_the_threshold_of_validation():
    labels, scores = sample(101)
    seen = sample(70, 5)
    first = specificity_at_sensitivity(labels, scores, 0.8, seen).thresholds
    assert specificity_at_sensitivity(1 - labels, scores**3, 0.8, seen).thresholds == first


def test_without_validation_it_is_the_curve_of_these_cases():
    labels, scores = sample(200, levels=40)
    false_alarms, sensitivities, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    found = sensitivity_at_specificity(labels, scores, 0.8)
    assert found.sensitivity.estimate == sensitivities[false_alarms <= 0.2 + 1e-12].max()
    assert found.chosen_on == "these cases" and "by choice" in found.specificity.note

    turned = specificity_at_sensitivity(1 - labels, 1 - scores, 0.8)
    assert turned.specificity.estimate == pytest.approx(found.sensitivity.estimate)
    assert turned.specificity.interval == pytest.approx(found.sensitivity.interval)


def test_choosing_on_these_cases_costs_width():
    labels, scores = sample(200)
    found = sensitivity_at_specificity(labels, scores, 0.8)
    fixed = metric_intervals(labels, scores, ("recall",), found.thresholds)["recall"]
    assert np.ptp(found.sensitivity.interval) > 1.1 * np.ptp(fixed.interval)


def test_each_seed_has_its_threshold():
    labels, _ = sample(43)
    scores = np.random.default_rng(2).normal(size=(3, 43)) + labels
    found = sensitivity_at_specificity(labels, scores, 0.7)
    each = [sensitivity_at_specificity(labels, of_seed, 0.7) for of_seed in scores]
    assert found.thresholds == tuple(one.thresholds[0] for one in each)
    assert found.sensitivity.estimate == pytest.approx(np.mean([one.sensitivity.estimate for one in each]))


@pytest.mark.parametrize("groups", [None, np.arange(14) // 2, np.zeros(14)])
def test_a_perfect_model_is_not_surely_perfect(groups):
    labels = np.repeat([0, 1], 7)
    found = sensitivity_at_specificity(labels, labels, 0.9, groups=groups).sensitivity
    assert found.estimate == 1 and found.note and not found.interval[0] > 0.8


# ---------------------------------------------------------------- predictive values


def rates(sensitivity, specificity, n=200):
    return wilson_interval(round(sensitivity * n), n), wilson_interval(round(specificity * n), n)


@pytest.mark.parametrize("prevalence", [0.01, 0.3, 0.9])
def test_predictive_values_follow_bayes(prevalence):
    found = predictive_values(*rates(0.9, 0.8), prevalence)
    right = prevalence * 0.9
    assert found.ppv.estimate == pytest.approx(right / (right + (1 - prevalence) * 0.2))
    assert found.npv.estimate == pytest.approx((1 - prevalence) * 0.8 / ((1 - prevalence) * 0.8 + prevalence * 0.1))
    for value in (found.ppv, found.npv):
        assert 0 < value.interval[0] < value.estimate < value.interval[1] < 1


def test_at_the_prevalence_of_the_cases_they_are_the_cases_own():
    labels, scores = sample(200)
    m = binary_metrics(labels, scores)
    both = metric_intervals(labels, scores, ("recall", "specificity"))
    found = predictive_values(both["recall"], both["specificity"], m.positives / m.n)
    assert found.ppv.estimate == pytest.approx(m.precision)
    assert found.npv.estimate == pytest.approx(m.tn / (m.tn + m.fn))


def test_rates_of_none_and_all_keep_predictive_values_apart_from_certainty():
    found = predictive_values(*rates(1, 1, 20), 0.1)
    assert found.ppv.estimate == found.npv.estimate == 1
    assert found.ppv.interval[0] < 0.5 and found.npv.interval[0] < 0.99
    nothing = predictive_values(*rates(0, 1, 20), 0.1)
    assert np.isnan(nothing.ppv.estimate) and "no case is called abnormal" in nothing.ppv.note
    assert predictive_values(*rates(0, 0.5, 20), 0.1).ppv.estimate == 0


def test_predictive_values_cover_the_truth():
    rng, covered = np.random.default_rng(0), 0
    truth = 0.1 * 0.9 / (0.1 * 0.9 + 0.9 * 0.15)
    for hits, correct in zip(rng.binomial(60, 0.9, 500), rng.binomial(90, 0.85, 500), strict=True):
        ppv = predictive_values(wilson_interval(hits, 60), wilson_interval(correct, 90), 0.1).ppv
        covered += ppv.interval[0] <= truth <= ppv.interval[1]
    assert 0.92 <= covered / 500 <= 0.98


# ---------------------------------------------------------------- decision curve


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.8])
def test_net_benefit_equals_its_definition(threshold):
    labels, scores = sample(200)
    m = binary_metrics(labels, scores, threshold)
    harm = threshold / (1 - threshold)
    found = decision_curve(labels, scores, threshold)
    assert found.net_benefit == pytest.approx([m.tp / 200 - m.fp / 200 * harm])
    everyone = labels.mean() - (1 - labels.mean()) * harm
    assert found.treat_all == pytest.approx([everyone]) and found.treat_none == [0]
    assert found.advantage == pytest.approx(found.net_benefit - max(everyone, 0))
    for estimate, low, high in [
        (found.net_benefit, found.low, found.high),
        (found.treat_all, found.treat_all_low, found.treat_all_high),
        (found.advantage, found.advantage_low, found.advantage_high),
    ]:
        assert low[0] < estimate[0] < high[0]


def test_calling_everyone_is_treating_all():
    labels, _ = sample(57)
    found = decision_curve(labels, np.ones(57), [0.1, 0.2, 0.7])
    assert found.net_benefit == pytest.approx(found.treat_all) and found.low == pytest.approx(found.treat_all_low)
    nobody = decision_curve(labels, np.zeros(57), [0.1, 0.2, 0.7])
    assert (nobody.net_benefit == 0).all() and (nobody.high > 0).all() and (nobody.low < 0).all()


def test_bands_follow_patients_not_images():
    labels, scores = sample(57)
    first = decision_curve(labels, scores, [0.2, 0.6])
    copies = decision_curve(np.repeat(labels, 3), np.repeat(scores, 3), [0.2, 0.6], groups=np.repeat(np.arange(57), 3))
    assert copies.low == pytest.approx(first.low) and copies.advantage_high == pytest.approx(first.advantage_high)


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("scale", [0.01, 1, 300])
@pytest.mark.parametrize("n", [31, 200])
def test_slope_and_intercept_equal_a_logistic_fit(n, scale):
    labels, scores = sample(n, 2)
    logits = scale * (4 * scores - 1)
    found = calibration_slope_intercept(labels, logits)

    def loss(line):
        z = line[0] + line[1] * logits / scale
        return np.logaddexp(0, z).sum() - z[labels == 1].sum()

    fit = minimize(loss, [0, 1], method="BFGS", options={"gtol": 1e-9})
    assert found.slope.estimate * scale == pytest.approx(fit.x[1], rel=1e-5)


def test_slope_and_intercept_solve_their_equations():
    labels, scores = sample(200, 2)
    logits = 4 * scores - 1
    found = calibration_slope_intercept(labels, logits)
    assert expit(logits + found.intercept.estimate).mean() == pytest.approx(labels.mean(), abs=1e-9)

    # the slope's own intercept makes the means agree; then residuals are orthogonal to the logits
    shift = calibration_slope_intercept(labels, found.slope.estimate * logits).intercept.estimate
    residual = labels - expit(shift + found.slope.estimate * logits)
    assert residual.sum() == pytest.approx(0, abs=1e-6)
    assert residual @ logits == pytest.approx(0, abs=1e-6)


def test_shift_and_scale_of_logits_move_them_as_they_must():
    labels, scores = sample(200, 2)
    logits = 4 * scores - 1
    first = calibration_slope_intercept(labels, logits)
    scaled = calibration_slope_intercept(labels, logits / 3)
    moved = calibration_slope_intercept(labels, logits + 0.7)
    assert np.array(scaled.slope.interval) == pytest.approx(3 * np.array(first.slope.interval))
    assert moved.slope.interval == pytest.approx(first.slope.interval)
    assert np.array(moved.intercept.interval) == pytest.approx(np.array(first.intercept.interval) - 0.7)


def test_a_calibrated_model_is_covered():
    rng, slopes, intercepts = np.random.default_rng(0), 0, 0
    for _ in range(300):
        logits = rng.normal(size=70)[np.repeat(np.arange(70), 2)] * 1.5
        labels = rng.random(70)[np.repeat(np.arange(70), 2)] < expit(logits)  # both images of a patient agree
        found = calibration_slope_intercept(labels, logits, np.repeat(np.arange(70), 2))
        slopes += found.slope.interval[0] <= 1 <= found.slope.interval[1]
        intercepts += found.intercept.interval[0] <= 0 <= found.intercept.interval[1]
    assert 0.91 <= slopes / 300 <= 0.99 and 0.91 <= intercepts / 300 <= 0.99


@pytest.mark.parametrize(
    ("labels", "logits"),
    [([0, 0, 1, 1], [1, 2, 3, 4]), ([0, 0, 1, 1], [4, 3, 2, 1]), ([0, 1, 1, 0], [2, 2, 2, 2]), ([1, 1], [1, 2])],
)
def test_a_slope_that_does_not_exist_is_nan_with_a_reason(labels, logits):
    slope = calibration_slope_intercept(labels, logits).slope
    assert np.isnan([slope.estimate, *slope.interval]).all() and "separate" in slope.note


def test_saturated_logits_have_a_slope():
    labels, scores = sample(200, 2)
    logits = np.where(scores > 0.5, 800.0, -800.0)
    logits[:7] = 0
    assert 0 < calibration_slope_intercept(labels, logits).slope.estimate < 0.1


# ---------------------------------------------------------------- errors


HALF = Interval(0.5, (0.4, 0.6))
ERRORS = {
    "target": (lambda: sensitivity_at_specificity([0, 1], [1, 2], 90), "specificity is 90, wanted between 0 and 1"),
    "one class": (lambda: threshold_at_sensitivity([0, 0], [1, 2], 0.9), "found one class only"),
    "seeds": (lambda: sensitivity_at_specificity([0, 1], [[1, 2]] * 2, 0.9, ([0, 1], [1, 2])), "1 seeds, scores of 2"),
    "prevalence": (lambda: predictive_values(HALF, HALF, 10), "prevalence is 10"),
    "levels": (lambda: predictive_values(HALF, Interval(0.5, (0.4, 0.6), 0.9), 0.1), "levels differ"),
    "probabilities": (lambda: decision_curve([0, 1], [0, 1.5], [0.1]), "must lie in 0 to 1"),
    "thresholds": (lambda: decision_curve([0, 1], [0, 1], [0, 0.1]), "between 0 and 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_clear_line(case):
    call, words = ERRORS[case]
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 110
