"""Differences of two models' metrics on the same cases: their intervals and tests."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from classify.metrics.binary import HEADLINE
from classify.metrics.checks import check_level, check_seeds, group_codes
from classify.metrics.estimates import Difference, Interval
from classify.metrics.influence import Influence, Model, difference_of_parts, influence
from classify.metrics.intervals import ANY_SIZE, AS_ONE_CASE, NOTHING_CALLED, as_model, interval_of
from classify.metrics.patients import Spread, join, patient_spread, patients_of, seed_spread

ALIKE = "no difference to test: both do the same with every case"


def auc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Difference:
    """The difference of AUC, a - b, of scores (n,) or of the means of seeds (s, n), tested by Student's t.

    The variance over patients is that of DeLong's components of a - b, by Obuchowski's formula (1997). The variance of
    the seeds, S_a²/s_a + S_b²/s_b, is added: seeds of a and of b are drawn independently. The degrees of freedom are
    Satterthwaite's. With one seed, (n,) or (1, n), the difference is that of the two trained models: it says
    nothing of the methods that made them, and `of_methods` is False.
    """
    return metric_differences(labels, scores_a, scores_b, names=("auc",), groups=groups, level=level)["auc"]


def metric_differences(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    names: Sequence[str] = HEADLINE,
    thresholds: tuple[ArrayLike, ArrayLike] = (0.5, 0.5),
    groups: ArrayLike | None = None,
    level: float = 0.95,
    logits: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
) -> dict[str, Difference]:
    """{name: Difference} a - b of several metrics, as in `auc_difference`; names as in `metric_intervals`.

    If patients show no variance in a - b, as between two AUCs of 1, the intervals of both models are combined (square
    and add: Newcombe 1998), and `note` says so. Models that do the same with every case differ by 0 with p 1.
    """
    labels, scores_a, thresholds_a = check_seeds(labels, scores_a, thresholds[0], "scores_a")
    labels, scores_b, thresholds_b = check_seeds(labels, scores_b, thresholds[1], "scores_b")
    check_level(level)
    codes = group_codes(groups, len(labels))
    model_a = as_model(scores_a, thresholds_a, logits[0])
    model_b = as_model(scores_b, thresholds_b, logits[1])
    twins = _are_twins(model_a, model_b)

    differences = {}
    for name in names:
        of_a = influence(name, labels, model_a)
        of_b = influence(name, labels, model_b)
        differences[name] = _difference(name, of_a, of_b, codes, level, twins)
    return differences


def _are_twins(a: Model, b: Model) -> bool:
    """Whether a and b are the same trained models: no metric can differ."""
    same = np.array_equal(a.scores, b.scores) and np.array_equal(a.order_by, b.order_by)
    return same and np.array_equal(a.thresholds, b.thresholds)


def _difference(
    name: str, of_a: Influence, of_b: Influence, codes: np.ndarray, level: float, twins: bool
) -> Difference:
    estimate = float(of_a.estimates.mean() - of_b.estimates.mean())
    seeds = (len(of_a.estimates), len(of_b.estimates))
    if np.isnan(estimate) or codes.max() == 0:
        notes = (interval_of(name, found, codes, level).note for found in (of_a, of_b))
        note = next(note for note in notes if note)
        return Difference.unknown(estimate, level, note, seeds)

    parts = difference_of_parts(of_a.parts.mean(0), of_b.parts.mean(0))
    of_patients = patient_spread(parts, of_a.strata | of_b.strata, codes)
    of_seeds = [seed_spread(of_a.estimates), seed_spread(of_b.estimates)]
    alike = estimate == 0 and (twins or (not parts.any() and of_a.parts.any()))
    if alike:
        of_patients = Spread(0.0, np.inf, np.inf)
    if of_patients.variance > 0 or alike:
        spread = join([of_patients, *of_seeds])
        found = difference_by_t(name, estimate, spread, level, seeds)
        if of_a.strata.any() and of_b.strata.any():
            return found
        return replace(found, note=NOTHING_CALLED)

    return _from_both(name, estimate, of_a, of_b, codes, level, seeds)


def difference_by_t(name: str, estimate: float, spread: Spread, level: float, seeds: tuple[int, int]) -> Difference:
    """A difference with the interval and the test that its variance gives, by Student's t."""
    error = float(np.sqrt(spread.variance))
    if error == 0:
        return Difference(
            estimate, (estimate, estimate), level, note=ALIKE, p_value=1.0, standard_error=0.0, seeds=seeds
        )

    reach = float(t.ppf((1 + level) / 2, spread.cautious)) * error
    return Difference(
        estimate,
        within_range(name, estimate - reach, estimate + reach),
        level,
        p_value=float(2 * t.sf(abs(estimate) / error, spread.cautious)),
        standard_error=error,
        freedom=spread.cautious,
        seeds=seeds,
    )


