"""The most confident mistakes of each row at the largest label budget, where single cases may be shown."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from classify.comparison import Comparison, Line
from classify.report.calibrations import calibrated_scores
from classify.report.numbers import show_number
from classify.report.verdict import largest_budget
from classify.subgroups import USUAL
from data.labels import words
from data.privacy import may_show

EACH = 3  # of either kind
MISTAKES = (
    "Cases that at least half of a row's seeds call wrongly, those first whose probability (mean over seeds, calibrated where "
    "there is a calibration) is furthest from what they are. They are not a sample: most mistakes are less striking."
)
WITHHELD = (
    "Single cases are withheld{why}; report.images=true shows them, where it stands with the settings of these images' "
    "data. A report that shows cases of a credentialed source may not be shared."
)


class Mistake(NamedTuple):
    """A case on the wrong side of the threshold."""

    place: int  # among the predictions
    is_positive: bool
    score: float  # mean over seeds


def are_shown(comparison: Comparison) -> bool:
    """Whether single cases may be shown."""
    return may_show(bool(comparison.credentialed), comparison.config.report.images)


def withheld_cases(comparison: Comparison) -> str:
    """Why they are not."""
    why = ", because the source is credentialed" if comparison.config.report.images is None else ""
    return WITHHELD.format(why=why)


def mistakes_of(line: Line) -> list[Mistake]:
    """Called positive first, then called negative, each the most confident first."""
    wrong = (line.scores >= line.thresholds[:, None]) != (line.labels == 1)  # s n
    scores = calibrated_scores(line)
    mean = (line.scores if scores is None else scores).mean(0)  # n
    mostly = wrong.mean(0) >= 0.5

    found = []
    for is_positive in (False, True):
        members = np.flatnonzero(mostly & ((line.labels == 1) == is_positive))
        furthest = np.argsort(mean[members] if is_positive else -mean[members], kind="stable")[:EACH]
        found += [Mistake(int(place), is_positive, float(mean[place])) for place in members[furthest]]
    return found


def mistake_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """A row for each; nothing where cases may not be shown."""
    if not are_shown(comparison):
        return
    names = words(comparison.config.data.target)
    for line in comparison.lines_of(largest_budget(comparison)):
        predictions = line.evaluations[0].predictions
        known = [column for column in USUAL if column in predictions and predictions[column].notna().any()]
        for mistake in mistakes_of(line):
            case = predictions.iloc[mistake.place]
            row = {
                "Model": line.name,
                "Case": str(case["image_id"]),
                "Is": names[mistake.is_positive],
                "Called": names[not mistake.is_positive],
                f"Probability of {names[1]}": show_number(mistake.score),
            }
            yield row | {column.capitalize(): _shown(case[column]) for column in known}


def _shown(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
