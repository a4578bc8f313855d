"""A system that refuses to read some files, for reasons of its own that may pass."""

import errno
from pathlib import Path

import data.images

TROUBLES = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    MemoryError(),
]


def refuse_files(monkeypatch, names, error):
    """In this process."""
    read = data.images._file_bytes

    def refused(path):
        if Path(path).name in names:
            raise error
        return read(path)

    monkeypatch.setattr(data.images, "_file_bytes", refused)
