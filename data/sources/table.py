"""Any CSV with the manifest's columns: `path` (relative to root) and `label` are needed, other columns are kept."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data.class_names import says, told_apart
from data.config import as_typed
from data.errors import UserError, did_you_mean, quoted
from data.files_on_disk import is_there
from data.labels import ALL_FINDINGS, LABEL_WORDS, NoSuchFinding, judge
from data.places import require_folder, require_table
from data.settings import DataSettings
from data.sex_and_age import people_columns, read_people
from data.sources import (
    COLUMNS,
    SPLIT_WORDS,
    TAKEN,
    csv_columns,
    manifest_table,
    read_csv,
    read_findings,
    read_words,
    require_filled,
    require_one_spelling,
    require_whole,
    spelt_alike,
)
from data.sources.columns import named_columns
from data.sources.csv_form import with_commas
from data.sources.further import further_columns, without_free_text

LOOKED_AT = 100  # files that tell how paths are spelt
# how the paths of a table may differ from those on disk, and the function that makes the latter of the former
SPELLINGS: dict[str, Callable[[str], str]] = {
    "are written with backslashes, read as /": lambda path: path.replace("\\", "/"),
    "are read with each accent as part of its letter": partial(unicodedata.normalize, "NFC"),
    "are read with each accent by itself, as macOS writes them": partial(unicodedata.normalize, "NFD"),
}


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per row of the CSV `settings.table`, in its order, with any columns named in `ALL_FINDINGS`.

    Labels are normal / abnormal / 0 / 1 (or positive, yes, true and their opposites) or blank, or names of classes, of
    which those in `settings.normal` are normal. Splits are train / validate / test in the usual spellings, or blank. A
    missing `image_id` is the path. `settings.target` takes the place of the label. `sex` and `age` are read in many
    spellings; other columns are kept as texts. Raises UserError naming file and column, or file, row and value (the
    header is row 1).
    """
    require_folder(root)
    place = require_table(root, settings.table)
    table, findings, further, notes = _read_table(place, settings)
    table, about_end = _without_empty_end(table)
    notes += about_end
    require_filled(table, ["path"], place)
    for column in ("image_id", "patient_id", "study_id"):
        if column in table:
            require_one_spelling(table[column], place)
            require_whole(table[column], place)
            notes += spelt_alike(table[column])

    if not settings.labelled:
        table["label"] = np.nan
    elif settings.target is None:
        table["label"], about_labels = _read_labels(table["label"], settings, place)
        notes += about_labels
    else:
        table["label"], table["rule"] = judge(table[findings], settings.uncertain, settings.target)
    if "split" in table:
        table["split"] = read_words(table["split"], SPLIT_WORDS, place)
    table["image_id"] = table["image_id"].fillna(table["path"]) if "image_id" in table else table["path"]
    table["path"], about_paths = _joined(root, table["path"])
    _require_one_row_a_file(table, root, place)
    images = manifest_table(table, settings.source, findings, further)
    return images, [f"{place.name}: {len(table):,} images", *notes, *about_paths]


def _read_table(place: Path, settings: DataSettings) -> tuple[pd.DataFrame, list[str], list[str], list[str]]:
    """The columns under the manifest's names, which of them are findings, which are further ones, and notes."""
    target = settings.target
    header = csv_columns(place)
    needed = ["path", "label"] if settings.labelled and not target else ["path"]
    named, notes = named_columns(header, settings.columns, needed, place)
    if target and named.get("label") == target:  # the finding takes the label's place
        del named["label"]
    other = with_commas(place)
    if other:
        notes = [f"{place.name}: columns are separated by {other[1]}", *notes]

    # a column that has a name of the manifest's, but is not read under that name, is left out
    mine = {*named.values(), *COLUMNS}
    free = [name for name in header if name not in {*mine, *TAKEN}]
    findings = [name for name in free if name in {*ALL_FINDINGS, target}]
    if target and target not in findings:
        raise _no_target(target, findings, free, place)
    people = people_columns(name for name in header if name not in {*findings, *mine})
    further, about_names = further_columns(header, read={*named.values(), *findings, *people})
    words = [*people, *further]
    notes += about_names

    if target:
        others = [column for name, column in named.items() if name != "label" and column != named["path"]]
        table = read_findings(place, [named["path"]], findings)
        table = pd.concat([table, read_csv(place, others, optional=words, words=words)], axis=1)
    else:
        optional = [*named.values(), "source", *findings, *words]
        needed = [named[name] for name in needed]
        table = read_csv(place, needed, optional, numbers=findings, words=words)

    table = _under_our_names(table, named)
    table, about_people = read_people(table.rename(columns=people))
    further, about_texts = without_free_text(table, further)
    return table, findings, further, [*notes, *about_people, *about_texts]


