"""A trained classifier on a split: predictions/<split>.csv, and its metrics beside it as .json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.finetune import build_model, check_preprocessing, file_digest, in_units, known, predict_logits, readable
from classify.metrics import HEADLINE, Interval, binary_metrics, bootstrap_intervals, expected_calibration_error
from classify.tables import describe, table_row
from data.audit import audit_lines, audited, keep, may_name, served_pretraining, uncompared
from data.config import Root, UserError, change_config
from data.loader import Data, Loader, open_data
from data.manifest import digest, image_hashes
from data.store import ImageStore
from mae.engine.checkpoint import Checkpoint, load_checkpoint, load_weights
from mae.engine.loop import evaluating
from mae.engine.run import commit, device_of

FREE = ("data", "evaluate", "device", "precision", "threads")  # what may be set anew


@dataclass(frozen=True)
class Evaluation:
    """A run's predictions for the labelled units of a split (columns patient_id, label, score, …)."""

    path: Path  # of the predictions
    config: Root
    threshold: float
    predictions: pd.DataFrame
    summary: dict[str, Any]  # what the .json beside them holds

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.path.parents[1]


def evaluate(run: str | Path, overrides: dict[str, Any] | None = None, data: Data | None = None) -> Evaluation:
    """Predict a split with the run's best.pt and write `predictions/<split>.csv` and `.json`.

    The threshold is the one chosen on validation. What is already there for the same weights and
    settings is read back. Raises UserError if the run has no classifier, or the split no labelled image.
    """
    best = best_of(run)
    checkpoint = load_checkpoint(best, kind="classifier")
    config, alone = _config_for(checkpoint, overrides or {}), data is None
    data = data or open_data(config)
    table = known(data.split(config.evaluate.split), config.evaluate.split, config.data.target)
    images = digest(data.manifest.table, "image_id")
    of_other_data = "" if images == checkpoint.meta["images"] else f"-{images[:8]}"
    path = best.parent / "predictions" / f"{config.evaluate.split}{of_other_data}"
    origin = {
        "checkpoint": file_digest(checkpoint.place),
        "data": data.manifest.fingerprint(),
        "store": data.store.fingerprint,
        "evaluate": config.evaluate.model_dump(mode="json"),
        "precision": config.precision,
    }
    lines = _audit(best.parent / f"audit{of_other_data}.json", checkpoint, config, data, table)
    if alone:  # in a grid whoever opened the data has heard it
        print(*lines, sep="\n")
    if not _is_done(path, origin):
        table, scores = scored(checkpoint, config, data, table)
        facts = {
            "origin": origin,
            "patients_known": data.manifest.patients_known,
            "pretrained_on": int(np.isin(image_hashes(table["image_id"]), checkpoint.meta["seen"]).sum()),
        }
        _write(path, checkpoint, config, in_units(table, scores, config.evaluate.unit), facts)
    predictions = pd.read_csv(path.with_suffix(".csv"), dtype={"patient_id": str, "study_id": str, "image_id": str})
    summary = json.loads(path.with_suffix(".json").read_text())
    return Evaluation(path.with_suffix(".csv"), config, summary["metrics"]["threshold"], predictions, summary)


def _audit(path: Path, checkpoint: Checkpoint, config: Root, data: Data, table: pd.DataFrame) -> list[str]:
    """Keep the leak audit of the data, with what of `table` served pretraining; returns it as lines."""
    images = data.manifest.table["image_id"].to_numpy()
    seen = data.store.rows(images[np.isin(image_hashes(images), checkpoint.meta["seen"])])
    compared = isinstance(data.store, ImageStore)
    report = audited(data.manifest, data.store) if compared else uncompared(data.manifest, data.store.rows)
    report = report | {"pretraining": served_pretraining(report, table["row"].to_numpy(), seen[seen >= 0])}
    keep(report, path)
    return audit_lines(report, data.store, may_name(config, data.manifest))


def best_of(run: str | Path) -> Path:
    """The best.pt of a run folder; UserError if there is none."""
    best = Path(run) if Path(run).name == "best.pt" else Path(run) / "best.pt"
    if not best.is_file():
        found = "no best.pt" if best.parent.is_dir() else "no such folder"
        raise UserError(f"{run}: found {found}, expected the folder of a mae-finetune run that has ended an epoch")
    return best


def _config_for(checkpoint: Checkpoint, overrides: dict[str, Any]) -> Root:
    """The checkpoint's config with overrides of how and on what it is evaluated; the rest is in the weights."""
    for key in overrides:
        if key.split(".")[0] not in FREE:
            raise UserError(
                f"command line: found {key}, expected settings of {', '.join(FREE)}: the rest is trained in"
            )
    config = change_config(checkpoint.config, overrides)
    check_preprocessing(checkpoint, config)
    return config


def scored(checkpoint: Checkpoint, config: Root, data: Data, table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The table's images that can be read, in order, and their scores (n) in 0..1."""
    device = device_of(config)
    model = build_model(config)
    load_weights(model, checkpoint)
    loader = Loader(data, table, config.evaluate.batch_size)
    predicted = evaluating(model.to(device), lambda model: predict_logits(model, loader, device, config.precision))
    table, logits = readable(table, predicted, config.data.target)
    return table, logits.double().sigmoid().numpy()


def _is_done(path: Path, origin: dict[str, Any]) -> bool:
    if not (path.with_suffix(".json").exists() and path.with_suffix(".csv").exists()):
        return False
    try:
        return json.loads(path.with_suffix(".json").read_text())["origin"] == origin
    except (json.JSONDecodeError, KeyError):
        return False


def _write(path: Path, checkpoint: Checkpoint, config: Root, units: pd.DataFrame, facts: dict[str, Any]) -> None:
    threshold = checkpoint.meta["threshold"][config.evaluate.unit]
    labels, scores = units["label"].to_numpy(), units["score"].to_numpy()
    metrics = binary_metrics(labels, scores, threshold)
    intervals = bootstrap_intervals(
        labels,
        scores,
        threshold=threshold,
        groups=units["patient_id"].to_numpy(),
        replicates=config.evaluate.replicates,
        level=config.evaluate.level,
    )
    summary = {
        "split": config.evaluate.split,
        "unit": config.evaluate.unit,
        "n": len(units),
        "patients": int(units["patient_id"].nunique()),
        "metrics": {**dict(metrics), "expected_calibration_error": expected_calibration_error(labels, scores)},
        "intervals": {name: list(interval.interval) for name, interval in intervals.items()},
        "seed": config.seed,
        "commit": commit(),
        **facts,
        "meta": {key: value for key, value in checkpoint.meta.items() if key != "seen"},
        "config": checkpoint.settings,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    units.assign(predicted=(scores >= threshold).astype(int)).to_csv(path.with_suffix(".csv"), index=False)
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1))  # comes last, vouches for the CSV


def evaluation_row(evaluation: Evaluation) -> dict[str, str]:
    """The table row of one run."""
    summary = evaluation.summary
    intervals = {name: Interval(summary["metrics"][name], tuple(summary["intervals"][name])) for name in HEADLINE}
    return table_row(describe(evaluation.config, bool(summary["meta"]["pretrained_from"])), intervals)
