"""`data.patients`: a table with a row (or several) for each patient, whose columns are joined to the images.

MIMIC's sex, age and race stand in MIMIC-IV's `patients.csv.gz` and `admissions.csv.gz`; any CSV of the user's will do.
What a table of images says itself stays; the table of patients fills in what it lacks.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from data.config import expand
from data.errors import UserError, printable, quoted
from data.settings import DataSettings
from data.sex_and_age import OLDEST, find_column, people_columns, read_people
from data.sources import COLUMNS, PEOPLE, TAKEN, csv_columns, kinds_of_columns, read_csv, without_case_and_zeros
from data.sources.further import further_columns, without_free_text

ID_NAMES = ("patientid", "subjectid", "patient", "subject", "patientnumber")  # of columns, in plain form
ID = "patient_id"  # the name of that column from here on
ANCHORS = ("anchor_age", "anchor_year")  # a patient's age in MIMIC-IV, and the (shifted) year in which it holds


def with_patients(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """The table of one data set with what `data.patients` says of its patients; and notes.

    Raises UserError if that is no table of patients, has a column of the manifest's own, or has none of these patients.
    """
    files = settings.patients or ()
    if isinstance(files, str):
        files = (files,)
    notes: list[str] = []
    for file in files:
        table, more = _joined(table, Path(expand(file, "data.patients")), settings.source)
        notes += more
    return table.drop(columns="study_date", errors="ignore"), notes


def _joined(table: pd.DataFrame, path: Path, source: str) -> tuple[pd.DataFrame, list[str]]:
    """The table with the columns of one table of patients; and notes."""
    known = table["patient_id"].notna()
    if not known.any():
        raise UserError(f"data.patients: found no patient ids in source {source}, expected some to join by")

    rows, notes = _read(path, taken=kinds_of_columns(table).findings)
    patients, about_conflicts = _one_row_each(rows)
    places = _places(table["patient_id"], patients.index)
    found = (places >= 0) & known.to_numpy()
    absent = table["patient_id"][known & ~found]
    if not found.any():
        spelling = _spelt_otherwise(absent, patients.index)
        raise UserError(
            f"{path}: found none of the {absent.nunique():,} patients of source {source}, expected some of them; "
            f"{spelling or 'give data.patients=null if it is the table of other patients'}"
        )

    joined = patients.take(np.where(found, places, 0)).set_index(table.index)
    joined = joined.where(pd.Series(found, table.index), np.nan)
    joined, about_ages = _at_study(joined, table.get("study_date"))
    notes = [*notes, *about_conflicts, *about_ages, *_missing(absent, patients.index)]
    filled, about_differences = _filled(table, joined)
    what = ", ".join(map(str, joined.columns)) or "nothing, as it has no columns beside the id"
    return filled, [f"{path.name}: {note}" for note in (f"joined by patient: {what}", *notes, *about_differences)]


# ---------------------------------------------------------------- the table of patients


def _read(path: Path, taken: Collection[str]) -> tuple[pd.DataFrame, list[str]]:
    """Columns patient_id, sex, age, further ones and MIMIC-IV's anchors, row by row; and notes."""
    header = csv_columns(path)
    key = find_column(header, ID_NAMES)
    if key is None:
        shown = quoted(f"columns {', '.join(header[:20])}", f"{len(header)} columns")
        raise UserError(f"{path}: found {shown}, expected column patient_id or subject_id")
    others = [name for name in header if name != key]
    own = [name for name in others if name in {*TAKEN, *taken} and name not in PEOPLE]
    if own:
        raise UserError(
            f"{path}: found column {own[0]}, which the images have already, expected other names; rename or remove it"
        )

    people = people_columns(others)
    anchors = [name for name in ANCHORS if name in others]
    further, notes = further_columns(others, read=[*people, *anchors])
    words = [*people, *anchors, *further]
    table = read_csv(path, [key], optional=words, words=words)
    table = table.rename(columns={key: ID, **people})
    table[ID] = table[ID].astype(object).map(_bare, na_action="ignore")

    nameless = int(table[ID].isna().sum())
    if nameless:
        notes.append(f"{nameless:,} rows without an id are passed over")
    table, about_people = read_people(table[table[ID].notna()])
    for name in anchors:
        table[name] = pd.to_numeric(table[name].astype(object), errors="coerce")
    further, about_texts = without_free_text(table, further)
    kept = [name for name in (*PEOPLE, *anchors, *further) if name in table]
    return table[[ID, *kept]], [*about_people, *notes, *about_texts]


