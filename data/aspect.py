"""Pixels that are not square: how many times as high as wide they are, by what a file says."""

MOST = 16.0  # beyond it, either way, the file is mistaken


def pixel_aspect(height: float | None, width: float | None) -> float | None:
    """A pixel's height divided by its width; None where these say nothing that can be used."""
    if height is None or width is None or not height > 0 or not width > 0:
        return None
    aspect = height / width
    return aspect if 1 / MOST <= aspect <= MOST else None
