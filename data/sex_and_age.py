"""Sex and age of patients: the many spellings of tables → one.

Sex is F, M or unknown (NaN); age is in years, or unknown. A cell that cannot be read is unknown, and counted in a note:
these columns serve subgroups, so an odd cell only costs its own image a place in one.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

SEX_NAMES = ("sex", "patientsex", "gender", "patientgender")  # of columns, in plain form; the first one found is read
AGE_NAMES = ("age", "patientage", "ageyears", "ageinyears", "ageatstudy", "ageatcxr")
SEX_WORDS = {
    **dict.fromkeys(("f", "female", "woman", "girl", "w", "weiblich", "frau"), "F"),
    **dict.fromkeys(("m", "male", "man", "boy", "männlich", "maennlich", "mann"), "M"),
}
# 58, 058Y (DICOM's AS), 7 months, 90+, > 89, 85 or more
AGE = re.compile(r"[>≥]?\s*(\d+(?:[.,]\d+)?)\s*\+?\s*([a-z]*)\.?(?:\s+(?:or|and)\s+(?:more|older|over|above))?")
UNITS = {  # in years
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years"), 1.0),
    **dict.fromkeys(("m", "mo", "mos", "month", "months"), 1 / 12),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7 / 365.25),
    **dict.fromkeys(("d", "day", "days"), 1 / 365.25),
}
OLDEST = 120.0  # years; NIH ChestX-ray14 has patients of 411
UNSAID = {"", "nan", "na", "n/a", "null", "none", "unknown", "u", "-", "?"}  # cells that claim nothing


def plain_name(name: str) -> str:
    """A column's name by its letters and digits alone: `Patient Age` is `patient_age`."""
    return re.sub(r"[\W_]", "", name).lower()


def find_column(header: Iterable[str], names: Sequence[str]) -> str | None:
    """The first column of the header with one of these plain names, the earlier name before the later."""
    header = list(header)
    for wanted in names:
        if wanted in header:
            return wanted
        for name in header:
            if plain_name(name) == wanted:
                return name
    return None


def people_columns(header: Iterable[str]) -> dict[str, str]:
    """Which of a table's columns hold `sex` and `age`, as far as there are any: {"Patient Gender": "sex"}."""
    header = list(header)
    found = {find_column(header, SEX_NAMES): "sex", find_column(header, AGE_NAMES): "age"}
    return {name: meaning for name, meaning in found.items() if name is not None}


def read_people(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table after reading its texts `sex` and `age`, if it has them; and how many could not be read."""
    notes = []
    if "sex" in table:
        sex = read_sex(table["sex"])
        if count := _unread(table["sex"], sex):
            notes.append(f"sex: neither F nor M in {count:,} rows: unknown")
        table = table.assign(sex=sex)
    if "age" in table:
        age = read_age(table["age"])
        if count := _unread(table["age"], age):
            notes.append(f"age: no age of up to {OLDEST:.0f} years in {count:,} rows: unknown")
        table = table.assign(age=age)
    return table, notes


def read_sex(words: pd.Series) -> pd.Series:
    """Words in any case → F, M, or NaN for all others."""
    meanings = {word: SEX_WORDS.get(str(word).strip().lower(), np.nan) for word in words.dropna().unique()}
    return words.astype(object).map(meanings).astype(object)


def read_age(texts: pd.Series) -> pd.Series:
    """Texts such as 58, 058Y and 7M → years; NaN for what is no age, and for ages beyond `OLDEST`."""
    years = {text: _years(str(text)) for text in texts.dropna().unique()}
    return texts.astype(object).map(years).astype(np.float64)


def _years(text: str) -> float:
    match = AGE.fullmatch(text.strip().lower())
    if match is None or match[2] not in UNITS:
        return np.nan
    return plausible(float(match[1].replace(",", ".")) * UNITS[match[2]])


def plausible(years: float) -> float:
    """The age, or NaN if nobody can have it."""
    return years if 0 <= years <= OLDEST else np.nan


def _unread(texts: pd.Series, values: pd.Series) -> int:
    """How many cells say something that is not understood."""
    lost = texts[texts.notna() & values.isna()].astype(str)
    return int((~lost.str.strip().str.lower().isin(UNSAID)).sum())
