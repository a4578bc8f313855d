"""Laws of resampling: intervals and paired differences, over cases, patients and seeds."""

import numpy as np
import pytest
from scipy.stats import norm
from scored_cases import EVERY, by_sklearn, sample

from classify.metrics import (
    auc,
    binary_metrics,
    bootstrap_difference,
    bootstrap_differences,
    bootstrap_interval,
    bootstrap_intervals,
    delong_test,
)

# ---------------------------------------------------------------- bootstrap


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


# ---------------------------------------------------------------- paired bootstrap


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
