"""Layouts → one table: a module reads each, and nothing later asks where an image came from.

Every module has `read(settings, root) -> (table, notes)`. The table has `COLUMNS`, then `sex` and `age` where they
are known, any finding columns, and any further ones of the user's own. Where labels follow from findings, `rule` comes
last: the words of the rule that decided the row's label. The notes are counts to print; those of images left out are
`LeftOut`.
"""

import csv
import io
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.errors import LONGEST, UserError, printable, quoted
from data.settings import DataSettings
from data.sources.csv_form import with_commas
from data.stand_ins import ENOUGH, is_packed, opened, stand_in

MAX_BYTES = 2**31  # of a table
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
BLANKS = " \t\r\n\v\f\u00a0\u2007\u202f\u200b\u200c\u200d\u2060\ufeff"  # also invisible ones
NOT_A_NUMBER = ("nan", "NaN", "NA", "N/A", "null")
COLUMNS = ("image_id", "path", "patient_id", "study_id", "split", "view", "label", "source")
PEOPLE = ("sex", "age")  # F or M, and years; where a data set has them
TAKEN = (*COLUMNS, *PEOPLE, "rule", "own_id", "study_date", "row", "logit", "score", "calibrated", "predicted")
SPLITS = ("train", "validate", "test")
SPLIT_WORDS = {
    "train": "train",
    "val": "validate",
    "valid": "validate",
    "validate": "validate",
    "validation": "validate",
    "test": "test",
    "training": "train",
    "testing": "test",
}


class Source(NamedTuple):
    """What must be known of a layout before it is read."""

    module: str  # of data.sources
    credentialed: bool  # its terms forbid passing images on: they are not shown unless that is wished for
    partial: bool  # its CSVs may list more images than have been downloaded


SOURCES = {
    "mimic-cxr-jpg": Source("mimic_cxr", credentialed=True, partial=True),
    "mimic-cxr-dicom": Source("mimic_cxr", credentialed=True, partial=True),
    "chexpert": Source("chexpert", credentialed=True, partial=True),
    "nih-cxr14": Source("nih_cxr14", credentialed=False, partial=True),
    "folder": Source("folder", credentialed=False, partial=False),
    "images": Source("images", credentialed=False, partial=False),
    "table": Source("table", credentialed=False, partial=False),
    "medmnist": Source("medmnist", credentialed=False, partial=False),
    "phantom": Source("phantom", credentialed=False, partial=False),
}


class LeftOut(str):
    """A note: so many images are left out, for that reason."""

    images: int
    reason: str

    def __new__(cls, images: int, reason: str) -> "LeftOut":
        reason = printable(reason, LONGEST)
        note = super().__new__(cls, f"{images:,} images left out: {reason}")
        note.images, note.reason = images, reason
        return note

    def of(self, name: str) -> "LeftOut":
        """The same note about the source of that name."""
        return LeftOut(self.images, f"{name}: {self.reason}")


