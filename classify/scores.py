"""Model × images → logits; images → studies."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy.special import expit
from torch import Tensor

from classify.cases import labelled_rows, study_numbers
from classify.models.build import Model
from classify.settings import Unit
from data.errors import NotFinite
from data.loader import Loader
from mae.engine.prefetch import on_device

UNIT_IDS = ["patient_id", "study_id", "image_id"]
NUMBERS = {"label": float, "logit": float, "score": float, "calibrated": float, "predicted": int}  # beside the ids
NO_SUBGROUPS = {"path", "split", "own_id", "row", *UNIT_IDS, *NUMBERS}  # columns that define no subgroups


def predict_logits(model: Model, loader: Loader, device: torch.device) -> Tensor:
    """Logits and labels (n 2) on the CPU of the loader's images in order; the model is in evaluation mode already.

    A label is NaN if the image could not be read. Scores are computed in 32 bits throughout, whatever training uses, so
    that validation, evaluation, other batches and other machines agree on them.
    """
    parts = [torch.empty(0, 2)]
    with full_precision(device):
        for batch, moved in on_device(loader.epoch(), device):
            logits = model(model.standardize(moved.images)).float().cpu()  # b
            parts.append(torch.stack([logits, batch.labels], dim=1))
    return torch.cat(parts)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of 32 bits inside, on CUDA too, where torch by default uses TF32 for convolutions."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def with_scores(table: pd.DataFrame, predicted: Tensor, target: str | None, place: str) -> pd.DataFrame:
    """The table's rows whose images could be read, with logit and score, from what `predict_logits` returns for all.

    Both columns have 64 bits. With these numbers thresholds are chosen, cases judged and files written.
    NotFinite, naming `place`, if a logit is not finite: no metric can be computed from it.
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

    The images of a study must have one label; `classify.cases.check_unit` checks that.
    """
    columns = [*UNIT_IDS, "label", "logit", "score"]
    if unit == "image":
        return scored[columns]

    # a study's images share patient and label; the study takes the first of its images' ids
    numbers = study_numbers(scored, patients_known)
    studies = scored.groupby(numbers)
    assert (studies["label"].nunique() == 1).all()
    units = studies.agg({"image_id": "min", "patient_id": "min", "study_id": "first", "label": "first"})

    # by rising logit, so that equal images give equal means in whatever order they come
    rising = np.argsort(scored["logit"].to_numpy(), kind="stable")
    units["logit"] = logits_of_means(scored["logit"].to_numpy()[rising], numbers[rising])
    units["score"] = expit(units["logit"])
    return units[columns].reset_index(drop=True)


def with_subgroups(units: pd.DataFrame, table: pd.DataFrame, unit: Unit, patients_known: bool = True) -> pd.DataFrame:
    """Units with what else the images' `table` says of them: view, sex, age, findings, further columns.

    Text columns hold text or NaN, numbers have 64 bits. A study has the value that all its images share, else NaN; its
    age is their mean.
    """
    names = subgroup_columns(table)
    groups = pd.DataFrame({name: _text_or_number(table[name]) for name in names}, index=table.index)
    if unit == "image":
        place = pd.Series(np.arange(len(table)), index=table["image_id"])
    else:
        numbers = study_numbers(table, patients_known)
        place = pd.Series(numbers, index=table["image_id"])
        groups = _of_studies(groups, numbers)

    found = groups.iloc[place.loc[units["image_id"]].to_numpy()]
    return pd.concat([units.reset_index(drop=True), found.reset_index(drop=True)], axis=1)


def subgroup_columns(table: pd.DataFrame) -> list[str]:
    """Columns that may tell groups of cases apart, the view first; in a mix the source is one of them."""
    mixed = "own_id" in table
    names = [str(name) for name in table if name not in NO_SUBGROUPS and (mixed or name != "source")]
    return sorted(names, key=lambda name: name != "view")


def _text_or_number(column: pd.Series) -> pd.Series:
    if is_numeric_dtype(column) and not is_bool_dtype(column):
        return column.astype(np.float64)
    texts = column.astype(object)
    texts = texts.where(texts.isna(), texts.map(str))
    known = texts.notna() & (texts != "")  # an empty cell of a CSV is an unknown value
    return texts.where(known, np.nan).astype(object)


def _of_studies(groups: pd.DataFrame, numbers: np.ndarray) -> pd.DataFrame:
    """Values of images → values of studies, in the order of the studies' numbers (n)."""
    studies: dict[str, pd.Series] = {}
    for name in groups:
        values = groups[name]
        if name == "age" and is_numeric_dtype(values):
            studies[str(name)] = values.groupby(numbers).mean()
            continue

        # an unknown value is one that differs from all others
        codes, distinct = pd.factorize(values)
        of_study = pd.Series(codes).groupby(numbers)
        code = of_study.min().where(of_study.min() == of_study.max(), -1)
        studies[str(name)] = pd.Series(distinct, dtype=values.dtype).reindex(code).set_axis(code.index)
    return pd.DataFrame(studies, index=np.arange(numbers.max() + 1))


def side_by_side(units: pd.DataFrame) -> pd.DataFrame:
    """Units in the order of their ids: so those of several models line up, whatever order their images had."""
    return units.sort_values(UNIT_IDS, ignore_index=True)


def logits_of_means(logits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(k): the logit of each group's mean score, from logits (n) and the numbers (n) of their groups.

    That is log(sum of p) - log(sum of 1 - p). Computed from logarithms, it is right even where p rounds to 1.
    """
    groups = int(numbers.max()) + 1
    log_abnormal = np.full(groups, -np.inf)
    log_normal = np.full(groups, -np.inf)
    np.logaddexp.at(log_abnormal, numbers, -np.logaddexp(0, -logits))
    np.logaddexp.at(log_normal, numbers, -np.logaddexp(0, logits))
    return log_abnormal - log_normal
