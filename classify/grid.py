"""The grid of a comparison: rows × their pretrainings × label budgets × seeds, and whether it can run."""

import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from classify.cases import check_unit, labelled_rows, splits_of
from classify.finetune import RESUMABLE
from classify.settings import (
    ClassifyConfig,
    CompareSettings,
    FinetuneSettings,
    RowSettings,
    SampleCovers,
    Tune,
    share_of,
)
from classify.start import PREPROCESSING, check_fit, resolved
from data.config import change_config, expand, single_settings
from data.errors import UserError, did_you_mean
from data.loader import Data
from data.manifest import digest
from data.places import expect_unlabelled
from data.privacy import with_settings
from data.settings import DataSettings
from mae.branch import check_planned
from mae.engine.run import Resumable, check_run, flat, training_device
from mae.pretrain import RESUMABLE as PRETRAIN_RESUMABLE
from mae.pretrain import check_begun, check_model
from mae.weights import resolve

LONGEST = 80  # letters of a name in a folder's name; file systems take 255 bytes, and a folder's name has several parts
LETTERS = "LNMS"  # Unicode categories that tell names apart: letters, numbers, marks and symbols
OF_ALL_ROWS = ("run", "seed", "evaluate", "compare")  # sections and settings that no row has of its own
OF_THE_GRID = ("finetune.run", "finetune.draw")  # the grid sets these for each cell
# what tuning on validation may not change: the folder, the images, the metric of selection, and what defines a row
NEVER_TUNED = ("run", "draw", "sample", "sample_covers", "select", "model", "mode")


@dataclass(frozen=True)
class Cell:
    """One classifier of the grid: a row at a number of labelled images and a seed."""

    row: int  # number of the table row, over all label budgets
    name: str  # of the row; names its pretraining too, if it has several
    pretraining: str | None
    labelled: int | None
    run: str  # folder of the fine-tuning
    config: ClassifyConfig  # of stage two; before tuning, if there is something to tune
    pretrain_config: ClassifyConfig | None
    choices: tuple[dict[str, Any], ...] = ()  # the settings that its row is to choose from; (): nothing to choose

    @property
    def folder(self) -> str:
        """The name of its folder: what the cell is called among the lines of many cells."""
        return Path(self.run).name


@dataclass(frozen=True)
class TableRow:
    """A row of one of the tables: its cells differ by their seeds alone."""

    number: int  # over all label budgets
    settings: RowSettings
    pretraining: str | None
    labelled: int | None  # the budget that its own settings result in
    changes: tuple[dict[str, Any], dict[str, Any]]  # of the comparison's config: its pretraining's, then its own


def expand_grid(config: ClassifyConfig, images: int | None = None) -> Iterator[Cell]:
    """rows × their pretrainings × label budgets × seeds, row by row.

    images: how many labelled training images there are; budgets in per cent are shares of them.
    """
    grid = config.compare

    # mistakes of the section itself
    if not grid.rows:
        raise UserError(
            "compare.rows: found none, expected rows such as {name: ResNet-18, set: {finetune.model: resnet18}}"
        )
    if all(row.predictions is not None for row in grid.rows):
        raise UserError("compare.rows: found predictions in files alone, expected a row that is trained here")
    _check_seeds(grid.seeds, "compare.seeds")
    if grid.pretraining_seeds is not None:
        _check_seeds(grid.pretraining_seeds, "compare.pretraining_seeds")
        if len(grid.pretraining_seeds) > len(grid.seeds):
            raise UserError(
                f"compare.pretraining_seeds: found {len(grid.pretraining_seeds)}, expected at most as many as "
                f"compare.seeds has ({len(grid.seeds)}): each is to serve a training"
            )
    names = row_names(grid)
    if grid.baseline is not None:
        expect_row(grid.baseline, names, "compare.baseline")
    _check_tuning(config)

    folders: dict[str, Owner] = {}
    for row in _table_rows(config, images):
        for place in range(len(grid.seeds)):
            cell = _cell(config, row, place)
            if cell.pretrain_config:
                assert cell.pretraining is not None
                _claim(folders, cell.pretrain_config.run, Owner("pretraining", cell.pretraining))
            _claim(folders, cell.run, Owner("row", cell.name))
            yield cell
    if not folders:
        shown = ", ".join(map(_shown, grid.labelled))
        raise UserError(f"compare.rows: found none for {shown}, expected one at least; see their labelled")


