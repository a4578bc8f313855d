"""What the rows of a comparison have cost, beside what they reach: budgets by compute, as a second view."""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from classify.comparison import Comparison, Line
from mae.dry_run import duration

NOT_KNOWN = "–"


def cost_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """A row for each line of a label budget: its AUC, and time and arithmetic of a training, mean over its seeds.

    What a pretraining cost is counted whole for every row that begins from it; validation and evaluation are not.
    """
    for number in comparison.numbers(labelled):
        line = comparison.lines[number]
        training = _mean(line, "train_seconds"), _mean(line, "train_flops")
        pretraining = _mean(line, "pretrain_seconds"), _mean(line, "pretrain_flops")
        tuning = _sum(line, "tune_seconds"), _sum(line, "tune_flops")
        yield {
            "Model": line.name,
            "AUC": f"{line.intervals['auc'].estimate:.3f}".replace("0.", ".", 1),
            "Training": _shown(*training),
            "With its pretraining": _shown(_total(training[0], pretraining[0]), _total(training[1], pretraining[1])),
            "Tuning, in all": _shown(*tuning),
        }


def _costs(line: Line) -> list[dict[str, Any]]:
    return [evaluation.summary.get("cost") or {} for evaluation in line.evaluations]


def _mean(line: Line, name: str) -> float | None:
    found = [cost[name] for cost in _costs(line) if cost.get(name) is not None]
    return fmean(found) if found else None


def _sum(line: Line, name: str) -> float | None:
    found = [cost[name] for cost in _costs(line) if cost.get(name) is not None]
    return sum(found) if found else None


def _total(training: float | None, pretraining: float | None) -> float | None:
    if training is None:
        return None
    return training + (pretraining or 0.0)


def _shown(seconds: float | None, flops: float | None) -> str:
    """`2 h 5 min, 12.3 PFLOP`."""
    if seconds is None or flops is None:
        return NOT_KNOWN
    return f"{duration(seconds)}, {operations(flops)}"


def operations(flops: float) -> str:
    """Three digits and the unit that fits: `12.3 TFLOP`."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"
