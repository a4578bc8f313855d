"""report.html: a comparison in one self-contained file, without network, scripts or identifiers of patients."""

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from classify.comparison import Comparison, Line, name_of
from classify.evaluate import Evaluation
from classify.metrics import expected_calibration_error
from classify.report.figures import (
    Row,
    auc_limits,
    forest,
    reconstruction_losses,
    reliability,
    roc,
    svg,
    training_curves,
)
from classify.report.tables import METRICS, caption, cases, difference_rows, table_row, task, verdict
from classify.settings import ClassifyConfig
from data.config import print_config
from data.labels import words
from data.loader import Data, Loader, open_data
from data.settings import DataSettings, height_and_width
from mae.engine.checkpoint import load_checkpoint
from mae.engine.run import commit, flat
from mae.engine.tracker import read_metrics
from mae.pretrain import panel
from mae.reconstruct import CAPTION, model_of

PANEL_IMAGES = 4  # validation images reconstructed by each stage-one run
SMALL = 96  # up to this side, in pixels, a panel is kept without loss


def report_html(comparison: Comparison) -> str:
    """The comparison as one HTML page; the same comparison gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    budgets, target = budgets_of(comparison), comparison.config.data.target
    return environment.get_template("report.html").render(
        config=comparison.config,
        task=task(target),
        words=words(target),
        notices=list(notices(comparison)),
        facts=dict(facts(comparison, budgets)),
        budgets=budgets,
        metrics=list(METRICS),
        pretrainings=list(pretrainings(comparison)),
        trainings=list(trainings(budgets)),
        panels=panels(comparison),
        panel_caption=CAPTION,
        runs=[run_row(comparison, row, evaluation) for row, evaluation in _runs(budgets)],
        notes=[*comparison.data.manifest.notes, comparison.data.manifest.summary()],
        resolved=print_config(comparison.config),
    )


# ---------------------------------------------------------------- what was compared


def notices(comparison: Comparison) -> Iterator[str]:
    """What a reader must know before any number."""
    config, manifest = comparison.config, comparison.data.manifest
    if config.data.source == "phantom":
        yield "The radiographs are synthetic: the numbers show that the software works and say nothing about patients."
    if config.compare.split == "validate":
        yield (
            "These are validation images, on which epochs and thresholds were chosen too, so the numbers flatter; "
            "compare.split=test opens the test split."
        )
    if manifest.credentialed:
        shown = " It shows radiographs." if manifest.may_show(config.report.images) else ""
        yield f"Made from credentialed data: check the data use agreement before sharing any of it.{shown}"


def facts(comparison: Comparison, budgets: list["Budget"]) -> Iterator[tuple[str, str]]:
    """How the report was made, term by term."""
    config, line = comparison.config, comparison.lines[0]
    evaluation, data = line.evaluations[0], config.data
    whom = "patients" if evaluation.summary["patients_known"] else "images"
    commits = sorted(
        {str(e.summary["commit"]) for one in comparison.lines for e in one.evaluations if e.summary["commit"]}
    )
    yield "Run", config.run
    height, width = height_and_width(data.image_size)
    yield "Source", f"{data.source}, {height} × {width} pixels ({data.resize})"
    yield "Split", config.compare.split
    yield "Evaluated", cases(evaluation.summary)
    yield "Prevalence", f"{100 * line.labels.mean():.1f} % {words(data.target)[1]} ({int(line.labels.sum()):,})"
    yield "Labelled for training", "; ".join(f"{budget.images:,} images" for budget in budgets)
    yield "Training seeds", ", ".join(map(str, config.compare.seeds))
    yield (
        "Intervals",
        f"{100 * config.evaluate.level:g} %, bootstrap of {whom}, {config.evaluate.replicates:,} replicates",
    )
    yield "Commit", commit() or "not known (installed package)"
    if commits and commits != [commit()]:
        yield "Commit of the predictions", ", ".join(commits)
    yield (
        "Data fingerprint",
        f"manifest {comparison.data.manifest.fingerprint()}, store {comparison.data.store.fingerprint[:16]}",
    )


@dataclass(frozen=True)
class Budget:
    """A label budget: one table, and the figures that go with it."""

    comparison: Comparison
    labelled: int | None
    rows: tuple[Row, ...]

    @property
    def images(self) -> int:
        return self.rows[0].line.evaluations[0].summary["meta"]["train_images"]

    @property
    def heading(self) -> str:
        return f"{self.images:,} labelled training images"

    @property
    def words(self) -> tuple[str, str]:
        return words(self.comparison.config.data.target)

    @property
    def baseline(self) -> Row:
        line = self.comparison.lines[self.comparison.baseline(self.labelled)]
        return next(row for row in self.rows if row.line is line)

    @property
    def caption(self) -> str:
        return caption(self.comparison, self.rows[0].line)

    @property
    def differences(self) -> list[dict[str, str]]:
        return list(difference_rows(self.comparison, self.labelled))

    @property
    def verdict(self) -> str:
        return verdict(self.comparison, self.labelled)

    @cached_property
    def forest(self) -> str:
        limits = auc_limits(row for budget in budgets_of(self.comparison) for row in budget.rows)
        return svg(f"AUC with its interval, {self.heading}", forest, self.rows, self.baseline, limits)

    @cached_property
    def roc(self) -> str | None:
        if not self.rows[0].has_both_classes:
            return None
        return svg(f"ROC curves, {self.heading}", roc, self.rows)

    @cached_property
    def reliability(self) -> str:
        return svg(f"Calibration, {self.heading}", reliability, self.rows, self.words[1])

    def cells(self, row: Row) -> dict[str, str]:
        return table_row(row.line.described, row.line.intervals)

    def calibration_error(self, row: Row) -> float:
        """Mean over the seeds."""
        return float(np.mean([expected_calibration_error(row.line.labels, scores) for scores in row.line.scores]))

    def confusion(self, row: Row) -> list[dict[str, Any]]:
        return confusion(row.line, self.words)


def budgets_of(comparison: Comparison) -> list[Budget]:
    """The comparison's tables, in its own order; rows that would read alike are told apart by their pretraining."""
    found = []
    for labelled in dict.fromkeys(line.labelled for line in comparison.lines):
        lines = [comparison.lines[number] for number in comparison.numbers(labelled)]
        alike = Counter(name_of(line) for line in lines)
        names = [name_of(line) + (_origin(line) if alike[name_of(line)] > 1 else "") for line in lines]
        rows = (Row(name, place, line) for place, (name, line) in enumerate(zip(names, lines, strict=True)))
        found.append(Budget(comparison, labelled, tuple(rows)))
    return found


