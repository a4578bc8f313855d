"""A trained classifier on a split: predictions/<split>.csv, and its metrics beside it as .json."""

import hashlib
import json
import shlex
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.cases import check_unit, labelled_rows
from classify.metrics import binary_metrics, bootstrap_intervals, expected_calibration_error
from classify.models.build import build_model
from classify.scores import UNIT_IDS, in_units, predict_logits, side_by_side, with_scores
from classify.settings import ClassifyConfig, EvaluateSettings, Unit
from classify.start import check_preprocessing, config_of, consented, file_digest, with_paths_given
from data.audit import audit_lines, audited, keep, served_pretraining, uncompared
from data.errors import UserError
from data.loader import Data, Loader, open_data
from data.locks import locked
from data.manifest import digest
from data.privacy import credentialed_sources, with_settings
from data.store import ImageStore
from data.writing import (
    as_cell,
    expect_no_links_out,
    keep_private,
    of_cell,
    read_json,
    restoring_umask,
    write_json,
    write_text,
)
from mae.engine.checkpoint import Checkpoint, expect_fit, load_checkpoint, load_weights
from mae.engine.loop import evaluating
from mae.engine.run import commit, configure_torch, device_of

NUMBERS = {"label": float, "logit": float, "score": float, "predicted": int}  # columns of predictions beside the ids
NEEDED = ("seen", "images", "threshold", "pretrained_from", "train_images")  # what evaluations say of the weights
FREE = ("data", "evaluate", "report", "device", "precision", "threads")  # what may be set anew


@dataclass(frozen=True)
class Evaluation:
    """A run's predictions for the labelled units of a split (columns patient_id, label, score, …), in order of ids."""

    path: Path  # of the predictions
    config: ClassifyConfig
    threshold: float
    predictions: pd.DataFrame
    summary: dict[str, Any]  # what the .json beside them holds

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.path.parents[1]


@restoring_umask()
def evaluate(run: str | Path, overrides: dict[str, Any] | None = None, data: Data | None = None) -> Evaluation:
    """Predict a split with the run's best.pt and write `predictions/<split>.csv` and `.json`.

    The threshold is the one chosen on validation. What is already there for the same weights and
    settings is read back, unless somebody has changed it since. Raises UserError if the run has no classifier, the
    split no labelled image, or a score is not finite.
    """
    # the weights, and how they are to be evaluated
    best = best_of(run)
    checkpoint = load_checkpoint(best, kind="classifier")
    expect_no_links_out(best.parent)
    for name in NEEDED:
        checkpoint.fact(name)
    config = _config_for(checkpoint, overrides or {})
    opened_by_caller = data is not None
    if not opened_by_caller:
        command = shlex.join(["mae-evaluate", str(run)])
        config = with_paths_given(config, checkpoint, overrides or {}, command, run=False)
    configure_torch(config)
    keep_private(_credentialed(checkpoint, config), config.data.share)

    # the labelled images of the split
    data = data or open_data(config.data)
    split = config.evaluate.split
    table = labelled_rows(data.split(split), split, config.data.target)
    check_unit(table, split, config, data.manifest)
    threshold = _threshold_of(checkpoint, config.evaluate.unit)

    # predictions of another data set stand beside those of the run's own
    images = digest(data.manifest.table, "image_id")
    of_other_data = ""
    if images != checkpoint.fact("images"):
        of_other_data = f"-{images[:8]}"
    path = best.parent / "predictions" / f"{split}{of_other_data}"

    # two commands may evaluate a run, one after the other
    path.parent.mkdir(exist_ok=True)
    with locked(path.parent, f"waiting for another command that evaluates {best.parent}", wait=True):
        audit = _audit(best.parent / f"audit{of_other_data}.json", checkpoint, config, data, table)
        if not opened_by_caller:  # a grid would print it again for every run
            print(*audit, sep="\n")
        return _kept_or_made(path, checkpoint, config, data, table, threshold)


