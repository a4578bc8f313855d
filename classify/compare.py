"""mae-compare: a grid of runs → Comparison, written as tables and report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from classify.comparison import Comparison, Line, describe
from classify.evaluate import Evaluation, evaluate
from classify.finetune import finetune
from classify.grid import Cell, check_grid, expand_grid
from classify.report.write import write_comparison
from classify.settings import ClassifyConfig
from data.config import expand
from data.loader import Data, open_data
from data.settings import DataSettings
from mae.pretrain import pretrain


def compare(config: ClassifyConfig, say: Callable[[str], None] = print) -> Comparison:
    """Run what the grid still lacks, evaluate every cell once, and write the comparison into `config.run`.

    Raises UserError for a grid that does not fit together, before anything is trained.
    """
    cells = list(expand_grid(config))
    opened: dict[DataSettings, Data] = {}

    def data_of(settings: DataSettings) -> Data:
        if settings not in opened:
            opened[settings] = data = open_data(settings)
            say("\n".join([*data.manifest.notes, data.manifest.summary()]))
        return opened[settings]

    check_grid(config, cells, data_of)
    found: dict[int, list[Evaluation]] = {}  # by table row
    pretrainings: dict[str, Path] = {}
    for number, cell in enumerate(cells, start=1):
        say(f"[{number}/{len(cells)}] {cell.config.finetune.run}")
        checkpoint = None
        if cell.pretrain_config:
            folder = pretrain(cell.pretrain_config, data_of(cell.pretrain_config.data))
            pretrainings[folder.name] = folder
            checkpoint = folder / "best.pt"  # the best reconstruction of validation images: no label chose it

        data = data_of(cell.config.data)
        run = finetune(cell.config, checkpoint, data)
        found.setdefault(cell.row, []).append(evaluate(run, _how_to_evaluate(config), data))

    lines = tuple(_line(cells, row, tuple(evaluations)) for row, evaluations in found.items())
    comparison = Comparison(config, data_of(config.data), lines, pretrainings)
    write_comparison(comparison, Path(expand(config.run, "run")))
    return comparison


def _line(cells: list[Cell], row: int, evaluations: tuple[Evaluation, ...]) -> Line:
    cell = next(cell for cell in cells if cell.row == row)
    described = describe(cell.config, cell.pretraining is not None) | {"Model": cell.name}
    return Line(described, cell.labelled, evaluations)


def _how_to_evaluate(config: ClassifyConfig) -> dict[str, Any]:
    """Overrides of a run's config: the comparison's own way to evaluate, on this machine."""
    settings = config.evaluate.model_dump(mode="json") | {"split": config.compare.split}
    overrides = {f"evaluate.{key}": value for key, value in settings.items()}
    return overrides | {"device": config.device, "threads": config.threads}
