"""Metrics at a threshold and the threshold itself equal scikit-learn's or their definition; bad input is one line."""

import numpy as np
import pytest
from scored_cases import EVERY, SIZES, by_sklearn, sample
from sklearn import metrics as sk

from classify.metrics import (
    auc,
    binary_metrics,
    bootstrap_interval,
    choose_threshold,
    delong_interval,
    delong_test,
    mcnemar_test,
    reliability_curve,
    wilson_interval,
)

# ---------------------------------------------------------------- metrics at a threshold


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


# ---------------------------------------------------------------- decision threshold


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
    labels, scores = [0, 1, 0, 1], [0.1, 0.3, 0.5, 0.7]  # 0.2 and 0.6 both score 0.5
    assert choose_threshold(labels, scores, "youden") == pytest.approx(0.2)
    assert choose_threshold(labels[::-1], scores[::-1], "youden") == pytest.approx(0.2)


def test_threshold_separates_neighbouring_floats():
    low = 0.3
    high = np.nextafter(low, 1)
    assert binary_metrics([0, 1], [low, high], choose_threshold([0, 1], [low, high])).accuracy == 1


# ---------------------------------------------------------------- errors


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
