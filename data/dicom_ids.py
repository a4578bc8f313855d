"""Patient and study of a DICOM file: its PatientID and StudyInstanceUID as salted hashes, which identify nobody.

Where no column names patients, these keep a patient's images in one split. Only headers are read. The ids themselves
are stored nowhere, and appear in no message.
"""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.filereader import read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian
from tqdm import tqdm

from data.config import expand
from data.errors import UserError, as_withheld_here, quoted
from data.images import quiet
from data.privacy import keep_salt, salt_of
from data.refusal import may_pass, trouble
from data.settings import DataSettings
from data.writing import writing

READ_FROM = ("images", "folder", "table")  # sources whose files may come from anywhere
PATIENT, STUDY = 0x00100020, 0x0020000D
KINDS = ("patient", "study")
TEXTS = {"patient": "PatientID", "study": "StudyInstanceUID"}
FIELDS = [("patient", "S17"), ("study", "S17")]
OTHER_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff"}
BEGINNING = 4096  # bytes in which a file says how it is written
LONGEST = 64  # characters of an id
THREADS = 16  # a network file system answers many questions at once
CHUNK = 64  # files a thread reads at a time
# what stands in the place of a removed id, by its letters and digits alone
NOBODY = re.compile(
    r"[x0]*|na|none|null|nil|unknown|unkn?|anon\w*|deidentified|removed|redacted|deleted|blank|empty|noname|noid"
    r"|patient|patientid|id|test|dummy|default|phantom"
)


@dataclass(frozen=True, eq=False)
class Headers:
    """What the headers of one source's DICOM files say: hashes of patients and studies, "" where they say nothing."""

    key: str  # a hash of the root and the paths asked for
    salt: bytes
    ids: np.ndarray  # (n) of FIELDS, in the order asked
    recalled: bool = False

    def remember(self, folder: Path) -> None:
        """Keep this in `folder` for later commands: reading all headers takes long."""
        if self.recalled:
            return
        keep_salt(_home(folder), self.salt)
        with writing(_home(folder) / f"{self.key}.npy", shared=True) as file:
            np.save(file, self.ids)


def _home(stores: Path) -> Path:
    return stores / "dicom-ids"


def with_dicom_ids(
    table: pd.DataFrame, settings: DataSettings, root: Path, look_again: bool
) -> tuple[pd.DataFrame, list[str], Headers | None]:
    """The table of one source, with patients and studies from its DICOM files if it names no patient; and notes.

    They are taken from the last `prepare`, unless `look_again`. If more than half of the files have the same id, no id
    of that kind is used. A placeholder that anonymised files have instead of an id names nobody.
    """
    wanted = settings.dicom_ids and settings.source in READ_FROM and table["patient_id"].isna().all()
    paths = table["path"].tolist()
    if not wanted or not any(_may_be_dicom(path) for path in paths):
        return table, [], None
    headers = _headers(settings, root, paths, look_again)
    if headers is None:
        return table, ["patients of DICOM headers are not used: there is no place to keep a secret"], None

    notes = []
    files = sum(map(_may_be_dicom, paths))
    for kind in KINDS:
        column = f"{kind}_id"
        ids = pd.Series(headers.ids[kind].astype(str), table.index, dtype=object)
        named = ids != ""
        if not named.any() or not table[column].isna().all():
            continue

        # if a set was anonymised with one id for all, no two files are known to be of one patient
        most = int(ids[named].value_counts().iloc[0])
        if most > 1 and most > files / 2:
            notes.append(f"{TEXTS[kind]} of DICOM headers is not used: {most:,} of {files:,} files have the same")
            continue
        table = table.assign(**{column: ids.where(named, np.nan)})
        others = len(ids) - int(named.sum())
        without = f"; {others:,} images without" if others else ""
        notes.append(f"{ids[named].nunique():,} {_plural(kind)} by {TEXTS[kind]} of DICOM headers, hashed{without}")
    return table, notes, headers


def _plural(kind: str) -> str:
    return "patients" if kind == "patient" else "studies"


def _headers(settings: DataSettings, root: Path, paths: list[str], look_again: bool) -> Headers | None:
    """As remembered, else read from the files; None if no secret can be kept, as hashes would differ each time."""
    stores = None
    if settings.store is not False:
        stores = Path(expand(settings.store, "data.store"))
    asked = "\n".join([str(root.resolve()), *paths])
    key = hashlib.sha256(asked.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    salt = salt_of(_home(stores) if stores else None)
    if salt is None:
        return None

    if stores is not None and not look_again:
        ids = _recall(_home(stores) / f"{key}.npy", len(paths))
        if ids is not None:
            return Headers(key, salt, ids, recalled=True)
    return Headers(key, salt, read_ids(paths, salt))


def _recall(path: Path, count: int) -> np.ndarray | None:
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing or damaged: the files are read instead
        return None
    return ids if ids.dtype == FIELDS and ids.shape == (count,) else None


# ---------------------------------------------------------------- reading


def read_ids(paths: Sequence[str], salt: bytes) -> np.ndarray:
    """(n) of FIELDS: the hashes of each file's patient and study; "" where it is no DICOM or names none."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    found: list[tuple[str, str]] = []
    bar = tqdm(total=len(paths), desc="DICOM headers", unit="file", disable=None, delay=2)
    with quiet(), bar, ThreadPoolExecutor(THREADS) as pool:
        for ids in pool.map(as_withheld_here(_read_here), chunks):
            found += ids
            bar.update(len(ids))
    hashes = [(_hashed(patient, "patient", salt), _hashed(study, "study", salt)) for patient, study in found]
    return np.array(hashes, FIELDS)


def _read_here(paths: Sequence[str]) -> list[tuple[str, str]]:
    return [_ids_of(path) for path in paths]


def _may_be_dicom(path: str) -> bool:
    return ".npz#" not in path and Path(path).suffix.lower() not in OTHER_ENDINGS


def _ids_of(path: str) -> tuple[str, str]:
    """PatientID and StudyInstanceUID as the file has them; "" if it is damaged, which its reader will report."""
    if not _may_be_dicom(path):
        return "", ""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (for hundreds of thousands of files)
            start = file.read(BEGINNING)
            is_dicom = start[128:132] == b"DICM" or start[:2] in (b"\x08\x00", b"\x02\x00")
            if not is_dicom or DeflatedExplicitVRLittleEndian.encode() in start:  # inflated whole, whatever its size
                return "", ""
            file.seek(0)
            dataset = read_partial(file, _behind_ids, force=True, specific_tags=[PATIENT, STUDY])
        return _text(dataset, PATIENT), _text(dataset, STUDY)
    except Exception as error:
        if isinstance(error, OSError | MemoryError) and may_pass(error):
            place = quoted(path, "a DICOM file")
            raise UserError(f"{place}: found {trouble(error)}, expected to read whose it is; run again") from None
        return "", ""


def _behind_ids(tag: int, vr: str | None, length: int) -> bool:
    return tag > STUDY


def _text(dataset: object, tag: int) -> str:
    with suppress(Exception):  # an element that cannot be converted names nobody
        return str(dataset[tag].value or "").strip("\0 ")  # type: ignore[index]
    return ""


def _hashed(text: str, kind: str, salt: bytes) -> str:
    plain = re.sub(r"[\W_]", "", text.casefold())
    if len(text) > LONGEST or NOBODY.fullmatch(plain):
        return ""
    digest = hashlib.blake2b(f"{kind}\n{text}".encode("utf-8", "surrogateescape"), key=salt, digest_size=8)
    return f"{kind[0]}{digest.hexdigest()}"
