"""A trained classifier on a split: predictions/<split>.csv, and its metrics beside it as .json."""

import csv
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from classify.cases import FEW, check_unit, few_cases, few_text, labelled_rows, undecided_studies
from classify.ledger import Opening, data_ledger, opened_text, openings, record
from classify.metrics import HEADLINE, Interval, binary_metrics, metric_intervals
from classify.metrics.recalibration import Calibration, log_loss
from classify.scores import (
    NUMBERS,
    UNIT_IDS,
    in_units,
    predict_logits,
    side_by_side,
    with_scores,
    with_subgroups,
)
from classify.settings import PLURALS, ClassifyConfig, EvaluateSettings
from classify.start import check_preprocessing, config_of, consented, file_digest, with_paths_given
from classify.trained import Decision, model_of
from data.audit import audit_lines, audited, keep, served_pretraining, served_training, uncompared
from data.config import change_config, keys_given, make_config, with_new_names
from data.errors import UserError
from data.labels import words
from data.loader import Data, Loader, open_data
from data.locks import locked
from data.manifest import digest
from data.plain_values import read_json_values
from data.privacy import credentialed_sources, is_credentialed, may_hand_on, with_settings
from data.sources import TAKEN, kinds_of_columns
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
from mae.engine.checkpoint import HASHES, Checkpoint, load_checkpoint
from mae.engine.checkpoint_file import best_of
from mae.engine.loop import evaluating
from mae.engine.run import commit, configure_torch, device_of

NEEDED = ("seen", "images", "threshold", "pretrained_from", "train_images")  # what evaluations say of the weights
FREE = ("data", "evaluate", "report", "device", "precision", "threads")  # what may be changed
OF_PROBABILITIES = ("brier", "ece", "calibration_slope", "calibration_intercept")  # do scores mean what they say?
MEASURED = ("metrics", "intervals", "calibrated")  # parts of a summary whose numbers may be undefined
PRECISION = "fp32"  # of all scores, whatever training computed in
FACTS = ("patients_known", "pretrained_on", "seen_elsewhere", "credentialed")  # of a prediction, beside its origin


@dataclass(frozen=True)
class Evaluation:
    """A run's predictions for the labelled units of a split, in order of ids.

    Columns: the ids, label, logit, score, calibrated, predicted, then what tells subgroups apart (view, sex, age, …).
    Decisions go by the raw score; `calibrated` is the probability by the calibration fitted on validation.
    """

    path: Path  # of the predictions
    config: ClassifyConfig
    threshold: float  # of the raw score
    predictions: pd.DataFrame
    summary: dict[str, Any]  # what the .json beside them holds
    digest: str = ""  # of both files

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.path.parents[1]

    @property
    def is_trained(self) -> bool:
        """Whether one network of ours made it: neither another program's file nor an ensemble."""
        return not {"file", "ensemble"} & self.summary.keys()

    @property
    def calibration(self) -> Calibration:
        """That of its scores, chosen on validation; if it has none, one that changes nothing."""
        return Calibration(**(self.summary.get("calibration") or {}))


@restoring_umask()
def evaluate(run: str | Path, overrides: dict[str, Any] | None = None, data: Data | None = None) -> Evaluation:
    """Predict a split with the run's best.pt and write `predictions/<split>.csv` and `.json`.

    Threshold and calibration are those chosen on validation. Predictions that are already there for the same weights
    and settings are read back, unless they were changed since. Every opening of test is recorded, once for the same
    weights. Raises UserError if the run has no classifier, the split no labelled image, or a score is not finite.
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
    decision = Decision.of(checkpoint, config.evaluate.unit)

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
            print(*audit_lines(audit, data.store.index, data.manifest.may_show(config.report.images)), sep="\n")
        evaluation = _kept_or_made(path, checkpoint, config, data, table, decision, audit["trained_on"])
    if not opened_by_caller:
        for line in _warnings(evaluation, decision):
            print(line)
    return evaluation


def _warnings(evaluation: Evaluation, decision: Decision) -> Iterator[str]:
    """What must be known beside the numbers, a line each."""
    summary = evaluation.summary
    if decision.calibration is None:
        yield (
            f"note: {evaluation.run}/best.pt: found no calibration, as an earlier version made it, so calibrated "
            "scores are the raw ones; fine-tune again for one"
        )

    # the cases
    if line := few_text(summary["few"], PLURALS[summary["unit"]]):
        yield line
    if summary["conflicting_studies"]:
        yield (
            f"{summary['conflicting_studies']:,} studies have images of two labels, each counted by its own; "
            "evaluate.unit=study refuses them"
        )

    if summary["split"] == "test":
        yield opened_text(openings_of(evaluation))


def openings_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The openings of the evaluation's test split: by all runs on this data, else by this run alone."""
    fingerprint = evaluation.summary["split_fingerprint"]
    beside_data = openings(data_ledger(evaluation.config.data), fingerprint)
    return beside_data or openings(evaluation.run, fingerprint)


