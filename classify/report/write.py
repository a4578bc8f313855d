"""A comparison's files: comparison.csv, contrasts.csv, comparison.md and .json, and report.html."""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from classify.comparison import Comparison, Contrast, Line
from classify.evaluate import Evaluation
from classify.provenance import Facts
from classify.report.calibrations import calibrated_intervals
from classify.report.html import report_html
from classify.report.model_card import write_model_cards
from classify.report.sections import checklist_text, comparison_text
from classify.report.subgroup_tables import subgroups_as_json
from classify.report.verdict import answer, outcome
from classify.report.warnings import warnings
from classify.settings import ClassifyConfig
from data.writing import as_cell, write_json, write_text
from mae.engine.run import flat

FORMAT = 2  # of comparison.json; raise it when an older reader would misread it


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write everything there is to read of a comparison into `folder`; the same comparison gives the same bytes."""
    write_text(folder / "comparison.csv", comparison_table(comparison).map(as_cell).to_csv(index=False))
    write_text(folder / "contrasts.csv", contrast_table(comparison).map(as_cell).to_csv(index=False))
    write_text(folder / "comparison.md", comparison_text(comparison) + "\n")
    write_text(folder / "report.html", report_html(comparison))
    write_text(folder / "checklist.md", checklist_text(comparison) + "\n")
    write_model_cards(comparison, folder / "model_cards")

    # it vouches for the others, so it comes last
    written = as_json(comparison)
    write_json(folder / "comparison.json", written | {"digest": digest_of(written)})


def digest_of(written: dict[str, Any]) -> str:
    """16 hexadecimal digits of what comparison.json says."""
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- tables


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """A row per line: what it is, how many cases, and each metric with its interval (docs/comparisons.md)."""
    rows = []
    for line in comparison.lines:
        seen, elsewhere = _seen(line)
        summary = line.evaluations[0].summary
        row: dict[str, Any] = {
            **line.described,
            "labelled images": _mean_images(line),
            "split": comparison.config.compare.split,
            "unit": summary["unit"],
            "n": summary["n"],
            "patients": summary["patients"],
            "served pretraining": "not known" if elsewhere else seen,
            "seeds": len(line.evaluations),
            "failed": len(line.failed),
        }

        # three columns for each metric; ratings, which are not probabilities, leave some empty
        for name, interval in {**line.intervals, **calibrated_intervals(line)}.items():
            low, high = interval.interval
            row |= {name: interval.estimate, f"{name} low": low, f"{name} high": high}
        rows.append(row)
    return pd.DataFrame(rows).astype({"labelled images": "Int64"})  # whole numbers beside empty cells too


def contrast_table(comparison: Comparison) -> pd.DataFrame:
    """A row per contrast and label budget."""
    columns = ["a", "b", "labelled", "split", "metric", "difference", "low", "high", "p", "holm p"]
    columns += ["margin", "p inferior", "holm p inferior", "seeds a", "seeds b", "found", "why not"]

    rows = []
    for contrast in comparison.contrasts:
        found = _contrast_as_json(comparison, contrast)
        low, high = found["interval"] or (None, None)
        rows.append(
            {
                "a": contrast.a,
                "b": contrast.b,
                "labelled": "all" if contrast.labelled is None else contrast.labelled,
                "split": comparison.config.compare.split,
                "metric": "auc",
                "difference": found["difference"],
                "low": low,
                "high": high,
                "p": found["p"],
                "holm p": found["p_holm"],
                "margin": found["margin"],
                "p inferior": found["p_margin"],
                "holm p inferior": found["p_margin_holm"],
                "seeds a": contrast.seeds[0],
                "seeds b": contrast.seeds[1],
                "found": found["found"],
                "why not": contrast.why_not,
            }
        )
    return pd.DataFrame(rows, columns=columns)


def _seen(line: Line) -> tuple[int, bool]:
    """At most how many of a row's evaluated images its pretraining saw, and whether it saw unknown ones."""
    summaries = [evaluation.summary for evaluation in line.evaluations]
    seen = max((summary["pretrained_on"] for summary in summaries), default=0)
    return seen, any(summary.get("seen_elsewhere", False) for summary in summaries)