def _kept_or_made(
    path: Path, checkpoint: Checkpoint, config: ClassifyConfig, data: Data, table: pd.DataFrame, threshold: float
) -> Evaluation:
    """Predictions of the table: those at `path` where they were made of the very same, else new ones, written there."""
    origin = {
        "checkpoint": file_digest(checkpoint.place),
        "data": data.manifest.fingerprint(),
        "cases": digest(table, "image_id", "patient_id", "study_id", "label"),
        "store": data.store.fingerprint,
        "evaluate": config.evaluate.model_dump(mode="json"),
        "precision": config.precision,
    }
    kept = _kept(path, config, origin)
    if kept is not None:
        return kept

    scored = score_images(checkpoint, config, data, table)
    seen = _seen(data, scored, checkpoint)
    facts = {
        "origin": origin,
        "patients_known": data.manifest.patients_known,
        "pretrained_on": int(seen.sum()),
        "seen_elsewhere": checkpoint.meta.get("seen_elsewhere", False),
        "credentialed": _credentialed(checkpoint, config),
    }
    units = in_units(scored, config.evaluate.unit, data.manifest.patients_known)
    _write(path, checkpoint, config, units, threshold, facts)
    made = _kept(path, config, origin)
    assert made is not None
    return made


def _credentialed(checkpoint: Checkpoint, config: ClassifyConfig) -> list[str]:
    """The credentialed data sets in predictions: those predicted, and those that the weights have seen."""
    return sorted({*credentialed_sources(config.data), *checkpoint.credentialed})


def _audit(path: Path, checkpoint: Checkpoint, config: ClassifyConfig, data: Data, table: pd.DataFrame) -> list[str]:
    """Keep the leak audit of the data, with what of `table` served pretraining; returns it as lines."""
    # images are compared in their store; without one, patients alone are audited
    if isinstance(data.store, ImageStore):
        report = audited(data.manifest, data.store)
    else:
        report = uncompared(data.manifest, data.store.rows)

    # which rows of the store served the pretraining that these weights come from
    everything = data.everything()
    seen = everything["row"].to_numpy()[_seen(data, everything, checkpoint)]
    report = report | {"pretraining": served_pretraining(report, tested=table["row"].to_numpy(), seen=seen)}
    keep(report, path)
    return audit_lines(report, data.store.index, named=data.manifest.may_show(config.report.images))


def _seen(data: Data, table: pd.DataFrame, checkpoint: Checkpoint) -> np.ndarray:
    """(n) bool: which of the table's images served the pretraining, by their id or by their content."""
    known = np.isin(data.known_by(table), checkpoint.fact("seen"))  # n k
    return np.asarray(known.any(axis=1))


def _threshold_of(checkpoint: Checkpoint, unit: Unit) -> float:
    """The decision threshold that was chosen on validation for images, or for studies."""
    thresholds = checkpoint.fact("threshold")
    if unit not in thresholds:
        raise UserError(
            f"{checkpoint.place}: found no threshold for studies, as images of one validation study had different "
            "labels, expected one; give evaluate.unit=image"
        )
    return thresholds[unit]


def best_of(run: str | Path) -> Path:
    """The best.pt of a run folder; UserError if there is none."""
    best = Path(run)
    if best.name != "best.pt":
        best = best / "best.pt"
    if not best.is_file():
        found = "no best.pt" if best.parent.is_dir() else "no such folder"
        raise UserError(f"{run}: found {found}, expected the folder of a mae-finetune run that has ended an epoch")
    return best


def _config_for(checkpoint: Checkpoint, overrides: dict[str, Any]) -> ClassifyConfig:
    """The checkpoint's config with overrides of how and on what it is evaluated; the rest is in the weights."""
    for key in overrides:
        if key.split(".")[0] not in FREE:
            raise UserError(
                f"command line: found {key}, expected settings of {', '.join(FREE)}: the rest is trained in"
            )
    config = with_settings(config_of(checkpoint), overrides, made_on=consented(checkpoint))
    check_preprocessing(checkpoint, config.data)
    return config


