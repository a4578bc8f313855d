"""Tables that are not separated by commas: read if just one other separator fits every line, with a note."""

import csv
import io
import re
import zlib
from functools import lru_cache
from pathlib import Path

from data.stand_ins import opened

OTHERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
BEGINNING = 2**16  # bytes in which a header ends
SEP_LINE = re.compile(r'"?sep=(.)"?\r?\n')  # by which Excel names the separator, which may be a comma


@lru_cache(maxsize=2)  # a header is asked for more than once, and such a table must be read whole for it
def _with_commas(path: Path, size: int, time: int) -> tuple[bytes, str] | None:
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeError):  # which its reader reports
        return None

    told = SEP_LINE.match(text)
    if not told and _rows(text, ","):
        return None
    fitting = []
    for separator, name in ({",": "commas"} | OTHERS if told else OTHERS).items():
        rows = _rows(text, separator)
        if rows:
            fitting.append((rows, name))
    if len(fitting) != 1:
        return None
    [(rows, name)] = fitting
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode(), name


def with_commas(path: Path) -> tuple[bytes, str] | None:
    """The content of a table with commas between its columns, and what stood there; None if it is such a table already.

    None also if no other separator gives every line as many fields as the header: then the table is refused as it
    stands.
    """
    try:
        status = path.stat()
        with opened(path) as file:
            start = file.read(BEGINNING)
    except (OSError, EOFError, zlib.error):
        return None
    header = re.split(rb"\r\n|\r|\n", start, maxsplit=1)[0]
    asked = SEP_LINE.match(start.decode("utf-8-sig", errors="replace"))
    if not asked and not any(separator.encode() in header for separator in OTHERS):
        return None
    return _with_commas(path, status.st_size, status.st_mtime_ns)


def _rows(text: str, separator: str) -> list[list[str]]:
    """The rows of a table, if that is its separator: each has as many fields, and more than one; else no rows."""
    told = SEP_LINE.match(text)
    if told:
        if told[1] != separator:
            return []
        text = text[told.end() :]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error:
        return []
    sizes = {len(row) for row in rows if row}
    return rows if len(sizes) == 1 and sizes != {1} else []
