"""What somebody wants an answer for (files, folders, tables of paths) → images read as a store's are, a few at a time.

A store knows its images beforehand and is kept. Here files come from anywhere, are read once, in the order in which
they were named, and one that cannot be read costs no other.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from data.config import SHIPPED, shipped_data
from data.errors import UserError
from data.image_files import read_some
from data.settings import DataSettings, height_and_width
from data.sex_and_age import find_column
from data.sources import csv_columns, read_csv
from data.sources.found_images import find_images
from data.store import Postponed
from data.workers import FEW, Killed, ThisProcess, run_one_by_one, start_processes, usable_cores

BATCH = 16  # images that are read together, by one process
TABLES = (".csv", ".csv.gz")
# plain names (data/sex_and_age.py) of a table's columns, the first that is there counts
PATH_NAMES = (
    *("path", "filepath", "file", "filename", "image", "imagepath", "imagefile", "imagefilename", "img", "imgpath"),
    *("imageindex", "dicom", "dicompath", "dicomfile"),
)
STUDY_NAMES = ("studyid", "study", "studyinstanceuid", "studyuid")
PATIENT_NAMES = ("patientid", "subjectid", "patient")


@dataclass(frozen=True)
class Input:
    """One image that is asked about."""

    path: Path
    shown: str  # the path as its owner wrote it
    study_id: str = ""  # as its table says; empty where nobody knows
    patient_id: str = ""
    refused: str = ""  # why it cannot even be looked for


class Images(NamedTuple):
    """Some inputs' images, in their order."""

    numbers: list[int]  # of the inputs
    images: np.ndarray  # uint8 (b 1 h w); black where there is none
    reasons: list[str | None]  # why there is none, without the path


# ---------------------------------------------------------------- which


def find_inputs(paths: Iterable[str | Path], say: Callable[[str], object] = print) -> list[Input]:
    """The images that files, folders (at any depth) and CSVs of paths name, in their order, each as often as named.

    `say` gets a line about files of folders that are passed over. UserError where a path leads nowhere, where a table
    has no paths, and where there is no image at all.
    """
    words = [str(path) for path in paths]
    inputs: list[Input] = []
    for word in words:
        inputs += _inputs_of(word, say)
    if not inputs:
        raise UserError(f"{', '.join(words) or 'inputs'}: found no image, expected JPEG, PNG or DICOM files")
    return inputs


def _inputs_of(word: str, say: Callable[[str], object]) -> list[Input]:
    place = shipped_data(word, "inputs") if word.startswith(SHIPPED) else Path(word)
    if place.is_dir():
        found = find_images(place)
        for note in found.notes():
            say(f"{word}: {note}")
        return [Input(place / name, str(Path(word) / name)) for name in found.images]
    if not place.exists():
        raise UserError(f"{word}: found no such file or folder, expected images, a folder of them or a CSV of paths")
    if place.name.lower().endswith(TABLES):
        return _listed(place)
    return [Input(place, word)]


def _listed(table: Path) -> list[Input]:
    """The rows of a CSV of paths."""
    header = csv_columns(table)
    column = find_column(header, PATH_NAMES)
    if column is None:
        raise UserError(f"{table}: found columns {', '.join(header[:20])}, expected one called path")
    study = find_column(header, STUDY_NAMES)
    patient = find_column(header, PATIENT_NAMES)
    rows = read_csv(table, [column], optional=[name for name in (study, patient) if name]).fillna("")

    inputs = []
    for number, shown in enumerate(rows[column]):
        inputs.append(
            Input(
                path=_beside(table, shown),
                shown=shown,
                study_id=rows[study].iloc[number] if study else "",
                patient_id=rows[patient].iloc[number] if patient else "",
                refused="" if shown else "found no path in this row, expected one",
            )
        )
    return inputs


def _beside(table: Path, written: str) -> Path:
    """A path of a table: relative to the table's folder, else to the working folder."""
    here = Path(written)
    beside = table.parent / here
    if not beside.exists() and here.exists():
        return here
    return beside


# ---------------------------------------------------------------- read


