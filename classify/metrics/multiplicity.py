"""Several tests at once."""

import numpy as np
from numpy.typing import ArrayLike


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values (k,) of one family, adjusted so that any false rejection is no likelier than the level (Holm 1979).

    The smallest is multiplied by k, the next by k - 1, and so on, none below the one before it or above 1. NaN, for a
    contrast that could not be tested, stays NaN and does not count.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1:
        raise ValueError(f"p-values have shape {p_values.shape}, wanted (k,)")
    known = p_values[~np.isnan(p_values)]
    if ((known < 0) | (known > 1)).any():
        raise ValueError(f"p-values must lie in 0 to 1, found {known.min():g} to {known.max():g}")

    order = np.argsort(known, kind="stable")
    raised = np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1))
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(raised, 1)

    answer = np.full(p_values.shape, np.nan)
    answer[~np.isnan(p_values)] = adjusted
    return answer
