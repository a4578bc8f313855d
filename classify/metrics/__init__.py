"""Pure functions from arrays to metrics, intervals, paired tests and calibration.

Everywhere: `labels` (n,) are 0 normal, 1 abnormal; `scores` (n,) grow with abnormality, and
score >= threshold is predicted abnormal. Scores may come with their `logits`, which then order the cases.
Where several seeds of one model are compared, scores may be (s, n) and thresholds (s,). Nothing is read,
written or seeded globally; bad input is a ValueError.

Intervals and differences of a report come from `metric_intervals` and `metric_differences`: over patients in closed
form, and over seeds. The bootstrap is available too.

Point estimates and resampled ones come from the same weighted formulas, so an interval always
belongs to its estimate.
"""

from classify.metrics.between import group_difference
from classify.metrics.binary import HEADLINE, BinaryMetrics, auc, binary_metrics, choose_threshold
from classify.metrics.bootstrap import (
    BootstrapDifference,
    bootstrap_difference,
    bootstrap_differences,
    bootstrap_interval,
    bootstrap_intervals,
)
from classify.metrics.calibration import ReliabilityCurve, expected_calibration_error, reliability_curve
from classify.metrics.curves import Curve, CurveOfBins, precision_recall_band, reliability_band, roc_band
from classify.metrics.decision_curve import DecisionCurve, decision_curve
from classify.metrics.differences import auc_difference, metric_differences
from classify.metrics.estimates import Difference, Interval
from classify.metrics.intervals import (
    CalibrationLine,
    auc_interval,
    calibration_slope_intercept,
    metric_intervals,
)
from classify.metrics.multiplicity import holm
from classify.metrics.operating_points import (
    RATES,
    OperatingPoint,
    PredictiveValues,
    operating_point,
    predictive_values,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    threshold_at_sensitivity,
    threshold_at_specificity,
    thresholds_by_rate,
)
from classify.metrics.paired import (
    DeLongTest,
    McNemarTest,
    delong_interval,
    delong_test,
    mcnemar_test,
    wilson_interval,
)

__all__ = [
    "HEADLINE",
    "RATES",
    "BinaryMetrics",
    "BootstrapDifference",
    "CalibrationLine",
    "Curve",
    "CurveOfBins",
    "DeLongTest",
    "DecisionCurve",
    "Difference",
    "Interval",
    "McNemarTest",
    "OperatingPoint",
    "PredictiveValues",
    "ReliabilityCurve",
    "auc",
    "auc_difference",
    "auc_interval",
    "binary_metrics",
    "bootstrap_difference",
    "bootstrap_differences",
    "bootstrap_interval",
    "bootstrap_intervals",
    "calibration_slope_intercept",
    "choose_threshold",
    "decision_curve",
    "delong_interval",
    "delong_test",
    "expected_calibration_error",
    "group_difference",
    "holm",
    "mcnemar_test",
    "metric_differences",
    "metric_intervals",
    "operating_point",
    "precision_recall_band",
    "predictive_values",
    "reliability_band",
    "reliability_curve",
    "roc_band",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "threshold_at_sensitivity",
    "threshold_at_specificity",
    "thresholds_by_rate",
    "wilson_interval",
]
