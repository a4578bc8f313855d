"""How training went: the curves of both stages."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from classify.comparison import Comparison
from classify.report.budgets import Budget
from classify.report.figures import Epoch, Row, RunCurves, reconstruction_losses, svg, training_curves
from mae.engine.tracker import read_metrics

# what an epoch's row must have to be drawn, and to be the one that best.pt holds
OF_PRETRAINING = ("epoch/train_loss", "validate/loss")
OF_TRAINING = (*OF_PRETRAINING, "validate/auc")
HIGHEST = {"auc": "validate/auc", "probe": "probe/logistic_auc"}  # the metric that best.pt follows, by `select`


@dataclass(frozen=True)
class Pretraining:
    """A stage-one run."""

    name: str
    epochs: float
    kept: Epoch
    figure: str


@dataclass(frozen=True)
class Training:
    """A row of the table: its stage-two runs, one for each seed."""

    budget: Budget
    row: Row
    figure: str


def epochs_of(folder: Path, names: Sequence[str], warn: bool = True) -> list[Epoch]:
    """The rows of a run's metrics.jsonl that end an epoch and have numbers for all `names`.

    An epoch lacks them if its validation had no finite numbers, or nothing in it was learned.
    """
    wanted = {"epoch", *names}
    return [row for row in read_metrics(folder, warn) if wanted <= row.keys()]


def kept_epoch(epochs: Sequence[Epoch], select: str) -> Epoch:
    """The epoch best.pt holds: the first with the highest AUC, or with the lowest loss.

    select: `pretrain.select` or `finetune.select`.
    """
    if select in HIGHEST:
        return max(epochs, key=lambda row: row.get(HIGHEST[select], -math.inf))
    return min(epochs, key=lambda row: row["validate/loss"])


def pretrainings(comparison: Comparison) -> Iterator[Pretraining]:
    """Losses of each stage-one run."""
    for name, folder in comparison.pretrainings.items():
        epochs = epochs_of(folder, OF_PRETRAINING)
        if epochs:
            figure = svg(f"Reconstruction loss of {name}", reconstruction_losses, epochs)
            config = comparison.pretrain_configs.get(name, comparison.config)
            kept = kept_epoch(epochs, config.pretrain.select)
            yield Pretraining(name, epochs[-1]["epoch"], kept, figure)


def trainings(budgets: list[Budget]) -> Iterator[Training]:
    """Curves of each row, its seeds in one figure; all figures have the same AUC axis."""
    # all curves are read before the first is drawn
    curves = []
    aucs = []
    for budget in budgets:
        for row in budget.rows:
            runs = _runs_of(row)
            if runs:
                curves.append((budget, row, runs))
            for run in runs:
                aucs += [epoch["validate/auc"] for epoch in run.epochs]
    if not curves:
        return

    limits = (min(aucs) - 0.03, max(aucs) + 0.03)
    for budget, row, runs in curves:
        label = f"Training of {row.name}, {budget.heading}"
        yield Training(budget, row, svg(label, training_curves, runs, row.colour, limits))


def _runs_of(row: Row) -> list[RunCurves]:
    """The curves of a row's runs that have any."""
    found = []
    for evaluation in row.line.evaluations:
        epochs = epochs_of(evaluation.run, OF_TRAINING)
        if epochs:
            found.append(RunCurves(epochs, kept_epoch(epochs, evaluation.config.finetune.select)))
    return found