def read_inputs(inputs: Sequence[Input], settings: DataSettings, workers: int = 0) -> Generator[Images]:
    """Images of the settings' size, resize and tone, a few at a time and in order; memory does not grow with inputs.

    A file that cannot be read has a reason instead; so has one whose process is killed each time. Passing trouble of
    the system is tried once more first. workers: processes; 0 takes one for each core, a few files take none.
    """
    numbers = range(len(inputs))
    parts = [list(numbers[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
    workers = min(workers or usable_cores(), len(parts))
    ahead: deque[_Asked] = deque()
    with TemporaryDirectory(prefix="mae-") as scratch:
        reader = _Reader(inputs, settings, Path(scratch), 1 if len(inputs) <= FEW else workers)
        try:
            for part in parts:
                ahead.append(reader.ask(part))
                if len(ahead) > 2 * workers:
                    yield reader.collect(ahead.popleft())
            while ahead:
                yield reader.collect(ahead.popleft())
        finally:  # nobody may want the rest
            reader.close()


class _Asked(NamedTuple):
    numbers: list[int]
    place: Path  # of the array that is filled
    pool: Executor
    job: Future[list[str | None]] | None  # None: it could not be given to the pool


class _Reader:
    """Has processes fill arrays with some inputs' images: through a pipe a killed one would leave half an image."""

    def __init__(self, inputs: Sequence[Input], settings: DataSettings, scratch: Path, workers: int):
        self.inputs = inputs
        self.how = (settings.image_size, settings.resize, settings.tone)
        self.scratch = scratch
        self.workers = workers
        self.names = count()
        self.killed = 0  # processes in a row
        self.pool: Executor | None = None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def ask(self, numbers: list[int]) -> _Asked:
        if self.pool is None:
            self.pool = ThisProcess() if self.workers <= 1 else start_processes(self.workers)
        pool = self.pool
        place = self._array(len(numbers))
        job = None
        try:
            job = pool.submit(read_some, str(place), 0, self._paths(numbers), *self.how)
        except (BrokenProcessPool, OSError):  # one was killed already, or one more cannot be started
            self._let_go(pool)
        return _Asked(numbers, place, pool, job)

    def collect(self, asked: _Asked) -> Images:
        """What was asked for, once more where a process was killed, or the system would not read a file just now."""
        reasons: list[str | None]
        try:
            if asked.job is None:
                raise BrokenProcessPool
            reasons = asked.job.result()
            images = np.load(asked.place)
        except BrokenProcessPool:
            self._let_go(asked.pool)
            images = np.zeros((len(asked.numbers), *height_and_width(self.how[0])), np.uint8)
            reasons = [Postponed("")] * len(asked.numbers)
        finally:
            asked.place.unlink(missing_ok=True)

        waiting = [place for place, reason in enumerate(reasons) if isinstance(reason, Postponed)]
        for place in waiting:
            images[place], reasons[place] = self._alone(asked.numbers[place])
        return self._as_images(asked.numbers, images, reasons)

    def _as_images(self, numbers: list[int], images: np.ndarray, reasons: list[str | None]) -> Images:
        said = []
        for place, (number, reason) in enumerate(zip(numbers, reasons, strict=True)):
            asked = self.inputs[number]
            if asked.refused:
                reason = asked.refused
            if reason is not None:
                images[place] = 0
                reason = reason.removeprefix(f"{asked.path}: ")
            said.append(reason)
        return Images(numbers, images[:, None], said)

    def _alone(self, number: int) -> tuple[np.ndarray, str | None]:
        """One image, read by a process that does nothing else meanwhile."""
        place = self._array(1)
        job = (str(place), 0, self._paths([number]), *self.how)
        try:
            [[reason]] = run_one_by_one(read_some, [job])
            self.killed = 0
            return np.load(place)[0], reason
        except Killed as killed:
            self.killed += 1
            if self.killed > BATCH:  # it is not the files
                raise killed
            black = np.zeros(height_and_width(self.how[0]), np.uint8)
            return black, "found the process that reads it killed each time, expected it to live (out of memory?)"
        finally:
            place.unlink(missing_ok=True)

    def _paths(self, numbers: list[int]) -> list[str]:
        return [str(self.inputs[number].path) for number in numbers]

    def _array(self, length: int) -> Path:
        place = self.scratch / f"{next(self.names)}.npy"
        shape = (length, *height_and_width(self.how[0]))
        np.lib.format.open_memmap(place, "w+", np.uint8, shape).flush()
        return place

    def _let_go(self, pool: Executor) -> None:
        """Of a broken pool, unless a new one took its place already."""
        if self.pool is pool:
            pool.shutdown(wait=False)
            self.pool = None
