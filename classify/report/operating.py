"""Operating points at the largest label budget: rates, predictive values, and the net benefit of acting by them."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from classify.comparison import Comparison, Line
from classify.decisions import origin_of_threshold
from classify.metrics import (
    RATES,
    DecisionCurve,
    OperatingPoint,
    decision_curve,
    operating_point,
    predictive_values,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from classify.report.calibrations import calibrated_scores
from classify.report.numbers import show, show_number, show_share, show_threshold
from classify.report.verdict import largest_budget
from data.labels import words

OWN = "own threshold"
PROBABILITIES = np.linspace(0.01, 0.99, 50)  # of a decision curve
TOLD = (0.1, 0.2, 0.5)  # those that the table shows


@lru_cache(maxsize=4)
def points(comparison: Comparison) -> tuple[tuple[Line, str, OperatingPoint], ...]:
    """Each row's own threshold, then the rates that the settings ask for."""
    settings = comparison.config.report
    found = []
    for line in comparison.lines_of(largest_budget(comparison)):
        if len(np.unique(line.labels)) < 2:
            continue
        level = comparison.config.evaluate.level
        own = operating_point(line.labels, line.scores, line.thresholds, line.patients, level)
        found.append((line, OWN, own))
        for rate in settings.specificities:
            found.append((line, f"specificity {rate:.0%}", _at(line, "specificity", rate, level)))
        for rate in settings.sensitivities:
            found.append((line, f"sensitivity {rate:.0%}", _at(line, "sensitivity", rate, level)))
    return tuple(found)


def _at(line: Line, fixed: str, rate: float, level: float) -> OperatingPoint:
    """At the thresholds that were chosen on validation; without any, at thresholds chosen on these cases."""
    thresholds = [_of_validation(evaluation.summary, fixed, rate) for evaluation in line.evaluations]
    if None not in thresholds:
        return operating_point(line.labels, line.scores, thresholds, line.patients, level)  # type: ignore[arg-type]
    if fixed == "specificity":
        return sensitivity_at_specificity(line.labels, line.scores, rate, None, line.patients, level)
    return specificity_at_sensitivity(line.labels, line.scores, rate, None, line.patients, level)


def _of_validation(summary: dict, fixed: str, rate: float) -> float | None:  # type: ignore[type-arg]
    by_unit = summary["meta"].get("operating") or {}
    kept = by_unit.get(summary["unit"], {}).get(fixed)
    if not kept:
        return None
    return float(kept[round(100 * rate) - round(100 * RATES[0])])


def operating_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    for line, name, point in points(comparison):
        chosen = "validation" if point.chosen_on == "validation" else "these cases"
        first = line.evaluations[0]
        if name == OWN and "file" in first.summary:
            chosen = str(first.summary["file"]["threshold"])
        elif name == OWN and first.config.finetune.threshold == "half":
            chosen = origin_of_threshold("half")
        yield {
            "Model": line.name,
            "At": name,
            "Sensitivity": show(point.sensitivity),
            "Specificity": show(point.specificity),
            "Threshold": _thresholds(point),
            "Chosen on": chosen,
        }


def _thresholds(point: OperatingPoint) -> str:
    low, high = (show_threshold(end).removeprefix("0") for end in (min(point.thresholds), max(point.thresholds)))
    return low if low == high else f"{low} to {high}"


def operating_caption(comparison: Comparison) -> str:
    """What the table of operating points shows."""
    seeds = ", mean over seeds, each at its own threshold" if len(comparison.config.compare.seeds) > 1 else ""
    return (
        f"Rates measured on split {comparison.config.compare.split}{seeds}. A threshold chosen for a rate on "
        "validation reaches it here only approximately. Where validation left none, the threshold is chosen on these "
        "cases, which makes the other rate too optimistic."
    )


def predictive_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """PPV and NPV at the stated prevalences."""
    for line, name, point in points(comparison):
        row = {"Model": line.name, "At": name}
        for prevalence in comparison.config.report.prevalences:
            values = predictive_values(point.sensitivity, point.specificity, prevalence)
            row[f"PPV at {100 * prevalence:g} %"] = show(values.ppv)
            row[f"NPV at {100 * prevalence:g} %"] = show(values.npv)
        yield row


PREDICTIVE = (
    "Probability that a case called {positive} is {positive} (PPV), and that one called {negative} is {negative} "
    "(NPV), if the given percentage of patients is {positive}. By Bayes' rule from sensitivity and specificity."
)


def predictive_caption(comparison: Comparison) -> str:
    negative, positive = words(comparison.config.data.target)
    return PREDICTIVE.format(negative=negative, positive=positive)


# ---------------------------------------------------------------- confusion


def confusion_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """How many of each class were predicted as which, over all seeds."""
    names = words(comparison.config.data.target)
    for line in comparison.lines_of(largest_budget(comparison)):
        predicted = line.scores >= line.thresholds[:, None]  # s n
        row = {"Model": line.name}
        for label, name in enumerate(names):
            of_class = predicted[:, line.labels == label]
            positive = int(of_class.sum())
            for called, count in ((names[0], of_class.size - positive), (names[1], positive)):
                share = f" ({show_share(count / of_class.size)})" if of_class.size else ""
                row[f"{name}, called {called}"] = f"{count:,}{share}"
        yield row


def confusion_caption(comparison: Comparison) -> str:
    text = "Cases by true class and by the class that they are called at the row's own thresholds"
    seeds = len(comparison.config.compare.seeds)
    if seeds == 1:
        return f"{text}."
    counts = {len(line.evaluations) for line in comparison.lines_of(largest_budget(comparison))}
    whose = f"the {seeds} seeds" if counts == {seeds} else "each row's own trainings or files"
    return f"{text}, summed over {whose}."


# ---------------------------------------------------------------- decisions


def decision_curves(
    comparison: Comparison, probabilities: np.ndarray = PROBABILITIES
) -> list[tuple[Line, DecisionCurve]]:
    """Decision curves of the rows whose scores are probabilities, by `calibrated_scores`."""
    found = []
    for line in comparison.lines_of(largest_budget(comparison)):
        scores = calibrated_scores(line)
        if scores is not None:
            level = comparison.config.evaluate.level
            found.append((line, decision_curve(line.labels, scores, probabilities, line.patients, level)))
    return found


def decision_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """The advantage over the better of treating all and treating none."""
    for line, curve in decision_curves(comparison, np.array(TOLD)):
        row = {"Model": line.name}
        numbers = zip(curve.advantage, curve.advantage_low, curve.advantage_high, strict=True)
        for threshold, (gain, low, high) in zip(TOLD, numbers, strict=True):
            between = f"[{show_number(low, signed=True)}, {show_number(high, signed=True)}]"
            row[f"Threshold {threshold:.0%}"] = f"{show_number(gain, signed=True)} {between}"
        yield row


DECISIONS = (
    "Net benefit of acting by the probability (calibrated, where a row has a calibration), minus that of acting on all "
    "or on none, whichever is higher. Net benefit: cases rightly acted on, minus false alarms weighted by the cost "
    "that the threshold implies, per case tested. At 10 % a false alarm costs a ninth of a missed case. The prevalence "
    "is that of these cases."
)
