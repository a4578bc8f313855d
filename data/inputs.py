"""Files, folders and tables of paths that the user names → images read as a store's are, a few at a time.

A store knows its images beforehand and is kept. Here files come from anywhere and are read once, in the order in which
they were named. One that cannot be read costs no other.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.config import SHIPPED, as_typed, shipped_data
from data.dicom_ids import read_ids
from data.environment import usable_cores
from data.errors import UserError, printable
from data.image_files import read_some
from data.images import fit_pixels
from data.known_layouts import TABLES
from data.privacy import salt_of
from data.refusal import UnreadableImage, without_path
from data.settings import DataSettings, height_and_width
from data.sex_and_age import find_column
from data.sources import csv_columns, read_csv
from data.sources.columns import suggested
from data.sources.found_images import ENDINGS, find_images
from data.store import Postponed, make_array
from data.workers import FEW, Killed, ThisProcess, run_one_by_one, start_processes

BATCH = 16  # images that are read together, by one process
OTHER_TABLES = (".xlsx", ".xls", ".ods", ".parquet", ".json")
# plain names (data/sex_and_age.py) of a table's columns; the first one that exists counts
STUDY_NAMES = ("studyid", "study", "studyinstanceuid", "studyuid")
PATIENT_NAMES = ("patientid", "subjectid", "patient")


@dataclass(frozen=True)
class Input:
    """One image that the user asks about."""

    path: Path
    shown: str  # the path as its owner wrote it
    study_id: str = ""  # as its table says, or a hash of what its DICOM says; empty if unknown
    patient_id: str = ""  # as its table says: studies are a patient's
    refused: str = ""  # why there is nothing to read
    pixels: Any = None  # of an image that lies in memory


class Images(NamedTuple):
    """Some inputs' images, in their order."""

    numbers: list[int]  # of the inputs
    images: np.ndarray  # uint8 (b 1 h w); black where there is none
    reasons: list[str | None]  # why there is none, without the path


# ---------------------------------------------------------------- which


def find_inputs(paths: Iterable[str | Path], say: Callable[[str], object] = print) -> list[Input]:
    """The images named by files, folders (at any depth) and CSVs of paths, in their order, each as often as named.

    `say` gets a line about files in folders that are passed over. UserError if a path leads nowhere, if a table has no
    paths, or if there is no image at all.
    """
    words = [str(path) for path in paths]
    inputs: list[Input] = []
    for word in words:
        inputs += _inputs_of(word, say)
    if not inputs:
        shown = ", ".join(printable(word) for word in words[:3]) or "inputs"
        raise UserError(f"{shown}: found no image, expected JPEG, PNG or DICOM files")
    return inputs


def as_inputs(images: Any, say: Callable[[str], object] = print) -> list[Input]:
    """The same for whatever a notebook has: paths, arrays and Pillow's pictures, one of them or several.

    An array (n h w) is n images. UserError for anything else.
    """
    if isinstance(images, str | Path):
        return find_inputs([images], say)
    if _is_one_image(images):
        images = [images]
    if isinstance(images, bytes | Mapping) or hasattr(images, "columns"):  # of which one would take the names
        raise _no_input(images, "; of a table, give the column of its paths")

    inputs: list[Input] = []
    try:
        each_one = list(images)
    except TypeError:
        raise _no_input(images) from None
    for each in each_one:
        if isinstance(each, str | Path):
            inputs += _inputs_of(str(each), say)
        elif hasattr(each, "__array__") or isinstance(each, Image.Image):
            inputs.append(Input(Path(), f"image {len(inputs)}", pixels=each))
        else:
            raise _no_input(each)
    if not inputs:
        raise UserError("inputs: found no image, expected paths, arrays or pictures")
    return inputs


def _is_one_image(images: Any) -> bool:
    """Whether it is a picture, an array (h w), or one (h w 3) of colours."""
    if isinstance(images, Image.Image):
        return True
    shape = getattr(images, "shape", None)
    if shape is None or not hasattr(images, "dtype"):
        return False
    if images.dtype == object or str(images.dtype).startswith("str"):  # paths in a column of a table
        return False
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))


def _no_input(found: Any, advice: str = "") -> UserError:
    return UserError(
        f"inputs: found {type(found).__name__}, expected paths, arrays of uint8 or uint16 (h w), or Pillow's pictures"
        f"{advice}"
    )