def _one_row_each(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row for each patient (index: the id); where a patient's rows disagree, the value is unknown, and counted."""
    columns = [str(name) for name in rows.columns if name != ID]
    if not rows[ID].duplicated().any():
        return rows.set_index(ID)[columns], []

    # what a patient's rows say of a column, if they agree
    patients = pd.DataFrame(index=pd.Index(rows[ID].unique(), name=ID))
    undecided: dict[str, pd.Index] = {}
    for name in columns:
        said = rows[[ID, name]].dropna().drop_duplicates()
        several = said[ID].duplicated(keep=False)
        undecided[name] = pd.Index(said.loc[several, ID].unique())
        patients[name] = said[~several].set_index(ID)[name].reindex(patients.index)

    torn = {name: len(ids) for name, ids in undecided.items() if len(ids)}
    if not torn:
        return patients, []
    everyone = len(set().union(*undecided.values()))
    each = ", ".join(f"{name} {count:,}" for name, count in torn.items())
    return patients, [f"{everyone:,} patients have rows that disagree ({each}): unknown there"]


def _at_study(joined: pd.DataFrame, dates: pd.Series | None) -> tuple[pd.DataFrame, list[str]]:
    """The columns with an age instead of the anchors: the age at the study, if the study's year is known."""
    if "anchor_age" not in joined:
        return joined, []
    age = joined["anchor_age"].astype(np.float64)
    notes = ["age is that of the anchor year"]
    if dates is not None and "anchor_year" in joined:
        year = pd.to_numeric(dates.astype(object).str.slice(0, 4), errors="coerce")
        later = (year - joined["anchor_year"].astype(np.float64)).fillna(0)
        age = age + later
        notes = ["age is that at the study, by the anchor year"]
        if unknown := int((year.isna() & age.notna()).sum()):
            notes.append(f"no year of study for {unknown:,} images, whose age is that of the anchor year")
    rest = joined.drop(columns=list(ANCHORS), errors="ignore")
    if "age" in rest:  # stated, so it is not worked out
        return rest, []

    possible = age.between(0, OLDEST)
    if impossible := int((age.notna() & ~possible).sum()):
        notes.append(f"age: none of 0 to {OLDEST:.0f} years for {impossible:,} images: unknown")
    return rest.assign(age=age.where(possible)), notes


# ---------------------------------------------------------------- joining


def _places(ids: pd.Series, known: pd.Index) -> np.ndarray:
    """(n) row of each image's patient in the table, -1 where it is not there.

    Ids are compared as they stand, except that 7.0 is 7. If an id is not there, p10000032 also stands for 10000032,
    provided that no other patient on either side could be meant.
    """
    wanted = pd.Series(ids.dropna().unique(), dtype=object)
    bare = wanted.map(_bare)
    place = known.get_indexer(pd.Index(bare))

    # without the letter, if the numbers alone tell patients apart
    numbers = pd.Series(known, dtype=object).map(_number)
    usable = ~numbers.duplicated(keep=False).to_numpy()
    by_number = dict(zip(numbers[usable], np.flatnonzero(usable), strict=True))
    mine = bare.map(_number)
    alone = ~mine.duplicated(keep=False).to_numpy()
    for row in np.flatnonzero((place < 0) & alone).tolist():
        place[row] = by_number.get(mine[row], -1)
    return ids.map(dict(zip(wanted, place, strict=True))).fillna(-1).to_numpy(np.int64)


def _bare(name: str) -> str:
    """7.0 is 7: a spreadsheet was at work."""
    return re.sub(r"^(\d+)\.0+$", r"\1", name)


def _number(name: str) -> str:
    """p10000032, as MIMIC's folders are called, is 10000032."""
    return re.sub(r"^[pP](?=\d+$)", "", name)


def _missing(absent: pd.Series, known: pd.Index) -> Iterable[str]:
    """How many patients the table lacks, and how many of these it may have in another spelling."""
    if absent.empty:
        return
    yield f"lacks {absent.nunique():,} patients, of {len(absent):,} images"
    spelling = _spelt_otherwise(absent, known)
    if spelling:
        yield spelling


def _spelt_otherwise(absent: pd.Series, known: pd.Index) -> str:
    """A note on patients whose ids differ from known ones in case or leading zeros alone; empty if there are none."""
    spellings = {without_case_and_zeros(name): name for name in known}
    pairs = []
    for name in absent.unique():
        other = spellings.get(without_case_and_zeros(_bare(name)))
        if other is not None:
            pairs.append((name, other))
    if not pairs:
        return ""
    example = quoted(printable(" ({} and {})".format(*pairs[0])), instead="")
    return (
        f"{len(pairs):,} of these patients' ids differ in case or leading zeros alone from ids there{example}; if they "
        "are the same, write them alike"
    )


def _filled(table: pd.DataFrame, joined: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with the joined columns, each at its place; what the table says itself stays."""
    notes = []
    for name in map(str, joined.columns):
        if name not in table:
            table = table.assign(**{name: joined[name]})
            continue
        own = table[name]
        both = own.notna() & joined[name].notna()
        differing = int((both & (own != joined[name])).sum())
        if differing and name != "age":  # an age changes from study to study
            notes.append(f"another {name} than the images' own for {differing:,}: theirs are kept")
        table = table.assign(**{name: own.where(own.notna(), joined[name])})

    people = [name for name in PEOPLE if name in table]
    further = [name for name in joined if name not in PEOPLE]
    types = dict.fromkeys(further, object) | {name: object for name in people if name == "sex"}
    rule = [name for name in ("rule",) if name in table]
    others = [name for name in table if name not in {*COLUMNS, *people, *further, *rule}]
    return table[[*COLUMNS, *people, *others, *further, *rule]].astype(types), notes
