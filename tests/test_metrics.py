"""Metrics equal scikit-learn's, tests equal their published examples, resampling keeps its laws."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from classify.metrics import (
    auc,
    binary_metrics,
    bootstrap_difference,
    bootstrap_differences,
    bootstrap_interval,
    bootstrap_intervals,
    choose_threshold,
    delong_interval,
    delong_test,
    expected_calibration_error,
    mcnemar_test,
    reliability_curve,
    wilson_interval,
)

EVERY = ("accuracy", "precision", "recall", "specificity", "f1", "auc", "average_precision", "brier")
SIZES = (1, 2, 3, 5, 7, 31, 200)


def sample(n, seed=0, levels=None, lift=1.0):
    """Labels and scores in [0, 1]; few levels make ties."""
    rng = np.random.default_rng([seed, n])
    labels = rng.integers(0, 2, n)
    scores = norm.cdf(rng.normal(size=n) + lift * (labels - 0.5))
    return labels, scores if levels is None else np.round(scores * levels) / levels


def by_sklearn(labels, scores, threshold):
    called = scores >= threshold
    both = len(set(labels.tolist())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a class is missing
        average_precision = sk.average_precision_score(labels, scores)
    return {
        "accuracy": sk.accuracy_score(labels, called),
        "precision": sk.precision_score(labels, called, zero_division=0),
        "recall": sk.recall_score(labels, called, zero_division=0),
        "specificity": sk.recall_score(labels, called, pos_label=0, zero_division=0),
        "f1": sk.f1_score(labels, called, zero_division=0),
        "auc": sk.roc_auc_score(labels, scores) if both else np.nan,
        "average_precision": average_precision,
        "brier": np.mean((scores - labels) ** 2),
    }


# ------------------------------------------------------------------------- metrics at a threshold


@pytest.mark.parametrize("levels", [None, 10, 2])
@pytest.mark.parametrize("n", SIZES)
def test_metrics_equal_scikit_learn(n, levels):
    for seed in range(4):
        labels, scores = sample(n, seed, levels)
        found, wanted = binary_metrics(labels, scores, 0.4), by_sklearn(labels, scores, 0.4)
        assert {name: found[name] for name in EVERY} == pytest.approx(wanted, nan_ok=True, abs=1e-12)
        matrix = sk.confusion_matrix(labels, scores >= 0.4, labels=[0, 1])
        assert found.confusion == tuple(matrix.ravel())
        assert (found.n, found.positives, found.threshold) == (n, labels.sum(), 0.4)


def test_metrics_read_as_attributes_and_as_a_mapping():
    found = binary_metrics([0, 1, 1], [0.2, 0.4, 0.9])
    assert dict(found)["auc"] == found.auc == found["auc"] == 1.0
    with pytest.raises(KeyError):
        found["keys"]


def test_a_score_at_the_threshold_is_abnormal():
    assert binary_metrics([1, 0], [0.5, 0.4], 0.5).recall == 1


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_only_auc_undefined(label):
    found = binary_metrics([label] * 3, [0.2, 0.5, 0.9])
    assert [name for name, value in dict(found).items() if np.isnan(value)] == ["auc"]


def test_precision_is_zero_when_nothing_is_called_abnormal():
    assert binary_metrics([0, 1], [0.1, 0.2]).precision == 0


@pytest.mark.parametrize("transform", [np.exp, lambda s: 3 * s - 7, lambda s: np.log(s + 1e-3)])
def test_auc_ignores_monotone_transforms(transform):
    labels, scores = sample(101, levels=20)
    assert auc(labels, transform(scores)) == auc(labels, scores)


def test_auc_of_negated_scores_is_the_complement():
    labels, scores = sample(101, levels=20)
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores), abs=1e-15)


def test_weighted_auc_equals_repeating_cases():
    labels, scores = sample(37, levels=8)
    weights = np.random.default_rng(1).integers(0, 4, (5, 37))
    repeated = [sk.roc_auc_score(np.repeat(labels, w), np.repeat(scores, w)) for w in weights]
    assert auc(labels, scores, weights) == pytest.approx(repeated, abs=1e-12)


# ----------------------------------------------------------------------------- decision threshold


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("n", [5, 7, 41])
def test_no_threshold_beats_the_chosen_one(n, levels):
    scorers = {
        "youden": lambda m: m.recall + m.specificity,
        "accuracy": lambda m: m.accuracy,
        "f1": lambda m: m.f1,
    }
    labels, scores = sample(n, 3, levels)
    for rule, score in scorers.items():
        chosen = score(binary_metrics(labels, scores, choose_threshold(labels, scores, rule)))
        assert chosen >= max(score(binary_metrics(labels, scores, t)) for t in [*scores, 2.0]) - 1e-12


def test_threshold_lies_midway_between_the_classes():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)


def test_equally_good_thresholds_give_the_lowest():
    labels, scores = [0, 1, 0, 1], [0.1, 0.3, 0.5, 0.7]  # 0.2 and 0.6 are both worth 0.5
    assert choose_threshold(labels, scores, "youden") == pytest.approx(0.2)
    assert choose_threshold(labels[::-1], scores[::-1], "youden") == pytest.approx(0.2)


def test_threshold_separates_neighbouring_floats():
    low = 0.3
    high = np.nextafter(low, 1)
    assert binary_metrics([0, 1], [low, high], choose_threshold([0, 1], [low, high])).accuracy == 1


# -------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_equals_scikit_learn_on_the_same_draws():
    labels, scores = sample(41, levels=12)
    draws = np.random.default_rng(5).spawn(2)[0].integers(0, 41, (60, 41))
    each = [by_sklearn(labels[d], scores[d], 0.45) for d in draws]
    found = bootstrap_intervals(labels, scores, EVERY, 0.45, replicates=60, seed=5, level=0.8)
    estimate = by_sklearn(labels, scores, 0.45)
    for name in EVERY:
        assert found[name].estimate == pytest.approx(estimate[name])
        assert found[name].interval == pytest.approx(np.quantile([m[name] for m in each], [0.1, 0.9]))


def test_one_metric_and_several_share_their_resamples():
    labels, scores = sample(31)
    several = bootstrap_intervals(labels, scores, replicates=50)
    for name, found in several.items():
        assert bootstrap_interval(labels, scores, name, replicates=50) == found


def test_block_size_does_not_change_the_interval(monkeypatch):
    labels, scores = sample(31)
    whole = bootstrap_interval(labels, scores, replicates=100)
    monkeypatch.setattr("classify.metrics.bootstrap.BLOCK", 7 * 31)
    assert bootstrap_interval(labels, scores, replicates=100) == whole


def test_same_seed_same_interval_and_global_generator_untouched():
    labels, scores = sample(31)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (bootstrap_interval(labels, scores, replicates=50, seed=3) for _ in range(2))
    assert first == again != bootstrap_interval(labels, scores, replicates=50, seed=4)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_bootstrap_covers_the_true_auc():
    rng, truth, covered = np.random.default_rng(0), norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(200):
        labels = np.arange(90) % 2
        low, high = bootstrap_interval(labels, rng.normal(size=90) + labels, replicates=200).interval
        covered += low <= truth <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_groups_of_one_case_equal_no_groups():
    labels, scores = sample(57)
    names = np.random.default_rng(1).permutation([f"p{i}" for i in range(57)])
    plain = bootstrap_intervals(labels, scores, replicates=80)
    assert bootstrap_intervals(labels, scores, replicates=80, groups=names) == plain


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_within_a_group_change_nothing(copies):
    labels, scores = sample(57, levels=30)
    groups = np.repeat(np.arange(57), copies)
    plain = bootstrap_intervals(labels, scores, EVERY, replicates=80)
    copied = bootstrap_intervals(
        np.repeat(labels, copies), np.repeat(scores, copies), EVERY, replicates=80, groups=groups
    )
    for name in EVERY:
        assert copied[name].estimate == pytest.approx(plain[name].estimate, abs=1e-12)
        assert copied[name].interval == pytest.approx(plain[name].interval, abs=1e-12)


def test_group_interval_is_wider_when_cases_repeat_within_patients():
    labels, scores = (np.repeat(x, 4) for x in sample(60))
    groups = np.repeat(np.arange(60), 4)
    plain = bootstrap_intervals(labels, scores, replicates=400)
    grouped = bootstrap_intervals(labels, scores, replicates=400, groups=groups)
    for name, found in grouped.items():
        assert np.ptp(found.interval) > 1.5 * np.ptp(plain[name].interval)


def test_estimate_is_the_mean_over_seeds_at_their_own_thresholds():
    labels, _ = sample(43)
    scores = np.random.default_rng(2).random((3, 43))
    thresholds = np.array([0.2, 0.5, 0.8])
    found = bootstrap_intervals(labels, scores, EVERY, thresholds, replicates=5)
    each = [binary_metrics(labels, s, t) for s, t in zip(scores, thresholds, strict=True)]
    for name in EVERY:
        assert found[name].estimate == pytest.approx(np.mean([m[name] for m in each]))


def test_equal_seeds_equal_one_seed():
    labels, scores = sample(43)
    one = bootstrap_intervals(labels, scores, replicates=60)
    three = bootstrap_intervals(labels, np.tile(scores, (3, 1)), replicates=60)
    for name in one:
        assert three[name].interval == pytest.approx(one[name].interval, abs=1e-12)


def test_seeds_that_disagree_widen_the_interval():
    labels, scores = sample(400, lift=2)
    noisy = np.stack([scores, np.random.default_rng(0).random(400)])
    found = bootstrap_interval(labels, noisy, replicates=300).interval
    assert np.ptp(found) > 2 * np.ptp(bootstrap_interval(labels, scores, replicates=300).interval)


def test_undefined_replicates_are_left_out_and_counted():
    labels, scores = np.array([1, 0, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3, 0.4])
    found = bootstrap_intervals(labels, scores, EVERY, replicates=500)
    assert found["auc"].interval == (1.0, 1.0)
    assert 100 < found["auc"].undefined < 230  # (4/5)^5 = 0.33, and all-positive 1/5^5
    assert found["recall"].undefined <= found["auc"].undefined
    assert found["accuracy"].undefined == 0
    hopeless = bootstrap_interval([0, 0], [0.1, 0.2], replicates=9)
    assert np.isnan(hopeless.interval).all() and hopeless.undefined == 9


# ------------------------------------------------------------------------------- paired bootstrap


def test_difference_of_equal_scores_is_zero_with_p_one():
    labels, scores = sample(50)
    for found in bootstrap_differences(labels, scores, scores, replicates=50).values():
        assert (found.estimate, found.interval, found.p_value) == (0, (0, 0), 1)


def test_difference_changes_sign_with_its_arguments():
    labels, a = sample(60, levels=9)
    b = np.random.default_rng(8).random(60)
    groups = np.arange(60) // 3
    there = bootstrap_differences(labels, a, b, EVERY, (0.3, 0.6), groups, replicates=99)
    back = bootstrap_differences(labels, b, a, EVERY, (0.6, 0.3), groups, replicates=99)
    for name in EVERY:
        assert there[name].estimate == pytest.approx(-back[name].estimate)
        assert there[name].interval == pytest.approx([-x for x in back[name].interval[::-1]])
        assert there[name].p_value == pytest.approx(back[name].p_value)


def test_difference_is_of_metrics_and_pairing_narrows_it():
    labels, a = sample(150, lift=1.5)
    b = np.clip(a + np.random.default_rng(1).normal(size=150) / 20, 0, 1)
    found = bootstrap_difference(labels, a, b, replicates=300)
    assert found.estimate == pytest.approx(auc(labels, a) - auc(labels, b))
    assert np.ptp(found.interval) < 0.7 * np.ptp(bootstrap_interval(labels, a, replicates=300).interval)


def test_difference_against_chance_is_significant_and_never_p_zero():
    labels, a = sample(200, lift=3)
    found = bootstrap_difference(labels, a, np.random.default_rng(0).random(200), replicates=199)
    assert found.interval[0] > 0
    assert found.p_value == pytest.approx(2 / 200)


def test_p_values_of_equally_good_models_are_seldom_small():
    rng, labels = np.random.default_rng(0), np.arange(80) % 2
    pairs = [rng.normal(size=(2, 80)) + labels for _ in range(200)]
    small = [bootstrap_difference(labels, a, b, replicates=199).p_value <= 0.05 for a, b in pairs]
    assert 0.01 <= np.mean(small) <= 0.1


def test_models_may_have_different_numbers_of_seeds():
    labels, a = sample(40)
    b = np.stack([a, a[::-1], a**2])
    found = bootstrap_difference(labels, a, b, "f1", (0.5, [0.5, 0.4, 0.25]), replicates=50)
    each = [binary_metrics(labels, s, t).f1 for s, t in zip(b, (0.5, 0.4, 0.25), strict=True)]
    assert found.estimate == pytest.approx(binary_metrics(labels, a).f1 - np.mean(each))


def test_bootstrap_and_delong_agree_on_large_samples():
    labels, a = sample(800)
    b = a + np.random.default_rng(4).normal(size=800) / 4
    by_delong, by_bootstrap = delong_test(labels, a, b), bootstrap_difference(labels, a, b)
    assert by_bootstrap.estimate == pytest.approx(by_delong.estimate)
    assert by_bootstrap.interval == pytest.approx(by_delong.interval, abs=0.15 * np.ptp(by_delong.interval))


# ------------------------------------------------------------------------------------------ DeLong

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


# ------------------------------------------------------------------------ McNemar and proportions


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


# ------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("bins", [1, 3, 15])
def test_reliability_curve_equals_scikit_learn(bins):
    labels, scores = sample(200, levels=30)
    positive_rate, mean_score = calibration_curve(labels, scores, n_bins=bins)
    curve = reliability_curve(labels, scores, bins)
    full = curve.count > 0
    assert curve.count.sum() == 200
    assert curve.positive_rate[full] == pytest.approx(positive_rate)
    assert curve.mean_score[full] == pytest.approx(mean_score)


def test_calibration_error_by_hand():
    # bins (0, 0.5] and (0.5, 1]: gaps |1/2 - 0.3| and |1 - 0.8|, two cases each
    assert expected_calibration_error([0, 1, 1, 1], [0.1, 0.5, 0.7, 0.9], bins=2) == pytest.approx(0.2)


def test_calibration_error_of_certain_truth_is_zero_and_of_certain_error_one():
    labels = np.array([0, 1, 1])
    assert expected_calibration_error(labels, labels) == 0
    assert expected_calibration_error(labels, 1 - labels) == 1


# ------------------------------------------------------------------------------------------ errors

ERRORS = {
    "NaN labels": (lambda: binary_metrics([0, np.nan], [0.1, 0.2]), "labels hold 1 NaN"),
    "NaN scores": (lambda: binary_metrics([0, 1], [0.1, np.nan]), "scores hold 1 NaN"),
    "infinite scores": (lambda: auc([0, 1], [0.1, np.inf]), "NaN or infinite"),
    "other labels": (lambda: auc([0, 2], [0.1, 0.2]), "labels must be 0 or 1, found 2"),
    "words": (lambda: auc(["normal", "abnormal"], [0.1, 0.2]), "regular array of numbers"),
    "lengths": (lambda: auc([0, 1, 1], [0.1, 0.2]), "scores have 2 cases, labels 3"),
    "empty": (lambda: binary_metrics([], []), "labels are empty"),
    "shape": (lambda: binary_metrics([0, 1], [[0.1, 0.2]]), "one number per case"),
    "which scores": (lambda: delong_test([0, 1], [1, 2], [1]), "scores_b have 1 cases"),
    "too few": (lambda: delong_test([0, 1, 1], [1, 2, 3], [1, 2, 3]), "2 cases of each class"),
    "transform": (lambda: delong_interval([0, 0, 1, 1], [1, 2, 3, 4], transform="x"), "one of logit, none"),
    "predictions": (lambda: mcnemar_test([0, 1], [0, 1], [0, 0.3]), "predictions_b must be 0 or 1"),
    "metric": (lambda: bootstrap_interval([0, 1], [0, 1], "acc"), "metric 'acc' is unknown; one of accuracy"),
    "rule": (lambda: choose_threshold([0, 1], [0, 1], "best"), "one of youden, accuracy, f1"),
    "one class": (lambda: choose_threshold([1, 1], [0, 1]), "one class only"),
    "groups": (lambda: bootstrap_interval([0, 1], [0, 1], groups=[1]), "groups have shape"),
    "missing groups": (lambda: bootstrap_interval([0, 1], [0, 1], groups=["a", None]), "missing"),
    "thresholds": (lambda: bootstrap_interval([0, 1], [0, 1], threshold=[0.5, 0.6]), "for 1 seeds"),
    "level": (lambda: bootstrap_interval([0, 1], [0, 1], level=95), "level is 95"),
    "replicates": (lambda: bootstrap_interval([0, 1], [0, 1], replicates=0), "replicates is 0"),
    "proportion": (lambda: wilson_interval(3, 2), "3 successes of 2"),
    "probabilities": (lambda: reliability_curve([0, 1], [0, 1.2]), "must be probabilities"),
    "bins": (lambda: reliability_curve([0, 1], [0, 1], bins=0), "bins is 0"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_clear_line(case):
    call, words = ERRORS[case]
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 110
