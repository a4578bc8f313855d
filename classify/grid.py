"""The grid of a comparison: rows × their pretrainings × label budgets × seeds, and whether it can run."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from classify.cases import check_unit, labelled_rows, splits_of
from classify.finetune import RESUMABLE
from classify.settings import ClassifyConfig, CompareSettings, RowSettings
from classify.start import PREPROCESSING, check_fit, resolved
from data.config import change_config, expand
from data.errors import UserError
from data.loader import Data
from data.manifest import digest
from data.privacy import with_settings
from data.settings import DataSettings
from mae.engine.run import Resumable, check_run, flat, training_device
from mae.pretrain import RESUMABLE as PRETRAIN_RESUMABLE
from mae.pretrain import check_model
from mae.weights import resolve

LONGEST = 80  # letters of a name in a folder's; file systems take 255 bytes, and a folder has several parts
LETTERS = "LNMS"  # categories of what is written to tell names apart: letters, numbers, marks and symbols
OF_ALL_ROWS = ("run", "seed", "evaluate", "compare")  # sections and settings that no row has of its own


@dataclass(frozen=True)
class Cell:
    """One classifier of the grid: a row at a number of labelled images and a seed."""

    row: int  # number of the table row, over all label budgets
    name: str
    pretraining: str | None
    labelled: int | None
    run: str  # folder of the fine-tuning
    config: ClassifyConfig  # of stage two
    pretrain_config: ClassifyConfig | None


@dataclass(frozen=True)
class TableRow:
    """A row of one of the tables: its cells differ by their seeds alone."""

    number: int  # over all label budgets
    settings: RowSettings
    pretraining: str | None
    labelled: int | None  # the budget that its settings leave it
    changes: tuple[dict[str, Any], dict[str, Any]]  # of the comparison's config: its pretraining's, then its own


def expand_grid(config: ClassifyConfig) -> Iterator[Cell]:
    """rows × their pretrainings × label budgets × seeds, row by row."""
    grid = config.compare

    # mistakes of the section itself
    names = [row.name for row in grid.rows]
    if grid.baseline is not None and grid.baseline not in names:
        raise UserError(f"compare.baseline: found {grid.baseline!r}, expected a row's name: {', '.join(names)}")
    if not grid.rows:
        raise UserError(
            "compare.rows: found none, expected rows such as {name: ResNet-18, set: {finetune.model: resnet18}}"
        )

    folders: dict[str, Owner] = {}
    for row in _table_rows(config):
        for seed in grid.seeds:
            cell = _cell(config, row, seed)
            if cell.pretrain_config:
                assert cell.pretraining is not None
                _claim(folders, cell.pretrain_config.run, Owner("pretraining", cell.pretraining))
            _claim(folders, cell.run, Owner("row", cell.name))
            yield cell


class Owner(NamedTuple):
    """Whose folder it is."""

    kind: str  # row or pretraining
    name: str


def _claim(folders: dict[str, Owner], folder: str, owner: Owner) -> None:
    """UserError where the folder is another's, also where a file system takes no note of case."""
    other = folders.setdefault(folder.casefold(), owner)
    if other is owner or (other == owner and owner.kind == "pretraining"):  # which many rows begin from
        return
    kinds = f"two {owner.kind}s" if other.kind == owner.kind else f"a {other.kind} and a {owner.kind}"
    raise UserError(
        f"compare.rows: found {kinds} for {folder} ({other.name!r} and {owner.name!r}), expected names that differ in "
        "more than case and punctuation"
    )


def _table_rows(config: ClassifyConfig) -> Iterator[TableRow]:
    """The rows of all tables, each under the label budget that its own settings leave it, and there once."""
    grid = config.compare
    for row in grid.rows:
        _check_own(row.set, f"compare.rows: {row.name}")
    for name, pretrained in grid.pretrainings.items():
        _check_own(pretrained, f"compare.pretrainings: {name}")
        change_config(config, pretrained, "compare.pretrainings")

    number = 0
    seen = set()
    for labelled in grid.labelled:
        for place, settings in enumerate(grid.rows):
            if settings.predictions is not None:  # nothing is trained for it: see classify/extra_rows.py
                continue
            for which, pretraining in enumerate(settings.pretraining or (None,)):
                changes = _changes(grid, settings, pretraining, labelled)
                both = changes[0] | changes[1]
                sample = change_config(config, both, f"compare.rows: {settings.name}").finetune.sample

                # a row with a budget of its own would stand in the tables of all others too
                if (place, which, sample) in seen:
                    continue
                seen.add((place, which, sample))
                yield TableRow(number, settings, pretraining, sample, changes)
                number += 1