def _inputs_of(word: str, say: Callable[[str], object]) -> list[Input]:
    place = shipped_data(word, "inputs") if word.startswith(SHIPPED) else Path(word)
    if place.is_dir():
        found = find_images(place)
        for note in found.notes():
            say(f"{printable(word)}: {note}")
        return [Input(place / name, str(Path(word) / name)) for name in found.images]

    if not place.exists():
        return _expanded(word, say)
    name = place.name.lower()
    if name.endswith(TABLES):
        return _listed(place, say)
    if name.endswith(".npz"):
        raise UserError(
            f"{word}: found an archive of arrays, expected files, folders or a CSV; a MedMNIST archive is for "
            f"mae-evaluate RUN data.source=medmnist {as_typed('data.root', word)}"
        )
    if name.endswith(OTHER_TABLES):
        raise UserError(
            f"{word}: found {place.suffix}, expected a CSV for a list of images: a column path, commas, UTF-8"
        )
    return [Input(place, word)]


def _expanded(word: str, say: Callable[[str], object]) -> list[Input]:
    """The word expanded as by a shell: the home folder, the files of a pattern given in quotes. Else a UserError."""
    home = Path(word).expanduser() if word.startswith("~") else Path(word)
    if word.startswith("~") and home.exists():
        return _inputs_of(str(home), say)
    if has_magic(word):
        inputs: list[Input] = []
        for each in sorted(glob(str(home), recursive=True)):  # noqa: PTH207 (patterns may be absolute)
            inputs += _inputs_of(each, say)
        if inputs:
            return inputs
        raise UserError(f"{word}: found no file of this pattern, expected images")

    expected = "expected images, a folder of them or a CSV of paths"
    if word == "-":
        raise UserError(f"{word}: found standard input, {expected}: it is not read from there")
    if re.match(r"[A-Za-z][\w+.-]+://", word):
        raise UserError(f"{word}: found an address, {expected}: fetch it first")
    raise UserError(f"{word}: found no such file or folder, {expected}{_meant(home)}")


def _meant(place: Path) -> str:
    """A name in the same folder that is nearly this one."""
    with suppress(OSError):
        near = get_close_matches(place.name, os.listdir(place.parent), n=1)  # noqa: PTH208 (names alone)
        if near:
            return f"; did you mean {printable(place.with_name(near[0]))}?"
    return ""


def _listed(table: Path, say: Callable[[str], object]) -> list[Input]:
    """The rows of a CSV of paths."""
    header = csv_columns(table)
    column = find_column(header, ["path"]) or suggested(header, "path")
    if column is None:
        raise UserError(
            f"{table}: found columns {', '.join(map(printable, header[:20]))}, expected one called path"
            f"{_column_meant(table, header)}"
        )
    if column != "path":
        say(f"{table}: column {printable(column)} is read as path")
    study = find_column(header, STUDY_NAMES)
    patient = find_column(header, PATIENT_NAMES)
    optional = [name for name in (study, patient) if name]
    rows = read_csv(table, [column], optional=optional).fillna("")
    studies = rows[study] if study else [""] * len(rows)
    patients = rows[patient] if patient else [""] * len(rows)

    inputs = []
    for shown, study_id, patient_id in zip(rows[column], studies, patients, strict=True):
        refused = "" if shown else "found no path in this row, expected one"
        inputs.append(Input(_beside(table, shown), shown, study_id, patient_id, refused))
    return inputs


def _column_meant(table: Path, header: list[str]) -> str:
    """The column whose first cell looks like an image's path; a list without a header begins with such a one."""
    if any(_looks_like_an_image(table, name) for name in header):
        return "; the first line names an image already: put a line with the columns' names above it"
    first = read_csv(table, header).head(1)
    for name in header:
        if len(first) and _looks_like_an_image(table, str(first[name].iloc[0])):
            return f"; is it {printable(name)}? Then call it path"
    return ""


def _looks_like_an_image(table: Path, cell: str) -> bool:
    return Path(cell).suffix.lower() in ENDINGS or (bool(cell) and _beside(table, cell).is_file())


def _beside(table: Path, written: str) -> Path:
    """A path of a table: relative to the table's folder, else to the working folder; Windows' separators too."""
    for spelling in (written, written.replace("\\", "/")):
        path = Path(spelling)
        for place in (table.parent / path, path):
            with suppress(OSError):  # a text that cannot be a path
                if place.exists():
                    return place
    return table.parent / written


def with_studies(inputs: Sequence[Input]) -> list[Input]:
    """The inputs; if no table says the study of one, it gets a hash of the study that its DICOM file names.

    Where no secret can be kept, hashes would differ each time, so there are none.
    """
    salt = salt_of(None)
    unknown = [one for one in inputs if not (one.study_id or one.refused) and one.pixels is None]
    if salt is None or not unknown:
        return list(inputs)
    ids = read_ids([str(one.path) for one in unknown], salt)
    hashes = {one.path: study for one, study in zip(unknown, ids["study"].astype(str).tolist(), strict=True)}
    found = []
    for one in inputs:
        if not one.study_id and one.path in hashes:
            one = replace(one, study_id=hashes[one.path])
        found.append(one)
    return found


