"""Manifest: one row per radiograph, whatever layout it came from; checked, split by patient, sampled."""

import hashlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.config import expand
from data.dicom_ids import Headers, with_dicom_ids
from data.errors import LONGEST, UserError, printable, quoted, withholding
from data.files_on_disk import Look, look_for
from data.labels import NoSuchFinding, words
from data.patients import with_patients
from data.places import require_table
from data.privacy import is_credentialed, may_show, recognised
from data.settings import DataConfig, DataSettings
from data.sources import COLUMNS, PEOPLE, SOURCES, SPLITS, LeftOut, kinds_of_columns, read_source
from data.where import chosen_rows

GIVEN = "the label of the data set's own table"  # where no rule decides


@dataclass(frozen=True, eq=False)
class Manifest:
    """The radiographs of a run.

    `table` has the columns image_id, path, patient_id, study_id, split (train, validate, test), view,
    label (1.0 abnormal, 0.0 normal, NaN unknown; or `target` present, absent), source; then, where they are known, sex
    (F, M, NaN) and age (years, NaN); then any findings, any further columns of the user's tables as texts, and in a mix
    `own_id`, the image_id without the name of its part. Where the layout has no patient or study, its image stands
    for it. `kinds_of_columns` in data.sources tells these apart.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]  # lines to print
    credentialed: bool  # may neither be shown nor shared
    patients_known: bool = True  # patient_id is a patient's for every image
    target: str | None = None
    rules: pd.Series | None = None  # the words of the rule that decided each row's label
    looks: tuple[Look, ...] = ()  # what is known of the files on disk
    headers: tuple[Headers, ...] = ()  # patients and studies of DICOM files
    unreadable: frozenset[str] = frozenset()  # image_id of those whose file was rejected: they count nowhere

    def of_split(self, split: str) -> pd.DataFrame:
        """The rows of one split, in order; UserError if there are none."""
        assert split in SPLITS, split
        part = self.table[self.table["split"] == split]
        if part.empty:
            sizes = ", ".join(f"{name} {n:,}" for name, n in self.table["split"].value_counts().items())
            raise UserError(f"data: found images in {sizes}, expected some in {split}")
        return part.reset_index(drop=True)

    def summary(self) -> str:
        """Images, patients, and normal, abnormal and unknown images per split, as text; those that can be read."""
        table = self.table[~self.table["image_id"].isin(self.unreadable)]
        rows = {}
        for split in SPLITS:
            rows[split] = _count(table[table["split"] == split], self.target)
        rows["all"] = _count(table, self.target)
        return _as_text(rows)

    def without(self, unreadable: Iterable[str]) -> "Manifest":
        """The same, with the images whose files were rejected: the summary leaves them out, and a note says so."""
        ids = frozenset(unreadable) & frozenset(self.table["image_id"])
        if not ids:
            return self
        note = LeftOut(len(ids), "unreadable (rejected.csv of the store says why)")
        return replace(self, notes=(*self.notes, note), unreadable=ids)

    def breakdown(self) -> str:
        """The summary by view as well, then what every label rule took, then what was left out and why."""
        rows: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            part = self.table[self.table["split"] == split]
            views = part["view"].fillna("no view")
            for view in sorted(views.unique()):
                rows[printable(f"{split}, {view}")] = _count(part[views == view], self.target)
        rows["all"] = _count(self.table, self.target)

        if self.rules is not None:
            for rule, count in self.rules.value_counts().items():
                if count:
                    rows[f"rule: {rule}"] = _count(self.table[self.rules == rule], self.target)
        for note in self.notes:
            if isinstance(note, LeftOut):
                rows[f"left out: {note.reason}"] = {"images": note.images}
        return _as_text(rows)

    def label_policy(self) -> list[dict[str, Any]]:
        """What became of the images by each label rule: {rule, became, images, train, validate, test} for each.

        Rules in the order of their number of images; a data set without rules has its labels from its own tables.
        """
        rules = pd.Series(GIVEN, index=self.table.index, dtype=object)
        if self.rules is not None:
            rules = self.rules.astype(object).fillna(GIVEN)
        negative, positive = words(self.target)
        became = self.table["label"].map({0.0: negative, 1.0: positive}).fillna("unknown").astype(object)

        rows: list[dict[str, Any]] = []
        table = pd.DataFrame({"rule": rules, "became": became, "split": self.table["split"]})
        for (rule, meaning), part in table.groupby(["rule", "became"], sort=False):
            of_splits = {split: int((part["split"] == split).sum()) for split in SPLITS}
            rows.append({"rule": rule, "became": meaning, "images": len(part), **of_splits})
        return sorted(rows, key=lambda row: (-row["images"], row["rule"], row["became"]))

    def may_show(self, wished: bool | None) -> bool:
        """Whether images and plain ids may be shown: those of credentialed sources only where it is wished for.

        wished: `report.images` of the config of this data. `data.privacy.may_show` decides.
        """
        return may_show(self.credentialed, wished)

    def fingerprint(self) -> str:
        """16 hex digits of (image_id, split, label) of all rows, in whatever order they stand."""
        return digest(self.table, "image_id", "split", "label")


def digest(table: pd.DataFrame, *columns: str) -> str:
    """16 hex digits of what stands in these columns, in whatever order the rows stand."""
    rows = table[list(columns)].sort_values(columns[0]).to_csv(index=False, sep="\t")
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def hashed(names: Iterable[str], key: bytes = b"") -> np.ndarray:
    """(n) int64: a 64-bit hash of each name, which tells names apart without revealing them.

    It is from the name's SHA-256, which anybody who guesses the name can work out; with a key, only who has the key.
    """
    if key:
        digests = [hashlib.blake2b(name.encode(), key=key, digest_size=8).digest() for name in names]
    else:
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def _count(part: pd.DataFrame, target: str | None) -> dict[str, int]:
    label = part["label"]
    negative, positive = words(target)
    return {
        "images": len(part),
        "patients": part["patient_id"].nunique(),
        negative: int((label == 0).sum()),
        positive: int((label == 1).sum()),
        "unknown": int(label.isna().sum()),
    }


def _as_text(rows: dict[str, dict[str, int]]) -> str:
    """A line per row, numbers with thousands separators, a blank where a row has none."""

    def shown(number: Any) -> str:
        if pd.isna(number):
            return ""
        return f"{int(number):,}"

    return pd.DataFrame.from_dict(rows, orient="index", dtype=object).map(shown).to_string()


def open_manifest(config: DataConfig | DataSettings, look_again: bool = False) -> Manifest:
    """Config (or its data section) → Manifest: read, checked, views kept, split, found on disk, sampled.

    Which files are on disk is taken from the last `prepare`, unless `look_again`. Raises UserError, one
    line naming place, found and expected, for whatever the CSVs and folders lack.
    """
    settings = config if isinstance(config, DataSettings) else config.data
    with withholding(is_credentialed(settings)):
        return _open(settings, look_again)


def _open(settings: DataSettings, look_again: bool) -> Manifest:
    sources = settings.each_source()
    mixed = settings.source == "mix"

    # each data set on its own, then all of them below each other
    parts = {name: _open_source(source, mixed, look_again) for name, source in sources.items()}
    if mixed:
        table, notes = _mix(parts)
    else:
        [part] = parts.values()
        table, notes = part.table, part.notes

    if settings.target and "rule" not in table:
        raise UserError(f"data.target: found no findings in source {', '.join(sources)}, expected {settings.target}")

    # the sample is drawn from all of them together
    table, more = _sample(table, settings)
    if settings.credentialed is None:
        for name, known in recognised(settings).items():
            more.append(f"{name}: found {known}'s files, so it is treated as credentialed (see data.credentialed)")
    table = table.reset_index(drop=True)
    rules = table.pop("rule") if "rule" in table else None

    if mixed:  # sources named `a` and `a/b` can give two patients one id
        _check_patients(table, "data.sources")
    return Manifest(
        table=table,
        notes=tuple(note if isinstance(note, LeftOut) else printable(note, LONGEST) for note in (*notes, *more)),
        credentialed=is_credentialed(settings),
        patients_known=all(part.patients_known for part in parts.values()),
        target=settings.target,
        rules=rules,
        looks=tuple(part.look for part in parts.values() if part.look),
        headers=tuple(part.headers for part in parts.values() if part.headers),
    )


# ---------------------------------------------------------------- sources


@dataclass(frozen=True, eq=False)
class _Part:
    """One source, ready to be mixed with others."""

    table: pd.DataFrame
    notes: list[str]
    patients_known: bool
    look: Look | None
    headers: Headers | None


def _open_source(settings: DataSettings, mixed: bool, look_again: bool) -> _Part:
    root = Path(expand(settings.root, "data.root"))
    if mixed:
        table, notes = _read_mixed(settings, root)
    else:
        table, notes = read_source(settings, root)
    place = str(root)
    if settings.source == "table":
        place = str(require_table(root, settings.table))
    _check(table, place)
    table, about_headers, headers = with_dicom_ids(table, settings, root, look_again)
    if headers:
        _check_patients(
            table, str(root), "; these are DICOM's PatientID or StudyInstanceUID, which data.dicom_ids=false leaves out"
        )
    notes = [*notes, *about_headers]
    patients_known = bool(table["patient_id"].notna().all())

    # splits are drawn from the views that are kept, whether or not their files are downloaded yet
    for step in (with_patients, _name_patients, chosen_rows, _keep_views, _split):
        table, more = step(table, settings)
        notes += more

    table, more, look = _keep_present(table, settings, root, look_again)
    return _Part(table, notes + more, patients_known, look, headers)


def _read_mixed(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """In a mix, a source that does not know the target has no labels; alone, that would be a mistake."""
    try:
        table, notes = read_source(settings, root)
    except NoSuchFinding:
        table, notes = read_source(settings.model_copy(update={"target": None}), root)
        table = table.drop(columns="rule")
    if settings.target and "rule" not in table:
        return table.assign(label=np.nan), [*notes, f"no findings named {settings.target}: labels are unknown"]
    return table, notes


def _mix(parts: dict[str, _Part]) -> tuple[pd.DataFrame, list[str]]:
    """Parts below each other; ids begin with their source, so that patients of different sources differ."""
    tables: list[pd.DataFrame] = []
    notes: list[str] = []
    for name, part in parts.items():
        ids = {column: f"{name}/" + part.table[column] for column in ("image_id", "patient_id", "study_id")}
        tables.append(part.table.assign(**ids, own_id=part.table["image_id"]))
        for note in part.notes:
            notes.append(note.of(name) if isinstance(note, LeftOut) else f"{name}: {note}")

    # what one part lacks is NaN there
    kinds = [kinds_of_columns(table) for table in tables]
    people = [name for name in PEOPLE if any(name in each.people for each in kinds)]
    further = _in_any(each.further for each in kinds)
    findings = [name for name in _in_any(each.findings for each in kinds) if name not in further]
    table = pd.concat(tables, ignore_index=True)
    rule = ["rule"] if "rule" in table else []
    types = dict.fromkeys(further, object) | dict.fromkeys(findings, np.float32)
    return table[[*COLUMNS, *people, *findings, *further, "own_id", *rule]].astype(types), notes


def _in_any(lists: Iterable[list[str]]) -> list[str]:
    """Each name once, in order of first appearance."""
    return list(dict.fromkeys(name for names in lists for name in names))


def _keep_present(
    table: pd.DataFrame, settings: DataSettings, root: Path, look_again: bool
) -> tuple[pd.DataFrame, list[str], Look | None]:
    """The images on disk. Where none is, all are kept: labels can be counted before anything is downloaded."""
    if not SOURCES[settings.source].partial:
        return table, [], None
    memory = None
    if not look_again and settings.store is not False:
        memory = Path(expand(settings.store, "data.store"))
    look = look_for(table["path"].tolist(), root, memory)

    missing = int((~look.there).sum())
    if missing == len(table):
        return table, [f"none of the {missing:,} images is on disk"], look
    notes: list[str] = []
    if missing:
        notes.append(LeftOut(missing, "not on disk"))
    return table[look.there], notes, look


# ---------------------------------------------------------------- checks


def _check(table: pd.DataFrame, place: str) -> None:
    if table.empty:
        raise UserError(f"{place}: found no images, expected some")
    _check_names(table["path"])

    repeated = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(repeated):
        raise UserError(f"{place}: found repeated image_id{_example(repeated)}, expected unique ones")

    blank = int(table["split"].isna().sum())
    if 0 < blank < len(table):
        raise UserError(f"{place}: found {blank:,} images without a split, expected one for all images or for none")
    _check_patients(table, place)


def _check_names(paths: pd.Series) -> None:
    """UserError if names cannot be written as UTF-8, because of the names of files or of the locale."""
    names = "\n".join(paths)
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not names.isascii():
        odd = [path for path in paths if not path.isascii()]
        raise UserError(
            f"{quoted(odd[0], 'data.root')}: found a name beyond ASCII ({len(odd):,} such) in a locale of {encoding}, "
            "expected UTF-8; set PYTHONUTF8=1"
        )
    try:
        names.encode()
    except UnicodeEncodeError:
        odd = [path for path in paths if re.search("[\ud800-\udfff]", path)]  # what os.fsdecode makes of other bytes
        shown = odd[0].encode(errors="surrogateescape").decode(errors="backslashreplace")
        shown = quoted(shown, "data.root")
        raise UserError(f"{shown}: found a name not in UTF-8 ({len(odd):,} such), expected UTF-8; rename") from None


def _check_patients(table: pd.DataFrame, place: str, more: str = "") -> None:
    """UserError for a patient in two splits, or a study of a patient who is not named."""
    unnamed = table["study_id"].where(table["patient_id"].isna())
    for found, ids in (
        ("found patients in two splits", table["patient_id"]),
        ("found studies of unnamed patients in two splits", unnamed),
    ):
        torn = _torn(ids, table["split"])
        if len(torn):
            raise UserError(f"{place}: {found}{_example(torn)}, expected each in one{more}")


def _torn(ids: pd.Series, splits: pd.Series) -> pd.Series:
    """The ids that stand in more than one split."""
    pairs = pd.DataFrame({"id": ids, "split": splits}).dropna().drop_duplicates()
    return pairs.loc[pairs["id"].duplicated(), "id"].drop_duplicates()


def _example(ids: pd.Series) -> str:
    """How many, and the first unless ids are confidential."""
    example = quoted(f", such as {ids.iloc[0]}", instead="")
    return f" ({len(ids):,}{example})"


# ---------------------------------------------------------------- steps


def _name_patients(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """If a patient is not named, the study, or else the image, stands for it; the image also for an unnamed study."""
    anonymous = table["patient_id"].isna()
    of_one_study = "study " + table["study_id"]  # never equal to a patient's id, whatever the study's number
    table = table.assign(
        patient_id=table["patient_id"].fillna(of_one_study).fillna(table["image_id"]),
        study_id=table["study_id"].fillna(table["image_id"]),
    )
    if not anonymous.any():
        return table, []

    which = f"{anonymous.sum():,} images have no patient id"
    if anonymous.all():
        which = "there are no patient ids"
    stands = "each such image"
    if not of_one_study.isna().all():
        stands = "each such study, or image without one,"
    return table, [f"{which}: {stands} counts as a patient, who may stand in two splits"]


def _keep_views(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    view = table["view"].map(str.upper, na_action="ignore")
    if not settings.views or view.isna().all():
        return table, []
    wanted = {name.upper() for name in settings.views}
    if {"AP", "PA"} <= wanted:
        wanted.add("FRONTAL")  # one of the two, nobody says which
    kept = view.isin(wanted)  # in MIMIC laterals are among those without a view
    if not kept.any():
        found = ", ".join(f"{name} ({n:,})" for name, n in view.value_counts().items())
        raise UserError(f"data.views: found views {found}, expected some of {', '.join(settings.views)}")

    notes: list[str] = []
    others = view[~kept].value_counts()
    if len(others):
        notes.append(LeftOut(int(others.sum()), f"view {', '.join(sorted(others.index))}"))
    if view.isna().any():
        notes.append(LeftOut(int(view.isna().sum()), "no view"))
    return table[kept], notes


def _split(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """The official splits; what they lack is carved from train, test before validate."""
    if not settings.labelled:
        return _all_to_train_on(table)
    given = set(table["split"].dropna())
    if not given:
        table = table.assign(split="train")
        given = {"train"}
    if "train" not in given:  # a data set to test on
        return table, []

    notes = []
    fractions = {"test": settings.test_fraction, "validate": settings.validate_fraction}
    if table["label"].isna().all():  # nothing to test
        del fractions["test"]
    for split, fraction in fractions.items():
        if split not in given:
            table = _carve(table, split, fraction, settings.split_seed)
            notes.append(f"no {split} split is given: drawn {fraction:.0%} of the training patients of each label")
    return table, notes


def _all_to_train_on(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """All images, without labels, whatever their table says of labels; those of its test split are left out."""
    tests = table["split"] == "test"
    if tests.all():
        raise UserError("data.unlabelled: found images of test splits alone, expected some to train on")
    notes: list[str] = []
    if tests.any():
        notes.append(LeftOut(int(tests.sum()), "test images of a data set that serves pretraining"))
    return table[~tests].assign(split="train", label=np.nan), notes


def _carve(table: pd.DataFrame, split: str, fraction: float, seed: int) -> pd.DataFrame:
    """Move a fraction of the training patients to `split`, of the normal, abnormal and unknown alike."""
    train = table["split"] == "train"

    # patients in the order of their random numbers
    health = table[train].groupby("patient_id")["label"].max().fillna(-1)  # one abnormal image: abnormal
    health = health.iloc[np.argsort(_lots(health.index, seed, split))]

    # the first of each kind move, and at least one of each kind stays on either side
    size = health.groupby(health).transform("size")
    wanted = (fraction * size).round().clip(lower=1).clip(upper=size - 1)
    moved = health.index[health.groupby(health).cumcount() < wanted]
    moving = train & table["patient_id"].isin(moved)
    return table.assign(split=table["split"].mask(moving, split).astype(object))


def _sample(table: pd.DataFrame, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    if settings.sample is None:
        return table, []
    train = table["split"] == "train"
    sampled = sample_patients(table[train], settings.sample, settings.split_seed)
    patients = sampled["patient_id"].nunique()
    notes = [f"sample: {len(sampled):,} of {train.sum():,} training images, of {patients:,} patients"]
    left = int(train.sum()) - len(sampled)
    if left:
        notes.append(LeftOut(left, "not in the sample"))
    return table[~train | table.index.isin(sampled.index)], notes


def sample_patients(
    table: pd.DataFrame, count: int, seed: int, place: str = "data.sample", both_first: bool = False
) -> pd.DataFrame:
    """Rows of whole patients, drawn regardless of labels, until `count` labelled images are together.

    both_first: a patient with each label comes first, so that even few images have both labels.
    The order of the draw depends on `seed` and patient ids alone, so a smaller sample is part of a
    larger one. Rows keep their order and index. UserError, naming `place`, if too few are labelled.
    """
    labelled = table["label"].notna()
    if labelled.sum() < count:
        raise UserError(f"{place}: found {labelled.sum():,} labelled training images, expected at least {count:,}")

    # labelled images of each patient, the patients in the order of their random numbers
    images = labelled.groupby(table["patient_id"]).sum()
    images = images.iloc[np.argsort(_lots(images.index, seed, "sample"))]
    if both_first:
        images = images.iloc[_one_of_each_first(table, images.index)]
    enough = int(np.searchsorted(images.cumsum(), count)) + 1
    return table[table["patient_id"].isin(images.index[:enough])]


def _one_of_each_first(table: pd.DataFrame, patients: pd.Index) -> list[int]:
    """Numbers of the patients: of each label the first one who has it, then all others in order."""
    first: list[int] = []
    for label in (0.0, 1.0):
        has = patients.isin(table.loc[table["label"] == label, "patient_id"])
        first += [int(np.argmax(has))] if has.any() else []
    return list(dict.fromkeys([*first, *range(len(patients))]))


def _lots(ids: Iterable[str], seed: int, purpose: str) -> np.ndarray:
    """A random number per id that nothing else in the table can change."""
    digests = (hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), np.uint64)
