"""Which rows of a comparison are tested against which: declared in the config, or chosen from the settings alone.

No result is known here, and nothing is tested that is not named here. classify/comparison.py computes the contrasts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from classify.comparison import Declared, of_ensemble
from classify.grid import Cell, row_names
from classify.settings import ClassifyConfig
from data.errors import UserError, did_you_mean
from mae.engine.run import flat

# settings that make two Vision Transformers the same network: the decoder is left behind before stage two
OF_ENCODER = ("preset", "in_channels", "patch_size", "embed", "width", "depth", "heads")


@dataclass(frozen=True)
class Candidate:
    """A row as far as contrasts must know it."""

    name: str
    also: str | None = None  # another name that is understood
    budgets: frozenset[int | None] = frozenset()
    config: ClassifyConfig | None = None  # None for what was not trained here
    weights: str | None = None  # what it begins from, a pretraining or another program's file; None: random

    @property
    def pretrained(self) -> bool:
        return self.weights is not None


def candidates(cells: Iterable[Cell], extra: Mapping[str, frozenset[int | None]] | None = None) -> list[Candidate]:
    """The rows of a grid, each once, in order; then those that nothing is trained for, with their label budgets."""
    first: dict[str, Cell] = {}
    budgets: dict[str, set[int | None]] = {}
    for cell in cells:
        first.setdefault(cell.name, cell)
        budgets.setdefault(cell.name, set()).add(cell.labelled)

    found = []
    for name, cell in first.items():
        also = None
        if cell.pretraining is not None and not name.endswith(f"/{cell.pretraining}"):
            also = f"{name}/{cell.pretraining}"
        found.append(Candidate(name, also, frozenset(budgets[name]), cell.config, _weights(cell)))
    for name, of_row in (extra or {}).items():
        found.append(Candidate(name, budgets=of_row))
    return found


def _weights(cell: Cell) -> str | None:
    """The weights it begins from: of a pretraining here, or of another program."""
    if cell.pretraining is not None:
        return cell.pretraining
    foreign = cell.config.finetune.init
    if cell.config.finetune.model == "vit":
        foreign = foreign or cell.config.model.init
    return foreign


def declared(config: ClassifyConfig, rows: Sequence[Candidate]) -> tuple[Declared, ...]:
    """The contrasts of a comparison, before anything is trained, without those that `untested` tells.

    Raises UserError if one names an unknown row, a row twice, or rows that share no label budget, or repeats another.
    """
    if config.compare.contrasts is None:
        return tuple(_default(config, rows))

    found: list[Declared] = []
    for number, given in enumerate(config.compare.contrasts):
        if _left_out(given.a, config, rows) or _left_out(given.b, config, rows):
            continue
        place = f"compare.contrasts.{number}"
        a = _row(given.a, rows, f"{place}.a")
        b = _row(given.b, rows, f"{place}.b")
        if a is b:
            raise UserError(f"{place}: found {a.name!r} against itself, expected two rows")
        if not a.budgets & b.budgets:
            raise UserError(
                f"{place}: found {a.name!r} and {b.name!r}, which share no label budget, expected two that do"
            )

        contrast = _contrast(a, b, given.margin)
        if any({contrast.a, contrast.b} == {other.a, other.b} for other in found):
            raise UserError(f"{place}: found {a.name!r} and {b.name!r} once more, expected each pair once")
        found.append(contrast)
    return tuple(found)


def untested(config: ClassifyConfig, rows: Sequence[Candidate]) -> list[str]:
    """What is not tested this time, as `compare.labelled` leaves out a row of it, a line each."""
    lines = []
    for given in config.compare.contrasts or ():
        gone = [name for name in (given.a, given.b) if _left_out(name, config, rows)]
        if gone:
            lines.append(f"compare.contrasts: {given.a} against {given.b}: left out, as {gone[0]} is")
    if config.compare.contrasts is None and baseline(config, rows) is None:
        lines.append(f"compare.baseline: {config.compare.baseline}: left out, so nothing is tested against it")
    return lines


def _left_out(name: str, config: ClassifyConfig, rows: Sequence[Candidate]) -> bool:
    """Whether it is a row of the config, or its ensemble, that stands at none of this time's label budgets."""
    names = row_names(config.compare)
    shown = names.get(name) or names.get(of_ensemble(name))
    return shown is not None and all(row.name != shown for row in rows)


