"""Rows of a comparison that nothing is trained for: predictions in files, and ensembles of a row's seeds."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from classify.cases import LabelledSplits, labelled_rows, splits_of
from classify.comparison import Line, ensemble_name
from classify.evaluate import Evaluation, score_images, write_evaluation
from classify.finetune import decision_threshold
from classify.grid import Cell, folder_name
from classify.metrics import thresholds_by_rate
from classify.prediction_files import FilePredictions, predictions_of
from classify.scores import UNIT_IDS, in_units, logits_of_means, side_by_side
from classify.settings import ClassifyConfig, RowSettings
from classify.start import file_digest
from data.config import change_config, expand
from data.errors import UserError
from data.loader import Data
from data.manifest import digest
from data.privacy import credentialed_sources
from data.settings import DataSettings
from mae.engine.checkpoint import load_checkpoint
from mae.engine.checkpoint_file import best_of

DataOf = Callable[[DataSettings], Data]


def check_extra_rows(config: ClassifyConfig, data: Data) -> None:
    """UserError for mistakes in the rows that are not trained, raised before anything is trained."""
    grid = config.compare
    folders: dict[str, str] = {}
    for row in grid.rows:
        if row.predictions is not None:
            other = folders.setdefault(folder_name(row.name), row.name)
            if other != row.name:
                raise UserError(
                    f"compare.rows: found {other!r} and {row.name!r}, expected names that differ in more than case and "
                    "punctuation"
                )
            predictions_of(row, config, data)


def wants_ensemble(row: RowSettings, config: ClassifyConfig) -> bool:
    """Whether the mean of a row's seeds is a row too."""
    if row.predictions is not None:
        return False
    return config.compare.ensembles if row.ensemble is None else row.ensemble


def extra_names(config: ClassifyConfig, cells: Sequence[Cell]) -> dict[str, frozenset[int | None]]:
    """The names of the rows that are not trained, each with its label budgets: contrasts may use these names.

    Raises UserError for an ensemble of one seed, and for one that has another row's name.
    """
    with_ensemble = [row.name for row in config.compare.rows if wants_ensemble(row, config)]
    if with_ensemble and len(config.compare.seeds) < 2:
        raise UserError(
            f"compare.rows: {with_ensemble[0]}: found an ensemble of 1 seed, expected 2 or more in compare.seeds"
        )

    budgets: dict[str, set[int | None]] = {}
    for row in config.compare.rows:
        for cell in cells:
            if row.predictions is not None:
                budgets.setdefault(row.name, set()).add(cell.labelled)
            elif wants_ensemble(row, config) and _is_called(cell.name, row, config):
                name = ensemble_name(cell.name, len(config.compare.seeds))
                if name in [other.name for other in cells]:
                    raise UserError(
                        f"compare.rows: found a row named {name!r}, expected another name: it is an ensemble's"
                    )
                budgets.setdefault(name, set()).add(cell.labelled)
    return {name: frozenset(of_row) for name, of_row in budgets.items()}


