"""What recipes cost and what they reach, beside each other: seconds and arithmetic from random weights to an AUC.

    python benchmarks/time_to_quality.py benchmarks/recipes/pneumoniamnist.yaml --jobs 2 --json out.json

A recipe is a row of an ordinary comparison (`mae-compare`), with its pretraining; the first row is the reference. What
is not trained yet is trained, and tested on validation alone; a run that was stopped is resumed. Then the steps of all
recipes are timed in turn in one process, round by round, so that a machine whose speed drifts treats them alike. A
recipe's seconds are its steps times the median of each kind. Loading, validation and probes are not in it. AUCs,
differences and their intervals, over patients and seeds, are the comparison's own. So is non-inferiority, by the
margin that the YAML declares.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from results import report

from classify.cases import splits_of
from classify.compare import compare
from classify.comparison import Comparison, Line
from classify.cost import finetuning_flops, pretraining_flops_of
from classify.finetune import finetune_stage
from classify.grid import Cell, expand_grid, labelled_images
from classify.report.tables import markdown
from classify.settings import ClassifyConfig
from data.config import expand, load_config
from data.loader import Data, open_data
from data.unlabelled import with_unlabelled
from mae.engine.run import configure_torch, training_device
from mae.engine.stage import AnyStage
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain_stage
from mae.rehearsal import step_seconds

PROBE = "probe/logistic_auc"


Place = tuple[str, int | None]  # a recipe's name, and its label budget


class Probe(NamedTuple):
    epoch: int
    auc: float


class Part(NamedTuple):
    """A training of a recipe: its steps, and their arithmetic."""

    run: str  # its folder; several rows can begin from one pretraining
    steps: int
    flops: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", type=Path, help="a comparison's config, on validation")
    parser.add_argument("settings", nargs="*", help="key=value, such as data.root=…")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    config = load_config(arguments.recipes, arguments.settings)
    assert isinstance(config, ClassifyConfig)
    if config.compare.split != "validate":
        raise SystemExit(f"error: {arguments.recipes}: found compare.split {config.compare.split}, expected validate")

    comparison = compare(config, jobs=arguments.jobs)
    rows = measure(comparison, arguments.rounds)
    print(markdown([shown(row) for row in rows]))

    # without this machine's paths
    del arguments.settings
    shown_config = config.model_dump(mode="json", exclude={"run": True, "data": {"root", "store"}})
    result = {"rows": rows, "config": shown_config, "manifest": comparison.facts.manifest}
    report(arguments.json, arguments, result)


# ---------------------------------------------------------------- rows


def measure(comparison: Comparison, rounds: int) -> list[dict[str, Any]]:
    """A row for each recipe and label budget."""
    config = comparison.config
    configure_torch(config)
    data = open_data(config.data)
    cells: dict[Place, list[Cell]] = {}
    for cell in expand_grid(config, labelled_images(data.everything())):
        cells.setdefault((cell.name, cell.labelled), []).append(cell)

    # the seeds of a recipe take the same steps
    stages: dict[str, AnyStage] = {}
    parts = {place: parts_of(of_place[0], data, stages) for place, of_place in cells.items()}
    seconds = timed(stages, rounds)
    taken = {place: [part.steps * seconds[part.run] for part in of_place] for place, of_place in parts.items()}

    first = (comparison.lines[0].name, comparison.lines[0].labelled)
    reference = first[0]
    of_reference = probed(cells[first])
    wanted = of_reference[-1] if of_reference else None
    rows = []
    for line in comparison.lines:
        place = (line.name, line.labelled)
        *pretraining, finetuning = taken[place]
        rows.append(
            {
                "recipe": line.name,
                "labelled": line.evaluations[0].summary["meta"]["train_images"],
                "seeds": len(line.evaluations),
                "n": len(line.labels),
                "seconds": sum(pretraining) + finetuning,
                "pretraining_seconds": sum(pretraining),
                "step_seconds": [seconds[part.run] for part in parts[place]],
                "share_of_reference": sum(taken[place]) / sum(taken.get((reference, line.labelled), taken[first])),
                "flops": sum(part.flops for part in parts[place]),
                "auc": found(line.intervals["auc"]),
                "auc_of_seeds": [evaluation.summary["metrics"]["auc"] for evaluation in line.evaluations],
                **against_reference(comparison, line, reference),
                **of_probes(cells[place], wanted, sum(pretraining)),
            }
        )
    return rows


def found(interval: Any) -> list[float]:
    return [interval.estimate, *interval.interval]


def against_reference(comparison: Comparison, line: Line, reference: str) -> dict[str, Any]:
    """The declared contrast with the reference at this label budget; {} where there is none."""
    for contrast in comparison.contrasts_of(line.labelled):
        if (contrast.a, contrast.b) == (line.name, reference) and not contrast.why_not:
            return {
                "difference": found(contrast.auc),
                "margin": contrast.declared.margin,
                "p_inferior": contrast.p_margin,
                "p_inferior_holm": contrast.p_margin_holm,
            }
    return {}


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as a reader wants it."""
    difference = inferior = probe = "–"
    if "difference" in row:
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["difference"])
    if row.get("margin") is not None:
        inferior = f"{row['p_inferior']:.3f} at {row['margin']:g}"
    if row["probe_auc"] is not None:
        probe = f"{row['probe_auc']:.3f}"

    return {
        "Recipe": row["recipe"],
        "Labels": f"{row['labelled']:,}",
        "Seeds": str(row["seeds"]),
        "Seconds": f"{row['seconds']:,.0f}",
        "of them pretraining": f"{row['pretraining_seconds']:,.0f}",
        "of the reference's": f"{row['share_of_reference']:.0%}",
        "TFLOP": f"{row['flops'] / 1e12:,.0f}",
        "Probe": probe,
        "AUC": "{:.3f} [{:.3f}, {:.3f}]".format(*row["auc"]),
        "minus reference": difference,
        "p (inferior)": inferior,
    }


