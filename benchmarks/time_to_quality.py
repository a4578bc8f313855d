"""What recipes cost and what they reach, beside each other: seconds and arithmetic from random weights to an AUC.

    python benchmarks/time_to_quality.py benchmarks/recipes/pneumoniamnist.yaml --jobs 2 --json out.json

A recipe is a row of an ordinary comparison (`mae-compare`), with its pretraining; the first row is the reference. What
is not trained yet is trained, on validation alone: a run that was stopped goes on. Then the steps of all recipes are
timed in turn in one process, round by round, so that a machine whose speed drifts treats them alike, and a recipe's
seconds are its steps times the median of each kind. Loading, validation and probes are not in it. AUCs, differences
and their intervals are the comparison's own: over patients and seeds, and non-inferior by the margin that the YAML
declares.
"""

import argparse
import statistics
from collections.abc import Callable
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
from data.config import load_config
from data.loader import Data, open_data
from data.unlabelled import with_unlabelled
from mae.engine.run import configure_torch, training_device
from mae.engine.stage import AnyStage
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain_stage
from mae.rehearsal import step_seconds

PROBE = "probe/logistic_auc"


class Part(NamedTuple):
    """A training of a recipe: its steps, and what they calculate."""

    key: str  # what trainings with equal steps have in common
    stage: Callable[[], AnyStage]
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

    # without the places where things lie on this machine
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
    cells: dict[tuple[str, int | None], Cell] = {}
    for cell in expand_grid(config, labelled_images(data.everything())):
        cells.setdefault((cell.name, cell.labelled), cell)

    parts = {place: parts_of(cell, data) for place, cell in cells.items()}
    seconds = timed([part for of_cell in parts.values() for part in of_cell], rounds)
    reference = comparison.lines[0].name
    wanted = probed(comparison, cells, reference)[-1:]

    rows = []
    for line in comparison.lines:
        place = (line.name, line.labelled)
        taken = [part.steps * seconds[part.key] for part in parts[place]]
        of_reference = parts.get((reference, line.labelled), parts[next(iter(parts))])
        whole = sum(part.steps * seconds[part.key] for part in of_reference)
        rows.append(
            {
                "recipe": line.name,
                "labelled": line.evaluations[0].summary["meta"]["train_images"],
                "seeds": len(line.evaluations),
                "n": len(line.labels),
                "seconds": sum(taken),
                "pretraining_seconds": sum(taken[:-1]),
                "step_seconds": [seconds[part.key] for part in parts[place]],
                "share_of_reference": sum(taken) / whole,
                "flops": sum(part.flops for part in parts[place]),
                "auc": found(line.intervals["auc"]),
                "auc_of_seeds": [evaluation.summary["metrics"]["auc"] for evaluation in line.evaluations],
                **against_reference(comparison, line, reference),
                **of_probes(comparison, cells, line, wanted, taken),
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


def of_probes(
    comparison: Comparison, cells: dict[tuple[str, int | None], Cell], line: Line, wanted: list[Any], taken: list[float]
) -> dict[str, Any]:
    """The last logistic probe of a pretraining, and the seconds until one reached the reference's last."""
    curve = probed(comparison, cells, line.name)
    result: dict[str, Any] = {"probe_auc": curve[-1][1] if curve else None, "seconds_to_reference_probe": None}
    reached = [epoch for epoch, auc in curve if wanted and auc >= wanted[0][1]]
    if reached:
        epochs = cells[line.name, line.labelled].config.pretrain.epochs
        result["seconds_to_reference_probe"] = sum(taken[:-1]) * reached[0] / epochs
    return result


def probed(comparison: Comparison, cells: dict[tuple[str, int | None], Cell], name: str) -> list[tuple[int, float]]:
    """(epoch, AUC) of the probes during a recipe's pretraining, mean over its seeds; [] without any."""
    curves: dict[int, list[float]] = {}
    first = next((cell for cell in cells.values() if cell.name == name), None)
    for folder, config in comparison.pretrain_configs.items():
        if first is None or first.pretrain_config is None or not same_but_seed(config, first.pretrain_config):
            continue
        for row in read_metrics(comparison.pretrainings[folder], warn=False):
            if PROBE in row:
                curves.setdefault(row["epoch"], []).append(row[PROBE])
    return [(epoch, statistics.fmean(aucs)) for epoch, aucs in sorted(curves.items())]


def same_but_seed(one: ClassifyConfig, other: ClassifyConfig) -> bool:
    return one.pretrain == other.pretrain and one.model == other.model and one.data == other.data


# ---------------------------------------------------------------- time


def parts_of(cell: Cell, data: Data) -> list[Part]:
    """The trainings of a recipe: its pretraining, if it has one, and its fine-tuning."""
    device = training_device(cell.config)
    parts = []
    if cell.pretrain_config:
        config = cell.pretrain_config
        images = with_unlabelled(data, config.data)
        steps = config.pretrain.epochs * (len(images.split("train")) // config.pretrain.batch)
        flops = steps * config.pretrain.batch * pretraining_flops_of(config)
        without = config.pretrain.model_copy(update={"epochs": 0})
        key = f"{config.model.model_dump_json()} {without.model_dump_json(exclude={'optimizer', 'keep_epochs'})}"
        parts.append(Part(key, lambda: pretrain_stage(config, images, device), steps, flops))

    splits = splits_of(data, cell.config)
    settings = cell.config.finetune
    batch = min(settings.batch, len(splits.train))
    steps = settings.epochs * (len(splits.train) // batch)
    sizes = (cell.config.model, settings.model, settings.mode, settings.drop_patches, settings.augment, batch)
    stage_two = Part(
        " ".join(map(str, sizes)),
        lambda: finetune_stage(cell.config, data, splits, device, None),
        steps,
        steps * batch * finetuning_flops(cell.config),
    )
    return [*parts, stage_two]


def timed(parts: list[Part], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each kind, measured in turn."""
    stages = {}
    for part in parts:
        if part.key not in stages:
            stages[part.key] = part.stage()
    taken: dict[str, list[float]] = {key: [] for key in stages}
    for _ in range(rounds):
        for key, stage in stages.items():
            taken[key] += step_seconds(stage)
    return {key: statistics.median(seconds) for key, seconds in taken.items()}


if __name__ == "__main__":
    main()
