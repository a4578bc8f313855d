"""comparison.json and predictions → Comparison, without the data, a store or a checkpoint: the work of mae-report."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from classify.comparison import Comparison, Declared, FailedRow, Learned, Line, Reconstructions
from classify.evaluate import Evaluation, read_evaluation
from classify.provenance import Facts
from classify.report import heatmaps
from classify.report.folder import comparison_file
from classify.report.mistakes import FOLDER, are_shown, strips
from classify.report.reconstructions import missing
from classify.report.training import OF_PRETRAINING, OF_TRAINING, epochs_of
from classify.report.write import FORMAT, digest_of, write_comparison
from classify.settings import ClassifyConfig
from data.config import change_config, make_config
from data.errors import UserError
from data.locks import locked
from data.plain_values import read_json_values
from data.writing import expect_no_links_out, keep_private, restoring_umask
from mae.engine.run import commit

PICTURE_OF_MISTAKES = re.compile(r"mistakes/[^/\\]+\.png")
PICTURE = re.compile(r"reconstructions/[^/\\]+\.(png|jpg)")


@restoring_umask()
def report(folder: str | Path, say: Callable[[str], None] = print) -> Comparison:
    """Make a comparison's tables and page again, from its comparison.json and its predictions alone.

    Raises UserError where one of these is missing or was changed since.
    """
    folder = comparison_file(folder).parent
    expect_no_links_out(folder)

    comparison = read_comparison(folder)
    keep_private(comparison.credentialed, comparison.config.data.share)
    busy = f"{folder}: found another command at work there, expected none; wait for it"
    with locked(folder, busy, wait=False):
        write_comparison(comparison, folder)

    for line in left_out(comparison):
        say(f"left out: {line}")
    if comparison.facts.commit != commit():
        say(f"computed at commit {commit() or 'not known'}; the comparison was made at {comparison.facts.commit}")
    return comparison


def read_comparison(folder: Path) -> Comparison:
    """The comparison that a folder's comparison.json and predictions hold."""
    path = folder / "comparison.json"
    written = read_json_values(path)
    if not isinstance(written, dict) or written.get("format") != FORMAT:
        found = written.get("format") if isinstance(written, dict) else None
        raise UserError(
            f"{path}: found format {found}, expected {FORMAT}; another version of this software made it, and "
            "mae-compare makes it anew"
        )
    if written.pop("digest", None) != digest_of(written):
        raise UserError(f"{path}: changed since it was written, expected it as it was; mae-compare makes it anew")

    try:
        return _comparison(folder, written)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: found no {error}, expected what mae-compare writes") from None


def _comparison(folder: Path, written: Mapping[str, Any]) -> Comparison:
    path = folder / "comparison.json"
    config = make_config(written["config"], str(path))
    assert isinstance(config, ClassifyConfig)

    # stage one: texts and figures need none of its weights
    pretrainings = {}
    configs = {}
    found = {}
    pictures = {}
    for name, each in written["pretrainings"].items():
        pretrainings[name] = _inside(folder, each["folder"])
        configs[name] = change_config(config, each["changes"], str(path))
        if each.get("learned") is not None:  # comparisons of earlier versions do not have it
            found[name] = Learned(**each["learned"])
        if each["reconstructions"] is not None:
            pictures[name] = _reconstructions(path, each["reconstructions"])

    return Comparison(
        config=config,
        folder=folder,
        facts=_facts(written),
        lines=tuple(_line(folder, config, row) for row in written["rows"]),
        failed_rows=tuple(_failed_row(row) for row in written["failed_rows"]),
        declared=tuple(Declared(**each) for each in written["declared"]),
        pretrainings=pretrainings,
        pretrain_configs=configs,
        learned=found,
        reconstructions=pictures,
        mistakes={name: _mistakes(path, *drawn) for name, drawn in written["mistakes"].items()},
        heatmaps=_heatmaps(path, written.get("heatmaps")),
        tuning=tuple(written["tuning"]),
    )