def _check_seeds(seeds: tuple[int, ...], place: str) -> None:
    for number, seed in enumerate(seeds):
        if seed in seeds[:number]:
            raise UserError(f"{place}: found {seed} twice, expected each once: each is a training of its own")


# ---------------------------------------------------------------- names


def row_names(grid: CompareSettings) -> dict[str, str]:
    """All names by which rows may be called → the name that is shown.

    A row is called by its name, or by `name/pretraining` if it has several pretrainings. With one pretraining both are
    understood. UserError for two rows of one name.
    """
    names: dict[str, str] = {}
    for row in grid.rows:
        for pretraining in row.pretraining or (None,):
            shown = _row_name(row, pretraining)
            understood = {shown}
            if pretraining is not None:
                understood.add(f"{row.name}/{pretraining}")

            for name in sorted(understood):
                if name in names:
                    raise UserError(f"compare.rows: found two rows named {name!r}, expected a name of its own for each")
                names[name] = shown
    return names


def _row_name(row: RowSettings, pretraining: str | None) -> str:
    if len(row.pretraining) > 1:
        return f"{row.name}/{pretraining}"
    return row.name


def expect_row(name: str, names: Mapping[str, str], place: str) -> str:
    """The shown name of the row called `name`; if there is none, UserError with the name that may be meant."""
    if name in names:
        return names[name]
    shown = ", ".join(dict.fromkeys(names.values()))
    raise UserError(f"{place}: found {name!r}, expected a row's name: {shown}{did_you_mean(name, names)}")


class Owner(NamedTuple):
    """Whose folder it is."""

    kind: str  # row or pretraining
    name: str


def _claim(folders: dict[str, Owner], folder: str, owner: Owner) -> None:
    """UserError if the folder is another's, or would be on a file system that ignores case."""
    other = folders.setdefault(folder.casefold(), owner)
    if other is owner or (other == owner and owner.kind == "pretraining"):  # many rows begin from it
        return
    kinds = f"two {owner.kind}s" if other.kind == owner.kind else f"a {other.kind} and a {owner.kind}"
    raise UserError(
        f"compare.rows: found {kinds} for {folder} ({other.name!r} and {owner.name!r}), expected names that differ in "
        "more than case and punctuation"
    )


# ---------------------------------------------------------------- label budgets


def counts_images(grid: CompareSettings) -> bool:
    """Whether a table uses only a part of the labelled training images, so that these have to be counted first."""
    return any(budget not in (None, "all") for budget in grid.labelled)


def _budgets(grid: CompareSettings, images: int | None) -> dict[int | None, dict[str, Any]]:
    """The label budgets in images, None for everything, each with its settings; budgets of equal size are one."""
    budgets: dict[int | None, dict[str, Any]] = {}
    for budget in grid.labelled:
        _expect_enough(budget, images)
        budgets[_count_of(budget, images)] = {}

    given = set()
    for budget, settings in grid.labelled_settings.items():
        place = f"compare.labelled_settings: {budget}"
        count = _count_of(budget, images)
        if count in given and count in budgets:
            raise UserError(f"{place}: found settings of this number of images twice, expected them once")
        given.add(count)

        # they must be of stage two, and none may define what a row is
        _check_own(settings, place)
        for key in flat(settings):
            if _field_of_stage_two(key) in (None, *NEVER_TUNED):
                raise UserError(f"{place}: found {key}, expected settings of finetune such as finetune.epochs")
        if count in budgets:
            budgets[count] = flat(settings)
    return budgets


