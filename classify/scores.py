"""Model × images → logits; images → studies."""

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

from classify.cases import labelled_rows, study_numbers
from classify.models.build import Model
from classify.settings import Unit
from data.errors import NotFinite
from data.loader import Loader
from mae.engine.optim import autocast
from mae.settings import Precision

UNIT_IDS = ["patient_id", "study_id", "image_id"]


def predict_logits(model: Model, loader: Loader, device: torch.device, precision: Precision) -> Tensor:
    """Logits and labels (n 2) on the CPU of the loader's images in order; the model is in evaluation mode already.

    A label is NaN where the image could not be read.
    """
    parts = [torch.empty(0, 2)]
    with autocast(device, precision):
        for batch in loader.epoch():
            logits = model(model.standardize(batch.to(device).images)).float().cpu()  # b
            parts.append(torch.stack([logits, batch.labels], dim=1))
    return torch.cat(parts)


def with_scores(table: pd.DataFrame, predicted: Tensor, target: str | None, place: str) -> pd.DataFrame:
    """The table's rows whose images could be read, with their logit and score, of what `predict_logits` says of all.

    Both columns are of 64 bits, and the numbers by which thresholds are chosen, cases judged and files written.
    NotFinite, naming `place`, where a logit is not finite: no metric is made of it.
    """
    logits, labels = predicted.double().unbind(dim=1)  # n each
    was_read = ~labels.isnan().numpy()
    split = table["split"].iloc[0]
    table = labelled_rows(table[was_read], split, target)
    table = table.assign(logit=logits.numpy()[was_read])

    broken = int((~np.isfinite(table["logit"])).sum())
    if broken:
        raise NotFinite(
            f"{place}: found {broken:,} of {len(table):,} scores of split {split!r} not finite, expected numbers"
        )
    return table.assign(score=expit(table["logit"]))


def in_units(scored: pd.DataFrame, unit: Unit, patients_known: bool = True) -> pd.DataFrame:
    """Scored images as the units that are counted: a row per image, or per study with the mean of its images' scores.

    The images of a study must have one label, which `classify.cases.check_unit` tells.
    """
    columns = [*UNIT_IDS, "label", "logit", "score"]
    if unit == "image":
        return scored[columns]

    # a study's images share patient and label; the study goes by the first of its images' ids
    numbers = study_numbers(scored, patients_known)
    studies = scored.groupby(numbers)
    assert (studies["label"].nunique() == 1).all()
    units = studies.agg({"image_id": "min", "patient_id": "min", "study_id": "first", "label": "first"})

    # by rising logit, so that equal images give equal means in whatever order they come
    rising = np.argsort(scored["logit"].to_numpy(), kind="stable")
    units["logit"] = _logits_of_means(scored["logit"].to_numpy()[rising], numbers[rising])
    units["score"] = expit(units["logit"])
    return units[columns].reset_index(drop=True)


def side_by_side(units: pd.DataFrame) -> pd.DataFrame:
    """Units in the order of their ids: those of several models lie side by side, whatever order their images had."""
    return units.sort_values(UNIT_IDS, ignore_index=True)


def _logits_of_means(logits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(k): the logit of each group's mean score, of logits (n) and the numbers (n) of their groups.

    That is log(sum of p) - log(sum of 1 - p), which sums of logarithms tell even where p rounds to 1.
    """
    groups = int(numbers.max()) + 1
    log_abnormal = np.full(groups, -np.inf)
    log_normal = np.full(groups, -np.inf)
    np.logaddexp.at(log_abnormal, numbers, -np.logaddexp(0, -logits))
    np.logaddexp.at(log_normal, numbers, -np.logaddexp(0, logits))
    return log_abnormal - log_normal
