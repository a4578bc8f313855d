"""Curves pass through the points of scikit-learn's, and lie within their bands."""

import numpy as np
import pytest
from scored_cases import sample
from sklearn import metrics as sk

from classify.metrics import precision_recall_band, reliability_band, reliability_curve, roc_band


@pytest.mark.parametrize("levels", [None, 6])
def test_the_curve_is_the_highest_sensitivity_at_that_rate_or_less(levels):
    labels, scores = sample(61, 3, levels)
    x, y, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    curve = roc_band(labels, scores)
    for rate, sensitivity in zip(curve.x, curve.y, strict=True):
        assert sensitivity == y[x <= rate + 1e-9].max()
    assert (curve.low <= curve.y).all() and (curve.y <= curve.high).all()


@pytest.mark.parametrize("levels", [None, 6])
def test_precision_is_that_where_the_recall_is_reached_first(levels):
    labels, scores = sample(61, 5, levels)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    curve = precision_recall_band(labels, scores)
    for at, found in zip(curve.x, curve.y, strict=True):
        last = np.flatnonzero(recall >= at - 1e-9)[-1]  # recall falls
        assert found == pytest.approx(precision[last])


def test_several_seeds_are_their_mean_and_widen_the_band():
    labels, first = sample(700, 3)  # of whom patients say much, and two seeds little
    second = np.random.default_rng(7).permutation(first)
    both = roc_band(labels, np.stack([first, second]))
    assert np.allclose(both.y, (roc_band(labels, first).y + roc_band(labels, second).y) / 2)
    middle = slice(10, 40)
    one = roc_band(labels, first)
    assert (both.high - both.low)[middle].mean() > (one.high - one.low)[middle].mean()


def test_images_of_one_patient_are_no_independent_cases():
    labels, scores = sample(61, 3)
    patients = np.repeat(np.arange(61), 5)
    alone = roc_band(labels, scores)
    copied = roc_band(np.repeat(labels, 5), np.repeat(scores, 5), patients)
    assert np.allclose(alone.y, copied.y)
    assert (copied.high - copied.low).mean() == pytest.approx((alone.high - alone.low).mean(), rel=0.1)


def test_a_perfect_model_has_a_band_of_some_width_and_one_patient_none():
    labels = np.repeat([0, 1], 7)
    curve = roc_band(labels, labels.astype(float))
    assert (curve.y == 1).all() and (curve.low < 1).all()
    assert np.isnan(roc_band(labels, labels.astype(float), np.zeros(14)).low).all()


def test_bins_are_those_of_the_reliability_curve_and_empty_ones_left_out():
    labels, scores = sample(61, 3)
    scores = 1 / (1 + np.exp(-scores))
    band, curve = reliability_band(labels, scores), reliability_curve(labels, scores, bins=10)
    some = curve.count > 0
    assert np.allclose(band.y, curve.positive_rate[some])
    assert np.allclose(band.x, curve.mean_score[some])
    assert (band.count == curve.count[some]).all()
    assert (np.nan_to_num(band.low, nan=0) <= band.y).all()