def _facts(written: Mapping[str, Any]) -> Facts:
    data = written["data"]
    return Facts(
        manifest=data["manifest"],
        store=data["store"],
        notes=tuple(data["notes"]),
        summary=data["summary"],
        classes={split: (counts[0], counts[1]) for split, counts in data["classes"].items()},
        patients_known=data["patients_known"],
        splits=tuple(data["splits"]),
        label_policy=tuple(data["label_policy"]),
        left_out=tuple(data["left_out"]),
        people=tuple(data["people"]),
        unreadable=data["unreadable"],
        software=written["software"],
        credentialed=tuple(written["credentialed"]),
        commit=written["commit"],
        audits={run: tuple(lines) for run, lines in written["audits"].items()},
        openings=tuple(written["openings"]),
    )


def _reconstructions(path: Path, drawn: Mapping[str, Any]) -> Reconstructions:
    if drawn["file"] is not None and not PICTURE.fullmatch(drawn["file"]):
        raise UserError(f"{path}: found a picture {drawn['file']}, expected one below reconstructions/")
    sizes = {"image_size": tuple(drawn["image_size"]), "credentialed": tuple(drawn["credentialed"])}
    return Reconstructions(**{**drawn, **sizes})


def _mistakes(path: Path, file: str, digest: str) -> tuple[str, str]:
    if not PICTURE_OF_MISTAKES.fullmatch(file):
        raise UserError(f"{path}: found a picture {file}, expected one below {FOLDER}/")
    return file, digest


def _heatmaps(path: Path, drawn: list[str] | None) -> tuple[str, str] | None:
    """File and digest of the sheet; None without one, as in a comparison of an earlier version."""
    if drawn is None:
        return None
    file, digest = drawn
    if file != heatmaps.PICTURE:
        raise UserError(f"{path}: found a picture {file}, expected {heatmaps.PICTURE}")
    return file, digest


def _line(folder: Path, config: ClassifyConfig, row: Mapping[str, Any]) -> Line:
    described = {name: row[name] for name in ("Model", "Augmentation", "% Masking")}
    evaluations = tuple(_evaluation(folder, config, seed) for seed in row["seeds"])
    return Line(described, row["labelled"], evaluations, tuple(row["failed"]))


def _failed_row(row: Mapping[str, Any]) -> FailedRow:
    return FailedRow(row["described"], row["labelled"], tuple(row["failed"]))


def _evaluation(folder: Path, config: ClassifyConfig, seed: Mapping[str, Any]) -> Evaluation:
    """Predictions as they were when the comparison was written."""
    path = _inside(folder, seed["predictions"])
    settings = config.evaluate.model_dump(mode="json") | {"split": config.compare.split}
    evaluation = read_evaluation(path, {f"evaluate.{key}": value for key, value in settings.items()}, config)
    if evaluation.digest != seed["digest"]:
        raise UserError(
            f"{path}: found other predictions than the comparison was made from, expected those; mae-compare compares "
            "anew"
        )

    # the grid knows what a training cost, its predictions do not
    if seed["cost"] is None:
        return evaluation
    return replace(evaluation, summary=evaluation.summary | {"cost": seed["cost"]})


def _inside(folder: Path, name: str) -> Path:
    """A path below the folder; UserError where it leads out of it."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / 'comparison.json'}: found {name}, expected a path below the folder")
    return path


def left_out(comparison: Comparison) -> Iterator[str]:
    """What the report cannot show because its files are missing."""
    for name, folder in comparison.pretrainings.items():
        if not epochs_of(folder, OF_PRETRAINING, warn=False):
            yield f"the loss of {name}: no curve in {folder / 'metrics.jsonl'}"
    for evaluation in comparison.evaluations:
        if evaluation.is_trained and not epochs_of(evaluation.run, OF_TRAINING, warn=False):
            yield f"the curves of {evaluation.run.name}: none in {evaluation.run / 'metrics.jsonl'}"
    yield from missing(comparison)
    if are_shown(comparison):
        there = {strip.name for strip in strips(comparison)}
        for name, (file, _) in comparison.mistakes.items():
            if name not in there:
                yield f"pictures of the mistakes of {name}: {file} is missing or was changed"
        if comparison.heatmaps is not None and heatmaps.picture(comparison) is None:
            yield f"what the models look at: {heatmaps.PICTURE} is missing or was changed"
