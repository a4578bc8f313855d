"""Refusing a file: one line that says what was found in it, and what was expected."""

import errno
from mmap import mmap
from typing import NoReturn

BYTES_A_PIXEL = 9  # of a progressive JPEG in colour: three coefficients of 16 bits, and three colours
OF_ANOTHER_CLASS = "in an object of class"  # in a reason: an intact DICOM file that is meant to hold no image
MAX_PIXELS = 150_000_000  # refused before allocation; below the point where Pillow itself refuses


class UnreadableImage(ValueError):
    """This file is no radiograph we can read; the message says what was found and what was expected."""


class NotNow(UnreadableImage):
    """The system's trouble, not the file's: it may be readable another time."""


class LacksPlugin(UnreadableImage):
    """Another plugin may read this file: the reason holds as long as `plugins` are all there are."""

    def __init__(self, message: str, plugins: str):
        super().__init__(message)
        self.plugins = plugins


# errors of the file itself, or of its name; any other error of the system may pass
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


def may_pass(error: BaseException) -> bool:
    """Whether the system may say otherwise another time: no descriptors, no memory, a server that is away."""
    if isinstance(error, MemoryError | NotNow):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno is None:  # Pillow's own words
        return "out of memory" in str(error).lower()
    return error.errno not in LASTING


def raise_if_it_may_pass(error: BaseException) -> None:
    """For callers that otherwise take every error for the file's fault."""
    if may_pass(error):
        raise error


def trouble(error: BaseException) -> str:
    """What the system says, for a message."""
    if isinstance(error, MemoryError):
        return "too little memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()).lower()


def refuse(found: str, expected: str) -> NoReturn:
    """Raise UnreadableImage; `read_image` puts the path before it."""
    raise UnreadableImage(f"found {found}, expected {expected}")


def without_path(message: str, path: object) -> str:
    """The reason in the line of an UnreadableImage about that path, in which blanks of any kind and number are one."""
    return message.removeprefix(" ".join(f"{path}:".split()) + " ")


def is_damage(reason: str) -> bool:
    """Whether a refused file should have been an image: archives send reports and the like along with the images."""
    return OF_ANOTHER_CLASS not in reason


def check_size(width: int, height: int) -> None:
    """Refuse an image of no or too many pixels, before anything is allocated for it."""
    if not 0 < width * height <= MAX_PIXELS:
        refuse(f"{width} x {height} pixels declared", f"1 to {MAX_PIXELS // 10**6} megapixels")


def check_memory(width: int, height: int) -> None:
    """OSError unless there is as much memory as the decoding of a colour image of that size may take."""
    mmap(-1, BYTES_A_PIXEL * width * height).close()  # asked for, and not touched
