"""Model cards: what one must know of a trained classifier before it is used, as Markdown with Hugging Face's fields."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from classify.comparison import Comparison, Line
from classify.decisions import origin_of_threshold
from classify.evaluate import Evaluation
from classify.grid import folder_name
from classify.metrics import HEADLINE
from classify.report.checklist_facts import checklist_facts, epochs, network
from classify.report.numbers import show, show_threshold
from classify.report.subgroup_tables import subgroup_rows
from classify.report.tables import FLATTERING, METRICS, case_count, markdown, plain, task
from classify.report.verdict import largest_budget
from classify.report.warnings import warnings
from data.labels import words
from data.privacy import terms
from data.writing import write_text
from mae.weights.licenses import License, front_matter, spoken

WRITTEN_BY = "Written by mae-compare of mae-cxr."
HUB_METRICS = {"auc": "roc_auc", "accuracy": "accuracy", "precision": "precision", "f1": "f1", "recall": "recall"}
assert set(HUB_METRICS) == set(HEADLINE)
INTENDED = (
    "Research on the classification of radiographs. Not a medical device: not tested for the care of patients, and not "
    "to be used in it."
)


@dataclass(frozen=True)
class Card:
    """The facts of a model card, from a comparison or an export."""

    name: str
    task: str
    license: License | None = None
    source: str = ""  # layout of the data it was evaluated on
    split: str = ""
    metrics: Mapping[str, float] | None = None  # by `HUB_METRICS`, for model-index
    sections: tuple[tuple[str, tuple[str, ...]], ...] = ()  # heading, and paragraphs in Markdown
    written_by: str = WRITTEN_BY
    front: Mapping[str, object] = field(default_factory=dict)  # front matter that differs from a comparison's


def model_card(card: Card) -> str:
    """The card as a README.md."""
    front: dict[str, object] = {"library_name": "mae-cxr", "pipeline_tag": "image-classification"}
    front |= {"tags": ["chest-x-ray", "radiograph", "image-classification"]}
    front |= card.front
    index = _model_index(card)
    told = f"Task: {plain(card.task)}. " if card.task else ""
    parts = [f"# {plain(card.name)}", f"{told}Not a medical device.", card.written_by]
    for heading, paragraphs in card.sections:
        if paragraphs:
            parts += [f"## {plain(heading)}", *paragraphs]
    return front_matter(card.license, front | index) + "\n\n".join(parts) + "\n"


def _model_index(card: Card) -> dict[str, object]:
    """The metrics that the hub shows beside a model; {} if nothing was measured."""
    metrics = []
    for name, value in (card.metrics or {}).items():
        if math.isfinite(value):
            metrics.append({"type": HUB_METRICS[name], "value": round(value, 4)})
    if not metrics:
        return {}
    dataset = {"type": card.source, "name": card.source, "split": card.split}
    result = {"task": {"type": "image-classification", "name": card.task}, "dataset": dataset, "metrics": metrics}
    return {"model-index": [{"name": card.name, "results": [result]}]}


# ---------------------------------------------------------------- of a comparison


def write_model_cards(comparison: Comparison, folder: Path) -> None:
    """`<row>.md` for every trained row of the largest label budget; cards of rows that no longer exist are deleted."""
    groups = list(subgroup_rows(comparison))
    cards = {f"{folder_name(line.name)}.md": card_of(comparison, line, groups) for line in _trained(comparison)}
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name in cards or path.is_symlink():
            continue
        if WRITTEN_BY in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()
    for name, card in cards.items():
        write_text(folder / name, model_card(card))


def _trained(comparison: Comparison) -> Iterator[Line]:
    """The lines that have weights of their own: neither files nor ensembles."""
    for line in comparison.lines_of(largest_budget(comparison)):
        if line.evaluations[0].is_trained:
            yield line


def card_of(comparison: Comparison, line: Line, groups: Sequence[Mapping[str, str]] = ()) -> Card:
    """The facts of a row: the weights are those of its first training, the metrics are means over its trainings.

    groups: the comparison's `subgroup_rows`, which take a while to compute.
    """
    first = line.evaluations[0]
    config = comparison.config

    return Card(
        name=line.name,
        task=task(config.data.target),
        license=first.summary["meta"].get("license"),
        source=config.data.source,
        split=config.compare.split,
        metrics={name: line.intervals[name].estimate for name in HEADLINE},
        sections=(
            ("Intended use", (INTENDED,)),
            ("Model", _lines(_model(comparison, line, first))),
            ("Data", _lines(_data(comparison))),
            ("Training", _lines(_training(comparison, first))),
            ("Evaluation", tuple(_evaluation(comparison, line))),
            ("Calibration and threshold", _lines(_decision(comparison, first))),
            ("Subgroups", tuple(_subgroups(line, groups))),
            ("Limitations", _lines(_limitations(comparison, line))),
            ("Licence", _lines(_licence(comparison, first))),
        ),
    )


def _lines(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(plain(text) for text in texts)


def _model(comparison: Comparison, line: Line, first: Evaluation) -> Iterator[str]:
    known = checklist_facts(comparison)
    positive = words(comparison.config.data.target)[1]
    yield f"{network(first.config)}. Input: {known['input']}; output: the probability of {positive}."
    yield f"Weights: {first.run.name}/best.pt, seed {first.summary['seed']}, one of {len(line.evaluations)} trainings."


def _data(comparison: Comparison) -> Iterator[str]:
    known = checklist_facts(comparison)
    yield f"Source: {known['source'] or comparison.config.data.source}."
    yield f"{known['preprocessing']}."
    yield f"Splits: {known['partitions']}. {known['disjoint']}."
    if known["reference"]:
        yield f"Labels: {known['reference']}."
    yield f"Missing: {known['missing']}."


def _training(comparison: Comparison, first: Evaluation) -> Iterator[str]:
    settings = first.config.finetune
    how = "All weights were trained" if settings.mode == "full" else "A linear probe was trained on frozen features"
    images = first.summary["meta"]["train_images"]
    augmented = "with augmentation" if settings.augment.enabled else "without augmentation"
    yield f"{how}, {epochs(settings.epochs)} on {images:,} labelled images, {augmented}."

    begun_from = first.summary["meta"].get("pretrained_from")
    if begun_from and Path(begun_from).parent.name in comparison.pretrainings:
        pretraining = comparison.pretrain_configs[Path(begun_from).parent.name].pretrain
        masked = f"{100 * pretraining.mask_ratio:g} % masked"
        yield f"Pretrained as a masked autoencoder: {epochs(pretraining.epochs)}, {masked}."
    elif begun_from:
        yield "Training began from weights of another training."
    else:
        yield "Training began from random weights."


def _evaluation(comparison: Comparison, line: Line) -> Iterator[str]:
    summary = line.evaluations[0].summary
    level = f"{100 * comparison.config.evaluate.level:g} %"
    seeds = "" if len(line.evaluations) == 1 else f", means over {len(line.evaluations)} trainings"
    yield plain(f"Split {comparison.config.compare.split}: {case_count(summary)}. {level} intervals{seeds}.")
    yield markdown([{"Metric": column, "Value": show(line.intervals[name])} for column, name in METRICS.items()])
    if comparison.config.compare.split == "validate":
        yield plain(FLATTERING)


def _decision(comparison: Comparison, first: Evaluation) -> Iterator[str]:
    positive = words(comparison.config.data.target)[1]
    yield (
        f"Called {positive} at a score of {show_threshold(first.threshold)} or more, a threshold "
        f"{origin_of_threshold(first.config.finetune.threshold)}."
    )
    calibration = first.summary.get("calibration")
    if calibration:
        yield (
            f"For a calibrated probability, the logit is divided by {calibration['temperature']:.3f} and "
            f"{calibration['intercept']:+.3f} is added; both numbers were fitted on validation."
        )
    else:
        yield "It was not calibrated: a score need not be a probability."


def _subgroups(line: Line, groups: Sequence[Mapping[str, str]]) -> Iterator[str]:
    rows = []
    for row in groups:
        if row["Model"] == line.name:
            rows.append({name: cell for name, cell in row.items() if name != "Model"})
    if rows:
        yield markdown(rows)
    else:
        yield "Not analysed: the data have no column of groups with two known values, or none was asked for."


def _limitations(comparison: Comparison, line: Line) -> Iterator[str]:
    found = warnings(comparison)
    yield from found
    if not found:
        yield "There are no warnings about these numbers."
    if comparison.config.data.source == "phantom":
        yield "The radiographs are synthetic: the numbers say nothing about patients."
    if len(line.evaluations) == 1:
        yield "One training: the numbers are about this model, not about the method."
    yield "The model was not tested on other hospitals, devices or populations than those of its data."


def _licence(comparison: Comparison, first: Evaluation) -> Iterator[str]:
    yield f"Licence of the weights that training began from: {spoken(first.summary['meta'].get('license'))}."
    if comparison.credentialed:
        yield terms(comparison.credentialed)
