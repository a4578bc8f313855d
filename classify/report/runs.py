"""The runs behind the tables: where each lies, and what it was made with."""

from collections.abc import Iterator

from classify.comparison import Comparison, FailedRow, Line
from classify.evaluate import Evaluation
from classify.report.numbers import show_threshold
from classify.report.training import OF_TRAINING, epochs_of, kept_epoch
from classify.settings import ClassifyConfig
from mae.engine.run import flat
from mae.weights.start import without_weights

COLUMNS = (
    *("Row", "Folder", "Seed", "Epochs", "Best epoch", "Threshold"),
    *("Training images", "Augmentation", "Settings of its own"),
)
SECTIONS = ("data", "model", "pretrain", "finetune")
# settings that have their own column, and settings that do not change what is learned
SHOWN = {"finetune.run", "finetune.sample", "finetune.augment.enabled", "data.store", "data.workers"}


def run_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """Stage two's runs, row by row of the tables and seed by seed; those that failed come last."""
    for line in comparison.lines:
        for evaluation in line.evaluations:
            yield _run_row(comparison.config, line, evaluation)
    rows: list[Line | FailedRow] = [*comparison.lines, *comparison.failed_rows]
    for row in rows:
        for why in row.failed:
            yield dict.fromkeys(COLUMNS, "–") | {"Row": row.name, "Settings of its own": f"failed: {why}"}


def _run_row(config: ClassifyConfig, line: Line, evaluation: Evaluation) -> dict[str, str]:
    if "file" in evaluation.summary:
        return _file_row(line, evaluation)
    settings = evaluation.config.finetune
    best = "–"
    epochs = epochs_of(evaluation.run, OF_TRAINING, warn=False)  # drawing the run's curves has already warned
    if epochs:
        best = str(kept_epoch(epochs, settings.select)["epoch"])

    row = {
        "Row": line.name,
        "Folder": evaluation.run.name,
        "Seed": str(evaluation.summary["seed"]),
        "Epochs": str(settings.epochs),
        "Best epoch": best,
        "Threshold": show_threshold(evaluation.threshold),
        "Training images": f"{evaluation.summary['meta']['train_images']:,}",
        "Augmentation": "on" if settings.augment.enabled else "off",
        "Settings of its own": ", ".join(own_settings(config, evaluation.config)) or "–",
    }
    assert tuple(row) == COLUMNS
    return row


def _file_row(line: Line, evaluation: Evaluation) -> dict[str, str]:
    """The row of predictions from a file: nothing is known but what the file says."""
    file = evaluation.summary["file"]
    return {
        "Row": line.name,
        "Folder": evaluation.run.name,
        "Seed": "–",
        "Epochs": "–",
        "Best epoch": "–",
        "Threshold": show_threshold(evaluation.threshold),
        "Training images": "–",
        "Augmentation": "–",
        "Settings of its own": f"{file['column']} of {file['name']}; threshold {file['threshold']}",
    }


def own_settings(config: ClassifyConfig, changed: ClassifyConfig) -> Iterator[str]:
    """`key=value` for what differs from the comparison's config and is not a column of the table already."""
    config = without_weights(config)  # what a run resolves is no choice of its own
    for section in SECTIONS:
        before = flat({section: getattr(config, section).model_dump()})
        after = flat({section: getattr(changed, section).model_dump()})
        for key, value in after.items():
            if value != before[key] and key not in SHOWN:
                yield f"{key}={value}"