# ---------------------------------------------------------------- read


def read_inputs(inputs: Sequence[Input], settings: DataSettings, workers: int = 0) -> Generator[Images]:
    """Images of the settings' size, resize and tone, a few at a time and in order; memory does not grow with inputs.

    A file that cannot be read has a reason instead; so has one whose process is killed each time. After trouble of the
    system that may pass, a file is first tried once more. workers: processes; 0 takes one for each core, and a few
    files take none.
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
        finally:  # perhaps nobody wants the rest
            reader.close()


class _Asked(NamedTuple):
    numbers: list[int]  # of some inputs
    files: list[int]  # of those among them that a process reads
    place: Path  # of the array that it fills
    pool: Executor
    job: Future[list[str | None]] | None  # None: the pool was broken already


class _Reader:
    """Has processes write images into array files: through a pipe, a killed process would leave half an image."""

    def __init__(self, inputs: Sequence[Input], settings: DataSettings, scratch: Path, workers: int):
        self.inputs = inputs
        self.how = (settings.image_size, settings.resize, settings.tone)
        self.shape = height_and_width(settings.image_size)
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
        files = [number for number in numbers if self._is_file(number)]
        place = self._array(len(files))
        job = None
        try:
            job = pool.submit(read_some, str(place), 0, self._paths(files), *self.how)
        except (BrokenProcessPool, OSError):  # one was killed already, or one more cannot be started
            self._let_go(pool)
        return _Asked(numbers, files, place, pool, job)

    def collect(self, asked: _Asked) -> Images:
        """The images that were asked for, from files and from memory, in their order."""
        read: dict[int, tuple[np.ndarray, str | None]] = {}
        for number, image, reason in zip(asked.files, *self._read(asked), strict=True):
            if isinstance(reason, Postponed):
                image, reason = self._read_alone(number)
            read[number] = (image, reason)

        images = np.zeros((len(asked.numbers), 1, *self.shape), np.uint8)
        reasons: list[str | None] = []
        for place, number in enumerate(asked.numbers):
            image, reason = read.get(number) or self._of_memory(self.inputs[number])
            if reason is None:
                images[place, 0] = image
            else:
                reason = without_path(reason, self.inputs[number].path)
            reasons.append(reason)
        return Images(asked.numbers, images, reasons)

    def _read(self, asked: _Asked) -> tuple[np.ndarray, list[str | None]]:
        """Images of the files; all postponed where the process was killed."""
        try:
            if asked.job is None:
                raise BrokenProcessPool
            reasons = asked.job.result()
            return np.load(asked.place)[: len(reasons)], reasons
        except BrokenProcessPool:
            self._let_go(asked.pool)
            black = np.zeros((len(asked.files), *self.shape), np.uint8)
            return black, [Postponed("found its process killed")] * len(asked.files)
        finally:
            asked.place.unlink(missing_ok=True)

    def _read_alone(self, number: int) -> tuple[np.ndarray, str | None]:
        """An image, read by a process that does nothing else meanwhile."""
        place = self._array(1)
        try:
            [[reason]] = run_one_by_one(read_some, [(str(place), 0, self._paths([number]), *self.how)])
        except Killed:
            self.killed += 1
            if self.killed > BATCH:  # the files are not the cause
                raise
            return np.load(place)[0], "found the process that reads it killed (out of memory?), expected it to live"
        else:
            self.killed = 0
            return np.load(place)[0], reason
        finally:
            place.unlink(missing_ok=True)

    def _of_memory(self, one: Input) -> tuple[np.ndarray, str | None]:
        """An image that no process reads, or why there is none."""
        black = np.zeros(self.shape, np.uint8)
        if one.refused:
            return black, one.refused
        size, resize, _ = self.how
        try:
            return fit_pixels(one.pixels, size, resize), None
        except UnreadableImage as reason:
            return black, str(reason)

    def _is_file(self, number: int) -> bool:
        one = self.inputs[number]
        return not one.refused and one.pixels is None

    def _paths(self, numbers: list[int]) -> list[str]:
        return [str(self.inputs[number].path) for number in numbers]

    def _array(self, length: int) -> Path:
        place = self.scratch / f"{next(self.names)}.npy"
        make_array(place, (max(length, 1), *self.shape))
        return place

    def _let_go(self, pool: Executor) -> None:
        """Shut down a broken pool, unless a new one took its place already."""
        if self.pool is pool:
            pool.shutdown(wait=False)
            self.pool = None