def _kept_or_made(
    path: Path,
    checkpoint: Checkpoint,
    config: ClassifyConfig,
    data: Data,
    table: pd.DataFrame,
    decision: Decision,
    trained_on: dict[str, int] | None,
) -> Evaluation:
    """Predictions of the table: those at `path` if they are of the same origin, else new ones, written there."""
    origin = {
        "checkpoint": file_digest(checkpoint.place),
        "data": data.manifest.fingerprint(),
        "cases": digest(table, "image_id", "patient_id", "study_id", "label"),
        "store": data.store.fingerprint,
        "evaluate": config.evaluate.heeded(),
        "precision": PRECISION,
    }
    kept = _kept(path, config, origin)

    # logits, and what is known of them
    if kept is None:
        scored = score_images(checkpoint, config, data, table)
        units = in_units(scored, config.evaluate.unit, data.manifest.patients_known)
        facts = {
            "patients_known": data.manifest.patients_known,
            "pretrained_on": int(_seen(data, scored, checkpoint).sum()),
            "seen_elsewhere": checkpoint.meta.get("seen_elsewhere", False),
            "credentialed": _credentialed(checkpoint, config),
        }
    else:
        units = kept.predictions[[*UNIT_IDS, "label", "logit", "score"]]
        facts = {name: kept.summary.get(name) for name in FACTS}

    # an opening is recorded before anybody sees what it shows
    facts |= {
        "trained_on": trained_on,
        "split_fingerprint": digest(data.manifest.of_split(config.evaluate.split), "image_id"),
        "few": _few(units, checkpoint, config, data),
        "conflicting_studies": len(undecided_studies(table, data.manifest.patients_known)),
    }
    if config.evaluate.split == "test":
        _record(
            path.parents[1], config, str(origin["checkpoint"]), facts["split_fingerprint"], len(units), kept is not None
        )

    # kept predictions may lack what this version tells, or what the table says by now
    predictions = decision.applied(units)
    table = _without_private_columns(table, config)
    predictions = with_subgroups(predictions, table, config.evaluate.unit, data.manifest.patients_known)
    if kept is not None:
        told = {name: kept.summary.get(name) for name in facts}
        if told == facts and "calibrated" in kept.summary and _same(predictions, kept.predictions):
            return kept
    _write(path, checkpoint, config, predictions, decision, {"origin": origin, **facts})
    made = _kept(path, config, origin)
    assert made is not None
    return made


def _without_private_columns(table: pd.DataFrame, config: ClassifyConfig) -> pd.DataFrame:
    """The table without the columns that predictions may not have."""
    credentialed = is_credentialed(config.data)
    wished = config.report.subgroups or ()
    known = {*TAKEN, *kinds_of_columns(table).findings}
    others = [name for name in map(str, table) if name not in known]
    return table.drop(columns=[name for name in others if not may_hand_on(name, credentialed, wished)])


def _record(
    run: Path, config: ClassifyConfig, checkpoint: str, split_fingerprint: str, n: int, read_back: bool
) -> None:
    """Enter a look at test labels into the ledgers of the run and of the data."""
    opening = Opening(str(run.resolve()), checkpoint, split_fingerprint, n, read_back)
    record(opening, run, data_ledger(config.data))


def _same(predictions: pd.DataFrame, kept: pd.DataFrame) -> bool:
    """Whether these are the predictions that are kept, whatever the order of columns and of rows."""
    return set(predictions) == set(kept) and side_by_side(predictions[list(kept)]).equals(kept)


