"""Calibration equals scikit-learn's, and what one finds by hand."""

import numpy as np
import pytest
from scored_cases import sample
from sklearn.calibration import calibration_curve

from classify.metrics import expected_calibration_error, reliability_curve


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
