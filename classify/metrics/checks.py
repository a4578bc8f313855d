"""Arrays in, or a ValueError in one line that says what is wrong with them."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def check(labels: ArrayLike, scores: ArrayLike, name: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) as bool and scores (n,) as float64, or a ValueError that says what is wrong."""
    labels = as_binary("labels", _finite("labels", labels))
    scores = _finite(name, scores)
    for what, array in (("labels", labels), (name, scores)):
        if array.ndim != 1:
            raise ValueError(f"{what} have shape {array.shape}, wanted one number per case")
    if len(labels) != len(scores):
        raise ValueError(f"{name} have {len(scores)} cases, labels {len(labels)}")
    return labels, scores


def check_logits(logits: ArrayLike | None, scores: np.ndarray) -> np.ndarray:
    """What orders the cases: the logits, of the scores' shape; without logits, the scores themselves."""
    if logits is None:
        return scores
    logits = _finite("logits", logits)
    if scores.ndim == 2:
        logits = np.atleast_2d(logits)
    if logits.shape != scores.shape:
        raise ValueError(f"logits have shape {logits.shape}, scores {scores.shape}")
    return logits


def check_seeds(
    labels: ArrayLike, scores: ArrayLike, threshold: ArrayLike, name: str = "scores"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), scores (s, n) and thresholds (s,)."""
    scores = np.atleast_2d(_finite(name, scores))
    if scores.ndim != 2:
        raise ValueError(f"{name} have shape {scores.shape}, wanted (n,) or (seeds, n)")
    labels, _ = check(labels, scores[0], name)

    # one threshold for all seeds, or one for each
    thresholds = np.asarray(threshold, dtype=np.float64)
    if thresholds.shape not in ((), (len(scores),)):
        raise ValueError(f"thresholds of shape {thresholds.shape} for {len(scores)} seeds of {name}")
    check_threshold(thresholds)
    return labels, scores, np.broadcast_to(thresholds, len(scores))


def _finite(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a regular array of numbers") from None
    if array.size == 0:
        raise ValueError(f"{name} are empty")
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise ValueError(f"{name} hold {broken} NaN or infinite values; drop those cases first")
    return array


def as_binary(name: str, values: np.ndarray) -> np.ndarray:
    """Zeros and ones as bool."""
    strange = values[(values != 0) & (values != 1)]
    if strange.size:
        raise ValueError(f"{name} must be 0 or 1, found {strange.flat[0]:g}")
    return values == 1


def check_threshold(threshold: ArrayLike) -> None:
    """ValueError for NaN: no score is at or above it, so it would silently predict all cases normal."""
    if np.isnan(threshold).any():
        raise ValueError("threshold is NaN, wanted a number")


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted between 0 and 1, such as 0.95")


def group_codes(groups: ArrayLike | None, n: int) -> np.ndarray:
    """(n,) whole numbers naming each case's group, in order of first appearance."""
    if groups is None:
        return np.arange(n)
    # as objects: among texts, numpy would turn every NaN into the text "nan", which would be one patient
    groups = np.asarray(groups, dtype=object)
    if groups.shape != (n,):
        raise ValueError(f"groups have shape {groups.shape}, wanted ({n},)")
    codes, _ = pd.factorize(groups)
    if (codes < 0).any():
        raise ValueError("groups hold missing values; every case needs its patient")
    return codes
