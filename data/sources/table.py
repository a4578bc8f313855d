"""Any CSV with the manifest's columns; `path` and `label` are needed, paths are relative to root, others are kept."""

from pathlib import Path

import pandas as pd

from data.labels import ALL_FINDINGS, LABEL_WORDS, judge
from data.places import require_folder, require_table
from data.settings import DataSettings
from data.sex_and_age import people_columns, read_people
from data.sources import (
    COLUMNS,
    SPLIT_WORDS,
    csv_columns,
    manifest_table,
    read_csv,
    read_findings,
    read_words,
    require_filled,
    require_one_spelling,
)
from data.sources.further import further_columns, without_free_text


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per row of the CSV `settings.table`, in its order, with any columns named in `ALL_FINDINGS`.

    Labels are normal / abnormal / 0 / 1 or blank, splits train / validate (val, valid, validation) /
    test or blank, and a missing `image_id` is the path. `settings.target` takes the place of the label. `sex` and `age`
    are read in many spellings; other columns are kept as texts. Raises UserError naming file and column, or file, row
    and value (the header is row 1).
    """
    require_folder(root)
    place = require_table(root, settings.table)
    table, findings, further, notes = _read_table(place, settings.target)
    require_filled(table, ["path"], place)
    for column in ("image_id", "patient_id", "study_id"):
        if column in table:
            require_one_spelling(table[column], place)
    if settings.target is None:
        table["label"] = read_words(table["label"], LABEL_WORDS, place)
    else:
        table["label"], table["rule"] = judge(table[findings], settings.uncertain, settings.target)
    if "split" in table:
        table["split"] = read_words(table["split"], SPLIT_WORDS, place)
    table["image_id"] = table["image_id"].fillna(table["path"]) if "image_id" in table else table["path"]
    table["path"] = _join(root, table["path"])
    images = manifest_table(table, settings.source, findings, further)
    return images, [f"{place.name}: {len(table):,} images", *notes]


def _read_table(place: Path, target: str | None) -> tuple[pd.DataFrame, list[str], list[str], list[str]]:
    """The columns, which of them are findings, which are further ones, and notes."""
    header = csv_columns(place)
    findings = [name for name in header if name in {*ALL_FINDINGS, target} and name not in COLUMNS]
    people = people_columns(name for name in header if name not in findings)
    further, notes = further_columns(header, read={*COLUMNS, *findings, *people})
    words = [*people, *further]

    if target:
        others = [name for name in COLUMNS if name in header and name not in ("path", "label")]
        table = read_findings(place, ["path"], findings)
        table = pd.concat([table, read_csv(place, others, optional=words, words=words)], axis=1)
    else:
        optional = [*COLUMNS, *findings, *words]
        table = read_csv(place, ["path", "label"], optional, numbers=findings, words=words)

    table, about_people = read_people(table.rename(columns=people))
    further, about_texts = without_free_text(table, further)
    return table, findings, further, [*about_people, *notes, *about_texts]


def _join(root: Path, paths: pd.Series) -> pd.Series:
    return paths.where(paths.str.startswith("/"), f"{root}/" + paths)
