"""Are scores calibrated? Raw scores, and scores calibrated on validation."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import expit

from classify.comparison import Comparison, Line
from classify.metrics import Interval, metric_intervals
from classify.report.numbers import show
from data.labels import words

METRICS = {"brier": "Brier score", "ece": "ECE", "calibration_slope": "Slope", "calibration_intercept": "Intercept"}


def are_probabilities(line: Line) -> bool:
    """Whether a row's scores claim to be probabilities; ratings from a file do not."""
    return all(e.summary.get("file", {}).get("kind") != "rating" for e in line.evaluations)


def is_calibrated(line: Line) -> bool:
    """Whether every seed has a calibration."""
    return all(evaluation.summary.get("calibration") for evaluation in line.evaluations)


def calibrated_logits(line: Line) -> np.ndarray:
    """(s n): logits by each seed's own calibration; a seed without one keeps its logits."""
    found = []
    for evaluation, logits in zip(line.evaluations, line.logits, strict=True):
        found.append(evaluation.calibration.logits(logits))
    return np.stack(found)


def calibrated_scores(line: Line) -> np.ndarray | None:
    """(s n): calibrated probabilities if there are any, else the scores; None if these are not probabilities."""
    if not are_probabilities(line):
        return None
    return np.asarray(expit(calibrated_logits(line))) if is_calibrated(line) else line.scores


def calibrated_intervals(line: Line) -> dict[str, Interval]:
    """Brier score and ECE of `calibrated_scores`; {} if a row has no probabilities."""
    scores = calibrated_scores(line)
    if scores is None:
        return {}
    return _intervals(line, scores, names=("brier", "ece"))


def calibration_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """For each row of a label budget, a table row for its raw scores and one for its calibrated scores."""
    for line in comparison.lines_of(labelled):
        if not are_probabilities(line):
            continue
        yield _row(line, "raw", _intervals(line, line.scores, line.logits))
        if is_calibrated(line):
            logits = calibrated_logits(line)
            yield _row(line, "calibrated", _intervals(line, np.asarray(expit(logits)), logits))


def _intervals(
    line: Line, scores: np.ndarray, logits: np.ndarray | None = None, names: Sequence[str] = tuple(METRICS)
) -> dict[str, Interval]:
    level = line.evaluations[0].config.evaluate.level
    return metric_intervals(line.labels, scores, names, groups=line.patients, level=level, logits=logits)


def _row(line: Line, scores: str, intervals: dict[str, Interval]) -> dict[str, str]:
    return {"Model": line.name, "Scores": scores} | {name: show(intervals[key]) for key, name in METRICS.items()}


def calibration_caption(comparison: Comparison) -> str:
    """What the numbers mean."""
    positive = words(comparison.config.data.target)[1]
    return (
        "Raw scores, and scores calibrated by a temperature and an intercept fitted on validation. "
        f"Well-calibrated probabilities of {positive} have slope 1 and intercept 0. A slope below 1 means that they "
        "are too extreme, an intercept above 0 that they are too low. ECE is the expected calibration error over 15 "
        "bins; it is larger with fewer cases. A dash: not defined, for example where scores separate the classes."
    )
