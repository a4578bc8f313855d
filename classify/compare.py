"""mae-compare: a grid of runs → Comparison, written as tables and report."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from classify.batch_sizes import with_batch_sizes
from classify.cases import splits_of
from classify.comparison import Comparison, Declared, FailedRow, Line, describe
from classify.contrasts import candidates, declared, untested
from classify.cost import finetuning_cost, pretraining_cost
from classify.evaluate import Evaluation, evaluate
from classify.extra_rows import check_extra_rows, extra_names, with_extra_rows
from classify.grid import (
    Cell,
    check_folder,
    check_grid,
    continued,
    counts_images,
    expand_grid,
    labelled_images,
    left_out,
    pretrainings_of,
    trials_of,
    with_choice,
)
from classify.jobs import Failure, Outcome, Task, Work, attempt, run_in_processes, run_tasks
from classify.provenance import facts_of
from classify.report.checklist import check_answers
from classify.report.heatmaps import draw_heatmaps
from classify.report.mistakes import draw_mistakes
from classify.report.read import read_comparison
from classify.report.reconstructions import draw_reconstructions
from classify.report.stage_one import learned
from classify.report.write import write_comparison
from classify.scores import UNIT_IDS
from classify.settings import ClassifyConfig
from classify.subgroups import check_columns
from classify.tuning import Choice, choose, kept_choice, serve_first_seed
from data.config import change_config, expand
from data.errors import UserError
from data.loader import Data, open_data
from data.locks import locked
from data.privacy import credentialed_sources, credentialed_unlabelled
from data.settings import DataSettings
from data.unlabelled import with_unlabelled
from data.writing import keep_private, restoring_umask
from mae.engine.checkpoint import load_checkpoint

Say = Callable[[str], None]
DataOf = Callable[[DataSettings], Data]


@restoring_umask()
def compare(config: ClassifyConfig, say: Say = print, jobs: int = 1) -> Comparison:
    """Run what the grid still lacks, evaluate every cell once, and write the comparison into `config.run`.

    jobs: how many processes train at a time; 1: this one does. A cell that fails is left out of the comparison, which
    names it. Raises UserError before anything is trained if the grid does not fit together, and at the end if no cell
    is left.
    """
    opened: dict[DataSettings, Data] = {}

    def data_of(settings: DataSettings) -> Data:
        """Open each data set once, and describe it then."""
        if settings not in opened:
            data = open_data(settings)
            say("\n".join([*data.manifest.notes, data.manifest.summary()]))
            opened[settings] = data
        return opened[settings]

    # the grid, as far as it can be known before anything is tuned
    _keep_private(config, [])
    images = None
    if counts_images(config.compare):
        images = labelled_images(data_of(config.data).everything(), config.finetune.sample_covers)
    for line in left_out(config, images):
        say(line)
    cells = list(expand_grid(config, images))
    rows = candidates(cells, extra_names(config, cells))
    tested = declared(config, rows)
    for line in untested(config, rows):
        say(line)
    _keep_private(config, cells)
    check_answers(config.report.checklist)
    check_columns(config.report.subgroups, data_of(config.data).manifest.table.columns)
    check_extra_rows(config, data_of(config.data))
    check_grid(config, cells, data_of)
    cells = with_batch_sizes(
        cells,
        of_pretraining=lambda config: len(with_unlabelled(data_of(config.data), config.data).split("train")),
        of_finetuning=lambda config: len(splits_of(data_of(config.data), config).train),
    )

    folder = Path(expand(config.run, "run"))
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: found another mae-compare at work there, expected none; wait for it, or choose another run=…"
    with locked(folder, busy, wait=False):
        comparison = _Grid(config, cells, tested, data_of, say).run(jobs)
        keep_private(comparison.credentialed, config.data.share)  # weights may have seen more than their settings say
        write_comparison(comparison, folder)
    return comparison


def failures_of(comparison: Comparison) -> list[str]:
    """The trainings that failed, a line each."""
    found = [line for row in comparison.lines for line in row.failed]
    return found + [line for row in comparison.failed_rows for line in row.failed]


def _chain(name: str, pretrainings: Mapping[str, Task]) -> list[str]:
    """A pretraining, and before it those that it continues from, the earliest first."""
    chain = [name]
    while before := pretrainings[chain[0]].after:
        if before[0] in chain:
            raise UserError(f"pretrain.continue_from: found {name} to go on from itself, expected another beginning")
        chain.insert(0, before[0])
    return chain


def _expect_none_lost(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """UserError if a training that the folder's comparison shows has failed this time: that comparison is kept."""
    failed = {name: found.line for name, found in outcomes.items() if isinstance(found, Failure)}
    if not failed:
        return
    try:
        shown = {evaluation.run.name for evaluation in read_comparison(folder).evaluations}
    except (UserError, OSError):  # there is none yet, or none that can be read
        return

    lost = [name for name in failed if name in shown]
    if lost:
        raise UserError(
            f"{folder}: found {len(lost)} trainings of its comparison failing by now, expected none; the comparison "
            f"stays as it was. The first: {lost[0]}: {failed[lost[0]]}"
        )