def _origin(line: Line) -> str:
    checkpoint = line.evaluations[0].summary["meta"]["pretrained_from"]
    return f" ({Path(checkpoint).parent.name})" if checkpoint else ""


def confusion(line: Line, names: tuple[str, str]) -> list[dict[str, Any]]:
    """For each class, by its name: how many of it were called the one and the other, summed over the seeds."""
    called = line.scores >= line.thresholds[:, None]  # s n
    rows = []
    for label, name in enumerate(names):
        positive, total = int(called[:, line.labels == label].sum()), int((line.labels == label).sum()) * len(called)
        counts = (total - positive, positive)
        rows.append(
            {"name": name, "counts": counts, "shares": [count / max(total, 1) for count in counts], "right": label}
        )
    return rows


# ---------------------------------------------------------------- how training went


def _epochs(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder) if "epoch" in row]


def kept_epoch(epochs: list[dict[str, Any]], select: str) -> dict[str, Any]:
    """The epoch best.pt holds: the first with the highest validation AUC, or with the lowest loss."""
    if select == "auc":
        return max(epochs, key=lambda row: row["validate/auc"])
    return min(epochs, key=lambda row: row["validate/loss"])


def pretrainings(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Losses of each stage-one run."""
    for name, folder in comparison.pretrainings.items():
        if epochs := _epochs(folder):
            figure = svg(f"Reconstruction loss of {name}", reconstruction_losses, epochs)
            yield {"name": name, "figure": figure, "kept": kept_epoch(epochs, "loss"), "epochs": epochs[-1]["epoch"]}


def trainings(budgets: list[Budget]) -> Iterator[dict[str, Any]]:
    """Curves of each row, its seeds in one figure; all AUC axes are alike."""
    found = []
    for budget in budgets:
        for row in budget.rows:
            runs = [(_epochs(e.run), e.config.finetune.select) for e in row.line.evaluations]
            found.append((budget, row, [(epochs, kept_epoch(epochs, select)) for epochs, select in runs if epochs]))
    aucs = [epoch["validate/auc"] for _, _, runs in found for epochs, _ in runs for epoch in epochs] or [0.0, 1.0]
    limits = (min(aucs) - 0.03, max(aucs) + 0.03)
    for budget, row, runs in found:
        if runs:
            label = f"Training of {row.name}, {budget.heading}"
            yield {"budget": budget, "row": row, "figure": svg(label, training_curves, runs, row.colour, limits)}


def _runs(budgets: list[Budget]) -> Iterator[tuple[Row, Evaluation]]:
    return ((row, evaluation) for budget in budgets for row in budget.rows for evaluation in row.line.evaluations)


def run_row(comparison: Comparison, row: Row, evaluation: Evaluation) -> dict[str, str]:
    """One stage-two run: where it lies and what it was made with."""
    settings, epochs = evaluation.config.finetune, _epochs(evaluation.run)
    return {
        "Row": row.name,
        "Folder": evaluation.run.name,
        "Seed": str(evaluation.summary["seed"]),
        "Epochs": str(settings.epochs),
        "Best epoch": str(kept_epoch(epochs, settings.select)["epoch"]) if epochs else "–",
        "Threshold": f"{evaluation.threshold:.3f}",
        "Training images": f"{evaluation.summary['meta']['train_images']:,}",
        "Augmentation": "on" if settings.augment.enabled else "off",
        "Settings of its own": ", ".join(own_settings(comparison.config, evaluation.config)) or "–",
    }


def own_settings(config: ClassifyConfig, changed: ClassifyConfig) -> Iterator[str]:
    """`key=value` for what differs from the comparison's config and is not a column of the table already."""
    said = {"finetune.run", "finetune.sample", "finetune.augment.enabled", "data.store", "data.workers"}
    for section in ("data", "model", "pretrain", "finetune"):
        before, after = (flat({section: getattr(one, section).model_dump()}) for one in (config, changed))
        yield from (f"{key}={value}" for key, value in after.items() if value != before[key] and key not in said)


# ---------------------------------------------------------------- reconstructions


def panels(comparison: Comparison) -> list[dict[str, Any]] | None:
    """Each stage-one run's reconstructions of validation images; None where radiographs may not be shown."""
    if not comparison.data.manifest.may_show(comparison.config.report.images):
        return None
    return [_panel(comparison, name, folder) for name, folder in comparison.pretrainings.items()]


def _panel(comparison: Comparison, name: str, folder: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder / "best.pt", kind="mae")
    config = checkpoint.config
    data = _data_of(comparison, config.data)
    table = data.split("validate")
    spread = np.linspace(0, len(table) - 1, min(PANEL_IMAGES, len(table))).round().astype(int)
    batch = next(Loader(data, table.iloc[spread], len(spread)).epoch())
    grey = (panel(model_of(checkpoint), batch, config.pretrain.mask_ratio)[0] * 255).round().byte().numpy()  # h w
    height, width = height_and_width(config.data.image_size)
    small = max(height, width) <= SMALL
    return {"name": name, "source": _data_uri(grey, small), "width": 4 * width * max(1, round(150 / width))} | {
        "masking": f"{100 * config.pretrain.mask_ratio:g}",
        "size": grey.shape[::-1],
        "pixelated": small,
    }


def _data_of(comparison: Comparison, settings: DataSettings) -> Data:
    """The data a pretraining saw: the comparison's own, unless a pretraining changes `data`."""
    here = comparison.config.data
    settings = settings.model_copy(update={"store": here.store, "workers": here.workers})
    return comparison.data if settings == here else open_data(settings)


def _data_uri(grey: np.ndarray, small: bool) -> str:
    file, kind = BytesIO(), "png" if small else "jpeg"
    Image.fromarray(grey).save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