def _no_target(target: str, findings: Sequence[str], free: Sequence[str], place: Path) -> NoSuchFinding:
    """The error of a table without that finding; columns that mean something else, such as sex, are not `free`."""
    if not free:
        return NoSuchFinding(f"data.target: found {target!r}, expected such a column in {place}")
    known = findings or free
    shown = quoted(", ".join(known) + did_you_mean(target, free), f"{len(known)} columns of {place}")
    return NoSuchFinding(f"data.target: found {target!r}, expected one of {shown}")


def _without_empty_end(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Without the empty rows that a spreadsheet leaves below the last one; empty rows in between stay."""
    filled = np.flatnonzero(table.notna().any(axis=1))
    rows = int(filled[-1]) + 1 if len(filled) else 0
    count = len(table) - rows
    if not count:
        return table, []
    return table.iloc[:rows].copy(), [f"{count:,} empty rows at the end are left out"]


def _under_our_names(table: pd.DataFrame, named: Mapping[str, str]) -> pd.DataFrame:
    columns = {name: table[column] for name, column in named.items() if column in table}
    rest = [str(name) for name in table if name not in named.values()]
    return pd.DataFrame(columns | {name: table[name] for name in rest})


def _read_labels(labels: pd.Series, settings: DataSettings, place: Path) -> tuple[pd.Series, list[str]]:
    """0.0 normal, 1.0 abnormal, NaN unknown; and what became of each class where labels are names of classes."""
    counts = Counter(str(name) for name in labels.dropna())
    if settings.normal is None:
        try:
            return read_words(labels, LABEL_WORDS, place), []
        except UserError as error:
            named = [name for name in counts if says(name) == "normal"]
            example = as_typed("data.normal", named or ["NAME"])
            example = quoted(example, as_typed("data.normal", ["NAME"]))
            raise UserError(f"{error}; where labels name classes, {example} makes all others abnormal") from None
    classes = told_apart(list(counts), settings.normal, str(place), "labels", "")
    return labels.map(classes.label, na_action="ignore").astype(float), [classes.note(counts)]


def _require_one_row_a_file(table: pd.DataFrame, root: Path, place: Path) -> None:
    """UserError for a file in several rows: it would be two images, perhaps with two labels and in two splits."""
    paths = table["path"].map(_in_one_form)
    repeated = paths.duplicated(keep=False)
    if not repeated.any():
        return
    differing = ""
    if "label" in table:
        labels = table[repeated].groupby(paths[repeated])["label"].nunique()
        differing = f", {int((labels > 1).sum()):,} of them with different labels"
    first = paths[repeated].iloc[0].removeprefix(f"{_in_one_form(str(root))}/")
    example = quoted(f", such as {first}", instead="")
    count = paths[repeated].nunique()
    raise UserError(f"{place}: found {count:,} files in several rows{example}{differing}, expected a row for each file")


def _in_one_form(path: str) -> str:
    """An absolute path without detours: `./x/../a.png` and `a.png` are one file."""
    return os.path.abspath(path.replace("\\", "/"))  # noqa: PTH100 (for hundreds of thousands of rows)


def _joined(root: Path, paths: pd.Series) -> tuple[pd.Series, list[str]]:
    """Paths below root; those written on another system are spelt as the files on disk are."""
    notes: list[str] = []
    for how, written in SPELLINGS.items():
        other = paths.map(written)
        odd = (other != paths).to_numpy()
        if _spelt_so(root, paths[odd], other[odd]):
            paths = other
            notes.append(f"{int(odd.sum()):,} paths {how}")
    return paths.where(paths.str.startswith("/"), f"{root}/" + paths), notes


def _spelt_so(root: Path, paths: pd.Series, other: pd.Series) -> bool:
    """Whether the first file that is there in either spelling has the other one; some files may be gone."""
    for mine, theirs in zip(paths.head(LOOKED_AT), other.head(LOOKED_AT), strict=True):
        if is_there(str(root / mine)):
            return False
        if is_there(str(root / theirs)):
            return True
    return False
