"""Differences of two models: their laws, what they say where nothing varies, Holm's family, non-inferiority."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t
from scored_cases import EVERY, sample

from classify.metrics import auc_difference, bootstrap_differences, holm, metric_differences

NAMES = (*EVERY, "ece", "calibration_slope", "calibration_intercept")


def two_models(n, seed=0):
    rng = np.random.default_rng([seed, n])
    patients = np.repeat(np.arange(n), rng.integers(1, 5, n))[:n]
    effect = rng.normal(size=n)[patients]
    labels = (effect + rng.normal(size=n) > 0).astype(int)
    logits_a = 2 * labels - 1 + effect + rng.normal(size=n)
    logits_b = labels + effect + rng.normal(size=n)
    return labels, logits_a, logits_b, patients


def differences(labels, a, b, patients, thresholds=(0.4, 0.6)):
    return metric_differences(labels, expit(a), expit(b), NAMES, thresholds, patients, logits=(a, b))


def test_the_sign_changes_with_the_arguments():
    labels, a, b, patients = two_models(150)
    there = differences(labels, a, b, patients)
    back = differences(labels, b, a, patients, (0.6, 0.4))
    for name in NAMES:
        assert back[name].estimate == -there[name].estimate
        assert back[name].p_value == pytest.approx(there[name].p_value, rel=1e-9)
        assert back[name].interval == pytest.approx([-x for x in there[name].interval[::-1]])


def test_order_of_cases_does_not_matter_nor_do_copies():
    labels, a, b, patients = two_models(150)
    first = differences(labels, a, b, patients)
    order = np.repeat(np.random.default_rng(1).permutation(150), 3)
    again = differences(labels[order], a[order], b[order], patients[order])
    for name in NAMES:
        assert again[name].interval == pytest.approx(first[name].interval, rel=1e-8)
        assert again[name].p_value == pytest.approx(first[name].p_value, rel=1e-8)


def test_closed_form_agrees_with_the_paired_bootstrap():
    labels, a, b, patients = two_models(700)
    closed = differences(labels, a, b, patients)
    drawn = bootstrap_differences(labels, expit(a), expit(b), EVERY, (0.4, 0.6), patients, replicates=1000)
    for name in EVERY:
        assert closed[name].estimate == pytest.approx(drawn[name].estimate)
        assert np.ptp(closed[name].interval) == pytest.approx(np.ptp(drawn[name].interval), rel=0.12), name


def test_p_and_interval_agree():
    labels, a, b, patients = two_models(150)
    found = auc_difference(labels, a, b, patients)
    level = 1 - found.p_value
    at_p = auc_difference(labels, a, b, patients, level=level)
    assert min(np.abs(at_p.interval)) == pytest.approx(0, abs=1e-9)


def test_a_model_against_itself_has_p_one_and_a_name():
    labels, a, _, patients = two_models(150)
    for name, found in differences(labels, a, a, patients, (0.5, 0.5)).items():
        assert (found.estimate, found.p_value) == (0, 1), name
        assert found.note
    assert auc_difference(labels, a, a**3, patients).note

    alone = np.array([0.4, 0.3, 0.2, 0.1])
    for name, found in metric_differences([1, 0, 0, 0], alone, alone, ("auc", "recall", "f1"), (0.25, 0.25)).items():
        assert (found.estimate, found.p_value, found.interval) == (0, 1, (0, 0)), name


def test_seeds_of_one_model_against_themselves_may_come_out_otherwise():
    labels, a, b, patients = two_models(150)
    found = auc_difference(labels, [a, b], [b, a], patients)
    assert found.estimate == 0 and found.p_value == 1 and np.ptp(found.interval) > 0 and found.of_methods


@pytest.mark.parametrize("n", [2, 3, 7])
def test_two_areas_of_one_are_not_surely_equal(n):
    labels = np.repeat([0, 1], n)
    scores = np.arange(2 * n)
    found = auc_difference(labels, scores, np.argsort(np.argsort(-scores)) % n + n * labels)
    assert (found.estimate, found.p_value) == (0, 1) and found.note
    assert found.interval[0] < -0.1 and found.interval[1] > 0.1


def test_the_farthest_difference_is_not_proven_by_few():
    few, many = (auc_difference(np.repeat([0, 1], n), np.arange(2 * n), -np.arange(2 * n)) for n in (1, 200))
    assert few.estimate == many.estimate == 1 and few.p_value > 0.05 > many.p_value > 0
    assert few.interval[0] < 0.5 < many.interval[0] < many.interval[1] == 1


def test_what_cannot_be_compared_is_nan_with_a_reason():
    alone = auc_difference([0, 1, 1], [1, 2, 3], [3, 2, 1], groups=["a"] * 3)
    one_class = auc_difference([1, 1, 1], [1, 2, 3], [3, 2, 1])
    for found in (alone, one_class):
        assert np.isnan([*found.interval, found.p_value, found.non_inferior(0.1)]).all() and found.note


def test_shapes_of_one_seed_are_the_same():
    labels, a, b, patients = two_models(57)
    assert auc_difference(labels, a[None], b, patients) == auc_difference(labels, a, b[None], patients)


# ---------------------------------------------------------------- families


def test_holm_equals_statsmodels():
    # statsmodels 0.14, multipletests(p, method="holm")[1]
    p = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert holm(p) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    # Holm 1979 as worked in R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_keeps_order_and_never_lowers():
    p = np.random.default_rng(0).random(7) ** 3
    adjusted = holm(p)
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert holm(p[::-1]) == pytest.approx(adjusted[::-1])
    assert holm([]).shape == (0,) and holm([0.3]) == [0.3]


def test_holm_leaves_out_what_was_not_tested():
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    with pytest.raises(ValueError, match="must lie in 0 to 1"):
        holm([0.1, 1.2])


# ---------------------------------------------------------------- non-inferiority


def test_non_inferiority_is_one_sided_and_moved_by_the_margin():
    labels, a, b, patients = two_models(150)
    found = auc_difference(labels, b, a, patients)
    assert found.estimate < 0
    assert found.non_inferior(0) == pytest.approx(1 - found.p_value / 2)
    assert found.non_inferior(-found.estimate) == pytest.approx(0.5)
    wanted = t.sf((found.estimate + 0.1) / found.standard_error, found.freedom)
    assert found.non_inferior(0.1) == pytest.approx(wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 150])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_non_inferiority_agrees_with_the_lower_end_of_the_interval(n, level):
    """Also where it does not reach as far down as up: with all cases of a class one patient's, or without a mistake."""
    labels, a, b, patients = two_models(31)
    rng = np.random.default_rng(n)
    one_patients = np.r_[np.ones(n), np.zeros(23)], np.r_[np.zeros(n), np.arange(1, 24)]
    apart = one_patients[0] * 9
    cases = [
        (labels, a, b, patients),
        (one_patients[0], apart + rng.normal(size=n + 23), rng.normal(size=n + 23), one_patients[1]),
        (one_patients[0], apart, apart + rng.uniform(size=n + 23), None),
    ]
    for truth, first, second, whose in cases:
        for found in (auc_difference(truth, *pair, whose, level) for pair in ((first, second), (second, first))):
            if -1 < found.interval[0] < 0:
                assert found.non_inferior(-found.interval[0]) == pytest.approx((1 - level) / 2)


def test_a_model_is_not_inferior_to_itself_by_any_margin():
    labels, a = sample(30)
    found = auc_difference(labels, a, a)
    assert found.non_inferior(0.01) == 0 and found.non_inferior(0) == 1
    with pytest.raises(ValueError, match="margin is -"):
        found.non_inferior(-0.1)
