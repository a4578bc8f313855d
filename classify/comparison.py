"""What a grid found, as data: lines with their intervals, and the contrasts between them that were declared.

Nothing here needs the images, the store or a checkpoint: predictions and `Facts` are enough. So `mae-report` can make a
comparison's files again from what can be committed (classify/report/read.py).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from classify.evaluate import Evaluation
from classify.metrics import Difference, Interval, holm, metric_differences, metric_intervals
from classify.provenance import Facts
from classify.settings import ClassifyConfig
from data.privacy import credentialed_sources

DESCRIBED = ("auc", "accuracy")  # metrics whose differences are shown; only the first is tested


@dataclass(frozen=True)
class Line:
    """A row of the table: the evaluations of its seeds, taken together."""

    described: dict[str, str]  # the table's first columns
    labelled: int | None  # its label budget
    evaluations: tuple[Evaluation, ...]
    failed: tuple[str, ...] = ()  # what happened to the seeds that are missing there, a line each

    @property
    def name(self) -> str:
        """The name that contrasts and texts use for it."""
        return self.described["Model"]

    @property
    def is_ensemble(self) -> bool:
        """Whether it is the mean of another row's seeds, which has learnt from the draws of all of them."""
        return "ensemble" in self.evaluations[0].summary

    @property
    def train_images(self) -> list[int]:
        """How many labelled images each of its trainings had, as draws of whole patients differ; [] for a file."""
        counts = [evaluation.summary["meta"]["train_images"] for evaluation in self.evaluations]
        return [count for count in counts if count is not None]

    @property
    def mean_train_images(self) -> float | None:
        """Their mean; None for a file."""
        counts = self.train_images
        return sum(counts) / len(counts) if counts else None

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
        """The table's metrics, mean over seeds, with their intervals."""
        return metric_intervals(
            self.labels,
            self.scores,
            thresholds=self.thresholds,
            groups=self.patients,
            level=self.evaluations[0].config.evaluate.level,
            logits=self.logits,
        )


def train_images_of(lines: Iterable[Line]) -> list[int]:
    """How many labelled images each training of these lines had; an ensemble is no training."""
    return [count for line in lines if not line.is_ensemble for count in line.train_images]


@dataclass(frozen=True)
class FailedRow:
    """A row of which no seed was trained to the end."""

    described: dict[str, str]
    labelled: int | None
    failed: tuple[str, ...]  # a line each seed

    @property
    def name(self) -> str:
        return self.described["Model"]


# ---------------------------------------------------------------- contrasts


@dataclass(frozen=True)
class Declared:
    """Two rows that were declared for comparison before any result was known."""

    a: str
    b: str
    margin: float | None = None  # of non-inferiority: how much lower the AUC of a may be
    pretrained: str | None = None  # the pretrained one of the two, if the other is the same without pretraining


@dataclass(frozen=True)
class Contrast:
    """A declared contrast at a label budget: row a minus row b, on the same cases."""

    declared: Declared
    labelled: int | None
    seeds: tuple[int, int] = (0, 0)  # of a and of b
    differences: Mapping[str, Difference] = field(default_factory=dict)  # by metric; {} where not computed
    p_holm: float = np.nan  # of the AUC's difference, adjusted for all tests of the comparison
    p_margin: float = np.nan  # of the hypothesis that a is inferior by the margin
    p_margin_holm: float = np.nan
    why_not: str = ""  # why it was not computed

    @property
    def a(self) -> str:
        return self.declared.a

    @property
    def b(self) -> str:
        return self.declared.b

    @property
    def auc(self) -> Difference:
        return self.differences["auc"]

    @property
    def of_single_models(self) -> bool:
        """Whether a side is one training: then trained models were compared, not methods."""
        return min(self.seeds) < 2


@dataclass(frozen=True)
class Reconstructions:
    """What a pretraining makes of validation images: a picture in the comparison's folder, where it may be shown."""

    file: str | None  # below the comparison's folder
    digest: str | None  # of its bytes
    withheld: str | None  # why there is none
    masking: str  # percent
    image_size: tuple[int, int]  # of an image in it: height and width
    credentialed: tuple[str, ...]  # the credentialed data sets that it shows images of


