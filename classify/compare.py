"""A grid of runs → comparison table, tests against the baseline, and report.html."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from classify.evaluate import Evaluation, evaluate
from classify.finetune import finetune
from classify.grid import Cell, check_grid, expand_grid
from classify.metrics import BootstrapDifference, Interval, bootstrap_differences, bootstrap_intervals
from classify.tables import comparison_text, describe
from data.config import Root, expand
from data.loader import Data, open_data
from mae.engine.run import commit
from mae.pretrain import pretrain


@dataclass(frozen=True)
class Line:
    """A row of the table: the evaluations of its seeds, taken together."""

    described: dict[str, str]
    labelled: int | None
    evaluations: tuple[Evaluation, ...]

    @property
    def labels(self) -> np.ndarray:
        return self.evaluations[0].predictions["label"].to_numpy()  # n

    @property
    def patients(self) -> np.ndarray:
        return self.evaluations[0].predictions["patient_id"].to_numpy()  # n

    @property
    def scores(self) -> np.ndarray:
        return np.stack([e.predictions["score"].to_numpy() for e in self.evaluations])  # s n

    @property
    def thresholds(self) -> np.ndarray:
        return np.array([e.threshold for e in self.evaluations])  # s

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The table's metrics, mean over seeds, with intervals over patients and seeds."""
        settings = self.evaluations[0].config.evaluate
        return bootstrap_intervals(
            self.labels,
            self.scores,
            threshold=self.thresholds,
            groups=self.patients,
            replicates=settings.replicates,
            level=settings.level,
        )


@dataclass(frozen=True)
class Comparison:
    config: Root
    data: Data
    lines: tuple[Line, ...]
    pretrainings: dict[str, Path]  # folder name → run folder

    def numbers(self, labelled: int | None) -> list[int]:
        """Numbers of the lines of a label budget: the rows of its table."""
        return [i for i, line in enumerate(self.lines) if line.labelled == labelled]

    def baseline(self, labelled: int | None) -> int:
        """Number of the line that the others of its label budget are tested against."""
        numbers = self.numbers(labelled)
        named = [i for i in numbers if self.lines[i].described["Model"] == self.config.compare.baseline]
        return named[0] if named else numbers[-1]

    @cached_property
    def differences(self) -> dict[int, dict[str, BootstrapDifference]]:
        """Line number → line minus baseline, for all lines but the baselines."""
        pairs = ((i, self.baseline(line.labelled)) for i, line in enumerate(self.lines))
        return {i: _difference(self.lines[i], self.lines[base]) for i, base in pairs if i != base}


def compare(config: Root, say: Callable[[str], None] = print) -> Comparison:
    """Run what the grid still lacks, evaluate every cell once, and write the comparison into `config.run`.

    Raises UserError for a grid that does not fit together, before anything is trained.
    """
    cells = list(expand_grid(config))
    opened: dict[Any, Data] = {}

    def data_of(settings: Root) -> Data:
        if settings.data not in opened:
            opened[settings.data] = data = open_data(settings)
            say("\n".join([*data.manifest.notes, data.manifest.summary()]))
        return opened[settings.data]

    check_grid(config, cells, data_of)
    found: dict[int, list[Evaluation]] = {}  # by table row
    pretrainings: dict[str, Path] = {}
    for number, cell in enumerate(cells, start=1):
        say(f"[{number}/{len(cells)}] {cell.config.finetune.run}")
        checkpoint = None
        if cell.pretrain_config:
            folder = pretrain(cell.pretrain_config, data_of(cell.pretrain_config))
            pretrainings[folder.name] = folder
            checkpoint = folder / "best.pt"  # the best reconstruction of validation images: no label chose it
        data = data_of(cell.config)
        run = finetune(cell.config, checkpoint, data)
        found.setdefault(cell.row, []).append(evaluate(run, _split_of(config), data))
    lines = tuple(_line(cells, row, tuple(evaluations)) for row, evaluations in found.items())
    comparison = Comparison(config, data_of(config), lines, pretrainings)
    _write(comparison)
    return comparison


def _line(cells: list[Cell], row: int, evaluations: tuple[Evaluation, ...]) -> Line:
    cell = next(cell for cell in cells if cell.row == row)
    return Line(describe(cell.config, cell.pretraining is not None) | {"Model": cell.name}, cell.labelled, evaluations)


def _split_of(config: Root) -> dict[str, Any]:
    settings = config.evaluate.model_dump(mode="json") | {"split": config.compare.split}
    here = {"device": config.device, "threads": config.threads}
    return {f"evaluate.{key}": value for key, value in settings.items()} | here


# ---------------------------------------------------------------- numbers


def _difference(line: Line, baseline: Line) -> dict[str, BootstrapDifference]:
    """AUC and accuracy of a line minus the baseline's, on the same resamples of patients."""
    settings = line.evaluations[0].config.evaluate
    return bootstrap_differences(
        line.labels,
        line.scores,
        baseline.scores,
        metrics=("auc", "accuracy"),
        thresholds=(line.thresholds, baseline.thresholds),
        groups=line.patients,
        replicates=settings.replicates,
        level=settings.level,
    )


# ---------------------------------------------------------------- files


def _write(comparison: Comparison) -> None:
    from classify.report import write_report

    folder = Path(expand(comparison.config.run, "run"))
    _table(comparison).to_csv(folder / "comparison.csv", index=False)
    (folder / "comparison.md").write_text(comparison_text(comparison) + "\n")
    (folder / "comparison.json").write_text(json.dumps(as_json(comparison), indent=1) + "\n")
    write_report(comparison, folder / "report.html")


def _table(comparison: Comparison):
    import pandas as pd

    rows = []
    for line in comparison.lines:
        row = line.described | {"labelled images": line.evaluations[0].summary["meta"]["train_images"]}
        summary = line.evaluations[0].summary
        row |= {"n": summary["n"], "patients": summary["patients"], "seeds": len(line.evaluations)}
        for name, interval in line.intervals.items():
            row |= {name: interval.estimate, f"{name} low": interval.interval[0], f"{name} high": interval.interval[1]}
        rows.append(row)
    return pd.DataFrame(rows)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything the tables show and what made it, for scripts."""
    return {
        "config": comparison.config.model_dump(mode="json"),
        "commit": commit(),
        "data": {"manifest": comparison.data.manifest.fingerprint(), "store": comparison.data.store.fingerprint},
        "rows": [
            line.described
            | {"labelled": line.labelled, "n": len(line.labels)}
            | {"intervals": {name: asdict(interval) for name, interval in line.intervals.items()}}
            | {"seeds": [{k: e.summary[k] for k in ("seed", "metrics", "commit", "origin")} for e in line.evaluations]}
            | {"minus_baseline": {k: asdict(v) for k, v in comparison.differences.get(number, {}).items()}}
            for number, line in enumerate(comparison.lines)
        ],
    }