def _few(units: pd.DataFrame, checkpoint: Checkpoint, config: ClassifyConfig, data: Data) -> dict[str, dict[str, int]]:
    """Splits with few cases of a class: the one evaluated, and validation, which chose threshold and calibration."""
    split = config.evaluate.split
    found = {split: few_cases(units["label"], data.manifest.target)}
    chosen_by = checkpoint.meta.get("validate_cases") or {}
    if split != "validate":
        names = words(data.manifest.target)
        found["validate"] = {name: chosen_by[name] for name in names if chosen_by.get(name, FEW) < FEW}
    return {name: few for name, few in found.items() if few}


def _credentialed(checkpoint: Checkpoint, config: ClassifyConfig) -> list[str]:
    """The credentialed data sets in predictions: those predicted, and those that the weights have seen."""
    return sorted({*credentialed_sources(config.data), *checkpoint.credentialed})


def _audit(
    path: Path, checkpoint: Checkpoint, config: ClassifyConfig, data: Data, table: pd.DataFrame
) -> dict[str, Any]:
    """The leak audit of the data, with what of `table` made these weights or served pretraining; kept at `path`."""
    # images are compared in their store; without one, patients alone are audited
    if isinstance(data.store, ImageStore):
        report = audited(data.manifest, data.store)
    else:
        report = uncompared(data.manifest, data.store.rows)

    # which rows of the store served the pretraining that these weights come from
    everything = data.everything()
    seen = everything["row"].to_numpy()[_seen(data, everything, checkpoint)]
    report = report | {
        "pretraining": served_pretraining(report, tested=table["row"].to_numpy(), seen=seen),
        "trained_on": _trained_on(data, table, checkpoint, config.evaluate.split),
        "unread": checkpoint.meta.get("seen_unread", False),
    }
    keep(report, path)
    return report


def _trained_on(data: Data, table: pd.DataFrame, checkpoint: Checkpoint, split: str) -> dict[str, int] | None:
    """How many of the table's images made these weights, in whatever data set they were; None if that is not known.

    If a run's own validation images are evaluated, it is no news that they chose the weights, so they do not count.
    """
    served = {"train": checkpoint.meta.get("trained_on"), "validate": checkpoint.meta.get("validated_on")}
    if split == "validate" and digest(data.manifest.table, "image_id") == checkpoint.fact("images"):
        served["validate"] = None
    if served["train"] is None:
        return None
    by_pixels = checkpoint.config.data.store is not False  # else the checkpoint keeps ids
    return served_training(data.trained_by(table, by_pixels), served, _seen(data, table, checkpoint))


def _seen(data: Data, table: pd.DataFrame, checkpoint: Checkpoint) -> np.ndarray:
    """(n) bool: which of the table's images served the pretraining, by their id, their file or their pixels."""
    by_pixels = isinstance(data.store, ImageStore)  # which knows the pixels
    known = np.isin(data.trained_by(table, by_pixels), checkpoint.fact("seen"))  # n k
    return np.asarray(known.any(axis=1))


def _config_for(checkpoint: Checkpoint, overrides: dict[str, Any]) -> ClassifyConfig:
    """The checkpoint's config with overrides of how and on what it is evaluated; the rest is trained in."""
    for key in overrides:
        if key.split(".")[0] not in FREE:
            raise UserError(
                f"command line: found {key}, expected settings of {', '.join(FREE)}: the rest is trained in"
            )
    config = with_settings(config_of(checkpoint), overrides, made_on=consented(checkpoint))

    # test was the default of earlier versions, so their settings name it though nobody asked for it
    if "evaluate.split" not in keys_given(overrides) and "calibration" not in checkpoint.meta:
        config = change_config(config, {"evaluate.split": "validate"})
    check_preprocessing(checkpoint, config.data)
    return config


def score_images(checkpoint: Checkpoint, config: ClassifyConfig, data: Data, table: pd.DataFrame) -> pd.DataFrame:
    """The table's images that can be read, in order, with their logit and their score in 0..1."""
    device = device_of(config.device)
    model = model_of(checkpoint, device)
    loader = Loader(data, table, config.evaluate.batch_size)
    predicted = evaluating(model, lambda _: predict_logits(model, loader, device))
    return with_scores(table, predicted, config.data.target, checkpoint.place)


# ---------------------------------------------------------------- files