def left_out(config: ClassifyConfig, images: int | None = None) -> list[str]:
    """What the grid has for label budgets that `compare.labelled` leaves out this time, a line each."""
    grid = config.compare
    budgets = _budgets(grid, images)
    shown = f"compare.labelled is {', '.join(map(_shown, grid.labelled))}"
    lines = []
    for budget in grid.labelled_settings:
        if _count_of(budget, images) not in budgets:
            lines.append(f"compare.labelled_settings: {_shown(budget)}: not used, as {shown}")
    for row in grid.rows:
        if not _stands_at(row, budgets, images):
            own = ", ".join(map(_shown, row.labelled or ()))
            lines.append(f"compare.rows: {row.name}: left out, as {shown}, not {own}")
    return lines


def _shown(budget: int | str | None) -> str:
    return "all" if budget is None else str(budget)


def _stands_at(row: RowSettings, budgets: Collection[int | None], images: int | None) -> set[int | None]:
    """The budgets of the comparison at which the row is to stand."""
    if row.labelled is None:
        return set(budgets)
    return {_count_of(budget, images) for budget in row.labelled} & set(budgets)


def _count_of(budget: int | str | None, images: int | None) -> int | None:
    """The budget in images; None for all of them, 0 for a share of an unknown number."""
    if budget is None or budget == "all":
        return None
    count = budget
    if isinstance(count, str):
        share = share_of(count)
        if share == 1:
            return None
        count = round(share * (images or 0))
    return None if count == images else count


def _expect_enough(budget: int | str | None, images: int | None) -> None:
    """UserError if a table's budget is less than two images, or more than there are."""
    count = _count_of(budget, images)
    if count is None:
        return
    if images is None and isinstance(budget, str):
        raise UserError(f"compare.labelled: found {budget}, expected images to take a share of; see data.root")
    if count > (images or count):
        raise UserError(f"compare.labelled: found {budget}, expected at most the {images:,} labelled training images")
    if count >= 2:  # a patient of each class
        return
    if isinstance(budget, int) or not images:
        raise UserError(f"compare.labelled: found {budget}, expected 2 images or more, or null for all")
    least = math.ceil(10 * 150 / images) / 10
    raise UserError(
        f"compare.labelled: found {budget} of {images:,} labelled training images, expected 2 images or more; give "
        f"{least:g} % at least"
    )


def labelled_images(table: Any, covers: SampleCovers = "train") -> int:
    """How many rows of a manifest's table are labelled images that a budget counts: `finetune.sample_covers`."""
    splits = ["train"] if covers == "train" else ["train", "validate"]
    return int((table["split"].isin(splits) & table["label"].notna()).sum())


# ---------------------------------------------------------------- rows


def _table_rows(config: ClassifyConfig, images: int | None) -> Iterator[TableRow]:
    """The rows of all tables, each once, under the label budget that its own settings result in."""
    grid = config.compare
    budgets = _budgets(grid, images)
    whole = config.finetune.sample
    if whole is not None and None in budgets and len(budgets) > 1:  # which of the two is meant by all?
        raise UserError(
            f"finetune.sample: found {whole:,} beside all in compare.labelled, expected one of the two: the budgets "
            "stand in compare.labelled"
        )
    for row in grid.rows:
        _check_own(row.set, f"compare.rows: {row.name}")
    for name, pretrained in grid.pretrainings.items():
        _check_own(pretrained, f"compare.pretrainings: {name}")
        change_config(config, pretrained, f"compare.pretrainings: {name}")

    number = 0
    seen = set()
    for labelled in budgets:
        for place, settings in enumerate(grid.rows):
            if settings.predictions is not None:  # nothing is trained for it: see classify/extra_rows.py
                continue
            if labelled not in _stands_at(settings, budgets, images):
                continue
            for which, pretraining in enumerate(settings.pretraining or (None,)):
                changes = _changes(grid, settings, pretraining, labelled, budgets)
                sample = _with_changes(config, settings, changes).finetune.sample

                # without this, a row with a budget of its own would stand in the tables of all others too
                if (place, which, sample) in seen:
                    continue
                seen.add((place, which, sample))
                yield TableRow(number, settings, pretraining, sample, changes)
                number += 1


