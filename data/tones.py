"""Grey tones: what is stored → brightness, worked out once per value and not per pixel."""

import numpy as np

TAILS = 0.005  # without a window, this share of the pixels is clipped at either end


def between_tails(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values → 0…1 between the darkest and brightest `TAILS` of the pixels; `counts`: pixels at each value."""
    order = np.argsort(values, kind="stable")
    share = TAILS * counts.sum()
    reverse = order[::-1]
    low = values[order][np.searchsorted(np.cumsum(counts[order]), share, side="right")]
    high = values[reverse][np.searchsorted(np.cumsum(counts[reverse]), share, side="right")]
    return np.clip((values - (low + high) / 2) / max(high - low, 1e-6) + 0.5, 0, 1)


def equalized(values: np.ndarray, counts: np.ndarray, negative: bool) -> np.ndarray:
    """Min-max, truncated to 8 bit, then OpenCV's equalizeHist, as MIMIC-CXR-JPG was made (Johnson 2019)."""
    low, high = values[counts > 0].min(), values[counts > 0].max()
    levels = np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    if negative:
        levels = 255 - levels

    # each level becomes the share of pixels that are darker, the darkest level left out
    histogram = np.bincount(levels, weights=counts, minlength=256)
    above_darkest = np.cumsum(histogram) - histogram[np.flatnonzero(histogram)[0]]
    return np.rint(np.clip(above_darkest, 0, None) * 255 / max(above_darkest[-1], 1)).astype(np.uint8)[levels]


def to_bytes(shown: np.ndarray) -> np.ndarray:
    """Brightness 0…1 → uint8."""
    return np.rint(shown * 255).astype(np.uint8)
