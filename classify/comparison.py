"""What a grid found, as data: lines with their intervals, and their differences from a baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from classify.evaluate import Evaluation
from classify.metrics import BootstrapDifference, Interval, bootstrap_differences, bootstrap_intervals
from classify.settings import ClassifyConfig
from data.loader import Data
from data.privacy import credentialed_sources


@dataclass(frozen=True)
class Line:
    """A row of the table: the evaluations of its seeds, taken together."""

    described: dict[str, str]  # the table's first columns
    labelled: int | None  # its label budget
    evaluations: tuple[Evaluation, ...]

    @property
    def labels(self) -> np.ndarray:
        return self.evaluations[0].predictions["label"].to_numpy()  # n

    @property
    def patients(self) -> np.ndarray:
        return self.evaluations[0].predictions["patient_id"].to_numpy()  # n

    @property
    def scores(self) -> np.ndarray:
        return np.stack([e.predictions["score"].to_numpy() for e in self.evaluations])  # s n

    @property
    def logits(self) -> np.ndarray:
        return np.stack([e.predictions["logit"].to_numpy() for e in self.evaluations])  # s n

    @property
    def thresholds(self) -> np.ndarray:
        return np.array([e.threshold for e in self.evaluations])  # s

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The table's metrics, mean over seeds, with intervals over patients and seeds."""
        settings = self.evaluations[0].config.evaluate
        return bootstrap_intervals(
            self.labels,
            self.scores,
            threshold=self.thresholds,
            groups=self.patients,
            replicates=settings.replicates,
            level=settings.level,
            logits=self.logits,
        )


@dataclass(frozen=True)
class Comparison:
    """All lines of a grid, over its label budgets."""

    config: ClassifyConfig
    data: Data
    lines: tuple[Line, ...]
    pretrainings: dict[str, Path]  # folder name → run folder
    pretrain_configs: Mapping[str, ClassifyConfig] = field(default_factory=dict)  # folder name → as it is wished today

    @property
    def budgets(self) -> list[int | None]:
        """The label budgets of the lines, a table each, in order."""
        return list(dict.fromkeys(line.labelled for line in self.lines))

    @property
    def credentialed(self) -> list[str]:
        """The credentialed data sets that anything in it is made from: its own, those of its rows and pretrainings."""
        found = {*credentialed_sources(self.config.data)}
        for config in self.pretrain_configs.values():
            found |= {*credentialed_sources(config.data)}
        for line in self.lines:
            for evaluation in line.evaluations:
                found |= {*credentialed_sources(evaluation.config.data), *evaluation.summary.get("credentialed", ())}
        return sorted(found)

    @property
    def seen_elsewhere(self) -> bool:
        """Whether weights of another program took part, which have seen what nobody here knows."""
        return any(e.summary.get("seen_elsewhere", False) for line in self.lines for e in line.evaluations)

    def numbers(self, labelled: int | None) -> list[int]:
        """Numbers of the lines of a label budget: the rows of its table."""
        return [i for i, line in enumerate(self.lines) if line.labelled == labelled]

    def baseline(self, labelled: int | None) -> int:
        """Number of the line that the others of its label budget are tested against."""
        numbers = self.numbers(labelled)
        for number in numbers:
            if self.lines[number].described["Model"] == self.config.compare.baseline:
                return number
        return numbers[-1]

    @cached_property
    def differences(self) -> dict[int, dict[str, BootstrapDifference]]:
        """Line number → line minus baseline, for all lines but the baselines."""
        found = {}
        for number, line in enumerate(self.lines):
            baseline = self.baseline(line.labelled)
            if number != baseline:
                found[number] = _difference(line, self.lines[baseline])
        return found


def _difference(line: Line, baseline: Line) -> dict[str, BootstrapDifference]:
    """AUC and accuracy of a line minus the baseline's, on the same resamples of patients."""
    settings = line.evaluations[0].config.evaluate
    return bootstrap_differences(
        line.labels,
        line.scores,
        baseline.scores,
        metrics=("auc", "accuracy"),
        thresholds=(line.thresholds, baseline.thresholds),
        groups=line.patients,
        replicates=settings.replicates,
        level=settings.level,
        logits=(line.logits, baseline.logits),
    )


def describe(config: ClassifyConfig, pretrained: bool) -> dict[str, str]:
    """The table's first columns for a classifier: augmentation is stage two's, masking stage one's."""
    settings = config.finetune
    names = {"vit": "ViT", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}
    model = names[settings.model]
    masking = "–"

    if settings.init is not None:
        model += ", pretrained"
    elif pretrained:
        model = "MAE"
        masking = f"{100 * config.pretrain.mask_ratio:g}"
    if settings.mode == "linear":
        model += ", linear probe"

    return {
        "Model": model,
        "Augmentation": "yes" if settings.augment.enabled else "no",
        "% Masking": masking,
    }


def name_of(line: Line) -> str:
    """A line's name where the other columns are not shown."""
    described = line.described
    name = described["Model"]
    if described["% Masking"] != "–":
        name += f" {described['% Masking']} %"
    if described["Augmentation"] == "no":
        name += ", not augmented"
    return name
