"""Intervals of one model's metrics equal their definitions, obey their laws, and never lack width without saying so."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import root
from scipy.special import expit, logit
from scipy.stats import norm, t
from scored_cases import EVERY, sample

from classify.metrics import (
    HEADLINE,
    auc,
    auc_difference,
    auc_interval,
    binary_metrics,
    bootstrap_intervals,
    decision_curve,
    delong_interval,
    delong_test,
    expected_calibration_error,
    metric_differences,
    metric_intervals,
    wilson_interval,
)
from classify.metrics.binary import weighted_metrics
from classify.metrics.influence import Model, influence

NAMES = (*EVERY, "ece", "calibration_slope", "calibration_intercept")


def patients_of_several(n, seed=0):
    """Labels, two scores, and patients of one to four cases, many of them with cases of both classes."""
    rng = np.random.default_rng([seed, n])
    patients = np.repeat(np.arange(n), rng.integers(1, 5, n))[:n]
    effect = rng.normal(size=n)[patients]
    labels = (effect + rng.normal(size=n) > 0).astype(int)
    labels[:2] = 0, 1
    a = labels + effect + rng.normal(size=n)
    b = 0.5 * labels + effect + rng.normal(size=n)
    return labels, a, b, patients


def obuchowski_by_hand(labels, patients, *scores):
    """AUCs and their covariance, pair by pair and patient by patient, as the 1997 paper defines them."""
    people = list(dict.fromkeys(patients.tolist()))
    n1, n0 = (labels == 1).sum(), (labels == 0).sum()
    m, m1 = len(people), sum((labels[patients == p] == 1).any() for p in people)
    m0 = sum((labels[patients == p] == 0).any() for p in people)
    areas, of_positives, of_negatives = [], [], []
    for s in scores:
        wins = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in s[labels == 0]] for x in s[labels == 1]])
        area, v10, v01 = wins.mean(), np.zeros(len(labels)), np.zeros(len(labels))
        v10[labels == 1], v01[labels == 0] = wins.mean(1) - area, wins.mean(0) - area
        areas.append(area)
        of_positives.append([v10[patients == p].sum() for p in people])
        of_negatives.append([v01[patients == p].sum() for p in people])
    x, y = np.array(of_positives), np.array(of_negatives)
    s10, s01, s11 = m1 / (m1 - 1) / n1 * x @ x.T, m0 / (m0 - 1) / n0 * y @ y.T, m / (m - 1) * x @ y.T
    return np.array(areas), s10 / n1 + s01 / n0 + (s11 + s11.T) / (n1 * n0)


# ---------------------------------------------------------------- the AUC


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("n", [11, 31, 70])
def test_clustered_delong_equals_its_definition(n, levels):
    labels, a, b, patients = patients_of_several(n)
    if levels:
        a, b = np.round(a * levels), np.round(b * levels)
    areas, covariance = obuchowski_by_hand(labels, patients, a, b)
    found = auc_difference(labels, a, b, patients)
    assert found.estimate == pytest.approx(areas[0] - areas[1])
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.standard_error == pytest.approx(error)
    assert found.p_value == pytest.approx(2 * t.sf(abs(found.estimate) / error, found.freedom))


def test_without_groups_it_is_delong():
    labels, a = sample(101, levels=12)
    b = sample(101, 1)[1]
    assert auc_difference(labels, a, b).standard_error == pytest.approx(delong_test(labels, a, b).standard_error)
    found, plain = auc_interval(labels, a), delong_interval(labels, a)
    assert found.estimate == pytest.approx(plain.estimate)
    reach = logit(np.array(found.interval)) - logit(found.estimate)
    assert reach == pytest.approx(logit(np.array(plain.interval)) - logit(plain.estimate), rel=0.1)  # t, not normal
    assert np.ptp(found.interval) > np.ptp(plain.interval)


def test_mean_of_seeds_adds_their_variance():
    labels, a, b, patients = patients_of_several(700)
    one = auc_difference(labels, a, b, patients)
    seeds = np.stack([a, a + np.random.default_rng(0).normal(size=700), b])
    found = auc_difference(labels, seeds, b, patients)
    areas = [auc(labels, s) for s in seeds]
    covariance = obuchowski_by_hand(labels, patients, *seeds, b)[1]
    weights = np.array([1 / 3, 1 / 3, 1 / 3, -1])
    wanted = weights @ covariance @ weights + np.var(areas, ddof=1) / 3
    assert found.estimate == pytest.approx(np.mean(areas) - auc(labels, b))
    assert found.standard_error**2 == pytest.approx(wanted)
    assert (found.seeds, one.seeds) == ((3, 1), (1, 1)) and not found.of_methods


def test_seeds_alone_leave_their_degrees_of_freedom():
    """Where seeds differ far more than patients, the test has at most s_a + s_b - 2 degrees of freedom."""
    labels, a, b, patients = patients_of_several(700)
    rng = np.random.default_rng(3)
    lifts = np.array([0, 1.5, 3])[:, None]
    found = auc_difference(labels, a + lifts * labels, b + lifts * labels + rng.normal(size=(3, 700)), patients)
    assert 1.9 < found.freedom < 4.5 and found.of_methods


def test_a_hundred_thousand_cases_take_less_than_a_second():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100_000)
    patients = np.array([f"p{k}" for k in rng.integers(0, 40_000, 100_000)], dtype=object)
    start = time.process_time()
    auc_interval(labels, rng.normal(size=100_000) + labels, patients)
    assert time.process_time() - start < 1


# ---------------------------------------------------------------- laws of every metric


@pytest.mark.parametrize("seeds", [1, 3])
def test_order_of_cases_and_names_of_patients_do_not_matter(seeds):
    labels, a, b, patients = patients_of_several(150)
    logits = np.stack([a, b, a + b])[:seeds]
    first = metric_intervals(labels, expit(logits), NAMES, 0.6, patients, logits=logits)
    order = np.random.default_rng(1).permutation(150)
    names = np.array([f"p{k}" for k in patients])[order]
    again = metric_intervals(labels[order], expit(logits[:, order]), NAMES, 0.6, names, logits=logits[:, order])
    for name in NAMES:
        assert again[name].interval == pytest.approx(first[name].interval, rel=1e-8)
        assert first[name].interval[0] < first[name].estimate < first[name].interval[1]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("kind", [list, tuple, pd.Series])
def test_a_missing_patient_is_no_patient_called_nan(kind, missing):
    labels, scores = [0, 1, 0, 1, 1], [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="groups hold missing values"):
        auc_interval(labels, scores, kind([missing, "a", missing, "b", "c"]))


def test_patients_may_be_named_by_numbers_and_words():
    labels, scores = [0, 1, 0, 1, 1], [1, 2, 3, 4, 5]
    mixed = auc_interval(labels, scores, pd.Series([7, "a", 7, "b", 2.5]))
    assert mixed == auc_interval(labels, scores, [0, 1, 0, 2, 3])


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_a_patients_images_change_nothing(copies):
    labels, a, _, patients = patients_of_several(150)
    first = metric_intervals(labels, expit(a), NAMES, 0.6, patients, logits=a)
    labels, a, patients = (np.repeat(x, copies) for x in (labels, a, patients))
    again = metric_intervals(labels, expit(a), NAMES, 0.6, patients, logits=a)
    for name in NAMES:
        assert again[name].estimate == pytest.approx(first[name].estimate)
        # Wilson's interval counts at most as many cases as there are
        assert again[name].interval == pytest.approx(first[name].interval, rel=1e-8, abs=2e-3)


def test_estimates_are_the_means_over_seeds():
    labels, a, b, patients = patients_of_several(90)
    scores, thresholds = expit(np.stack([a, b])), np.array([0.4, 0.7])
    found = metric_intervals(labels, scores, (*EVERY, "ece"), thresholds, patients)
    each = [binary_metrics(labels, s, threshold) for s, threshold in zip(scores, thresholds, strict=True)]
    for name in EVERY:
        assert found[name].estimate == pytest.approx(np.mean([m[name] for m in each]), abs=1e-14)
    assert found["ece"].estimate == pytest.approx(np.mean([expected_calibration_error(labels, s) for s in scores]))


def test_closed_form_agrees_with_the_bootstrap_of_patients():
    labels, a, _, patients = patients_of_several(700)
    scores = expit(a)
    closed = metric_intervals(labels, scores, EVERY, 0.6, patients)
    drawn = bootstrap_intervals(labels, scores, EVERY, 0.6, patients, replicates=1000)
    for name in EVERY:
        assert np.ptp(closed[name].interval) == pytest.approx(np.ptp(drawn[name].interval), rel=0.12), name


def test_proportions_of_single_cases_are_wilsons():
    labels, scores = sample(200)
    found = metric_intervals(labels, scores, ("recall", "specificity", "accuracy"))
    called = scores >= 0.5
    for name, right in {
        "recall": called[labels == 1],
        "specificity": ~called[labels == 0],
        "accuracy": called == labels,
    }.items():
        wanted = wilson_interval(int(right.sum()), len(right))
        assert found[name].interval == pytest.approx(wanted.interval, abs=3e-3)  # t, not normal


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("name", [*EVERY, "calibration_slope", "calibration_intercept"])
def test_parts_are_derivatives_by_the_weight_of_a_case(name, levels):
    """Give each case a little more weight, one after the other."""
    labels, scores = sample(31, levels=levels)
    scores = np.clip(scores, 0.01, 0.99)
    logits = logit(scores)
    model = Model(scores[None], np.array([0.45]), logits[None], logits[None])
    weights = np.ones((31, 31)) + 1e-5 * np.eye(31)

    def weighted(rows):
        if name in EVERY:
            return weighted_metrics(rows, labels == 1, scores, 0.45, (name,), logits)[name]
        return np.array([_weighted_fit(row, labels, logits, name == "calibration_slope") for row in rows])

    wanted = (weighted(weights) - weighted(np.ones((1, 31)))) / 1e-5
    assert influence(name, labels == 1, model).parts[0] == pytest.approx(wanted, rel=1e-2, abs=1e-4)


def _weighted_fit(weights, labels, logits, slope):
    """The weighted logistic fit, its equations solved by scipy."""

    def equations(line):
        residual = weights * (labels - expit(line[0] + line[-1] * logits if slope else line[0] + logits))
        return [residual.sum(), residual @ logits][: 1 + slope]

    return root(equations, [0.0, 1.0][: 1 + slope], tol=1e-13).x[-1]


# ---------------------------------------------------------------- where nothing varies


EXTREMES = {
    "an AUC of 1": ([0, 0, 1, 1, 1], [1, 2, 3, 4, 5]),
    "an AUC of 0": ([0, 0, 1, 1, 1], [5, 4, 3, 2, 1]),
    "equal scores": ([0, 0, 1, 1, 1], [1, 1, 1, 1, 1]),
    "one abnormal case": ([0, 0, 0, 0, 1], [1, 2, 4, 5, 3]),
    "one normal case": ([1, 1, 0], [1, 3, 2]),
    "two cases": ([0, 1], [1, 2]),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_an_interval_without_variance_has_width_and_a_note(case):
    found = auc_interval(*EXTREMES[case])
    assert found.note and 0 <= found.interval[0] <= found.estimate <= found.interval[1] <= 1
    assert np.ptp(found.interval) > 0.2


def test_newcombes_interval_of_an_area_of_one():
    # solved for by hand: (1-A) = z² A (1 + N((1-A)/(2-A) + A/(1+A))) / (n1 n0), N = (n1 + n0)/2 - 1
    low = auc_interval(np.repeat([0, 1], [7, 5]), np.arange(12)).interval[0]
    wanted = norm.ppf(0.975) ** 2 * low * (1 + 5 * ((1 - low) / (2 - low) + low / (1 + low))) / 35
    assert 1 - low == pytest.approx(wanted)


def test_an_area_of_one_is_surer_with_more_patients_not_more_images():
    labels = np.repeat([0, 1], 7)
    few = auc_interval(labels, labels).interval
    images = auc_interval(np.repeat(labels, 5), np.repeat(labels, 5), np.repeat(np.arange(14), 5)).interval
    patients = auc_interval(np.repeat(labels, 5), np.repeat(labels, 5)).interval
    assert images == few and patients[0] > few[0]


def test_one_patient_and_one_class_have_no_interval_but_a_reason():
    alone = metric_intervals([0, 1, 1], [0.1, 0.2, 0.9], groups=["a", "a", "a"])
    for name in HEADLINE:
        assert np.isnan(alone[name].interval).all() and "one patient" in alone[name].note
    found = auc_interval([1, 1, 1], [1, 2, 3])
    assert np.isnan([found.estimate, *found.interval]).all() and "class" in found.note


@pytest.mark.parametrize("right", [0, 1])
def test_a_share_of_none_or_all_counts_patients(right):
    labels = np.array([0, 1] * 10)
    scores = labels if right else 1 - labels
    found = metric_intervals(labels, scores, ("accuracy", "recall", "f1"), groups=np.arange(20) // 4)
    assert found["accuracy"].interval == pytest.approx(wilson_interval(5 * right, 5).interval)
    for name in ("accuracy", "recall", "f1"):
        assert found[name].note and np.ptp(found[name].interval) > 0.2


def test_patients_who_agree_on_a_share_are_named():
    found = metric_intervals([1, 1, 1] * 5, [0.9, 0.1, 0.1] * 5, ("recall",), groups=np.repeat(range(5), 3))["recall"]
    assert found.note and found.interval[0] < 1 / 3 < found.interval[1]


def test_seeds_widen_an_interval_without_variance():
    labels = np.array([0] * 5 + [1] * 5)
    same = auc_interval(labels, [labels, labels])
    apart = auc_interval(labels, [labels, 1 - labels])
    assert np.ptp(apart.interval) > np.ptp(same.interval)


def test_a_model_that_calls_nothing_says_so():
    labels, scores = sample(30)
    assert "no case is called" in metric_intervals(labels, 0 * scores, ("precision",))["precision"].note
    found = metric_differences(labels, scores, 0 * scores, ("precision", "recall"))
    assert "no case is called" in found["precision"].note and not found["recall"].note


@pytest.mark.parametrize("name", ["brier", "ece"])
def test_scores_that_are_no_probabilities_have_no_error_of_probabilities(name):
    found = metric_intervals([0, 1, 0, 1], [-3, 1, 2, 5], (name,))[name]
    assert np.isnan([found.estimate, *found.interval]).all() and "no probabilities" in found.note


@pytest.mark.parametrize("n", range(20, 45))
def test_rounding_is_no_variance(n):
    """Equal errors for all cases have a mean that is rounded; what is left of them has no width and says nothing."""
    labels = np.arange(n) % 2
    scores = np.where(labels, expit(3.0), expit(-3.0))
    brier, ece = metric_intervals(labels, scores, ("brier", "ece")).values()
    for found in (brier, ece):
        assert found.note and found.interval[0] < found.estimate < found.interval[1]
    curve = decision_curve(np.zeros(n), np.full(n, 0.7), [0.3])
    assert curve.low < curve.net_benefit < curve.high
