"""Which layout a folder or file has, told by what it holds: for `--data`, where nobody has named `data.source`."""

import os
import re
import shlex
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data.class_names import says
from data.errors import UserError, withholding
from data.known_layouts import OWN, known_data_set
from data.sex_and_age import plain_name
from data.sources import csv_columns
from data.sources.folder import says_normal, split_of
from data.sources.found_images import find_images
from data.stand_ins import ENOUGH, stand_in

TABLES = (".csv", ".csv.gz", ".tsv")
SHEETS = (".xlsx", ".xls", ".ods")
DEEPEST = 6  # folders that hold one folder and nothing else, as an archive unpacks
LOOKED_AT = 2000  # names below `files/`, to see of what kind the images are
NAMED = 4  # candidates or folders that a line names


class Detected(NamedTuple):
    """How a data set is to be read, and why."""

    settings: dict[str, str]  # of the section data: source, root, table
    saw: str  # in words, for a line

    @property
    def source(self) -> str:
        return self.settings["source"]


def detect(place: str | Path, labels: bool, classes: bool = False) -> Detected:
    """The layout of what lies there. labels: whether they are needed; for pretraining any images will do.

    classes: the user has said which class folders are normal, so folders are classes.

    Raises UserError, one line, if there is no data set, or if there may be several: it names them and the setting to
    give.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(f"--data: {place}: found no such file or folder, expected your images")
    if path.is_file():
        return _of_file(path)
    folder = _unwrapped(path)
    found = _candidates(folder, labels, classes)
    if len(found) > 1:
        ways = "; ".join(f"{_as_typed(each)} ({each.saw})" for each in found[:NAMED])
        raise UserError(f"--data: {folder}: found what may be read in several ways, expected one; give {ways}")
    return found[0]


def named(place: str | Path, source: str) -> Detected:
    """The data there, read in the layout that the user has named."""
    path = Path(place)
    settings = {"source": source, "root": str(place)}
    if source == "table" and path.is_file():
        settings |= {"root": str(path.parent), "table": path.name}
    return Detected(settings, f"{place}, read as data.source says")


def _as_typed(found: Detected) -> str:
    """What to type to have it read in this way."""
    place = str(Path(found.settings["root"], found.settings.get("table", "")))
    if found.source in ("table", "medmnist"):  # a file says enough
        return f"--data {shlex.quote(place)}"
    return f"--data {shlex.quote(place)} data.source={found.source}"


# ---------------------------------------------------------------- a file


def _of_file(path: Path) -> Detected:
    name = path.name.lower()
    if name.endswith(TABLES):
        return _of_table(path)
    if name.endswith(SHEETS):
        raise UserError(f"--data: {path}: found a spreadsheet, expected a CSV; save it as CSV in UTF-8")
    if name.endswith((".yaml", ".yml")):
        raise UserError(
            f"--data: {path}: found a config, expected images; give it as --config {shlex.quote(str(path))}"
        )

    if zipfile.is_zipfile(path):
        if "train_images" in _arrays(path):
            return Detected({"source": "medmnist", "root": str(path)}, "an archive of arrays with splits, as MedMNIST")
        if name.endswith(".npz"):
            raise UserError(
                f"--data: {path}: found arrays {', '.join(_arrays(path)[:NAMED])}, expected train_images, train_labels "
                "and the like, as MedMNIST has them"
            )
        raise UserError(
            f"--data: {path}: found a ZIP archive, expected a folder or .npz; unpack it and give its folder"
        )
    found = stand_in(_start(path)) or "one file"
    raise UserError(f"--data: {path}: found {found}, expected a folder of images, a CSV or a MedMNIST .npz")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(ENOUGH)


def _arrays(path: Path) -> list[str]:
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())
    return []


def _of_table(path: Path) -> Detected:
    """A table. Its reader says if a needed column is missing, and which one may be meant."""
    header = _header(path)
    settings = {"source": "table", "root": str(path.parent), "table": path.name}
    return Detected(settings, f"{path.name} with columns {', '.join(header[:8]) or 'that cannot be read'}")


def _header(path: Path) -> list[str]:
    """A table's columns; none if it cannot be read, as whoever reads it whole refuses it."""
    with suppress(UserError):
        return csv_columns(path)
    return []


def _lists_images(path: Path) -> bool:
    """Whether a table has paths of images and their labels."""
    return {"path", "label"} <= {plain_name(name) for name in _header(path)}


# ---------------------------------------------------------------- a folder


def _unwrapped(folder: Path) -> Path:
    """The folder; if all it holds is one folder, then that one, unless its name says that it is a class or a split."""
    for _ in range(DEEPEST):
        names = _visible(folder)
        if len(names) != 1 or not (folder / names[0]).is_dir():
            break
        if names[0] == "files" or split_of(names[0]) or says_normal(names[0]):
            break
        folder = folder / names[0]
    return folder


