"""mae-compare: a grid of runs → Comparison, written as tables and report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from classify.comparison import Comparison, Line, describe
from classify.evaluate import Evaluation, evaluate
from classify.extra_rows import check_extra_rows, with_extra_rows
from classify.finetune import finetune
from classify.grid import Cell, check_grid, expand_grid
from classify.report.write import write_comparison
from classify.scores import UNIT_IDS
from classify.settings import ClassifyConfig
from data.config import expand
from data.errors import UserError
from data.loader import Data, open_data
from data.locks import locked
from data.privacy import credentialed_sources
from data.settings import DataSettings
from data.writing import keep_private, restoring_umask
from mae.pretrain import pretrain


@restoring_umask()
def compare(config: ClassifyConfig, say: Callable[[str], None] = print) -> Comparison:
    """Run what the grid still lacks, evaluate every cell once, and write the comparison into `config.run`.

    Raises UserError for a grid that does not fit together, before anything is trained.
    """
    opened: dict[DataSettings, Data] = {}

    def data_of(settings: DataSettings) -> Data:
        """Each data set is opened once, and described when it is."""
        if settings not in opened:
            data = open_data(settings)
            say("\n".join([*data.manifest.notes, data.manifest.summary()]))
            opened[settings] = data
        return opened[settings]

    cells = list(expand_grid(config))
    _keep_private(config, cells)
    check_extra_rows(config, data_of(config.data))
    check_grid(config, cells, data_of)

    folder = Path(expand(config.run, "run"))
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: found another mae-compare at work there, expected none; wait for it, or choose another run=…"
    with locked(folder, busy, wait=False):
        comparison = _run(config, cells, data_of, say)
        keep_private(comparison.credentialed, config.data.share)  # weights may have seen more than their settings say
        write_comparison(comparison, folder)
    return comparison


def _run(
    config: ClassifyConfig, cells: list[Cell], data_of: Callable[[DataSettings], Data], say: Callable[[str], None]
) -> Comparison:
    """Pretrain, fine-tune and evaluate; what is there already is not done again."""
    pretrainings: dict[str, Path] = {}
    pretrain_configs: dict[str, ClassifyConfig] = {}
    evaluations: list[Evaluation] = []  # of the cells, in order
    for number, cell in enumerate(cells, start=1):
        say(f"[{number}/{len(cells)}] {cell.run}")
        checkpoint = None
        if cell.pretrain_config:
            folder = pretrain(cell.pretrain_config, data_of(cell.pretrain_config.data))
            pretrainings[folder.name] = folder
            pretrain_configs[folder.name] = cell.pretrain_config
            # the best reconstruction of validation images: no label chose it
            checkpoint = folder / "best.pt"

        data = data_of(cell.config.data)
        run = finetune(cell.config, checkpoint, data)
        evaluations.append(evaluate(run, _how_to_evaluate(config, cell), data))

    _check_cases(evaluations)
    lines = with_extra_rows(config, data_of, _lines(cells, evaluations))
    _check_cases([evaluation for line in lines for evaluation in line.evaluations])
    return Comparison(config, data_of(config.data), lines, pretrainings, pretrain_configs)


def _keep_private(config: ClassifyConfig, cells: list[Cell]) -> None:
    """The comparison's folder holds what every cell makes, so it is as private as the most private of them."""
    for each in [config, *(cell.config for cell in cells), *(cell.pretrain_config for cell in cells)]:
        if each is not None:
            keep_private(credentialed_sources(each.data), each.data.share)


def _check_cases(evaluations: list[Evaluation]) -> None:
    """UserError unless all rows predicted the same cases: they are compared case by case."""
    columns = [*UNIT_IDS, "label"]
    first = evaluations[0]
    for evaluation in evaluations:
        if not evaluation.predictions[columns].equals(first.predictions[columns]):
            raise UserError(
                f"{evaluation.path}: found other cases or labels than in {first.path}, expected the same in every row; "
                "some images can perhaps be read in one of them only"
            )


def _lines(cells: list[Cell], evaluations: list[Evaluation]) -> tuple[Line, ...]:
    """A line for each table row: the evaluations of its cells, which differ by their seeds alone."""
    first_cells: dict[int, Cell] = {}
    of_row: dict[int, list[Evaluation]] = {}
    for cell, evaluation in zip(cells, evaluations, strict=True):
        first_cells.setdefault(cell.row, cell)
        of_row.setdefault(cell.row, []).append(evaluation)

    lines = []
    for row, cell in first_cells.items():
        described = describe(cell.config, cell.pretraining is not None) | {"Model": cell.name}
        lines.append(Line(described, cell.labelled, tuple(of_row[row])))
    return tuple(lines)


def _how_to_evaluate(config: ClassifyConfig, cell: Cell) -> dict[str, Any]:
    """Overrides of a run's config: the comparison's own way to evaluate, on this machine, and what may be shown now."""
    settings = config.evaluate.model_dump(mode="json") | {"split": config.compare.split}
    overrides = {f"evaluate.{key}": value for key, value in settings.items()}
    shown = cell.config.report.images
    return overrides | {"device": config.device, "threads": config.threads, "report.images": shown}