@dataclass(frozen=True)
class Learned:
    """How well the kept weights of a pretraining did on validation images."""

    epoch: int  # that was kept
    loss: float  # of reconstruction
    probe: float | None = None  # AUC of a logistic regression on frozen features, where that epoch had one


@dataclass(frozen=True, eq=False)
class Comparison:
    """All lines of a grid, over its label budgets."""

    config: ClassifyConfig
    folder: Path
    facts: Facts
    lines: tuple[Line, ...]
    failed_rows: tuple[FailedRow, ...] = ()
    declared: tuple[Declared, ...] = ()
    pretrainings: Mapping[str, Path] = field(default_factory=dict)  # folder name → run folder
    pretrain_configs: Mapping[str, ClassifyConfig] = field(default_factory=dict)  # folder name → as given today
    learned: Mapping[str, Learned] = field(default_factory=dict)  # by folder name of the pretraining
    reconstructions: Mapping[str, Reconstructions] = field(default_factory=dict)  # likewise
    mistakes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # row → picture below the folder, its digest
    heatmaps: tuple[str, str] | None = None  # picture of what rows look at, below the folder, and its digest
    tuning: tuple[dict[str, Any], ...] = ()  # what each row tried and took, by label budget

    @property
    def evaluations(self) -> Iterator[Evaluation]:
        """Of all lines."""
        for line in self.lines:
            yield from line.evaluations

    @property
    def budgets(self) -> list[int | None]:
        """The label budgets of the lines, a table each, in order."""
        return list(dict.fromkeys(line.labelled for line in self.lines))

    @cached_property  # as it looks into each folder
    def credentialed(self) -> list[str]:
        """The credentialed data sets that anything in it is made from: its own, those of its rows and pretrainings."""
        found = {*credentialed_sources(self.config.data), *self.facts.credentialed}
        for config in self.pretrain_configs.values():
            found |= {*credentialed_sources(config.data)}
        for evaluation in self.evaluations:
            found |= {*credentialed_sources(evaluation.config.data), *evaluation.summary.get("credentialed", ())}
        return sorted(found)

    @property
    def seen_elsewhere(self) -> bool:
        """Whether weights of another program took part; what those have seen is not known here."""
        return any(evaluation.summary.get("seen_elsewhere", False) for evaluation in self.evaluations)

    def lines_of(self, labelled: int | None) -> list[Line]:
        """The lines of a label budget: the rows of its table."""
        return [line for line in self.lines if line.labelled == labelled]

    def contrasts_of(self, labelled: int | None) -> list[Contrast]:
        """The contrasts of a label budget."""
        return [contrast for contrast in self.contrasts if contrast.labelled == labelled]

    @cached_property
    def contrasts(self) -> tuple[Contrast, ...]:
        """Every declared contrast at every label budget that has both its rows, adjusted as one family of tests."""
        rows: list[Line | FailedRow] = [*self.lines, *self.failed_rows]
        found = []
        for labelled in dict.fromkeys(row.labelled for row in rows):
            of_budget = [row for row in rows if row.labelled == labelled]
            for declared in self.declared:
                a, b = (self._row(name, of_budget) for name in (declared.a, declared.b))
                if a is not None and b is not None and _is_known(a, b):
                    found.append(_contrast(declared, a, b))
        return _adjusted(found)

    def _row(self, name: str, of_budget: Sequence[Line | FailedRow]) -> Line | FailedRow | None:
        """The row of that name among those of a label budget; None if it was not to stand there.

        Two rows have no line because trainings failed: an ensemble that lacks a seed, and a file's row where no
        training of the budget finished.
        """
        by_name = {row.name: row for row in of_budget}
        if name in by_name:
            return by_name[name]
        labelled = of_budget[0].labelled
        members = by_name.get(of_ensemble(name))
        if members is not None and members.failed:
            return FailedRow({"Model": name}, labelled, members.failed)
        files = [row.name for row in self.config.compare.rows if row.predictions is not None]
        if name in files and all(isinstance(row, FailedRow) for row in of_budget):
            return FailedRow({"Model": name}, labelled, ())
        return None

    @property
    def tests(self) -> int:
        """How many tests the family has: a contrast with a margin is two."""
        return sum(1 if contrast.declared.margin is None else 2 for contrast in self.contrasts)