def _visible(folder: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise UserError(
            f"--data: {folder}: found {(error.strerror or str(error)).lower()}, expected a folder"
        ) from None
    return [name for name in names if not name.startswith((".", "__MACOSX")) and name != "Thumbs.db"]


def _candidates(folder: Path, labels: bool, classes: bool) -> list[Detected]:
    """What the folder may be read as; UserError if there is nothing. A known data set is the only candidate."""
    names = _visible(folder)
    known = _known(folder, names)
    if known is not None:
        return [known]

    # tables that list the images; manifest.csv is preferred
    tables = [name for name in names if name.lower().endswith(TABLES)]
    lists = [name for name in tables if _lists_images(folder / name)]
    if "manifest.csv" in lists:
        lists = ["manifest.csv"]
    of_tables = [_of_table(folder / name) for name in lists]

    archives = [name for name in names if name.lower().endswith(".npz") and "train_images" in _arrays(folder / name)]
    of_archives = [
        Detected({"source": "medmnist", "root": str(folder / name)}, f"{name} has arrays as MedMNIST")
        for name in archives
    ]
    of_images = _of_images(folder, labels and not of_tables and not of_archives, classes, tables)
    if of_tables or of_archives:
        if len(of_tables) == 1 and not of_archives:  # it says of each image what it is
            return of_tables
        return [*of_tables, *of_archives, *of_images]
    if not of_images:
        raise UserError(_nothing(folder, names, tables))
    return of_images


def _known(folder: Path, names: list[str]) -> Detected | None:
    """A public data set by the names of its tables."""
    root = {"root": str(folder)}
    if OWN in names:
        return Detected({"source": "phantom"} | root, f"{OWN}, so synthetic radiographs drawn here")
    text = "\n".join(names)
    if "files" in names and re.search(r"^mimic-cxr-[\d.]+-metadata\.csv|^cxr-record-list\.csv", text, re.M):
        source = "mimic-cxr-dicom" if _holds(folder / "files", ".dcm") else "mimic-cxr-jpg"
        return Detected({"source": source} | root, "files/ and MIMIC-CXR's tables")
    if any(name.startswith("CheXpert-v1.0") and (folder / name).is_dir() for name in names):
        return Detected({"source": "chexpert"} | root, "a folder CheXpert-v1.0…")
    if {"train.csv", "valid.csv"} & {*names} and "No Finding" in _header(folder / "train.csv"):
        return Detected({"source": "chexpert"} | root, "train.csv with CheXpert's findings")
    entries = [name for name in names if re.fullmatch(r"Data_Entry_2017.*\.csv", name) and (folder / name).is_file()]
    if entries and "Finding Labels" in _header(folder / max(entries)):
        return Detected({"source": "nih-cxr14"} | root, f"{max(entries)} of NIH ChestX-ray14")
    return None


def _holds(folder: Path, ending: str) -> bool:
    """Whether the first images below a folder have that ending."""
    looked = 0
    for _, _, files in os.walk(folder):
        for name in files:
            looked += 1
            if name.lower().endswith((".dcm", ".jpg", ".jpeg", ".png")):
                return name.lower().endswith(ending)
            if looked > LOOKED_AT:
                return False
    return False


def _of_images(folder: Path, labels: bool, classes: bool, tables: list[str]) -> list[Detected]:
    """Class folders, or images without labels. UserError if labels are needed and it is not known where they are."""
    known = known_data_set(folder)
    with withholding(known is not None):
        found = find_images(folder)
    if not found.images:
        return []
    names = _classes(found.images)
    count = f"{len(found.images):,} images"
    shown = f"{len(names)} folders"
    if known is None:  # the folders of a known one are patients
        shown = f"folders {', '.join(names[:NAMED])}" + (", …" if len(names) > NAMED else "")

    if len(names) > 1 and (classes or any(says(name) not in ("other", "unknown") for name in names)):
        return [Detected({"source": "folder", "root": str(folder)}, f"{count} in class {shown}")]
    alone = f"mae-pretrain --data {shlex.quote(str(folder))}"
    if labels and tables:
        header = ", ".join(_header(folder / tables[0])[:12]) or "nothing"
        raise UserError(
            f"--data: {folder}: found {count} and {tables[0]} with columns {header}, expected path and label; give "
            f"--data {shlex.quote(str(folder / tables[0]))}, or pretrain on the images alone: {alone}"
        )
    if labels and len(names) > 1:
        raise UserError(
            f"--data: {folder}: found {count} in {shown}, none of which says that it is normal, expected class "
            f"folders; give 'data.normal=[NAME]', or pretrain on them without labels: {alone}"
        )
    return [Detected({"source": "images", "root": str(folder)}, f"{count}, whose folders say nothing")]


def _classes(images: list[str]) -> list[str]:
    """The names of the folders that would be classes: the outermost ones, below split folders where there are any."""
    parts = [image.split("/") for image in images]
    if any(len(each) > 1 and split_of(each[0]) for each in parts):
        parts = [each[1:] for each in parts if split_of(each[0])]
    return sorted({each[0] for each in parts if len(each) > 1})


def _nothing(folder: Path, names: list[str], tables: list[str]) -> str:
    """The message for a folder without a data set."""
    if not names:
        return f"--data: {folder}: found an empty folder, expected images (JPEG, PNG or DICOM), a CSV or an .npz"
    if tables:
        header = ", ".join(_header(folder / tables[0])[:12]) or "nothing"
        found = f"{tables[0]} with columns {header} and no images"
        return f"--data: {folder}: found {found}, expected images, or a table with path and label"
    packed = [name for name in names if name.lower().endswith((".zip", ".tar", ".gz", ".7z", ".rar"))]
    if packed:
        return f"--data: {folder}: found {packed[0]} and no images, expected images; unpack it"
    shown = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return f"--data: {folder}: found no images ({shown}), expected JPEG, PNG or DICOM files, a CSV or a MedMNIST .npz"
