"""Model × images → logits; images → studies."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from classify.cases import labelled_rows, study_numbers
from classify.models.build import Model
from classify.settings import Unit
from data.loader import Loader
from mae.engine.optim import autocast
from mae.settings import Precision


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


def readable(table: pd.DataFrame, predicted: Tensor, target: str | None) -> tuple[pd.DataFrame, Tensor]:
    """The table's rows whose images could be read, and their logits (n), of what `predict_logits` says of all."""
    logits, labels = predicted.unbind(dim=1)  # n each
    was_read = ~labels.isnan()
    split = table["split"].iloc[0]
    return labelled_rows(table[was_read.numpy()], split, target), logits[was_read]


def in_units(table: pd.DataFrame, scores: np.ndarray, unit: Unit, patients_known: bool = True) -> pd.DataFrame:
    """Scores (n) of the table's images: a row per image, or per study with the mean of its images' scores.

    The images of a study must have one label, which `classify.cases.check_unit` tells.
    """
    columns = ["image_id", "patient_id", "study_id", "label"]
    scored = table[columns].assign(score=scores)
    if unit == "image":
        return scored

    # a study's images share patient and label; the study goes by the id of its first
    studies = scored.groupby(study_numbers(table, patients_known))
    assert (studies["label"].nunique() == 1).all()
    means = {"image_id": "first", "patient_id": "first", "study_id": "first", "label": "first", "score": "mean"}
    return studies.agg(means).reset_index(drop=True)
