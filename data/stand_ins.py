"""What may lie in the place of a file: a server's error page, a pointer, an unfinished download. Told by its bytes."""

import re
from pathlib import Path

ENOUGH = 1024  # bytes from a file's start that tell what it is
UNFINISHED = "a download that failed, or needs a login"
POINTER = "its content is not fetched"
GZIP = "a gzip archive"
MARKS = {  # how a file begins, blanks and a byte order mark aside → what it is
    rb"<!doctype html|<html|<head|<body": f"an HTML page ({UNFINISHED})",
    rb"<\?xml|<error|<svg": f"an XML page ({UNFINISHED})",
    rb"[\[{]\s*([\"{\[\]}]|-?\d)": f"JSON ({UNFINISHED})",
    rb"version https?://(git-lfs|hawser)\b": f"a git-lfs pointer ({POINTER}: git lfs pull)",
    rb"(\S*/)?annex/objects/": f"a git-annex pointer ({POINTER}: git annex get)",
    rb"(outs|md5):[ \r\n]": f"a DVC pointer ({POINTER}: dvc pull)",
    rb"HTTP/\d": f"the answer of a web server ({UNFINISHED})",
    rb"PK\x03\x04": "a ZIP archive (or a spreadsheet)",
    rb"\x1f\x8b": GZIP,
    rb"%PDF": "a PDF",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a spreadsheet or document of Office",
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
        if re.match(mark, text, re.IGNORECASE):
            return name
    return None


def pointing_link(path: Path) -> str | None:
    """In words, a link whose content lies elsewhere and was not fetched; None if `path` is no such link."""
    if path.is_symlink() and "annex/objects/" in str(path.readlink()) and not path.exists():
        return f"a git-annex link ({POINTER}: git annex get)"
    return None
