"""Keeping the memory a training step frees, for the next one."""

import ctypes
import sys

_TRIM_THRESHOLD = -1  # the names of glibc's mallopt(3)
_MMAP_THRESHOLD = -3
_LARGE = 2**31 - 1


def keep_freed_memory() -> None:
    """Let malloc keep large blocks that are freed, for the rest of the process; does nothing without glibc.

    By default it returns them to the kernel, and every step asks for the same gigabytes again, page by page
    (docs/speed.md).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_TRIM_THRESHOLD, _LARGE)
