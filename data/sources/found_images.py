"""Which files below a folder are radiographs, by their endings or first bytes; the others are counted by reason."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import UserError, quoted
from data.refusal import may_pass, trouble

ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".dcm", ".dicom"}
OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
DIRECTORY = "DICOMDIR"  # a table of contents, and by its bytes a DICOM file


@dataclass
class Found:
    """Images as paths from the folder, in order of their names; how many other files there are, by reason."""

    images: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        return [f"{count:,} files passed over: {reason}" for reason, count in sorted(self.passed_over.items())]


def find_images(root: Path) -> Found:
    """Every image below `root`, linked folders included, each folder once.

    A file with an image's ending is taken for one, so that a damaged one is listed as unreadable and not lost. Any
    other file is one if its first bytes say so: DICOM files often have no ending, or are called by a UID.
    """
    found = Found()
    seen = set()

    def not_listed(error: OSError) -> None:
        found.passed_over[f"folders, {_said(error)}"] += 1

    for place, folders, names in os.walk(root, onerror=not_listed, followlinks=True):
        status = os.stat(place)  # noqa: PTH116 (os.walk gives texts)
        if (status.st_dev, status.st_ino) in seen:  # a link to where we have been
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found.passed_over.update(f"folders, {name} of the system" for name in OF_SYSTEMS.intersection(folders))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in OF_SYSTEMS)

        for name in names:
            reason = _why_not(Path(place, name))
            if reason:
                found.passed_over[reason] += 1
            else:
                found.images.append(os.path.relpath(os.path.join(place, name), root))  # noqa: PTH118
    found.images.sort()
    return found


def _why_not(path: Path) -> str | None:
    """Why a file is no image; None if it is one."""
    if path.name.startswith("."):  # macOS's `._a.jpg` has an image's ending
        return "hidden"
    if path.name.upper().split(";")[0] == DIRECTORY:  # from a mounted CD it comes in lower case, or with a version
        return "a DICOMDIR"
    if path.suffix.lower() in ENDINGS:
        return None
    try:
        if not path.is_file():  # a pipe would hang
            return "no regular file, or a link that leads nowhere"
        with path.open("rb") as file:
            return None if _is_image(file.read(132)) else "no images"
    except OSError as error:
        return _said(error)


def _said(error: OSError) -> str:
    """Why the system gives no file or folder; UserError where that may pass: an image would be lost in silence."""
    if may_pass(error):
        place = quoted(error.filename, "a file or folder below data.root")
        raise UserError(f"{place}: found {trouble(error)}, expected to read it; run again") from None
    return (error.strerror or "cannot be opened").lower()


def _is_image(start: bytes) -> bool:
    return start[128:132] == b"DICM" or start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
