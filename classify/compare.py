"""A grid of runs → comparison table, tests against the baseline, and report.html."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from classify.evaluate import Evaluation, describe, evaluate, markdown, show, table_row
from classify.finetune import check_fit, finetune, known, labelled_splits
from classify.metrics import BootstrapDifference, Interval, bootstrap_differences, bootstrap_intervals
from classify.settings import RowSettings
from data.config import Root, UserError, change_config, expand
from data.loader import Data, open_data
from mae.engine.run import commit
from mae.pretrain import pretrain


@dataclass(frozen=True)
class Cell:
    """One classifier of the grid: a row at a number of labelled images and a seed."""

    row: int  # number of the table row, over all label budgets
    name: str
    pretraining: str | None
    labelled: int | None
    config: Root  # of stage two; its finetune.run is the cell's folder
    pretrain_config: Root | None


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

    def baseline(self, labelled: int | None) -> int:
        """Number of the line that the others of its label budget are tested against."""
        numbers = [i for i, line in enumerate(self.lines) if line.labelled == labelled]
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

    for cell in cells:
        _check_cell(cell, data_of(cell.config), config.compare.split)
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


def _check_cell(cell: Cell, data: Data, split: str) -> None:
    """What a cell's training would complain of, before the first one starts."""
    if cell.pretraining and cell.config.finetune.model != "vit":
        model = cell.config.finetune.model
        raise UserError(f"compare.rows: {cell.name}: found {model}, expected vit with a pretraining")
    check_fit(cell.config, None)
    labelled_splits(cell.config, data)
    known(data.split(split), split)


def _line(cells: list[Cell], row: int, evaluations: tuple[Evaluation, ...]) -> Line:
    cell = next(cell for cell in cells if cell.row == row)
    return Line(describe(cell.config, cell.pretraining is not None) | {"Model": cell.name}, cell.labelled, evaluations)


def _split_of(config: Root) -> dict[str, Any]:
    settings = config.evaluate.model_dump(mode="json") | {"split": config.compare.split}
    here = {"device": config.device, "threads": config.threads}
    return {f"evaluate.{key}": value for key, value in settings.items()} | here


# ---------------------------------------------------------------- grid


def expand_grid(config: Root) -> Iterator[Cell]:
    """rows × their pretrainings × label budgets × seeds, row by row."""
    grid, row, folders = config.compare, 0, set()
    if not grid.rows:
        raise UserError(
            "compare.rows: found none, expected rows such as {name: ResNet-18, set: {finetune.model: resnet18}}"
        )
    for labelled in grid.labelled:
        for settings in grid.rows:
            for pretraining in settings.pretraining or (None,):
                for seed in grid.seeds:
                    cell = _cell(config, settings, row, pretraining, labelled, seed)
                    if cell.config.finetune.run in folders:
                        raise UserError(f"compare.rows: found two rows for {cell.config.finetune.run}; name them apart")
                    folders.add(cell.config.finetune.run)
                    yield cell
                row += 1