def _changes(
    grid: CompareSettings, row: RowSettings, pretraining: str | None, labelled: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a row changes of the config: its pretraining's settings; the label budget and its own, which overrule."""
    earlier: dict[str, Any] = {}
    if pretraining is not None:  # counts in both stages
        earlier = flat(_settings_of(grid, pretraining))
    own: dict[str, Any] = {}
    if labelled is not None:
        own["finetune.sample"] = labelled
    return earlier, own | flat(row.set)


def _check_own(settings: dict[str, Any], place: str) -> None:
    """UserError for what a row or pretraining cannot have of its own: the comparison would not heed it."""
    for key in flat(settings):
        if key.split(".")[0] in OF_ALL_ROWS or key == "finetune.run":
            raise UserError(f"{place}: found {key}, expected it outside, as a setting of the whole comparison")


def _cell(config: ClassifyConfig, row: TableRow, seed: int) -> Cell:
    pretrain_config = None
    if row.pretraining is not None:
        folder = Path(config.run, f"pretrain-{pretraining_folder_name(row.pretraining)}-seed{seed}")
        changes = _settings_of(config.compare, row.pretraining) | {"run": str(folder), "seed": seed}
        pretrain_config = resolve(with_settings(config, changes, place="compare.pretrainings"))
    place = f"compare.rows: {row.settings.name}"
    stage_two = with_settings(config, *row.changes, {"seed": seed}, place=place)

    # its folder has the name of what it turned out to be
    run = str(Path(config.run, _folder_name(config, row, stage_two.finetune.augment.enabled, seed)))
    stage_two = resolved(change_config(stage_two, {"finetune.run": run}, "compare.rows"))
    return Cell(
        row=row.number,
        name=row.settings.name,
        pretraining=row.pretraining,
        labelled=row.labelled,
        run=run,
        config=stage_two,
        pretrain_config=pretrain_config,
    )


def _settings_of(grid: CompareSettings, pretraining: str) -> dict[str, Any]:
    if pretraining not in grid.pretrainings:
        known = ", ".join(grid.pretrainings) or "none"
        raise UserError(
            f"compare.rows: found pretraining {pretraining!r}, expected one of compare.pretrainings: {known}"
        )
    return grid.pretrainings[pretraining]


def _folder_name(config: ClassifyConfig, row: TableRow, augmented: bool, seed: int) -> str:
    """Everything that tells a cell from the others of its grid: `mae-linear-mae75-n500-seed0`."""
    parts = [folder_name(row.settings.name)]
    if row.pretraining is not None:
        parts.append(pretraining_folder_name(row.pretraining))
    if not augmented:
        parts.append("plain")
    if row.labelled != config.finetune.sample:
        parts.append(f"n{row.labelled or 'all'}")
    parts.append(f"seed{seed}")
    return "-".join(parts)


def folder_name(name: str) -> str:
    """`MAE, linear` → `mae-linear`, in letters, digits and dashes of ASCII, which no system takes for another name.

    Eight hexadecimal digits stand for what these cannot say: `ViT α` → `vit-d0a9c0a5`. Names that differ in case and
    punctuation alone share a folder name.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")

    unsaid = [letter for letter in plain if not letter.isascii() and unicodedata.category(letter)[0] in LETTERS]
    if unsaid or not slug or len(slug) > LONGEST:
        digest = hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()[:8]
        slug = f"{slug[:LONGEST]}-{digest}".strip("-")
    return slug


def pretraining_folder_name(name: str) -> str:
    """A pretraining's name as it is where it can stand in a folder's, else as `folder_name` has it."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and len(name) <= LONGEST:
        return name
    return folder_name(name)


# ---------------------------------------------------------------- checks


def check_grid(config: ClassifyConfig, cells: list[Cell], data_of: Callable[[DataSettings], Data]) -> None:
    """Raise UserError for what a cell would complain of, or make the rows incomparable, before any training."""
    split = config.compare.split
    tested = set()
    for cell in cells:
        # stage two by itself
        data = data_of(cell.config.data)
        check_fit(cell.config, None)
        training_device(cell.config)
        splits = splits_of(data, cell.config)
        check_unit(splits.validate, "validate", config, data.manifest)

        # all rows are tested on the same cases
        table = labelled_rows(data.split(split), split, cell.config.data.target)
        check_unit(table, split, config, data.manifest)
        tested.add(digest(table, "image_id", "patient_id", "study_id", "label"))
        if len(tested) > 1:
            what = f"other {split} images or labels than the rows before it"
            raise UserError(f"compare.rows: {cell.name}: found {what}, expected the same cases in every row")

        # the pretraining whose weights it starts from
        if cell.pretrain_config:
            _check_pretraining(cell.pretrain_config)
            _check_pretrained(cell, cell.pretrain_config)
            _check_folder(cell.pretrain_config, cell.pretrain_config.run, PRETRAIN_RESUMABLE)

        _check_folder(cell.config, cell.run, RESUMABLE)


def _check_pretraining(config: ClassifyConfig) -> None:
    """A comparison owes nothing to labels before stage two."""
    check_model(config.model, config.pretrain, config.data.image_size)
    if config.pretrain.select == "probe":
        raise UserError("pretrain.select: found probe, expected reconstruction in a comparison")


def _check_pretrained(cell: Cell, pretraining: ClassifyConfig) -> None:
    """A row's settings may not contradict the pretraining whose weights it starts from."""
    model = cell.config.finetune.model
    if model != "vit":
        raise UserError(f"compare.rows: {cell.name}: found {model}, expected vit with a pretraining")

    # (name, as the pretraining has it, as the row has it)
    pairs = []
    for name in PREPROCESSING:
        pairs.append((f"data.{name}", getattr(pretraining.data, name), getattr(cell.config.data, name)))
    pairs.append(("model", pretraining.model, cell.config.model))
    pairs.append(("pretrain", pretraining.pretrain, cell.config.pretrain))
    for name, before, after in pairs:
        if before != after:
            raise UserError(f"compare.rows: {cell.name}: found {name} changed, expected it as its pretraining has it")


def _check_folder(config: ClassifyConfig, run: str, resumable: Resumable) -> None:
    """A grid continues only runs of its very settings, epochs included: its rows must stay comparable."""
    check_run(Path(expand(run, "run")), config, resumable, same_epochs=True)