# ---------------------------------------------------------------- comparison.json


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything the tables show and what made it: for scripts, and for `read_comparison`."""
    said = answer(comparison)
    value = {
        "format": FORMAT,
        "config": comparison.config.model_dump(mode="json"),
        "commit": comparison.facts.commit,
        "split": comparison.config.compare.split,
        "split_served_selection": comparison.config.compare.split == "validate",  # of epochs and thresholds
        "credentialed": comparison.credentialed,
        "seen_elsewhere": comparison.seen_elsewhere,
        "warnings": list(warnings(comparison)),
        "answer": {"question": said.question, "sentences": list(said.sentences)},
        "data": _data_as_json(comparison.facts),
        "software": dict(comparison.facts.software),
        "audits": {run: list(lines) for run, lines in comparison.facts.audits.items()},
        "openings": [dict(opening) for opening in comparison.facts.openings],
        "pretrainings": {name: _pretraining_as_json(comparison, name) for name in comparison.pretrainings},
        "declared": [asdict(declared) for declared in comparison.declared],
        "contrasts": [_contrast_as_json(comparison, contrast) for contrast in comparison.contrasts],
        "rows": [_row_as_json(comparison, line) for line in comparison.lines],
        "subgroups": subgroups_as_json(comparison),
        "mistakes": {name: list(drawn) for name, drawn in comparison.mistakes.items()},
        "heatmaps": list(comparison.heatmaps) if comparison.heatmaps else None,
        "failed_rows": [asdict(row) for row in comparison.failed_rows],
        "tuning": list(comparison.tuning),
    }

    shown: dict[str, Any] = without_nan(value)
    return shown


def _data_as_json(facts: Facts) -> dict[str, Any]:
    return {
        "manifest": facts.manifest,
        "store": facts.store,
        "notes": list(facts.notes),
        "summary": facts.summary,
        "classes": {split: list(counts) for split, counts in facts.classes.items()},
        "patients_known": facts.patients_known,
        "splits": list(facts.splits),
        "label_policy": list(facts.label_policy),
        "left_out": list(facts.left_out),
        "people": list(facts.people),
        "unreadable": facts.unreadable,
    }


def without_nan(value: Any) -> Any:
    """The value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _pretraining_as_json(comparison: Comparison, name: str) -> dict[str, Any]:
    found = comparison.learned.get(name)
    drawn = comparison.reconstructions.get(name)
    config = comparison.pretrain_configs.get(name)
    return {
        "folder": _below(comparison, comparison.pretrainings[name]),
        "changes": changes(comparison.config, config) if config else {},
        "learned": asdict(found) if found else None,
        "reconstructions": asdict(drawn) if drawn else None,
    }


def changes(config: ClassifyConfig, changed: ClassifyConfig) -> dict[str, Any]:
    """The settings of a config that differ from another's, as dotted keys."""
    before = flat(config.model_dump(mode="json"))
    after = flat(changed.model_dump(mode="json"))
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _contrast_as_json(comparison: Comparison, contrast: Contrast) -> dict[str, Any]:
    found: dict[str, Any] = {
        "a": contrast.a,
        "b": contrast.b,
        "labelled": contrast.labelled,
        "metric": "auc",
        "margin": contrast.declared.margin,
        "seeds": list(contrast.seeds),
        "found": outcome(comparison, contrast),
        "why_not": contrast.why_not,
        **dict.fromkeys(("difference", "interval", "p", "p_holm", "p_margin", "p_margin_holm")),
    }

    # what was computed
    if not contrast.why_not:
        found |= {
            "difference": contrast.auc.estimate,
            "interval": list(contrast.auc.interval),
            "p": contrast.auc.p_value,
            "p_holm": contrast.p_holm,
            "p_margin": contrast.p_margin,
            "p_margin_holm": contrast.p_margin_holm,
        }
        accuracy = contrast.differences["accuracy"]
        found["accuracy"] = {"difference": accuracy.estimate, "interval": list(accuracy.interval)}
    return found


def _row_as_json(comparison: Comparison, line: Line) -> dict[str, Any]:
    seen, elsewhere = _seen(line)
    return {
        **line.described,
        "labelled": line.labelled,
        "failed": list(line.failed),
        "labelled_images": _mean_images(line),
        "split": comparison.config.compare.split,
        "n": len(line.labels),
        "pretrained_on": seen,
        "seen_elsewhere": elsewhere,
        "intervals": {name: _interval_as_json(interval) for name, interval in line.intervals.items()},
        "seeds": [_seed_as_json(comparison, evaluation) for evaluation in line.evaluations],
    }


def _mean_images(line: Line) -> int | None:
    mean = line.mean_train_images
    return None if mean is None else round(mean)


def _interval_as_json(interval: Any) -> dict[str, Any]:
    return {"estimate": interval.estimate, "interval": list(interval.interval), "level": interval.level}


def _seed_as_json(comparison: Comparison, evaluation: Evaluation) -> dict[str, Any]:
    """What tells the runs of a row apart, where each came from, and where its predictions lie."""
    kept = {name: evaluation.summary[name] for name in ("seed", "metrics", "commit", "origin")}
    kept["cost"] = evaluation.summary.get("cost")
    return kept | {"predictions": _below(comparison, evaluation.path), "digest": evaluation.digest}


def _below(comparison: Comparison, path: Path) -> str:
    """The path below the comparison's folder, so that the folder may be moved."""
    folder = comparison.folder.resolve()
    absolute = path.resolve()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(path)
