"""DeLong, McNemar and intervals of proportions equal their definitions and published examples."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm
from scored_cases import sample

from classify.metrics import binary_metrics, delong_interval, delong_test, mcnemar_test, wilson_interval

# ---------------------------------------------------------------- DeLong


# DeLong, DeLong and Clarke-Pearson 1988: ovarian cancer, benefit of surgery, as listed in the SAS/STAT
# User's Guide, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves". The numbers wanted
# were also computed from every pair of cases, outside this package.
# Four numbers a patient: albumin, total protein, K-G score (low is good, so 10 - score), outcome.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7  5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4  6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6  6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1  5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7  6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
ALBUMIN, PROTEIN, SCORE, OUTCOME = np.array(OVARIAN.split(), float).reshape(-1, 4).T


def slow_delong(labels, *scores):
    """AUCs and their covariance from every pair of cases, as the 1988 paper defines them."""
    of_positives, of_negatives = [], []
    for s in scores:
        positives, negatives = s[labels == 1], s[labels == 0]
        wins = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in negatives] for x in positives]
        of_positives.append(np.mean(wins, axis=1))
        of_negatives.append(np.mean(wins, axis=0))
    covariance = np.cov(of_positives) / (labels == 1).sum() + np.cov(of_negatives) / (labels == 0).sum()
    return np.mean(of_positives, axis=1), covariance


@pytest.mark.parametrize("levels", [None, 10, 3])
@pytest.mark.parametrize("n", [5, 7, 30, 101])
def test_delong_equals_its_definition(n, levels):
    labels, a = sample(n, levels=levels)
    labels[:4] = 0, 1, 0, 1
    b = sample(n, 1, levels)[1]
    aucs, covariance = slow_delong(labels, a, b)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = delong_test(labels, a, b)
    assert found.aucs == pytest.approx(aucs)
    assert found.standard_error == pytest.approx(error)
    assert found.estimate == pytest.approx(aucs[0] - aucs[1])
    assert found.p_value == pytest.approx(2 * norm.sf(abs(aucs[0] - aucs[1]) / error))


@pytest.mark.parametrize(
    ("a", "estimate", "error", "interval", "chi_square", "p_value"),
    [
        (ALBUMIN, 0.0108, 0.0953, (-0.1761, 0.1976), 0.0127, 0.9102),
        (PROTEIN, -0.0780, 0.1046, (-0.2830, 0.1271), 0.5554, 0.4561),
    ],
)
def test_delong_on_the_data_it_was_published_with(a, estimate, error, interval, chi_square, p_value):
    found = delong_test(OUTCOME, a, 10 - SCORE)
    assert found.estimate == pytest.approx(estimate, abs=5e-5)
    assert found.standard_error == pytest.approx(error, abs=5e-5)
    assert found.interval == pytest.approx(interval, abs=5e-5)
    assert found.z**2 == pytest.approx(chi_square, abs=5e-5)
    assert found.p_value == pytest.approx(p_value, abs=5e-5)


@pytest.mark.parametrize(
    ("scores", "area", "interval"),
    [
        (ALBUMIN, 0.7366, (0.5549, 0.9182)),
        (10 - SCORE, 0.7258, (0.5243, 0.9273)),
        (PROTEIN, 0.6478, (0.4518, 0.8439)),
    ],
)
def test_delong_interval_on_the_data_it_was_published_with(scores, area, interval):
    found = delong_interval(OUTCOME, scores, transform="none")
    assert found.estimate == pytest.approx(area, abs=5e-5)
    assert found.interval == pytest.approx(interval, abs=6e-5)


def test_logit_interval_stays_inside_and_ignores_monotone_transforms():
    labels, scores = sample(12, lift=2)
    found = delong_interval(labels, scores)
    assert 0 < found.interval[0] < found.estimate < found.interval[1] < 1
    assert delong_interval(labels, np.exp(scores)) == found


def test_delong_of_equal_orderings_is_zero_with_p_one_and_no_warning():
    labels, scores = sample(30, levels=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (scores, scores**3):
            found = delong_test(labels, scores, other)
            assert (found.estimate, found.z, found.p_value) == (0, 0, 1)
        assert delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1]).p_value == 0


def test_delong_changes_sign_with_its_arguments():
    labels, a = sample(30)
    b = sample(30, 1)[1]
    there, back = delong_test(labels, a, b), delong_test(labels, b, a)
    assert (there.estimate, there.p_value) == (-back.estimate, back.p_value)
    assert there.interval == pytest.approx([-x for x in back.interval[::-1]])


# ---------------------------------------------------------------- McNemar and proportions


def from_table(both, only_a, only_b, neither):
    """Labels and predictions whose correctness makes this table."""
    counts = [both, only_a, only_b, neither]
    right_a, right_b = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    labels = np.arange(sum(counts)) % 2
    return labels, np.where(right_a, labels, 1 - labels), np.where(right_b, labels, 1 - labels)


def test_mcnemar_equals_its_published_example():
    # approval in two surveys, Agresti 1990, page 350; numbers as R's mcnemar.test prints them
    found = mcnemar_test(*from_table(794, 150, 86, 570))
    assert found.statistic == pytest.approx(16.818, abs=5e-4)
    assert found.p_value == pytest.approx(4.115e-05, abs=5e-9)
    assert found.estimate == pytest.approx(0.04)
    assert not found.exact


def test_few_discordant_cases_are_judged_exactly():
    # Bentur et al. 2009, in Fagerland, Lydersen and Laake 2013: exact conditional p = 0.070
    found = mcnemar_test(*from_table(1, 1, 7, 12))
    assert found.exact and found.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert (found.only_a, found.only_b) == (1, 7)


@pytest.mark.parametrize(
    ("table", "interval", "digits"),
    [
        ((20, 12, 2, 16), (0.0562, 0.3292), 4),  # Newcombe 1998
        ((1, 1, 7, 12), (-0.507, -0.026), 3),  # Fagerland, Lydersen and Laake 2014
        ((8, 3, 1, 2), (-0.1574, 0.4136), 4),  # Tang et al. 2010
    ],
)
def test_paired_interval_equals_published_examples(table, interval, digits):
    assert np.round(mcnemar_test(*from_table(*table)).interval, digits).tolist() == list(interval)


@pytest.mark.parametrize("table", [(5, 3, 9, 4), (50, 40, 20, 7), (0, 0, 0, 6), (9, 0, 4, 0)])
def test_mcnemar_changes_sign_with_its_arguments(table):
    labels, a, b = from_table(*table)
    there, back = mcnemar_test(labels, a, b), mcnemar_test(labels, b, a)
    assert (there.estimate, there.p_value) == (-back.estimate, back.p_value)
    assert there.interval == pytest.approx([-x for x in back.interval[::-1]])
    assert there.interval[0] <= there.estimate <= there.interval[1]


def test_mcnemar_estimate_is_the_difference_of_accuracy():
    labels, a = sample(70)
    b = sample(70, 1)[1]
    found = mcnemar_test(labels, a >= 0.5, b >= 0.5)
    assert found.estimate == pytest.approx(binary_metrics(labels, a).accuracy - binary_metrics(labels, b).accuracy)


def test_mcnemar_of_equal_predictions_has_p_one():
    labels, a, _ = from_table(5, 3, 9, 4)
    assert mcnemar_test(labels, a, a).p_value == 1


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_its_published_examples(successes, n, low, high):
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    assert wilson_interval(successes, n).interval == pytest.approx((low, high), abs=5e-5)