def read_source(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table and notes of the layout that `settings.source` names; UserError if it is not one."""
    return import_module(f"data.sources.{SOURCES[settings.source].module}").read(settings, root)


def manifest_table(
    columns: pd.DataFrame, source: str, findings: Collection[str] = (), further: Collection[str] = ()
) -> pd.DataFrame:
    """The columns of a layout → all of `COLUMNS`, NaN where it lacks them, and the others that it has.

    The others are `sex` and `age`, `findings`, `further` ones, and `rule`. Text columns are of dtype object, `label`
    and `age` float64, findings float32, `rule` a category: `kinds_of_columns` tells them apart by that.
    """
    people = [name for name in PEOPLE if name in columns]
    last = [name for name in ("study_date", "rule") if name in columns]  # needed only until the manifest is made
    table = columns.reindex(columns=[*COLUMNS, *people, *findings, *further, *last])
    table["source"] = table["source"].astype(object).fillna(source)
    types: dict[str, Any] = dict.fromkeys([*COLUMNS, *people, *further], object)
    types |= {"label": np.float64} | dict.fromkeys(findings, np.float32)
    if "age" in people:
        types["age"] = np.float64
    return table.astype(types).reset_index(drop=True)


class Kinds(NamedTuple):
    """Names of the columns that a manifest's table has beside `COLUMNS`, in order."""

    people: list[str]  # sex, age
    findings: list[str]
    further: list[str]  # texts, of the user's own tables


def kinds_of_columns(table: pd.DataFrame) -> Kinds:
    """Which columns a manifest's table, or any part of it, has beside `COLUMNS`."""
    people = [name for name in PEOPLE if name in table]
    others = [str(name) for name in table.columns if name not in TAKEN]
    findings = [name for name in others if table[name].dtype == np.float32]
    further = [name for name in others if table[name].dtype == object]
    return Kinds(people, findings, further)


# ---------------------------------------------------------------- CSV


def csv_columns(path: Path) -> list[str]:
    """The header of a CSV, packed by gzip or not, without blanks around its names; UserError if it cannot be read."""
    if not is_packed(path):
        _require_no_stand_in(path)
    other = with_commas(path)
    header = _parse(path, other and other[0], header=None, nrows=1, dtype=str, keep_default_na=False)
    names = [str(name).strip(BLANKS) for name in header.iloc[0]] if len(header) else []
    if any("\0" in name for name in names):
        raise _nul(path, 1)
    repeated = [name for number, name in enumerate(names) if name and name in names[:number]]
    if repeated:
        raise UserError(f"{path}: found column {quoted(repeated[0], 'of one name')} twice, expected it once")
    # a column without a name cannot be asked for, but must be told from the others
    return [name or _unnamed(number) for number, name in enumerate(names, start=1)]


def _require_no_stand_in(path: Path) -> None:
    """UserError where an error page or a pointer lies in the place of a table."""
    try:
        with path.open("rb") as file:
            found = stand_in(file.read(ENOUGH))
    except OSError as error:
        raise UserError(f"{path}: found {(error.strerror or str(error)).lower()}, expected a table") from None
    if found:
        remedy = "; save it as CSV in UTF-8" if path.suffix.lower() in SPREADSHEETS else ""
        raise UserError(f"{path}: found {found}, expected a table{remedy}")


def read_findings(path: Path, columns: Iterable[str], findings: Collection[str]) -> pd.DataFrame:
    """Text columns and finding columns of a CSV; UserError for a finding other than 1, 0, -1 and blank."""
    table = read_csv(path, [*columns, *findings], numbers=findings)
    marks = table[list(findings)].to_numpy()
    strange = ~(np.isnan(marks) | np.isin(marks, [1, 0, -1]))
    if strange.any():
        row, column = np.argwhere(strange)[0]
        found = f"column {list(findings)[column]}: found {quoted(f'{marks[row, column]:g}')}"
        raise UserError(f"{path}: row {row + 2}: {found}, expected 1, 0, -1 or blank")
    return table


def read_csv(
    path: Path,
    columns: Iterable[str],
    optional: Iterable[str] = (),
    numbers: Collection[str] = (),
    words: Collection[str] = (),
) -> pd.DataFrame:
    """Some columns of a CSV as text, those in `numbers` as float32; blank is NaN.

    Those in `words` are texts on which nothing depends: they may have line breaks, and equal ones are kept once.
    Raises UserError naming the file and, where one of `columns` is missing, found and expected.
    """
    header = csv_columns(path)
    columns = list(columns)
    for column in columns:
        if column not in header:
            shown = ", ".join(header[:20]) + (", …" if len(header) > 20 else "")
            # where there is no header, the first row is taken for one
            shown = quoted(f"columns {shown}", f"{len(header)} columns")
            raise UserError(f"{path}: found {shown}, expected column {column}")
    wanted = columns + [name for name in optional if name in header and name not in columns]
    types: dict[str, Any] = dict.fromkeys(wanted, str)
    types |= {column: np.float32 for column in wanted if column in numbers}
    types |= {column: "category" for column in wanted if column in words}

    # a text is what it says: a patient may be called NA. Blanks around it are not part of it.
    blank = {column: [*NOT_A_NUMBER, ""] if column in numbers else [""] for column in wanted}
    content = _content(path)
    rows = _count_rows(content, len(header), _named_until(header), path)
    # a comma at the end of every line must not make a column an index
    options: dict[str, Any] = {"header": 0, "names": header, "index_col": False, "keep_default_na": False}
    options |= {"usecols": wanted, "na_values": blank}
    try:
        table = _parse(path, content, dtype=types, **options)[wanted]
    except UserError:
        _require_number_cells(_parse(path, content, dtype=str, **options), numbers, path)
        raise
    if len(table) != rows and wanted:  # whatever the reason, no row may be lost in silence
        raise UserError(f"{path}: found {len(table):,} rows, expected {rows:,} by its lines; is a quote not closed?")
    for column in wanted:
        if column in words:
            table[column] = _stripped_words(table[column])
        elif column not in numbers:
            table[column] = stripped(table[column])
            if b'"' in content:
                _require_single_lines(table[column], path)
    return table


def _content(path: Path) -> bytes:
    """All of a table, unpacked, with commas between its columns."""
    other = with_commas(path)
    if other:
        return other[0]
    try:
        with opened(path) as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable CSV: {error}") from None

    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: found more than {MAX_BYTES} bytes, expected a table")
    if b"\0" in content and not content.startswith(UTF_16):  # UTF-16 is reported later, as another encoding
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise _nul(path, line)
    return content


def _nul(path: Path, line: int) -> UserError:
    return UserError(f"{path}: line {line}: found a NUL byte, expected text in UTF-8; the file is damaged or UTF-16")


def _named_until(header: Sequence[str]) -> int:
    """How many columns there are without the unnamed ones at the end: a header may end with a comma."""
    count = len(header)
    while count and header[count - 1] == _unnamed(count):
        count -= 1
    return count


def _unnamed(number: int) -> str:
    return f"unnamed column {number}"


def _count_rows(content: bytes, columns: int, least: int, path: Path) -> int:
    """How many rows are below the header. UserError for one with another number of fields: its values would be shifted.

    Empty fields beyond the header's do not count, and fields of columns without a name (all after `least`) may be
    missing: some tables end each line with a comma, or the header alone.
    """
    if b'"' not in content and columns > 1:  # the usual case, at once
        lines = content.splitlines()
        if {line.count(b",") for line in lines} == {columns - 1}:
            return len(lines) - 1

    rows = 0
    for line, fields in _records(content, path):
        surplus = any(field.strip() for field in fields[columns:])
        if len(fields) < least or surplus:
            raise UserError(f"{path}: line {line}: found {len(fields)} fields, expected {columns} as in the header")
        rows += 1
    return rows - 1  # the header is one of them


def _records(content: bytes, path: Path) -> Iterator[tuple[int, Sequence[bytes | str]]]:
    """Line number and fields of each record that is not blank."""
    if b'"' not in content:  # a field is what stands between commas: no need for slower ways
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                yield number, line.split(b",")
        return

    # strictly: a quote that opens a field and is closed rows below would take these rows into the field
    closed = re.sub(rb'"[ \t]+(?=[,\r\n]|$)', b'"', content)
    reader = csv.reader(io.StringIO(_decoded(closed, path), newline=""), skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            if fields and (len(fields) > 1 or fields[0].strip()):
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not a readable CSV: {error}") from None


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeError:
        raise _encoding(path, "the table as CSV") from None


def _encoding(path: Path, what: str) -> UserError:
    return UserError(f"{path}: found another encoding, expected UTF-8; save {what} in UTF-8")


def _require_number_cells(texts: pd.DataFrame, numbers: Collection[str], path: Path) -> None:
    """UserError naming the first cell of these columns that is no number, such as `yes` or a decimal comma."""
    for column in texts.columns.intersection(list(numbers)):
        cells = texts[column]
        odd = (cells.notna() & pd.to_numeric(cells, errors="coerce").isna()).to_numpy(dtype=bool)
        if odd.any():
            row = int(odd.argmax())
            found = f"found {quoted(cells.iloc[row])!r} in column {column}"
            raise UserError(f"{path}: row {row + 2}: {found}, expected a number or blank")


def _require_single_lines(texts: pd.Series, path: Path) -> None:
    """UserError for a line break in a text: ids, paths and labels have none, so a quote is not closed."""
    broken = texts.str.contains(r"[\r\n]", na=False).to_numpy(dtype=bool)
    if broken.any():
        row = int(broken.argmax()) + 2
        raise UserError(f"{path}: row {row}: found a line break in {texts.name}, expected none; is a quote not closed?")


def stripped(texts: pd.Series) -> pd.Series:
    """Texts without blanks at their ends, the invisible ones included; NaN where nothing is left."""
    bare = texts.str.strip(BLANKS)
    return bare.where(bare != "")


def _stripped_words(words: pd.Series) -> pd.Series:
    """A category as texts without blanks at their ends; NaN where nothing is left."""
    bare = {word: str(word).strip(BLANKS) or np.nan for word in words.cat.categories}
    return words.astype(object).map(bare).astype(object)


def _parse(path: Path, content: bytes | None = None, **options: Any) -> pd.DataFrame:
    source = path if content is None else io.BytesIO(content)
    options["compression"] = "gzip" if content is None and is_packed(path) else None
    try:
        return pd.read_csv(source, encoding="utf-8-sig", skipinitialspace=True, **options)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeError:
        raise _encoding(path, "the table as CSV") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pandas' own errors are ValueErrors
        trouble = quoted(" ".join(str(error).split()), type(error).__name__)
        raise UserError(f"{path}: not a readable CSV: {trouble}") from None


def require_filled(frame: pd.DataFrame, columns: Iterable[str], place: Path) -> None:
    """UserError naming the first blank cell of these columns; rows count as in the file, the header being row 1."""
    for column in columns:
        blank = frame[column].isna().to_numpy()
        if blank.any():
            raise UserError(f"{place}: row {blank.argmax() + 2}: found no {column}, expected one in every row")


def require_numbers(ids: pd.Series, place: Path) -> None:
    """UserError for an id that is not digits alone: a spreadsheet turns 7 into 7.0, which no other table has."""
    strange = ~ids.str.fullmatch(r"\d+").to_numpy(dtype=bool)
    if strange.any():
        row = int(strange.argmax())
        text = quoted(ids.iloc[row])
        raise UserError(f"{place}: row {row + 2}: found {ids.name} {text!r}, expected digits alone")


def require_one_spelling(ids: pd.Series, place: Path) -> None:
    """UserError where one number is written in two ways, as 7 and 7.0 are: they would be two patients."""
    written: dict[str, str] = {}
    for text in sorted(ids.dropna().unique()):
        # 1.2.840.0 is no number: the UID of a study
        other = written.setdefault(re.sub(r"^([^.,]*\d)[.,]0+$", r"\1", text), text)
        if other != text:
            both = f"both as {quoted(other)} and as {quoted(text)}"
            raise UserError(f"{place}: found {ids.name} {both}, expected one spelling")


def spelt_alike(ids: pd.Series) -> list[str]:
    """A note on ids that differ in case or leading zeros alone, as 7 and 007 do: they are read as different ones."""
    plain: dict[str, set[str]] = {}
    for text in ids.dropna().unique():
        plain.setdefault(without_case_and_zeros(text), set()).add(text)
    alike = [sorted(texts) for texts in plain.values() if len(texts) > 1]
    if not alike:
        return []
    example = quoted(f" ({' and '.join(alike[0])})", instead="")
    return [
        f"{len(alike):,} {ids.name} are written in several ways that differ in case or leading zeros{example}; if they "
        "are the same, write them alike: they count as different ones"
    ]


def without_case_and_zeros(text: str) -> str:
    """An id without what people often write in two ways."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", text.casefold())


def require_whole(ids: pd.Series, place: Path) -> None:
    """UserError for a number that a spreadsheet has shortened, such as 1,23E+12: it stands for many ids."""
    short = ids.str.fullmatch(r"\d+(?:[.,]\d+)?[eE]\+\d+", na=False).to_numpy(dtype=bool)
    if short.any():
        row = int(short.argmax())
        raise UserError(
            f"{place}: row {row + 2}: found {ids.name} {quoted(ids.iloc[row])!r}, a number that a spreadsheet has "
            "shortened, expected all its digits; export the column as text"
        )


def read_lines(path: Path) -> list[str]:
    """The words of a text file; UserError where it is not in UTF-8."""
    _require_no_stand_in(path)
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except UnicodeError:
        raise _encoding(path, "it as text") from None


def require_unique(values: pd.Series, place: Path) -> None:
    """UserError with the count of repeated values, if there are any."""
    if count := int(values.duplicated().sum()):
        raise UserError(f"{place}: found {count} repeated {values.name}, expected one row for each")


def read_words(values: pd.Series, words: Mapping[str, object], place: Path) -> pd.Series:
    """Words → what they mean, whatever their case; blank stays NaN.

    Raises UserError naming file, row (as in the file, the header being row 1) and value.
    """
    meanings = {word: words.get(word.strip().lower()) for word in values.dropna().unique()}
    for word, meaning in meanings.items():
        if meaning is None:
            row = (values == word).to_numpy().argmax() + 2
            expected = ", ".join(words)
            found = quoted(word)
            raise UserError(f"{place}: row {row}: found {values.name} {found!r}, expected one of {expected} or blank")
    return values.map(meanings)
