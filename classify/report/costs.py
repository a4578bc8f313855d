"""What the rows of a comparison cost, beside the AUC they reach: a second view, by compute budget."""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from classify.comparison import Comparison, Line
from classify.report.numbers import show, show_number
from classify.report.stage_one import arm_of
from classify.row_differences import Arm, differences_between_arms
from mae.engine.console import duration

NOT_KNOWN = "–"
COSTS = (
    "Time and floating-point operations of a training (mean over its seeds), of the training with its pretraining, and "
    "of all settings that were tried. A pretraining counts in full for every row that begins from it. Validation and "
    "evaluation are not counted. A dash: not known."
)
TUNING = (
    "Every row tried the same number of settings, at its first seed of each label budget. The best on validation "
    "serves all its seeds; its trial is the first seed's training."
)
DIFFERENCES = "Settings that are not equal in all rows, with defaults filled in."


def cost_rows(comparison: Comparison, labelled: int | None) -> Iterator[dict[str, str]]:
    """A row for each line of a label budget: its AUC, and time and arithmetic of a training, mean over its seeds.

    A pretraining's cost counts in full for every row that begins from it. Validation and evaluation do not count.
    """
    for line in comparison.lines_of(labelled):
        training = _mean(line, "train_seconds"), _mean(line, "train_flops")
        pretraining = _mean(line, "pretrain_seconds"), _mean(line, "pretrain_flops")
        tuning = _sum(line, "tune_seconds"), _sum(line, "tune_flops")
        yield {
            "Model": line.name,
            "AUC": show(line.intervals["auc"]),
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
        shown = float(f"{flops / size:.3g}")
        if shown >= 1:  # rounding may have made it 1
            return f"{shown:g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


# ---------------------------------------------------------------- equal tuning, and what is not equal


def tuning_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """The settings that each row tried, and the one it took."""
    metrics = list(dict.fromkeys("AUC" if choice["metric"] == "auc" else "loss" for choice in comparison.tuning))
    for choice in comparison.tuning:
        metric = "" if len(metrics) == 1 else f"{'AUC' if choice['metric'] == 'auc' else 'loss'} "
        tried = []
        for setting, score in zip(choice["settings"], choice["scores"], strict=True):
            tried.append(f"{_setting(setting)}: {'diverged' if score is None else metric + show_number(score)}")
        yield {
            "Model": str(choice["row"]),
            "Labelled images": "all" if choice["labelled"] is None else f"{choice['labelled']:,}",
            f"Tried, with validation {' or '.join(metrics)}": "; ".join(tried),
            "Taken": _setting(choice["settings"][choice["chosen"]]),
        }


def _setting(setting: dict[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('finetune.')}={value}" for key, value in setting.items())


def difference_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Settings that differ between the rows that were trained here."""
    arms = []
    for line in comparison.lines:
        for evaluation in line.evaluations:
            if not evaluation.is_trained:
                continue
            begun_from = evaluation.summary["meta"]["pretrained_from"]
            arms.append(Arm(line.name, evaluation.config, _pretraining(comparison, begun_from)))
    return differences_between_arms(arms)


def _pretraining(comparison: Comparison, begun_from: str | None) -> str | None:
    """The pretraining's name without its seed; None if it is not one of this comparison's."""
    for folder in comparison.pretrainings:
        if begun_from is not None and f"/{folder}/" in begun_from.replace("\\", "/"):
            return arm_of(folder)
    return None