def score_images(checkpoint: Checkpoint, config: ClassifyConfig, data: Data, table: pd.DataFrame) -> pd.DataFrame:
    """The table's images that can be read, in order, with their logit and their score in 0..1."""
    device = device_of(config.device)
    expect_fit(lambda: build_model(config), checkpoint)
    model = build_model(config)
    load_weights(model, checkpoint)
    model.to(device)

    loader = Loader(data, table, config.evaluate.batch_size)
    predicted = evaluating(model, lambda _: predict_logits(model, loader, device, config.precision))
    return with_scores(table, predicted, config.data.target, checkpoint.place)


# ---------------------------------------------------------------- files


def _kept(path: Path, config: ClassifyConfig, origin: dict[str, Any]) -> Evaluation | None:
    """Predictions of the same origin that stand there already, if they are still what was written."""
    try:
        summary = read_json(path.with_suffix(".json"))
        table = path.with_suffix(".csv").read_bytes()
        if summary["origin"] != origin:
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None

    # a table that was sorted or edited would be laid beside those of other models row by row
    if summary.pop("digest", None) != _digest(summary, table):
        print(f"{path}.csv: changed since it was written, so it is predicted anew")
        return None

    # ids are text whatever they say, and numbers are read as they were written, to the last bit
    predictions = pd.read_csv(BytesIO(table), dtype=str, na_filter=False)
    predictions[UNIT_IDS] = predictions[UNIT_IDS].map(of_cell)
    predictions = side_by_side(predictions.astype(NUMBERS))
    return Evaluation(path.with_suffix(".csv"), config, summary["metrics"]["threshold"], predictions, summary)


def _digest(summary: dict[str, Any], table: bytes) -> str:
    """16 hexadecimal digits of what is written of an evaluation, in both of its files."""
    text = json.dumps(summary, sort_keys=True)
    return hashlib.sha256(text.encode() + table).hexdigest()[:16]


def _write(
    path: Path,
    checkpoint: Checkpoint,
    config: ClassifyConfig,
    units: pd.DataFrame,
    threshold: float,
    facts: dict[str, Any],
) -> None:
    predictions = units.assign(predicted=(units["score"].to_numpy() >= threshold).astype(int))
    summary = {
        **_measured(side_by_side(units), threshold, config.evaluate),
        "seed": config.seed,
        "commit": commit(),
        **facts,
        "meta": {key: value for key, value in checkpoint.meta.items() if key != "seen"},
        "config": checkpoint.settings,
    }

    predictions[UNIT_IDS] = predictions[UNIT_IDS].map(as_cell)
    table = predictions[["image_id", "patient_id", "study_id", *NUMBERS]].to_csv(index=False)

    # the summary vouches for the predictions: the old one goes first, the new one comes last
    path.with_suffix(".json").unlink(missing_ok=True)
    write_text(path.with_suffix(".csv"), table)
    write_json(path.with_suffix(".json"), summary | {"digest": _digest(summary, table.encode())})


def _measured(units: pd.DataFrame, threshold: float, settings: EvaluateSettings) -> dict[str, Any]:
    """What the summary says of the scores: how many there are, metrics, and their intervals."""
    labels = units["label"].to_numpy()
    scores = units["score"].to_numpy()
    logits = units["logit"].to_numpy()

    metrics = binary_metrics(labels, scores, threshold, logits)
    intervals = bootstrap_intervals(
        labels,
        scores,
        threshold=threshold,
        groups=units["patient_id"].to_numpy(),
        replicates=settings.replicates,
        level=settings.level,
        logits=logits,
    )

    return {
        "split": settings.split,
        "unit": settings.unit,
        "n": len(units),
        "patients": int(units["patient_id"].nunique()),
        "metrics": {**dict(metrics), "expected_calibration_error": expected_calibration_error(labels, scores)},
        "intervals": {name: list(interval.interval) for name, interval in intervals.items()},
    }
