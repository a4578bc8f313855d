"""Scores of another program, or a human reader's ratings, in a CSV → predictions of a split, joined by id."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from classify.cases import check_unit, known_patients, labelled_rows, study_numbers
from classify.metrics import choose_threshold
from classify.scores import in_units
from classify.settings import PLURALS, ClassifyConfig, RowSettings
from data.config import expand
from data.errors import UserError, quoted, withholding
from data.labels import LABEL_WORDS
from data.loader import Data
from data.sources import csv_columns, read_csv, read_words
from data.writing import of_cell

Kind = Literal["probability", "logit", "rating"]

# names of columns by what they hold, in any case; if a file has several, the first one here is taken
IMAGES = ("image_id", "id", "image", "dicom_id", "path", "image_path", "file", "filename", "file_name", "image_name")
STUDIES = ("study_id", "study")
PATIENTS = ("patient_id", "patient", "subject_id")
SCORES: dict[str, Kind] = {
    **dict.fromkeys(("probability", "prob", "score", "y_score"), "probability"),
    "logit": "logit",
    **dict.fromkeys(("rating", "reading", "reader", "prediction", "predicted"), "rating"),
}
LABELS = ("label", "y_true", "truth", "ground_truth")
WORDS = LABEL_WORDS | {"1.0": 1.0, "0.0": 0.0, "positive": 1.0, "negative": 0.0}
CERTAIN = 37.0  # from this logit on, a score of 64 bits is 1
DIGITS = 12  # of a study's mean rating, so that equal ratings stay equal in whatever order they are added


@dataclass(frozen=True)
class PredictionFile:
    """A row's file as it is read: for each of its ids, a number on the file's own scale."""

    place: Path
    ids_are: Literal["image", "study"]
    kind: Kind
    column: str  # the one with the numbers
    table: pd.DataFrame  # id, value, cell (as it stands there), and where the file has them patient_id, label


@dataclass(frozen=True)
class Scale:
    """A file's own numbers → scores in 0..1, in the same order."""

    kind: Kind
    low: float = 0.0
    high: float = 1.0

    def score(self, values: np.ndarray) -> np.ndarray:
        if self.kind == "logit":
            return np.asarray(expit(values))
        return (values - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class FilePredictions:
    """A file's predictions of a split: its units with logit and score, and the threshold of their scores."""

    place: Path
    units: pd.DataFrame
    threshold: float
    how: str  # how the threshold was chosen, in words
    kind: Kind
    column: str


def files_of(row: RowSettings) -> list[Path]:
    """The files of a row, one for each seed or reader."""
    named = row.predictions
    if named is None:
        return []
    names = [named] if isinstance(named, str) else list(named)
    place = f"compare.rows: {row.name}: predictions"
    files = [Path(expand(name, place)) for name in names]
    for number, file in enumerate(files):
        if file in files[:number]:
            raise UserError(f"{place}: found {file} twice, expected each seed's or reader's once")
    return files


def predictions_of(row: RowSettings, config: ClassifyConfig, data: Data) -> list[FilePredictions]:
    """What a row's files say of the comparison's cases; UserError, in a line, if they do not fit these."""
    may_show = data.manifest.may_show(config.report.images)
    with withholding(not may_show):
        files = [_read(path, config, data) for path in files_of(row)]
        scale = _scale_of(files)
        return [_predictions(file, scale, row, config, data) for file in files]


# ---------------------------------------------------------------- reading


def _read(path: Path, config: ClassifyConfig, data: Data) -> PredictionFile:
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected a CSV of predictions")
    header = csv_columns(path)
    image = _first(header, IMAGES)
    study = _first(header, STUDIES)
    patient = _first(header, PATIENTS)
    scored = _first(header, SCORES)
    label = _first(header, LABELS)

    # whose numbers these are
    by_study = config.evaluate.unit == "study" and study is not None
    shown = quoted(", ".join(header[:20]), f"{len(header)} columns")
    name = study if by_study else image
    if name is None:
        hint = "; with study_id alone, give evaluate.unit=study" if study else ""
        raise UserError(f"{path}: found columns {shown}, expected image_id, id or path{hint}")
    if scored is None:
        raise UserError(f"{path}: found columns {shown}, expected score, probability, logit or rating")

    # numbers are read as texts, so that they keep their last bits and a word among them can be named
    wanted = {"id": name, "value": scored, "patient_id": patient, "label": label}
    columns = {ours: theirs for ours, theirs in wanted.items() if theirs is not None}
    texts = read_csv(path, list(dict.fromkeys(columns.values())))
    table = pd.DataFrame({ours: texts[theirs] for ours, theirs in columns.items()})
    if table["id"].isna().any():
        row = int(table["id"].isna().to_numpy().argmax()) + 2
        raise UserError(f"{path}: row {row}: found no {name}, expected one in every row")
    table["id"] = table["id"].map(of_cell)
    commas = table["value"].astype(str).str.fullmatch(r"\s*-?\d*,\d+\s*")
    if commas.any():
        raise UserError(f"{path}: column {scored}: found {table['value'][commas].iloc[0]}, expected decimal points")
    table["cell"] = table["value"]
    table["value"] = pd.to_numeric(table["value"], errors="coerce").astype(np.float64)
    if label is not None:
        table["label"] = read_words(table["label"], WORDS, path).astype(np.float64)
    file = PredictionFile(path, "study" if by_study else "image", SCORES[scored.lower()], scored, table)
    _check_probabilities(file)
    return file


def _first(header: list[str], known: tuple[str, ...] | dict[str, Kind]) -> str | None:
    """The first of the known columns that the header has, as the header spells it."""
    spelt = {name.lower(): name for name in reversed(header)}
    return next((spelt[name] for name in known if name in spelt), None)


def _check_probabilities(file: PredictionFile) -> None:
    if file.kind != "probability":
        return
    values = file.table["value"].to_numpy()
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise UserError(
            f"{file.place}: found {len(outside):,} of {len(values):,} numbers outside 0..1 in column {file.column}, "
            f"such as {float(outside[0])!r}, expected probabilities; call the column logit or rating if it has these"
        )


def _scale_of(files: list[PredictionFile]) -> Scale:
    """One scale for all files of a row; ratings that leave 0..1 are mapped to it, lowest to 0 and highest to 1."""
    kinds = {file.kind for file in files}
    if len(kinds) > 1:
        names = ", ".join(f"{file.column} in {file.place}" for file in files)
        raise UserError(f"{files[0].place}: found columns of several kinds ({names}), expected one kind in all files")
    [kind] = kinds
    values = np.concatenate([file.table["value"].to_numpy() for file in files])
    known = values[np.isfinite(values)]
    if kind != "rating" or not len(known) or (known.min() >= 0 and known.max() <= 1):
        return Scale(kind)
    if known.min() == known.max():
        raise UserError(f"{files[0].place}: found one rating, {known[0]:g}, for all, expected several")
    return Scale(kind, float(known.min()), float(known.max()))


# ---------------------------------------------------------------- joined to the cases


def _predictions(
    file: PredictionFile, scale: Scale, row: RowSettings, config: ClassifyConfig, data: Data
) -> FilePredictions:
    found = _joined(file, data)
    split = config.compare.split
    units = _units(found, file, scale, split, config, data)

    # the threshold: as given, else by validation cases alone
    if row.threshold is not None:
        if file.kind == "probability" and not 0 <= row.threshold <= 1:
            raise UserError(
                f"compare.rows: {row.name}: threshold: found {row.threshold:g}, expected it in 0..1, as the numbers of "
                f"{file.place} are"
            )
        threshold = _for_units(float(scale.score(np.array(row.threshold))), file, config)
        how = f"{row.threshold:g} as given"
    else:
        threshold, how = _chosen(found, file, scale, config, data)
    return FilePredictions(file.place, units, threshold, how, file.kind, file.column)


def _joined(file: PredictionFile, data: Data) -> pd.DataFrame:
    """The images of the data that the file has, with its number for each; UserError for ids that cannot be joined."""
    images = data.manifest.table
    table = file.table
    if file.ids_are == "study":
        keys, ids = _study_keys(file, data)
    else:
        keys, ids = _image_keys(file, images)

    repeated = ids[ids.duplicated()]
    if len(repeated):
        example = _example(table.loc[repeated.index, "id"])
        raise UserError(f"{file.place}: found {repeated.nunique():,} ids more than once{example}, expected each once")
    unknown = table.loc[~ids.isin(keys), "id"]
    if len(unknown):
        example = _example(unknown)
        raise UserError(
            f"{file.place}: found {len(unknown):,} of {len(table):,} ids that the data do not have{example}, expected "
            f"those of its {'studies' if file.ids_are == 'study' else 'images'}"
        )

    if file.ids_are == "image" and keys[keys.isin(ids)].duplicated().any():
        example = _example(keys[keys.isin(ids) & keys.duplicated()])
        raise UserError(
            f"{file.place}: found names that several images have{example}, expected ids that tell them apart"
        )

    by_id = table.set_index(ids)
    found = images[keys.isin(ids)]
    of_image = keys[keys.isin(ids)]
    joined = found.assign(value=of_image.map(by_id["value"]), cell=of_image.map(by_id["cell"]))
    if "label" in table:
        _check_labels(file, joined.assign(theirs=of_image.map(by_id["label"]), id=of_image))
    return joined


def _image_keys(file: PredictionFile, images: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The keys by which images and rows are joined: id, path, file name or its stem, whichever matches most rows."""
    ways: list[tuple[pd.Series, Callable[[str], str]]] = [(images["image_id"], str)]
    if "own_id" in images:
        ways.append((images["own_id"], str))
    paths = images["path"].astype(str)
    ways += [(paths.map(way), way) for way in (_path, _name)]
    # without their ending; UIDs have further dots, which are no endings
    ways += [(paths.map(_without_ending), way) for way in (_name, _without_ending)]
    ways.append((images["image_id"], _without_ending))  # ids with an ending that ours do not have
    ways += [(keys, _stem) for keys in (paths.map(_stem), images["image_id"])]

    best, most = ways[0], -1
    for keys, way in ways:
        known = int(file.table["id"].map(way).isin(keys).sum())
        if known > most:
            best, most = (keys, way), known
    keys, way = best
    return keys, file.table["id"].map(way)


def _path(text: str) -> str:
    return PurePosixPath(text).as_posix()


def _name(text: str) -> str:
    return PurePosixPath(text).name


def _without_ending(text: str) -> str:
    return PurePosixPath(text).stem


def _stem(text: str) -> str:
    """Without `.nii.gz` or the like."""
    return PurePosixPath(text).name.partition(".")[0]


def _study_keys(file: PredictionFile, data: Data) -> tuple[pd.Series, pd.Series]:
    """Studies by patient and study where the file names both, else by study; UserError where that is not enough."""
    images = data.manifest.table
    ours = known_patients(images, data.manifest.patients_known)
    if "patient_id" in file.table and file.table["patient_id"].notna().any():
        theirs = file.table["patient_id"].fillna("")
        if not data.manifest.patients_known:  # tables of ours have an image id in the place of an unknown patient
            theirs = theirs.mask(theirs.isin(images["image_id"]), "")
        return ours + "\n" + images["study_id"].astype(str), theirs + "\n" + file.table["id"]

    of_file = images["study_id"].isin(file.table["id"])
    patients = ours[of_file].groupby(images["study_id"][of_file]).nunique()
    shared = patients[patients > 1]
    if len(shared):
        example = _example(pd.Series(shared.index))
        raise UserError(
            f"{file.place}: found {len(shared):,} studies that several patients have{example}, expected a column "
            "patient_id"
        )
    return images["study_id"].astype(str), file.table["id"]


def _check_labels(file: PredictionFile, joined: pd.DataFrame) -> None:
    both = joined[joined["label"].notna() & joined["theirs"].notna()]
    wrong = both[both["label"] != both["theirs"]]
    if len(wrong):
        example = _example(wrong["id"].map(lambda key: str(key).partition("\n")[2] or key))
        raise UserError(
            f"{file.place}: found {len(wrong):,} of {len(both):,} labels other than the data's{example}, expected the "
            "same; leave its label column out if its labels mean something else"
        )


def _units(
    joined: pd.DataFrame, file: PredictionFile, scale: Scale, split: str, config: ClassifyConfig, data: Data
) -> pd.DataFrame:
    """The units of a split with logit and score; UserError unless the file has a number for each."""
    wanted = labelled_rows(data.split(split), split, config.data.target)
    wanted = wanted[~wanted["row"].isin(data.store.unreadable)]  # found while a model was evaluated
    by_image = joined.set_index("image_id")
    wanted = wanted.assign(value=wanted["image_id"].map(by_image["value"]))

    # counted in the file's own units
    known = data.manifest.patients_known
    listed = wanted["image_id"].isin(joined["image_id"])
    broken = listed & ~np.isfinite(wanted["value"])
    ids, what = wanted["image_id"], f"{split} images"
    if file.ids_are == "study":
        first = ~pd.Series(study_numbers(wanted, known), wanted.index).duplicated()
        ids, what = wanted.loc[first, "study_id"], f"{split} studies"
    for problem, is_so in (("no row", ~listed), ("no number", broken)):
        lacking = ids[is_so[ids.index]]
        if len(lacking):
            cell = by_image["cell"].get(wanted["image_id"][lacking.index[0]])
            shown = f" ({quoted(cell)})" if isinstance(cell, str) else ""
            raise UserError(
                f"{file.place}: found {problem} for {len(lacking):,} of {len(ids):,} labelled {what}{_example(lacking)}"
                f"{shown}, expected a number in column {file.column} for each"
            )
    return _scored(wanted, split, file, scale, config, data)


def _scored(
    wanted: pd.DataFrame, split: str, file: PredictionFile, scale: Scale, config: ClassifyConfig, data: Data
) -> pd.DataFrame:
    """Images that have a number → units with logit and score; UserError for studies that have no one label."""
    check_unit(wanted, split, config, data.manifest)
    known = data.manifest.patients_known
    values = wanted["value"].to_numpy(np.float64)
    scores = scale.score(values)
    logits = values if file.kind == "logit" else finite_logits(scores)
    unit = config.evaluate.unit
    units = in_units(wanted.assign(score=scores, logit=logits), unit, known)
    if unit == "image" or (file.ids_are == "image" and file.kind != "rating"):
        return units

    # equal numbers of studies stay equal
    means = pd.Series(scores).groupby(study_numbers(wanted, known)).mean().to_numpy()
    if file.ids_are == "study":
        firsts = pd.Series(np.arange(len(wanted))).groupby(study_numbers(wanted, known)).first().to_numpy()
        return units.assign(score=scores[firsts], logit=np.asarray(logits)[firsts])
    means = means.round(DIGITS)
    return units.assign(score=means, logit=finite_logits(means))


def finite_logits(scores: np.ndarray) -> np.ndarray:
    """The logits of scores in 0..1, in their order; 0 and 1 have none, and get numbers beyond all others."""
    with np.errstate(divide="ignore"):
        found = logit(scores)
    inside = found[np.isfinite(found)]
    lowest = min(-CERTAIN, inside.min(initial=0.0) - 1)
    highest = max(CERTAIN, inside.max(initial=0.0) + 1)
    return np.asarray(np.clip(found, lowest, highest))


def _chosen(
    joined: pd.DataFrame, file: PredictionFile, scale: Scale, config: ClassifyConfig, data: Data
) -> tuple[float, str]:
    """The threshold, chosen on the validation cases that the file has, and how it was chosen, in words."""
    rule = config.finetune.threshold
    validation = joined[(joined["split"] == "validate") & joined["label"].notna() & np.isfinite(joined["value"])]
    if rule != "half" and validation["label"].nunique() == 2:
        units = _scored(validation, "validate", file, scale, config, data)
        kind = PLURALS[config.evaluate.unit]
        return choose_threshold(units["label"], units["score"], rule), f"chosen on {len(units):,} validation {kind}"

    why = "finetune.threshold is half" if rule == "half" else "the file has no validation cases of both classes"
    if (scale.low, scale.high) != (0.0, 1.0):
        raise UserError(
            f"{file.place}: found ratings from {scale.low:g} to {scale.high:g} and no threshold ({why}), expected one: "
            f"give the row threshold: {(scale.low + scale.high) / 2:g}, or another rating from which on a case is "
            "abnormal"
        )
    return _for_units(0.5, file, config), f"a probability of 0.5, as {why}"


def _for_units(threshold: float, file: PredictionFile, config: ClassifyConfig) -> float:
    """A threshold that was not chosen among the units' scores: a study whose mean is just there reaches it.

    The last bits of a mean depend on how it was computed.
    """
    if config.evaluate.unit == "image" or file.ids_are == "study":
        return threshold
    return round(threshold, DIGITS) if file.kind == "rating" else threshold * (1 - 10**-DIGITS)


def _example(ids: pd.Series) -> str:
    """`, such as 17` where ids may be shown."""
    return "".join(f", such as {text}" for text in [quoted(ids.iloc[0], "")] if text)
