"""Refusing a file: one line that says what was found in it, and what was expected."""

from typing import NoReturn

MAX_PIXELS = 150_000_000  # refused before allocation; below the point where Pillow itself refuses


class UnreadableImage(ValueError):
    """This file is no radiograph we can read; the message says what was found and what was expected."""


def refuse(found: str, expected: str) -> NoReturn:
    """Raise UnreadableImage; `read_image` puts the path before it."""
    raise UnreadableImage(f"found {found}, expected {expected}")


def check_size(width: int, height: int) -> None:
    """Refuse an image of no or too many pixels, before anything is allocated for it."""
    if not 0 < width * height <= MAX_PIXELS:
        refuse(f"{width} x {height} pixels declared", f"1 to {MAX_PIXELS // 10**6} megapixels")