class _Grid:
    """A grid at work: the outcome of each of its trainings, by the name of its folder."""

    def __init__(
        self, config: ClassifyConfig, cells: list[Cell], tested: tuple[Declared, ...], data_of: DataOf, say: Say
    ):
        self.config = config
        self.tested = tested
        self.data_of = data_of
        self.say = say
        self.outcomes: dict[str, Outcome] = {}

        # earlier choices stand; the other rows try their settings at their first seed
        self.first: dict[int, Cell] = {}
        for cell in cells:
            self.first.setdefault(cell.row, cell)
        self.choices: dict[int, Choice] = {}
        for row, cell in self.first.items():
            kept = kept_choice(cell, data_of(cell.config.data)) if cell.choices else None
            if kept:
                self.choices[row] = kept
        self.cells = cells
        for cell in cells:
            if cell.row in self.choices:
                check_folder(self._chosen(cell))

    def run(self, jobs: int) -> Comparison:
        """Pretrain, tune, fine-tune and evaluate; what is there already is not done again."""
        tasks = self._tasks()
        if jobs > 1:
            self._run_in_processes(tasks, jobs)
        else:
            run_tasks(tasks, lambda name, work: attempt(work, self.data_of), self.outcomes, self.say)
        return self._comparison()

    def _run_in_processes(self, tasks: list[Task], jobs: int) -> None:
        """Pretrainings first: others wait for them. Stores are made before, by one process."""
        for cell in self.cells:
            if cell.pretrain_config:
                self.data_of(cell.pretrain_config.data)
        private = _most_private(self.config, self.cells)
        tasks = sorted(tasks, key=lambda task: len(task.after) > 0)
        run_in_processes(tasks, min(jobs, len(tasks)), self.outcomes, private, self.say)

        # what they wrote is read back
        for cell in self.cells:
            if self.outcomes[cell.folder] is None:
                chosen = self._chosen(cell)
                run = Path(expand(chosen.run, "run"))
                overrides = _how_to_evaluate(self.config, chosen)
                self.outcomes[cell.folder] = evaluate(run, overrides, self.data_of(chosen.config.data))

    # ------------------------------------------------------------ what is to be done

    def _tasks(self) -> list[Task]:
        """All trainings, each after those it needs."""
        pretrainings = self._pretrainings()
        tasks: dict[str, Task] = {}
        for cell in self.cells:
            before: tuple[str, ...] = ()
            if cell.pretrain_config:
                before = (Path(cell.pretrain_config.run).name,)
                for name in _chain(before[0], pretrainings):
                    tasks.setdefault(name, pretrainings[name])

            # a row whose choice is made is not tuned again
            if cell.choices and cell.row not in self.choices:
                first = self.first[cell.row]
                trials = trials_of(first)
                for trial in trials if cell is first else ():
                    tasks[trial.folder] = Task(trial.folder, self._training(trial, evaluated=False), before)
                before = (*before, *(trial.folder for trial in trials))
            tasks[cell.folder] = Task(cell.folder, self._training(cell, evaluated=True), before)
        return list(tasks.values())

    def _pretrainings(self) -> dict[str, Task]:
        """By their names; one that continues from another one of the grid comes after it."""
        configs = pretrainings_of(self.cells)
        tasks = {}
        for run, config in configs.items():
            source = continued(config, configs)
            before = () if source is None else (Path(source).name,)
            tasks[Path(run).name] = Task(Path(run).name, _pretraining(config), before)
        return tasks

    def _training(self, cell: Cell, evaluated: bool) -> Callable[[], Work]:
        """How a cell's work is begun, once what it needs has ended."""

        def begin() -> Work:
            checkpoint = None
            if cell.pretrain_config:
                folder = Path(expand(cell.pretrain_config.run, "run"))
                self._expect_done(folder.name, "its pretraining")
                # the best reconstruction of validation images: no label chose it
                checkpoint = folder / "best.pt"

            chosen = self._chosen(cell)
            if cell.choices:
                if cell is self.first[cell.row]:
                    serve_first_seed(cell, self.choices[cell.row])
                check_folder(chosen)
            overrides = _how_to_evaluate(self.config, chosen) if evaluated else None
            return Work("finetune", chosen.config, checkpoint, overrides)

        return begin

    def _expect_done(self, name: str, what: str) -> None:
        outcome = self.outcomes.get(name)
        if isinstance(outcome, Failure):
            raise UserError(f"{what} failed ({name}): {outcome.line}")

    def _chosen(self, cell: Cell) -> Cell:
        """The cell with the setting that its row has chosen on validation; the first call makes the choice.

        UserError if a setting could not be tried, unless it diverged: all rows must have equally many tries.
        """
        if not cell.choices:
            return cell
        if cell.row not in self.choices:
            self.choices[cell.row] = self._choice_for(self.first[cell.row])
        return with_choice(cell, self.choices[cell.row].setting)

    def _choice_for(self, first: Cell) -> Choice:
        """The row's choice among the settings that were tried at its first seed."""
        diverged = set()
        costs: list[tuple[float | None, int | None]] = []
        for trial in trials_of(first):
            outcome = self.outcomes.get(trial.folder)
            if isinstance(outcome, Failure) and outcome.diverged:
                diverged.add(trial.folder)
                costs.append((None, None))
                continue

            self._expect_done(trial.folder, "a setting to tune")
            cost = _cost_of(trial)
            costs.append((cost["train_seconds"], cost["train_flops"]))
        return choose(first, diverged, costs, self.data_of(first.config.data))

    # ------------------------------------------------------------ what was found

    def _comparison(self) -> Comparison:
        folder = Path(expand(self.config.run, "run"))
        _expect_none_lost(folder, self.outcomes)
        evaluations = [each for each in self.outcomes.values() if isinstance(each, Evaluation)]
        if not evaluations:
            failures = [each for each in self.outcomes.values() if isinstance(each, Failure)]
            raise UserError(
                f"{self.config.run}: found no training that ended, expected some; the first: {failures[0].line}"
            )
        _check_cases(evaluations)

        pretrainings: dict[str, Path] = {}
        configs: dict[str, ClassifyConfig] = {}
        for cell in self.cells:
            if cell.pretrain_config:
                pretraining = Path(expand(cell.pretrain_config.run, "run"))
                if not isinstance(self.outcomes[pretraining.name], Failure):
                    pretrainings[pretraining.name] = pretraining
                    configs[pretraining.name] = cell.pretrain_config

        # rows that are not trained: files, ensembles
        lines, failed = self._lines()
        data_of = self._data_of_runs()
        lines = with_extra_rows(self.config, data_of, lines)
        evaluations = [evaluation for line in lines for evaluation in line.evaluations]
        _check_cases(evaluations)

        found = Comparison(
            config=change_config(self.config, {}),  # as in comparison.json: defaults may not have the declared type
            folder=folder,
            facts=facts_of(self.data_of(self.config.data), evaluations),
            lines=lines,
            failed_rows=failed,
            declared=self.tested,
            pretrainings=pretrainings,
            pretrain_configs=configs,
            learned=learned(pretrainings, configs),
            reconstructions=draw_reconstructions(pretrainings, configs, self.data_of, folder),
            tuning=tuple(asdict(choice) for choice in self.choices.values()),
        )
        mistakes = draw_mistakes(found, self.data_of(self.config.data))
        return replace(found, mistakes=mistakes, heatmaps=draw_heatmaps(found, data_of))

    def _data_of_runs(self) -> DataOf:
        """The data by the settings of finished runs, too: these name where the images were when a run was made."""
        now = {}
        for cell in self.cells:
            outcome = self.outcomes[cell.folder]
            if isinstance(outcome, Evaluation):
                now[outcome.config.data] = cell.config.data
        return lambda settings: self.data_of(now.get(settings, settings))

    def _lines(self) -> tuple[tuple[Line, ...], tuple[FailedRow, ...]]:
        """A line for each table row: the evaluations of its cells, which differ by their seeds alone.

        A row without evaluations has no numbers, and so no line.
        """
        lines = []
        without = []
        for row, first in self.first.items():
            of_row = [cell for cell in self.cells if cell.row == row]
            found: list[Evaluation] = []
            failed: list[str] = []
            for cell in of_row:
                outcome = self.outcomes[cell.folder]
                if isinstance(outcome, Evaluation):
                    found.append(self._with_cost(cell, outcome))
                elif isinstance(outcome, Failure):
                    failed.append(f"{cell.folder}: {outcome.line}")

            described = describe(first.config, first.pretraining is not None) | {"Model": first.name}
            if found:
                lines.append(Line(described, first.labelled, tuple(found), failed=tuple(failed)))
            else:
                without.append(FailedRow(described, first.labelled, tuple(failed)))
        return tuple(lines), tuple(without)

    def _with_cost(self, cell: Cell, evaluation: Evaluation) -> Evaluation:
        """The evaluation with costs in its summary: of training, of pretraining, and at the first seed of tuning."""
        cost = finetuning_cost(evaluation.run, evaluation.config, evaluation.summary["meta"]["train_images"])
        if cell.pretrain_config:
            settings = cell.pretrain_config.data
            images = len(with_unlabelled(self.data_of(settings), settings).split("train"))
            cost |= pretraining_cost(Path(expand(cell.pretrain_config.run, "run")), cell.pretrain_config, images)
        choice = self.choices.get(cell.row)
        if choice and cell is self.first[cell.row]:
            cost["tune_seconds"] = sum(seconds or 0 for seconds in choice.seconds)
            cost["tune_flops"] = sum(flops or 0 for flops in choice.flops)
        return replace(evaluation, summary=evaluation.summary | {"cost": cost})