def _with_changes(
    config: ClassifyConfig, row: RowSettings, changes: tuple[dict[str, Any], dict[str, Any]]
) -> ClassifyConfig:
    """The config of a row; UserError with the place of a mistake, in one part by itself or in all of them together."""
    try:
        return change_config(config, changes[0] | changes[1], f"compare.rows: {row.name}")
    except UserError:
        for budget, own in config.compare.labelled_settings.items():
            change_config(config, own, f"compare.labelled_settings: {budget}")
        raise


def _changes(
    grid: CompareSettings,
    row: RowSettings,
    pretraining: str | None,
    labelled: int | None,
    budgets: dict[int | None, dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a row changes in the config: its pretraining's settings; then the label budget's and its own, which win."""
    earlier: dict[str, Any] = {}
    if pretraining is not None:  # they hold in both stages
        earlier = single_settings(_settings_of(grid, pretraining))
    own: dict[str, Any] = {}
    if labelled is not None:
        own["finetune.sample"] = labelled
    own |= single_settings(row.set)
    return earlier, budgets.get(own.get("finetune.sample"), {}) | own


def _check_own(settings: dict[str, Any], place: str) -> None:
    """UserError for settings that a row or pretraining cannot have of its own: the comparison would ignore them."""
    for key in flat(settings):
        if key.split(".")[0] in OF_ALL_ROWS or key in OF_THE_GRID:
            raise UserError(f"{place}: found {key}, expected it outside, as a setting of the whole comparison")


def _cell(config: ClassifyConfig, row: TableRow, place: int) -> Cell:
    """The cell of a row, with the seed at this place in `compare.seeds`."""
    grid = config.compare
    seed = grid.seeds[place]
    pretrain_config = None
    of_branch: dict[str, Any] = {}
    if row.pretraining is not None:
        of_stage_one = grid.pretraining_seed(place)
        folder = Path(config.run, f"pretrain-{pretraining_folder_name(row.pretraining)}-seed{of_stage_one}")
        changes = _settings_of(grid, row.pretraining) | {"run": str(folder), "seed": of_stage_one}
        pretrain_config = with_settings(config, changes, place="compare.pretrainings")
        source = pretrain_config.pretrain.continue_from
        if source is not None:  # each continues from the one of its own grid and seed
            source = source.replace("{run}", config.run).replace("{seed}", str(of_stage_one))
            of_branch["pretrain.continue_from"] = source
        pretrain_config = resolve(change_config(pretrain_config, of_branch, "compare.pretrainings"))

    # all rows see the same subset of a label budget, and each seed another one
    of_cell: dict[str, Any] = {"seed": seed} | of_branch
    if row.labelled is not None:
        of_cell["finetune.draw"] = config.finetune.draw + place
    where = f"compare.rows: {row.settings.name}"
    stage_two = with_settings(config, *row.changes, of_cell, place=where)

    # its folder is named after its final settings
    run = str(Path(config.run, _folder_name(config, row, stage_two.finetune.augment.enabled, seed)))
    stage_two = resolved(change_config(stage_two, {"finetune.run": run}, "compare.rows"))
    cell = Cell(
        row=row.number,
        name=_row_name(row.settings, row.pretraining),
        pretraining=row.pretraining,
        labelled=row.labelled,
        run=run,
        config=stage_two,
        pretrain_config=pretrain_config,
    )

    # a single setting needs no choosing
    settings = settings_of(_tune_of(grid, row.settings))
    if len(settings) == 1:
        return with_choice(cell, settings[0])
    return replace(cell, choices=settings)


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
    """`MAE, linear` → `mae-linear`, in ASCII letters, digits and dashes, which no system takes for another name.

    Eight hexadecimal digits stand for what these cannot express: `ViT α` → `vit-d0a9c0a5`. Names that differ only in
    case and punctuation share a folder name.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")

    unsaid = [letter for letter in plain if not letter.isascii() and unicodedata.category(letter)[0] in LETTERS]
    if unsaid or not slug or len(slug) > LONGEST:
        digest = hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()[:8]
        slug = f"{slug[:LONGEST]}-{digest}".strip("-")
    return slug


def pretraining_folder_name(name: str) -> str:
    """A pretraining's name, unchanged if it can be part of a folder's name, else as `folder_name` writes it."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and len(name) <= LONGEST:
        return name
    return folder_name(name)


# ---------------------------------------------------------------- tuning


def _tune_of(grid: CompareSettings, row: RowSettings) -> Tune:
    return grid.tune if row.tune is None else row.tune


def settings_of(tune: Tune) -> tuple[dict[str, Any], ...]:
    """Every combination of the values, the last key's changing fastest; without keys, a single empty one."""
    return tuple(dict(zip(tune, values, strict=True)) for values in itertools.product(*tune.values()))


def with_choice(cell: Cell, setting: Mapping[str, Any], run: str | None = None) -> Cell:
    """The cell with one of its settings applied; in `run` if the setting is only tried."""
    run = run or cell.run
    config = change_config(cell.config, {**setting, "finetune.run": run}, f"compare.tune: {cell.name}")
    return replace(cell, config=config, run=run, choices=())


def trials_of(cell: Cell) -> list[Cell]:
    """The trainings that try its settings; only validation judges them."""
    folder = Path(cell.run).parent / "tune"
    trials = []
    for setting in cell.choices:
        digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]
        trials.append(with_choice(cell, setting, str(folder / f"{cell.folder}-{digest}")))
    return trials


def _check_tuning(config: ClassifyConfig) -> None:
    """UserError unless every row chooses from equally many, different settings, and fixes none of them itself."""
    grid = config.compare
    wanted = len(_checked(grid.tune, "compare.tune"))
    for row in grid.rows:
        place = f"compare.rows: {row.name}"
        if row.predictions is not None:
            continue
        tune = _tune_of(grid, row)
        found = len(_checked(tune, f"{place}: tune"))
        if found != wanted:
            raise UserError(
                f"{place}: found {found} settings to tune, expected {wanted} as in compare.tune: every row has equally "
                "many tries"
            )

        # a value of its own would be one more try, or none
        given = {place: row.set}
        given |= {f"compare.pretrainings: {name}": _settings_of(grid, name) for name in row.pretraining}
        given |= {f"compare.labelled_settings: {budget}": own for budget, own in grid.labelled_settings.items()}
        for where, settings in given.items():
            fixed = [key for key in tune if any(_overlap(key, other) for other in flat(settings))]
            if fixed and row.tune is None:
                raise UserError(
                    f"{where}: found {fixed[0]} of its own, which compare.tune chooses, expected one of the two; give "
                    f"{row.name} a tune of its own with {wanted} settings, or leave {fixed[0]} out"
                )
            if fixed:
                raise UserError(f"{where}: found {fixed[0]}, which {place} tunes, expected one of the two")


def _checked(tune: Tune, place: str) -> tuple[dict[str, Any], ...]:
    """The settings of a section to tune; UserError where a key may not be tuned, or a value stands there twice."""
    for one, other in itertools.combinations(tune, 2):
        if _overlap(one, other):
            raise UserError(f"{place}: found {one} and {other}, expected one of the two: one is part of the other")
    for key, values in tune.items():
        if _field_of_stage_two(key) is None:
            raise UserError(f"{place}: found {key}, expected settings of finetune such as finetune.optimizer.base_lr")
        if _field_of_stage_two(key) in NEVER_TUNED:
            raise UserError(f"{place}: found {key}, expected it as a row's own or the comparison's: it is not tuned")
        if not values:
            raise UserError(f"{place}: {key}: found no values, expected some to choose from")
        if any(value in values[:number] for number, value in enumerate(values)):
            raise UserError(f"{place}: {key}: found a value twice, expected each once")
    return settings_of(tune)


def _field_of_stage_two(key: str) -> str | None:
    """The field of `finetune` that a dotted key sets, or sets a part of; None for any other key."""
    section, _, name = key.partition(".")
    field = name.split(".")[0]
    return field if section == "finetune" and field in FinetuneSettings.model_fields else None


def _overlap(one: str, other: str) -> bool:
    """Whether one key is the other, or a section that holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


# ---------------------------------------------------------------- checks


def check_grid(config: ClassifyConfig, cells: list[Cell], data_of: Callable[[DataSettings], Data]) -> None:
    """Raise UserError, before any training, for what would fail in a cell or make the rows incomparable."""
    for cell in cells:
        check_settings(config, cell)
    _check_cases(config, cells, data_of)
    check_pretrainings(cells, data_of)


def check_pretrainings(cells: Iterable[Cell], data_of: Callable[[DataSettings], Data | None]) -> None:
    """UserError if a pretraining could not begin, or resume, with its images and weights. Not checked without data."""
    configs = pretrainings_of(cells)
    for config in configs.values():
        before = continued(config, configs)
        if before is not None:  # for which it has to wait
            check_planned(config, configs[before], Path(expand(config.run, "run")), PRETRAIN_RESUMABLE)
            continue
        data = data_of(config.data)
        if data is not None:
            check_begun(config, data)


def pretrainings_of(cells: Iterable[Cell]) -> dict[str, ClassifyConfig]:
    """Each pretraining once, by its run."""
    return {cell.pretrain_config.run: cell.pretrain_config for cell in cells if cell.pretrain_config}


def continued(pretraining: ClassifyConfig, runs: Collection[str]) -> str | None:
    """The grid's pretraining, by its run, from whose weights this one continues; None if there is none."""
    source = pretraining.pretrain.continue_from
    if source is None:
        return None
    folder = Path(expand(source, "pretrain.continue_from")).absolute()
    for run in runs:
        place = Path(expand(run, "run")).absolute()
        if run != pretraining.run and place in (folder, *folder.parents):
            return run
    return None


def check_settings(config: ClassifyConfig, cell: Cell) -> None:
    """UserError for mistakes that show in the settings of a cell and its pretraining, or in their folders."""
    training_device(cell.config)
    trials = trials_of(cell)
    for each in trials or [cell]:
        check_fit(each.config, None)

    # the pretraining whose weights it starts from
    if cell.pretrain_config:
        _check_pretraining(cell.pretrain_config)
        _check_pretrained(cell, cell.pretrain_config)
        _check_folder(cell.pretrain_config, cell.pretrain_config.run, PRETRAIN_RESUMABLE)

    # the folder of a tuned cell is looked at when its setting is chosen
    if not trials:
        check_folder(cell)
    elif cell.config.seed == config.compare.seeds[0]:
        for trial in trials:
            check_folder(trial)


def _check_cases(config: ClassifyConfig, cells: list[Cell], data_of: Callable[[DataSettings], Data]) -> None:
    """UserError if a cell lacks images to train on or to be chosen by, or is tested on other cases than the others."""
    split = config.compare.split
    tested = set()
    for cell in cells:
        data = data_of(cell.config.data)
        splits = splits_of(data, cell.config)
        check_unit(splits.validate, "validate", config, data.manifest)

        # all rows are tested on the same cases
        table = labelled_rows(data.split(split), split, cell.config.data.target)
        check_unit(table, split, config, data.manifest)
        tested.add(digest(table, "image_id", "patient_id", "study_id", "label"))
        if len(tested) > 1:
            what = f"other {split} images or labels than the rows before it"
            raise UserError(f"compare.rows: {cell.name}: found {what}, expected the same cases in every row")


def _check_pretraining(config: ClassifyConfig) -> None:
    """In a comparison, no labels are used before stage two."""
    expect_unlabelled(config.data)
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
    pairs.append(("data.unlabelled", pretraining.data.unlabelled, cell.config.data.unlabelled))
    pairs.append(("model", pretraining.model, cell.config.model))
    pairs.append(("pretrain", pretraining.pretrain, cell.config.pretrain))
    for name, before, after in pairs:
        if before != after:
            raise UserError(f"compare.rows: {cell.name}: found {name} changed, expected it as its pretraining has it")


def check_folder(cell: Cell) -> None:
    """UserError where a cell's folder holds a run of other settings."""
    _check_folder(cell.config, cell.run, RESUMABLE)


def _check_folder(config: ClassifyConfig, run: str, resumable: Resumable) -> None:
    """A grid resumes only runs of exactly its settings, epochs included: its rows must stay comparable."""
    check_run(Path(expand(run, "run")), config, resumable, same_epochs=True)
