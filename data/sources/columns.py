"""Which columns of a user's own table are meant: by `data.columns`, by their names, or suggested in a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.config import as_typed
from data.errors import UserError, did_you_mean, quoted
from data.settings import ColumnSettings
from data.sex_and_age import plain_name

# what such columns are called elsewhere, in plain form, the likeliest first
LIKE = {
    "path": (
        *("imagepath", "filepath", "imgpath", "filename", "file", "image", "images", "img", "imagefile", "imageindex"),
        *("imagename", "imgname", "imagefilename", "fname", "dicompath", "dicomfile", "dicom", "imageid", "dicomid"),
    ),
    "label": (
        *("labels", "class", "classname", "target", "diagnosis", "category", "abnormal", "groundtruth", "gt", "y"),
        *("finding", "findinglabels", "outcome", "disease", "result"),
    ),
    "patient_id": ("patientid", "patient", "subjectid", "subject", "patientnumber", "pid", "mrn", "personid"),
    "study_id": ("studyid", "study", "studyinstanceuid", "studyuid", "accession", "accessionnumber", "examid", "exam"),
    "split": ("set", "subset", "fold", "partition", "datasplit", "phase"),
    "view": ("viewposition", "projection", "imageview"),
}
OBVIOUS = ("path", "label", "patient_id", "study_id", "split")  # read in any spelling: `Patient ID`, `PatientID`


def named_columns(
    header: Sequence[str], given: ColumnSettings, needed: Sequence[str], place: Path
) -> tuple[dict[str, str], list[str]]:
    """The manifest's column → the table's, for those that it has; and notes. UserError where a needed one is missing.

    A column is the one that `data.columns` names; else the one of that very name; else the only one that differs from
    it in case, blanks and underscores alone. Others are not guessed: they are suggested.
    """
    chosen: dict[str, str] = {}
    notes = []
    for name in ColumnSettings.model_fields:
        asked = getattr(given, name)
        alike = [column for column in header if plain_name(column) == plain_name(name)]
        if asked is not None:
            chosen[name] = _asked(asked, header, name, place)
        elif name in header:
            chosen[name] = name
        elif name in OBVIOUS and len(alike) == 1:
            chosen[name] = alike[0]
            notes.append(f"column {alike[0]} is read as {name}")

    free = [column for column in header if column not in chosen.values()]
    for name in needed:
        if name not in chosen:
            shown = ", ".join(header[:20]) + (", …" if len(header) > 20 else "")
            shown = quoted(f"columns {shown}", f"{len(header)} columns")  # the first row, where there is no header
            near = suggested(free, name)
            hint = f"; if another one is it, give data.columns.{name}=NAME"
            if near:
                hint = quoted(f"; did you mean {as_typed(f'data.columns.{name}', near)}?", instead=hint)
            raise UserError(f"{place}: found {shown}, expected column {name}{hint}")
    for name in OBVIOUS:
        near = suggested(free, name)
        if name not in chosen and near:
            notes.append(f"no column {name}; if {near} is it, give {as_typed(f'data.columns.{name}', near)}")
    _expect_different(chosen)
    return chosen, notes


def suggested(header: Sequence[str], name: str) -> str | None:
    """The column that may be meant by the manifest's `name`; None where none looks like it."""
    for plain in LIKE[name]:
        for column in header:
            if plain_name(column) == plain:
                return column
    return None


def _asked(asked: str, header: Sequence[str], name: str, place: Path) -> str:
    if asked in header:
        return asked
    hint = quoted(did_you_mean(asked, header), instead="")
    raise UserError(f"data.columns.{name}: found {asked!r}, expected a column of {place}{hint}")


def _expect_different(chosen: Mapping[str, str]) -> None:
    """UserError if one column is to be read as two; a path may name the image too."""
    for name, column in chosen.items():
        others = [other for other in chosen if chosen[other] == column and other != name]
        if others and {name, *others} != {"path", "image_id"}:
            raise UserError(
                f"data.columns: found {column!r} for {name} and for {others[0]}, expected different columns"
            )