def _kept(path: Path, config: ClassifyConfig, origin: dict[str, Any]) -> Evaluation | None:
    """Predictions of the same origin that are already there, if they are unchanged since they were written."""
    try:
        summary = read_json(path.with_suffix(".json"))
        table = path.with_suffix(".csv").read_bytes()
        made_by = EvaluateSettings(**summary["origin"]["evaluate"]).heeded()
        if summary["origin"] | {"evaluate": made_by} != origin:
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # pydantic's is a ValueError
        return None

    kept = _as_written(path, config, summary, table)
    if kept is None:
        print(f"{path}.csv: changed since it was written, so it is predicted anew")
    return kept


def _as_written(path: Path, config: ClassifyConfig, summary: dict[str, Any], table: bytes) -> Evaluation | None:
    """Predictions from the content of both files; None if either was changed since it was written.

    Otherwise a table that was sorted or edited would be compared row by row with those of other models.
    """
    summary = dict(summary)
    digest_of_both = summary.pop("digest", None)
    if digest_of_both != evaluation_digest(summary, table):
        return None

    try:
        predictions = _read_table(table, summary.get("subgroups", {}))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):  # another program's, in our form
        return None
    summary |= {name: _undefined_as(np.nan, summary[name]) for name in MEASURED if name in summary}
    threshold = summary["metrics"]["threshold"]
    return Evaluation(path.with_suffix(".csv"), config, threshold, predictions, summary, digest_of_both)


def read_evaluation(path: Path, settings: Mapping[str, Any], otherwise: ClassifyConfig) -> Evaluation:
    """Predictions as they were written, without data or weights; UserError where they are missing or were changed.

    settings: the way they were to be evaluated. otherwise: the config for predictions that came without one.
    """
    try:
        summary = read_json_values(path.with_suffix(".json"))
        table = path.with_suffix(".csv").read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: found no such file, expected the predictions of a run") from None

    if not isinstance(summary, dict):
        raise UserError(f"{path.with_suffix('.json')}: found a list or a value, expected what mae-evaluate writes")

    config = otherwise
    if summary.get("config"):
        made = make_config(with_new_names(summary["config"], str(path)), str(path))
        assert isinstance(made, ClassifyConfig)
        config = change_config(made, settings, str(path))
    evaluation = _as_written(path, config, summary, table)
    if evaluation is None:
        raise UserError(f"{path}: found it or its .json changed since they were written, expected them as they were")
    return evaluation


def _undefined_as(instead: float | None, measured: Any) -> Any:
    """What was measured, with `instead` for undefined numbers: NaN here, null in JSON, which has no NaN."""
    if isinstance(measured, dict):
        return {name: _undefined_as(instead, part) for name, part in measured.items()}
    if isinstance(measured, list):
        return [_undefined_as(instead, part) for part in measured]
    unknown = measured is None or (isinstance(measured, float) and np.isnan(measured))
    return instead if unknown else measured


def _read_table(content: bytes, subgroups: dict[str, str]) -> pd.DataFrame:
    """Predictions as they were written, to the last bit: ids and texts are taken literally, no type is guessed.

    Earlier versions wrote fewer columns.
    """
    text = content.decode()
    names = [of_cell(name) for name in next(csv.reader(StringIO(text)))]
    predictions = pd.read_csv(StringIO(text), header=0, names=names, dtype=str, na_filter=False)
    predictions[UNIT_IDS] = predictions[UNIT_IDS].map(of_cell)

    numbers = {name: kind for name, kind in NUMBERS.items() if name in names}
    predictions = predictions.astype(numbers)
    for name, kind in subgroups.items():
        cells = predictions[name].replace("", np.nan).astype(object)
        if kind == "number":
            predictions[name] = cells.astype(float)
        else:
            predictions[name] = cells.map(of_cell, na_action="ignore").astype(object)
    return side_by_side(predictions)


def evaluation_digest(summary: dict[str, Any], table: bytes) -> str:
    """16 hexadecimal digits of what an evaluation's two files hold."""
    text = json.dumps(summary, sort_keys=True)
    return hashlib.sha256(text.encode() + table).hexdigest()[:16]


