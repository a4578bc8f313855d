"""Any CSV with the manifest's columns; `path` and `label` are needed, paths are relative to root."""

from pathlib import Path

import pandas as pd

from data.config import UserError, expand
from data.labels import FINDINGS, LABEL_WORDS
from data.settings import DataSettings
from data.sources import (
    COLUMNS,
    SPLIT_WORDS,
    manifest_table,
    read_csv,
    read_words,
    require_filled,
    require_folder,
)


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per row of the CSV `settings.table`, in its order, with any columns named in `FINDINGS`.

    Labels are normal / abnormal / 0 / 1 or blank, splits train / validate (val, valid, validation) /
    test or blank, and a missing `image_id` is the path. Other columns are not read. Raises UserError
    naming file and column, or file, row and value (the header is row 1).
    """
    require_folder(root)
    place = root / expand(settings.table, "data.table")
    if not place.is_file():
        raise UserError(f"{place}: no such file, expected the CSV that data.table names below data.root")
    table = read_csv(place, ["path", "label"], optional=(*COLUMNS, *FINDINGS), numbers=FINDINGS)
    require_filled(table, ["path"], place)
    table["label"] = read_words(table["label"], LABEL_WORDS, place)
    if "split" in table:
        table["split"] = read_words(table["split"], SPLIT_WORDS, place)
    table["image_id"] = table["image_id"].fillna(table["path"]) if "image_id" in table else table["path"]
    table["path"] = _join(root, table["path"])
    findings = [name for name in FINDINGS if name in table]
    return manifest_table(table, settings.source, findings), [f"{place.name}: {len(table):,} images"]


def _join(root: Path, paths: pd.Series) -> pd.Series:
    return paths.where(paths.str.startswith("/"), f"{root}/" + paths)
