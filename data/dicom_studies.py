"""Which DICOM files are of one study, without anything that tells whose: a hash of their StudyInstanceUID."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

from data.images import quiet
from data.privacy import secret_key

STUDY = 0x0020000D  # StudyInstanceUID
DIGITS = 16
LONGEST = 64  # characters of a UID


def study_hash(path: Path) -> str:
    """16 hexadecimal digits of a DICOM file's study, by this account's secret; empty where the file names none.

    The UID itself leads to the patient for whoever can ask the hospital's archive. The secret stays here, so the same
    study gets other digits on other machines.
    """
    try:
        uid = _study_uid(path)
    except Exception:  # whatever is wrong with the file, its reader says
        return ""
    if not uid:
        return ""
    return hmac.new(secret_key(), uid.encode(), hashlib.sha256).hexdigest()[:DIGITS]


def _study_uid(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(132)
        if start[128:132] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00"):
            return ""

        import pydicom  # loaded where a DICOM is met

        file.seek(0)
        with quiet():
            # no further than to the study: pixels come later in the file
            dataset = pydicom.dcmread(file, force=True, specific_tags=[STUDY], stop_before_pixels=True)
            element: Any = dataset.get(STUDY)
    uid = str(element.value) if element is not None and element.value else ""
    return uid if len(uid) <= LONGEST else ""