def _cell(
    config: Root, row: RowSettings, number: int, pretraining: str | None, labelled: int | None, seed: int
) -> Cell:
    stage_one, pretrain_config = {}, None
    if pretraining is not None:
        if pretraining not in config.compare.pretrainings:
            known = ", ".join(config.compare.pretrainings) or "none"
            raise UserError(
                f"compare.rows: found pretraining {pretraining!r}, expected one of compare.pretrainings: {known}"
            )
        stage_one = config.compare.pretrainings[pretraining]
        folder = f"{config.run}/pretrain-{pretraining}-seed{seed}"
        pretrain_config = change_config(config, stage_one | {"run": folder, "seed": seed}, "compare.pretrainings")
    changes = {"finetune.sample": labelled} if labelled else {}
    changed = change_config(config, stage_one | changes | row.set | {"seed": seed}, f"compare.rows: {row.name}")
    parts = [_slug(row.name), pretraining, None if changed.finetune.augment.enabled else "plain"]
    parts += [f"n{labelled}" if labelled else None, f"seed{seed}"]
    run = f"{config.run}/{'-'.join(part for part in parts if part)}"
    stage_two = change_config(changed, {"finetune.run": run}, "compare.rows")
    return Cell(number, row.name, pretraining, labelled, stage_two, pretrain_config)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


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
        row |= {"n": len(line.labels), "patients": len(set(line.patients)), "seeds": len(line.evaluations)}
        for name, interval in line.intervals.items():
            row |= {name: interval.estimate, f"{name} low": interval.interval[0], f"{name} high": interval.interval[1]}
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_text(comparison: Comparison) -> str:
    """comparison.md: a table per label budget, what its numbers are, and the tests against the baseline."""
    parts = [f"# {comparison.config.run}: normal against abnormal"]
    for labelled in comparison.config.compare.labelled:
        numbers = [i for i, line in enumerate(comparison.lines) if line.labelled == labelled]
        lines = [comparison.lines[i] for i in numbers]
        parts.append(f"## {lines[0].evaluations[0].summary['meta']['train_images']:,} labelled training images")
        parts.append(markdown([table_row(line.described, line.intervals) for line in lines]))
        parts.append(caption(comparison, lines[0]))
        if len(lines) > 1:
            parts.append(markdown(list(difference_rows(comparison, numbers))))
            parts.append(verdict(comparison, labelled))
    if comparison.data.manifest.credentialed:
        parts.append("Made from credentialed data: check the data use agreement before sharing any of it.")
    return "\n\n".join([*parts, "Not a medical device."])


def caption(comparison: Comparison, line: Line) -> str:
    """What the table's numbers are, in a sentence or two."""
    config, evaluation = comparison.config, line.evaluations[0]
    seeds, n = len(config.compare.seeds), len(line.labels)
    return (
        f"Split {config.compare.split}: n = {n:,} {'images' if config.evaluate.unit == 'image' else 'studies'} of "
        f"{evaluation.summary['patients']:,} patients, {100 * line.labels.mean():.0f} % abnormal. "
        f"In brackets {100 * config.evaluate.level:g} % bootstrap intervals, patients "
        f"{'and seeds ' if seeds > 1 else ''}resampled; {seeds} training seed{'s' if seeds > 1 else ''}"
        f"{', mean shown' if seeds > 1 else ', so how much training varies is not in them'}. "
        "Best epoch and threshold were chosen on validation."
    )


def difference_rows(comparison: Comparison, numbers: list[int]) -> Iterator[dict[str, str]]:
    """Rows of the table of differences from the baseline, for these lines."""
    for number in numbers:
        if number not in comparison.differences:
            continue
        found = comparison.differences[number]
        yield {
            "Model": name_of(comparison.lines[number]),
            f"AUC minus {name_of(comparison.lines[comparison.baseline(comparison.lines[number].labelled)])}": show(
                found["auc"], True
            ),
            "p (AUC)": _p(found["auc"].p_value),
            "Accuracy difference": show(found["accuracy"], True),
            "p (accuracy)": _p(found["accuracy"].p_value),
        }


def _p(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3f}".removeprefix("0") if value >= 0.001 else "< .001"


def name_of(line: Line) -> str:
    """A line's name where the other columns are not shown."""
    described = line.described
    masking = f" {described['% Masking']} %" if described["% Masking"] != "–" else ""
    return described["Model"] + masking + (", not augmented" if described["Augmentation"] == "no" else "")


def verdict(comparison: Comparison, labelled: int | None) -> str:
    """Who wins on AUC, said plainly: better or worse only where the paired interval excludes no difference."""
    lines = [line for line in comparison.lines if line.labelled == labelled]
    best = max(lines, key=lambda line: line.intervals["auc"].estimate)
    text = f"Highest AUC: {name_of(best)}."
    outcome: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for number, found in comparison.differences.items():
        low, high = found["auc"].interval
        if comparison.lines[number].labelled == labelled:
            word = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
            outcome[word].append(f'"{name_of(comparison.lines[number])}"')
    said = "; ".join(f"{word}: {', '.join(names)}" for word, names in outcome.items() if names)
    if not said:
        return text
    baseline = name_of(comparison.lines[comparison.baseline(labelled)])
    return f"{text} Against {baseline}, by paired bootstrap of the AUC, not adjusted for several tests: {said}."


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