def _pretraining(config: ClassifyConfig) -> Callable[[], Work]:
    return lambda: Work("pretrain", config)


def _cost_of(trial: Cell) -> dict[str, Any]:
    """What a finished training has cost, without its evaluation."""
    folder = Path(expand(trial.run, "run"))
    images = load_checkpoint(folder / "best.pt", numbers=False).fact("train_images")
    return finetuning_cost(folder, trial.config, images)


def _most_private(config: ClassifyConfig, cells: list[Cell]) -> tuple[list[str], Any]:
    """The credentialed data sets of all cells, and the strictest `data.share` among the cells that have any."""
    found: set[str] = set()
    share = "group"
    for each in [config, *(cell.config for cell in cells), *(cell.pretrain_config for cell in cells)]:
        if each is not None and _credentialed(each):
            found |= {*_credentialed(each)}
            if each.data.share == "private":
                share = "private"
    return sorted(found), share


def _keep_private(config: ClassifyConfig, cells: list[Cell]) -> None:
    """The comparison's folder holds what every cell makes, so it is as private as the most private of them."""
    for each in [config, *(cell.config for cell in cells), *(cell.pretrain_config for cell in cells)]:
        if each is not None:
            keep_private(_credentialed(each), each.data.share)


def _credentialed(config: ClassifyConfig) -> tuple[str, ...]:
    """The credentialed data sets that a cell or its pretraining reads."""
    return (*credentialed_sources(config.data), *credentialed_unlabelled(config.data))


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


def _how_to_evaluate(config: ClassifyConfig, cell: Cell) -> dict[str, Any]:
    """Overrides of a run's config: the comparison's own way to evaluate, on this machine, and what may be shown now."""
    settings = config.evaluate.model_dump(mode="json") | {"split": config.compare.split}
    overrides = {f"evaluate.{key}": value for key, value in settings.items()}
    overrides["data.store"] = cell.config.data.store  # the ledger lies beside it
    shown = {"report.images": cell.config.report.images, "report.subgroups": config.report.subgroups}
    return overrides | shown | {"device": config.device, "threads": config.threads}