# ---------------------------------------------------------------- probes


def of_probes(cells: list[Cell], wanted: Probe | None, seconds: float) -> dict[str, Any]:
    """A pretraining's last logistic probe, and how many of its `seconds` passed until one was as good as `wanted`."""
    curve = probed(cells)
    result: dict[str, float | None] = {"probe_auc": None, "seconds_to_reference_probe": None}
    if curve:
        result["probe_auc"] = curve[-1].auc
    reached = [probe.epoch for probe in curve if wanted and probe.auc >= wanted.auc]
    if reached:
        result["seconds_to_reference_probe"] = seconds * reached[0] / cells[0].config.pretrain.epochs
    return result


def probed(cells: list[Cell]) -> list[Probe]:
    """The probes during a recipe's pretraining by epoch, mean over its seeds; [] without any."""
    curves: dict[int, list[float]] = {}
    for run in dict.fromkeys(cell.pretrain_config.run for cell in cells if cell.pretrain_config):
        for row in read_metrics(Path(expand(run, "run")), warn=False):
            if PROBE in row:
                curves.setdefault(row["epoch"], []).append(row[PROBE])
    return [Probe(epoch, statistics.fmean(aucs)) for epoch, aucs in sorted(curves.items())]


# ---------------------------------------------------------------- time


def parts_of(cell: Cell, data: Data, stages: dict[str, AnyStage]) -> list[Part]:
    """The trainings of a recipe: its pretraining, if it has one, and its fine-tuning. `stages` gets what is timed."""
    device = training_device(cell.config)
    parts = []
    if config := cell.pretrain_config:
        if config.run not in stages:
            stages[config.run] = pretrain_stage(config, with_unlabelled(data, config.data), device)
        parts.append(part_of(config.run, stages[config.run], pretraining_flops_of(config)))

    stages[cell.run] = finetune_stage(cell.config, data, splits_of(data, cell.config), device, None)
    return [*parts, part_of(cell.run, stages[cell.run], finetuning_flops(cell.config))]


def part_of(run: str, stage: AnyStage, flops: int) -> Part:
    """flops: per image."""
    steps = stage.epochs * len(stage.batches)
    return Part(run, steps, steps * stage.batches.batch_size * flops)


def timed(stages: dict[str, AnyStage], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each training, measured in turn."""
    taken: dict[str, list[float]] = {run: [] for run in stages}
    for _ in range(rounds):
        for run, stage in stages.items():
            taken[run] += step_seconds(stage)
    return {run: statistics.median(seconds) for run, seconds in taken.items()}


if __name__ == "__main__":
    main()
