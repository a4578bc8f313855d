"""What may lie in the place of a file: a server's error page, a pointer, an unfinished download. Told by its bytes."""

import gzip
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

ENOUGH = 1024  # bytes from a file's start that tell what it is
UNFINISHED = "a download that failed, or needs a login"
POINTER = "its content is not fetched"
PACKED = b"\x1f\x8b"
MARKS = {  # how a file begins, blanks and a byte order mark aside → what it is
    rb"<!doctype html|<html|<head|<body": f"an HTML page ({UNFINISHED})",
    rb"<\?xml|<error|<svg": f"an XML page ({UNFINISHED})",
    rb"[\[{]\s*([\"{\[\]}]|-?\d)": f"JSON ({UNFINISHED})",
    rb"version https?://(git-lfs|hawser)\b": f"a git-lfs pointer ({POINTER}: git lfs pull)",
    rb"(\S*/)?annex/objects/": f"a git-annex pointer ({POINTER}: git annex get)",
    rb"(outs|md5):[ \r\n]": f"a DVC pointer ({POINTER}: dvc pull)",
    rb"HTTP/\d": f"the answer of a web server ({UNFINISHED})",
    rb"PK\x03\x04": "a ZIP archive (or a spreadsheet)",
    PACKED: "a gzip archive",
    rb"%PDF": "a PDF",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a spreadsheet or document of Office",
    # images of other kinds; their marks have bytes that no text has
    rb"II[*+]\0|MM\0[*+]": "a TIFF image",
    rb"BM.{4}\0{4}": "a BMP image",
    rb"GIF8[79]a": "a GIF image",
    rb"RIFF.{4}WEBP": "a WebP image",
    rb"\0{3}\x0cjP  \r\n|\xff\x4f\xff\x51": "a JPEG 2000 image",
    rb".{4}ftyp(hei|hev|mif|avi)": "a HEIF or AVIF image",
}
UTF_16 = (b"\xff\xfe<\0", b"\xfe\xff\0<")


def stand_in(start: bytes) -> str | None:
    """What a file with this beginning is, instead of what was expected; None if that cannot be told."""
    if start and not any(start):
        return "zeros alone (a download that was not finished)"
    if start.startswith(UTF_16):
        start = start.decode("utf-16", errors="ignore").encode()

    text = start[:ENOUGH].removeprefix(b"\xef\xbb\xbf").lstrip()
    text = re.sub(rb"\A(<!--.*?-->\s*)+", b"", text, flags=re.DOTALL)  # pages may begin with a comment
    for mark, name in MARKS.items():
        if re.match(mark, text, re.IGNORECASE | re.DOTALL):
            return name
    return None


def is_packed(path: Path) -> bool:
    """Whether gzip has packed a file, whatever its name: browsers unpack what they download, and keep the `.gz`."""
    with suppress(OSError), path.open("rb") as file:  # what cannot be opened is reported by its reader
        return file.read(len(PACKED)) == PACKED
    return False


def opened(path: Path) -> IO[bytes]:
    """A file open for reading, unpacked."""
    return cast(IO[bytes], gzip.open(path)) if is_packed(path) else path.open("rb")


def pointing_link(path: Path) -> str | None:
    """In words, a link whose content lies elsewhere and was not fetched; None if `path` is no such link."""
    if path.is_symlink() and "annex/objects/" in str(path.readlink()) and not path.exists():
        return f"a git-annex link ({POINTER}: git annex get)"
    return None
