"""Folders as careless or unlucky users have them: each with what `--data` should do with it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from public_trees import build_chexpert_tree, build_mimic_dicom_tree, build_nih_tree, write_dicom
from tiny_world import radiograph

TRAINS = ""  # instead of a message


class OddFolder(NamedTuple):
    make: Callable[[Path], None]  # below an empty folder
    pretrain: str  # a part of the line that refuses it, or TRAINS
    compare: str
    inner: str = ""  # what is given to --data, below the folder


def save(path: Path, abnormal: bool = False, side: int | tuple[int, int] = 20, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, len(path.name), sum(path.name.encode())])
    image = Image.fromarray(radiograph(abnormal, rng))
    size = (side, side) if isinstance(side, int) else side
    image.resize(size).save(path)


def classes(root: Path, count: int, names: tuple[str, ...] = ("NORMAL", "PNEUMONIA"), side: int = 20) -> None:
    for number, name in enumerate(names):
        for each in range(count):
            save(root / name / f"{each}.png", bool(number), side, seed=number)


def plain(root: Path, count: int = 24) -> None:
    for number in range(count):
        save(root / f"{number:02}.png")


def of_all_sizes(root: Path) -> None:
    for number in range(30):
        save(root / ("a" if number % 2 else "b") / f"{number}.jpg", side=(9 + 3 * number, 60 - number))


def mixed_depths(root: Path) -> None:
    plain(root, 15)
    for number in range(15):
        wide = np.random.default_rng(number).integers(0, 2**16, (31, 17), dtype=np.uint16)
        Image.fromarray(wide).save(root / f"wide{number}.png")


def dicoms(root: Path) -> None:
    for number in range(20):
        write_dicom(root / f"1.2.{number}", radiograph(False, np.random.default_rng(number)))


def with_csv(root: Path, name: str = "labels.csv", columns: tuple[str, str] = ("path", "label")) -> None:
    rows = []
    for number in range(40):
        save(root / f"images/{number}.png", number % 2 == 1)
        rows.append({columns[0]: f"images/{number}.png", columns[1]: number % 2})
    pd.DataFrame(rows).to_csv(root / name, index=False)


def other_columns(root: Path) -> None:
    with_csv(root, columns=("file", "class"))


def two_tables(root: Path) -> None:
    with_csv(root, "one.csv")
    shutil.copy(root / "one.csv", root / "two.csv")


def unreadable(root: Path) -> None:
    for number in range(12):
        (root / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]) * 50)


def single_pixels(root: Path) -> None:
    for number in range(50):
        Image.new("L", (1, 1), number).save(root / f"{number}.png")


def archive(root: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 30), ("val", 10), ("test", 10)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez(root / "mine.npz", **arrays)


def zipped(root: Path) -> None:
    plain(root / "x", 3)
    shutil.make_archive(str(root / "images"), "zip", root / "x")
    shutil.rmtree(root / "x")


def long_names(root: Path) -> None:
    for number in range(20):
        save(root / f"{'n' * 100} {number}.png")


def link_circle(root: Path) -> None:
    plain(root / "inner")
    (root / "inner/again").symlink_to(root, target_is_directory=True)
    (root / "inner/nowhere.png").symlink_to(root / "missing.png")


def as_kaggle_packs_it(root: Path) -> None:
    for split in ("train", "test", "val"):
        classes(root / "chest_xray" / split, 9)
    (root / "__MACOSX").mkdir()


def nested(root: Path) -> None:
    classes(root / "hospital A", 9)
    classes(root / "hospital B", 9)


def read_only(root: Path) -> None:
    classes(root, 24)
    os.chmod(root, 0o555)  # noqa: PTH101


def spreadsheet(root: Path) -> None:
    (root / "list.xlsx").write_bytes(b"PK\x03\x04" + bytes(50))


def mimic_dicom(root: Path) -> None:
    build_mimic_dicom_tree(root, root / "labels", [True, False] * 20)
    for table in (root / "labels").glob("*.csv"):
        table.rename(root / table.name)


FEW = "0 for validation, expected some for each"
PATIENTS = tuple(f"patient {number}" for number in range(7))
FOLDERS = {
    "three images": OddFolder(lambda root: plain(root, 3), TRAINS, "3 images without labels"),
    "one image": OddFolder(lambda root: plain(root, 1), FEW, FEW),
    "plain images": OddFolder(plain, TRAINS, "24 images without labels"),
    "two classes": OddFolder(lambda root: classes(root, 24), TRAINS, TRAINS),
    "two images a class": OddFolder(lambda root: classes(root, 2), FEW, FEW),
    "one class": OddFolder(lambda root: classes(root, 20, ("NORMAL",)), TRAINS, "without labels"),
    "normal and loose ones": OddFolder(lambda root: classes(root, 20, ("NORMAL", "normal")), TRAINS, "no other"),
    "forty classes": OddFolder(
        lambda root: classes(root, 3, ("normal", *(f"class {n}" for n in range(39)))), TRAINS, TRAINS
    ),
    "folders of patients": OddFolder(lambda root: classes(root, 5, PATIENTS), TRAINS, "none of which says"),
    "nested classes": OddFolder(nested, TRAINS, "none of which says"),
    "as Kaggle packs it": OddFolder(as_kaggle_packs_it, TRAINS, TRAINS),
    "all sizes": OddFolder(of_all_sizes, TRAINS, "none of which says"),
    "8 and 16 bits": OddFolder(mixed_depths, TRAINS, "without labels"),
    "DICOM without endings": OddFolder(dicoms, TRAINS, "20 images without labels"),
    "a CSV and images": OddFolder(with_csv, TRAINS, TRAINS),
    "the CSV itself": OddFolder(with_csv, TRAINS, TRAINS, inner="labels.csv"),
    "a CSV of other columns": OddFolder(other_columns, TRAINS, "labels.csv with columns file, class"),
    "that CSV itself": OddFolder(other_columns, "data.columns.path=file", "data.columns.path=file", inner="labels.csv"),
    "two tables": OddFolder(two_tables, "read in several ways", "read in several ways"),
    "only unreadable": OddFolder(unreadable, "no image that can be read", "without labels"),
    "empty": OddFolder(lambda root: None, "an empty folder", "an empty folder"),
    "text alone": OddFolder(lambda root: (root / "notes.txt").write_text("hm"), "found no images", "found no images"),
    "single pixels": OddFolder(single_pixels, "found images of 1 pixels", "without labels"),
    "an npz": OddFolder(archive, TRAINS, TRAINS, inner="mine.npz"),
    "a folder with an npz": OddFolder(archive, TRAINS, TRAINS),
    "a zip": OddFolder(zipped, "unpack it", "unpack it"),
    "the zip itself": OddFolder(zipped, "unpack it", "unpack it", inner="images.zip"),
    "a spreadsheet": OddFolder(spreadsheet, "save it as CSV", "save it as CSV", inner="list.xlsx"),
    "long names": OddFolder(long_names, TRAINS, "without labels"),
    "a circle of links": OddFolder(link_circle, TRAINS, "without labels"),
    "a folder that nobody may write to": OddFolder(read_only, TRAINS, TRAINS),
    "CheXpert": OddFolder(lambda root: build_chexpert_tree(root) and None, TRAINS, TRAINS),
    "NIH": OddFolder(lambda root: build_nih_tree(root, ["No Finding", "Mass"] * 30) is None, TRAINS, TRAINS),
    "MIMIC-CXR in DICOM": OddFolder(mimic_dicom, TRAINS, TRAINS),
}