def ensemble_name(name: str, seeds: int) -> str:
    """What the row of an ensemble is called."""
    return f"{name}, ensemble of {seeds}"


def of_ensemble(name: str) -> str:
    """The name of the row whose ensemble has this name; another name as it is."""
    return re.sub(r", ensemble of \d+$", "", name)


def _is_known(a: Line | FailedRow, b: Line | FailedRow) -> bool:
    """Whether the contrast is this label budget's: one of two files, which have no training, is that of the others."""
    return isinstance(a, Line) or isinstance(b, Line) or bool(a.failed or b.failed)


def _contrast(declared: Declared, a: Line | FailedRow, b: Line | FailedRow) -> Contrast:
    """Not adjusted yet; not computed if a row lacks a seed, as how well a seed does may decide whether it fails."""
    failed = [f'"{row.name}"' for row in (a, b) if row.failed]
    if isinstance(a, FailedRow) or isinstance(b, FailedRow) or failed:
        return Contrast(declared, a.labelled, why_not=f"not every training of {' and '.join(failed)} finished")

    seeds = (len(a.evaluations), len(b.evaluations))
    differences = metric_differences(
        a.labels,
        a.scores,
        b.scores,
        names=DESCRIBED,
        thresholds=(a.thresholds, b.thresholds),
        groups=a.patients,
        level=a.evaluations[0].config.evaluate.level,
        logits=(a.logits, b.logits),
    )
    auc = differences["auc"]
    if np.isnan(auc.p_value):
        return Contrast(declared, a.labelled, seeds, differences, why_not=auc.note or "no interval")

    margin = declared.margin
    p_margin = np.nan if margin is None else auc.non_inferior(margin)
    return Contrast(declared, a.labelled, seeds, differences, p_margin=p_margin)


def _adjusted(contrasts: list[Contrast]) -> tuple[Contrast, ...]:
    """With Holm's p-values over all tests. A declared test that was not computed counts, with a p-value of 1."""
    p_values = []
    for contrast in contrasts:
        p_values.append(1.0 if contrast.why_not else contrast.auc.p_value)
        if contrast.declared.margin is not None:
            p_values.append(1.0 if contrast.why_not else contrast.p_margin)
    if not p_values:
        return ()

    adjusted = iter(holm(p_values))
    found = []
    for contrast in contrasts:
        p_holm = float(next(adjusted))
        p_margin_holm = np.nan
        if contrast.declared.margin is not None:
            p_margin_holm = float(next(adjusted))
        if not contrast.why_not:
            contrast = replace(contrast, p_holm=p_holm, p_margin_holm=p_margin_holm)
        found.append(contrast)
    return tuple(found)


# ---------------------------------------------------------------- words for a row


def describe(config: ClassifyConfig, pretrained: bool) -> dict[str, str]:
    """The table's first columns for a classifier: augmentation is stage two's, masking stage one's.

    pretrained: in a stage one of the config, and not elsewhere, as weights of `model.init` are.
    """
    settings = config.finetune
    names = {"vit": "ViT", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}
    model = names[settings.model]
    masking = "–"

    if settings.init is not None:
        model += ", pretrained"
    elif pretrained:
        model = "MAE"
        masking = f"{100 * config.pretrain.mask_ratio:g}"
    elif settings.model == "vit" and config.model.init is not None:
        model += ", pretrained"
    if settings.mode == "linear":
        model += ", linear probe"

    return {
        "Model": model,
        "Augmentation": "yes" if settings.augment.enabled else "no",
        "% Masking": masking,
    }
