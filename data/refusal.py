"""Refusing a file: one line that says what was found in it, and what was expected."""

import errno
from typing import NoReturn

MAX_PIXELS = 150_000_000  # refused before allocation; below the point where Pillow itself refuses


class UnreadableImage(ValueError):
    """This file is no radiograph we can read; the message says what was found and what was expected."""


class NotNow(UnreadableImage):
    """The system's trouble, not the file's: another time it may be read."""


# what is wrong with the file itself, or with its name; anything else that a system says may pass
LASTING = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENXIO,
    errno.ENODEV,
    errno.EINVAL,
)


def may_pass(error: OSError) -> bool:
    """Whether the system may say otherwise another time: no descriptors, no memory, a server that is away."""
    return error.errno is not None and error.errno not in LASTING


def refuse(found: str, expected: str) -> NoReturn:
    """Raise UnreadableImage; `read_image` puts the path before it."""
    raise UnreadableImage(f"found {found}, expected {expected}")


def check_size(width: int, height: int) -> None:
    """Refuse an image of no or too many pixels, before anything is allocated for it."""
    if not 0 < width * height <= MAX_PIXELS:
        refuse(f"{width} x {height} pixels declared", f"1 to {MAX_PIXELS // 10**6} megapixels")