def with_extra_rows(config: ClassifyConfig, data_of: DataOf, lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """The lines of trained rows, of ensembles and of files, in the order of the config's rows.

    A file's row stands in the table of every label budget.
    """
    found: list[Line] = []
    read: dict[str, tuple[Evaluation, ...]] = {}
    for labelled in dict.fromkeys(line.labelled for line in lines):
        of_budget = [line for line in lines if line.labelled == labelled]
        for row in config.compare.rows:
            if row.predictions is not None:
                if row.name not in read:
                    read[row.name] = read_predictions(row, config, data_of(config.data))
                described = {"Model": row.name, "Augmentation": "–", "% Masking": "–"}
                found.append(Line(described, labelled, read[row.name]))
                continue

            for line in of_budget:
                if _is_called(line.described["Model"], row, config):
                    found.append(line)
                    if wants_ensemble(row, config):
                        found += _ensemble(line, config, data_of)
    return tuple(found)


def _is_called(name: str, row: RowSettings, config: ClassifyConfig) -> bool:
    """Whether a line's name is the row's, or, where that has several pretrainings, its `row/pretraining`."""
    if name in [other.name for other in config.compare.rows]:
        return name == row.name
    return name in [f"{row.name}/{pretraining}" for pretraining in row.pretraining]


# ---------------------------------------------------------------- predictions in files


def read_predictions(row: RowSettings, config: ClassifyConfig, data: Data) -> tuple[Evaluation, ...]:
    """A row's files as evaluations, one each, written beside those of the runs: a report no longer needs the files."""
    found = []
    for number, predictions in enumerate(predictions_of(row, config, data)):
        folder = Path(expand(config.run, "run"), f"{folder_name(row.name)}-file{number}")
        found.append(_of_file(predictions, number, folder, config, data))
    return tuple(found)


def _of_file(predictions: FilePredictions, number: int, folder: Path, config: ClassifyConfig, data: Data) -> Evaluation:
    facts = {
        "origin": _origin(config, data, predictions.units)
        | {"checkpoint": file_digest(predictions.place), "threshold": predictions.how},
        "patients_known": data.manifest.patients_known,
        "pretrained_on": 0,
        "seen_elsewhere": predictions.kind != "rating",  # a program's training is not known here; readers have none
        "credentialed": sorted(credentialed_sources(config.data)),
        "file": {
            "name": predictions.place.name,
            "column": predictions.column,
            "kind": predictions.kind,
            "threshold": predictions.how,
        },
    }

    # no training of ours made it
    meta = {"train_images": None, "pretrained_from": None}
    path = folder / "predictions" / config.compare.split
    how = change_config(config, {"evaluate.split": config.compare.split, "seed": number})
    made = write_evaluation(path, how, data, predictions.units, predictions.threshold, facts, meta)
    return replace(made, config=config)


def _origin(config: ClassifyConfig, data: Data, units: pd.DataFrame) -> dict[str, Any]:
    """What an evaluation was made of, as far as the comparison decides it."""
    return {
        "data": data.manifest.fingerprint(),
        "cases": digest(units, "image_id", "patient_id", "study_id", "label"),
        "store": data.store.fingerprint,
        "evaluate": config.evaluate.heeded() | {"split": config.compare.split},
    }


# ---------------------------------------------------------------- ensembles


def _ensemble(line: Line, config: ClassifyConfig, data_of: DataOf) -> Iterator[Line]:
    """The line of a row's ensemble: none if a seed failed, as it would not be the ensemble that was declared."""
    members = line.evaluations
    if len(members) < len(config.compare.seeds):
        return
    described = line.described | {"Model": ensemble_name(line.described["Model"], len(members))}
    yield Line(described, line.labelled, (_evaluated(members, data_of),))


def _evaluated(members: tuple[Evaluation, ...], data_of: DataOf) -> Evaluation:
    """The mean of the members' calibrated probabilities, with a threshold of its own, chosen on validation.

    Statistically it is one trained model: how much another trained ensemble would differ is not in it.
    """
    first = members[0]
    config = first.config
    data = data_of(config.data)
    logits = [member.calibration.logits(member.predictions["logit"]) for member in members]
    units = _mean(first.predictions, logits)

    # the labels that any of them was trained on or chosen by
    splits = [splits_of(data, member.config) for member in members]
    trained_on = {image for each in splits for image in each.train["image_id"]}
    validated = _validated(members, splits, data)
    threshold = decision_threshold(validated, config.finetune.threshold)  # of its own, whatever its members have

    folder = first.run.with_name(re.sub(r"seed\d+$", "ensemble", first.run.name))
    summaries = [member.summary for member in members]
    of_ensemble = {  # members of an earlier version say more of how they were evaluated
        "checkpoint": _digest_of(members),
        "members": len(members),
        "evaluate": config.evaluate.heeded(),
    }
    facts = {
        "origin": {**first.summary["origin"], **of_ensemble},
        "patients_known": first.summary["patients_known"],
        "pretrained_on": max(summary["pretrained_on"] for summary in summaries),
        "seen_elsewhere": any(summary.get("seen_elsewhere", False) for summary in summaries),
        "credentialed": sorted({name for summary in summaries for name in summary.get("credentialed", ())}),
        "ensemble": [member.run.name for member in members],
        "config": first.summary["config"],
    }
    operating = {config.evaluate.unit: thresholds_by_rate(validated["label"], validated["score"])}
    meta = first.summary["meta"] | {"train_images": len(trained_on), "operating": operating}
    path = folder / "predictions" / config.evaluate.split
    return write_evaluation(path, config, data, units, threshold, facts, meta)


def _mean(units: pd.DataFrame, logits: list[np.ndarray]) -> pd.DataFrame:
    """Units with the members' mean probability, computed from logits (n each): a mean near 1 still has a logit."""
    cases = np.tile(np.arange(len(units)), len(logits))
    mean = logits_of_means(np.concatenate(logits), cases)
    return units[[*UNIT_IDS, "label"]].assign(logit=mean, score=expit(mean))


def _validated(members: tuple[Evaluation, ...], splits: list[LabelledSplits], data: Data) -> pd.DataFrame:
    """The ensemble's predictions of the validation images that any member was chosen by."""
    config = members[0].config
    chosen_by = {image for each in splits for image in each.validate["image_id"]}
    table = labelled_rows(data.split("validate"), "validate", config.data.target)
    table = table[table["image_id"].isin(chosen_by)]
    logits = []
    for member in members:
        checkpoint = load_checkpoint(best_of(member.run), kind="classifier")
        scored = score_images(checkpoint, member.config, data, table)
        units = side_by_side(in_units(scored, config.evaluate.unit, data.manifest.patients_known))
        logits.append(member.calibration.logits(units["logit"]))
    return _mean(units, logits)


def _digest_of(members: tuple[Evaluation, ...]) -> str:
    """16 hexadecimal digits of the members' checkpoints."""
    text = " ".join(str(member.summary["origin"]["checkpoint"]) for member in members)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