def _write(
    path: Path,
    checkpoint: Checkpoint,
    config: ClassifyConfig,
    predictions: pd.DataFrame,
    decision: Decision,
    facts: dict[str, Any],
) -> None:
    first = ["image_id", "patient_id", "study_id", *NUMBERS]
    subgroups = {}
    for name in predictions.columns.difference(first, sort=False):
        subgroups[name] = "number" if is_numeric_dtype(predictions[name]) else "text"
    summary = {
        **_measured(side_by_side(predictions), decision, config.evaluate),
        "subgroups": subgroups,
        "seed": config.seed,
        "commit": commit(),
        "meta": {key: value for key, value in checkpoint.meta.items() if key not in HASHES},
        "config": checkpoint.settings,
        **facts,
    }
    summary |= {name: _undefined_as(None, summary[name]) for name in MEASURED}

    # text that a spreadsheet would compute stays text
    cells = predictions[[*first, *subgroups]]
    texts = [*UNIT_IDS, *(name for name, kind in subgroups.items() if kind == "text")]
    cells = cells.assign(**{name: cells[name].map(as_cell, na_action="ignore") for name in texts})
    table = cells.rename(columns=as_cell).to_csv(index=False)

    # the summary vouches for the predictions: the old one is removed first, the new one written last
    path.with_suffix(".json").unlink(missing_ok=True)
    write_text(path.with_suffix(".csv"), table)
    write_json(path.with_suffix(".json"), summary | {"digest": evaluation_digest(summary, table.encode())})


def write_evaluation(
    path: Path,
    config: ClassifyConfig,
    data: Data,
    units: pd.DataFrame,
    threshold: float,
    facts: dict[str, Any],
    meta: dict[str, Any],
) -> Evaluation:
    """Write predictions that no single checkpoint made, in the same two files as those of a run; read them back."""
    split = config.evaluate.split
    known = data.manifest.patients_known
    table = labelled_rows(data.split(split), split, config.data.target)
    few = few_cases(units["label"], data.manifest.target)
    facts = {
        "config": {},
        "trained_on": None,
        "split_fingerprint": digest(data.manifest.of_split(split), "image_id"),
        "few": {split: few} if few else {},
        "conflicting_studies": len(undecided_studies(table, known)),
        **facts,
    }

    # an opening is recorded before anybody sees what it shows
    origin = facts["origin"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if split == "test":
        is_kept = _kept(path, config, origin) is not None
        _record(path.parents[1], config, origin["checkpoint"], facts["split_fingerprint"], len(units), is_kept)

    decision = Decision(threshold, None)
    table = _without_private_columns(table, config)
    predictions = with_subgroups(decision.applied(units), table, config.evaluate.unit, known)
    _write(path, Checkpoint("classifier", {}, {}, meta), config, predictions, decision, facts)
    made = _kept(path, config, origin)
    assert made is not None
    return made


def _measured(units: pd.DataFrame, decision: Decision, settings: EvaluateSettings) -> dict[str, Any]:
    """What the summary says of the scores: how many there are, metrics, and their intervals."""
    labels = units["label"].to_numpy()
    scores = units["score"].to_numpy()
    logits = units["logit"].to_numpy()

    metrics = binary_metrics(labels, scores, decision.threshold, logits)
    patients = units["patient_id"].to_numpy()
    names = (*HEADLINE, "specificity", "average_precision", *OF_PROBABILITIES)
    intervals = metric_intervals(labels, scores, names, decision.threshold, patients, settings.level, logits)
    raw = {name: intervals[name] for name in OF_PROBABILITIES}

    # calibration keeps the order, so only the metrics of probabilities change
    calibration = decision.calibration
    by_calibration = units["calibrated"].to_numpy()
    calibrated_logits = (calibration or Calibration()).logits(logits)
    calibrated = metric_intervals(
        labels,
        by_calibration,
        OF_PROBABILITIES,
        groups=patients,
        level=settings.level,
        logits=calibrated_logits,
    )

    return {
        "split": settings.split,
        "unit": settings.unit,
        "n": len(units),
        "patients": int(units["patient_id"].nunique()),
        "metrics": {**dict(metrics), **_estimates(raw), "log_loss": log_loss(labels, logits)},
        "intervals": {name: list(interval.interval) for name, interval in intervals.items()},
        "interval_notes": {name: interval.note for name, interval in intervals.items() if interval.note},
        "calibration": calibration and calibration.as_dict(),
        "calibrated": {
            "metrics": {**_estimates(calibrated), "log_loss": log_loss(labels, calibrated_logits)},
            "intervals": {name: list(interval.interval) for name, interval in calibrated.items()},
        },
    }


def _estimates(intervals: Mapping[str, Interval]) -> dict[str, float]:
    return {name: interval.estimate for name, interval in intervals.items()}