def _from_both(
    name: str,
    estimate: float,
    of_a: Influence,
    of_b: Influence,
    codes: np.ndarray,
    level: float,
    seeds: tuple[int, int],
) -> Difference:
    """The interval of a - b from those of a and b, where patients show no variance in the difference."""
    a = interval_of(name, of_a, codes, level)
    b = interval_of(name, of_b, codes, level)
    fewest = int(patients_of(of_a.strata | of_b.strata, codes).min())
    spreads = spreads_that_reach(square_and_add(a, b), fewest, level)
    return combined(name, estimate, spreads, level, seeds, note=AS_ONE_CASE)


def spreads_that_reach(sides: tuple[float, float], fewest: int, level: float) -> list[Spread]:
    """Both sides of an interval as spreads; `fewest`, the patients of the smallest stratum, says how well known."""
    freedom = max(1.0, float(fewest - 1))
    quantile = float(t.ppf((1 + level) / 2, freedom))
    return [Spread((side / quantile) ** 2, freedom, freedom) for side in sides]


def combined(
    name: str, estimate: float, sides: Sequence[Spread], level: float, seeds: tuple[int, int], note: str
) -> Difference:
    """The difference whose interval reaches down and up by a spread of its own for each side.

    It is tested by the one towards 0; for a difference of 0, by the larger. Non-inferiority is about the lower end.
    """
    down, up = (float(t.ppf((1 + level) / 2, side.cautious)) * np.sqrt(side.variance) for side in sides)

    if estimate == 0:
        tested = max(sides, key=lambda side: side.variance)
    else:
        tested = sides[0] if estimate > 0 else sides[1]
    error = float(np.sqrt(tested.variance))
    return Difference(
        estimate,
        within_range(name, estimate - down, estimate + up),
        level,
        note=note,
        p_value=float(2 * t.sf(abs(estimate) / error, tested.cautious)),
        standard_error=error,
        freedom=tested.cautious,
        seeds=seeds,
        below=(float(np.sqrt(sides[0].variance)), sides[0].cautious),
    )


def square_and_add(a: Interval, b: Interval, correlation: float = 0.0) -> tuple[float, float]:
    """How far a - b reaches down and up: it is smallest where a is low and b is high (Newcombe 1998)."""

    def joined(of_a: float, of_b: float) -> float:
        square = of_a**2 + of_b**2 - 2 * correlation * of_a * of_b
        return float(np.sqrt(np.maximum(square, 0.0)))  # which rounding may take below 0

    down = joined(a.estimate - a.interval[0], b.interval[1] - b.estimate)
    up = joined(a.interval[1] - a.estimate, b.estimate - b.interval[0])
    return down, up


def within_range(name: str, low: float, high: float) -> tuple[float, float]:
    """Differences of metrics between 0 and 1 lie between -1 and 1."""
    if name in ANY_SIZE:
        return low, high
    return max(-1.0, low), min(1.0, high)