def baseline(config: ClassifyConfig, rows: Sequence[Candidate]) -> Candidate | None:
    """The row that the others are tested against by default; None if it is left out this time."""
    if config.compare.baseline is None:
        return [row for row in rows if row.config is not None][-1]
    if _left_out(config.compare.baseline, config, rows):
        return None
    return _row(config.compare.baseline, rows, "compare.baseline")


def _row(name: str, rows: Sequence[Candidate], place: str) -> Candidate:
    """The row of that name; UserError, with the nearest one, if there is none."""
    for row in rows:
        if name in (row.name, row.also):
            return row

    # a row with several pretrainings is several rows
    names = [row.name for row in rows]
    several = [known for known in names if known.startswith(f"{name}/")]
    if several:
        raise UserError(f"{place}: found {name!r}, which has several pretrainings, expected {' or '.join(several)}")
    raise UserError(f"{place}: found {name!r}, expected a row's name: {'; '.join(names)}{did_you_mean(name, names)}")


# ---------------------------------------------------------------- where none are declared


def _default(config: ClassifyConfig, rows: Sequence[Candidate]) -> Iterator[Declared]:
    """Pretrained rows against the same from random weights, then each row against the baseline; each pair once.

    The config does not name ensembles, so one is tested only where a contrast declares it, or as the baseline.
    """
    against = baseline(config, rows)
    named = {row.name for row in config.compare.rows}
    rows = [row for row in rows if row.config is not None or row.name in named or row is against]
    pairs = list(_with_and_without_pretraining(rows))
    if against is not None:
        pairs += _against_baseline(against, rows)

    seen: set[frozenset[str]] = set()
    for a, b in pairs:
        pair = frozenset((a.name, b.name))
        if pair not in seen and a.budgets & b.budgets:
            seen.add(pair)
            yield _contrast(a, b, None)


def _with_and_without_pretraining(rows: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Each pretrained row with the same network from random weights: fine-tunings first, then probes."""
    pairs = []
    for row in rows:
        if row.pretrained:
            twins = [other for other in rows if _same_without_pretraining(row, other)]
            if twins:
                pairs.append((row, min(twins, key=lambda twin: _differences(row, twin))))

    pairs.sort(key=lambda pair: pair[0].config is not None and pair[0].config.finetune.mode == "linear")
    yield from pairs


def _against_baseline(of_all: Candidate, rows: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Each row with the baseline, or with the baseline's twin that has the row's augmentation, if there is one."""
    for row in rows:
        if row is of_all:
            continue
        against = of_all
        for other in rows:
            if other is not row and _same_but_for_augmentation(of_all, other) and _augmented(other) == _augmented(row):
                against = other
        if row is not against:
            yield row, against


def _contrast(a: Candidate, b: Candidate, margin: float | None) -> Declared:
    pretrained = None
    if _same_without_pretraining(a, b):
        pretrained = a.name
    if _same_without_pretraining(b, a):
        pretrained = b.name
    return Declared(a.name, b.name, margin, pretrained)


def _same_without_pretraining(row: Candidate, other: Candidate) -> bool:
    """Whether the other is the row's network, trained alike, from random weights."""
    if not row.pretrained or other.pretrained or row.config is None or other.config is None:
        return False
    modes = {row.config.finetune.mode, other.config.finetune.mode}
    return len(modes) == 1 and _augmented(row) == _augmented(other) and _network(row.config) == _network(other.config)


def _same_but_for_augmentation(row: Candidate, other: Candidate) -> bool:
    if row.config is None or other.config is None or row.weights != other.weights:
        return False
    alike = _network(row.config) == _network(other.config) and row.config.finetune.mode == other.config.finetune.mode
    return alike and (row is other or _augmented(row) != _augmented(other))


def _augmented(row: Candidate) -> bool | None:
    return None if row.config is None else row.config.finetune.augment.enabled


def _network(config: ClassifyConfig) -> tuple[object, ...]:
    model = config.finetune.model
    if model != "vit":
        return model, config.finetune.stem, config.data.image_size
    return model, config.data.image_size, *(getattr(config.model, name) for name in OF_ENCODER)


def _differences(row: Candidate, other: Candidate) -> int:
    """In how many settings of stage two the rows differ."""
    assert row.config is not None
    assert other.config is not None
    before = flat(row.config.finetune.model_dump())
    after = flat(other.config.finetune.model_dump())
    return sum(before[key] != after.get(key) for key in before)
