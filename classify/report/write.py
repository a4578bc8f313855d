"""A comparison's files: comparison.csv, .md and .json, and report.html."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from classify.comparison import Comparison, Line
from classify.report.html import report_html
from classify.report.tables import comparison_text
from data.writing import as_cell, write_json, write_text
from mae.engine.run import commit


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write everything there is to read of a comparison into `folder`; the same comparison gives the same bytes."""
    table = comparison_table(comparison)
    write_text(folder / "comparison.csv", table.map(as_cell).to_csv(index=False))
    write_text(folder / "comparison.md", comparison_text(comparison) + "\n")
    write_json(folder / "comparison.json", as_json(comparison))
    write_text(folder / "report.html", report_html(comparison))


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """A row per line: what it is, how many cases, and each metric with its interval."""
    rows = []
    for line in comparison.lines:
        summary = line.evaluations[0].summary
        seen, elsewhere = _seen(line)
        row: dict[str, Any] = {
            **line.described,
            "labelled images": summary["meta"]["train_images"],
            "split": comparison.config.compare.split,
            "unit": summary["unit"],
            "n": summary["n"],
            "patients": summary["patients"],
            "served pretraining": "not known" if elsewhere else seen,
            "seeds": len(line.evaluations),
        }

        # three columns for each metric
        for name, interval in line.intervals.items():
            low, high = interval.interval
            row |= {name: interval.estimate, f"{name} low": low, f"{name} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _seen(line: Line) -> tuple[int, bool]:
    """How many images a row is tested on served its pretraining, at most, and whether it has seen unknown ones."""
    summaries = [evaluation.summary for evaluation in line.evaluations]
    seen = max(summary["pretrained_on"] for summary in summaries)
    return seen, any(summary.get("seen_elsewhere", False) for summary in summaries)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything the tables show and what made it, for scripts."""
    data = comparison.data
    return {
        "config": comparison.config.model_dump(mode="json"),
        "commit": commit(),
        "split": comparison.config.compare.split,
        "split_served_selection": comparison.config.compare.split == "validate",  # of epochs and thresholds
        "credentialed": comparison.credentialed,
        "seen_elsewhere": comparison.seen_elsewhere,
        "data": {"manifest": data.manifest.fingerprint(), "store": data.store.fingerprint},
        "rows": [_row_as_json(comparison, number) for number in range(len(comparison.lines))],
        "failed_rows": [asdict(row) for row in comparison.failed_rows],
        "tuning": list(comparison.tuning),
    }


def _row_as_json(comparison: Comparison, number: int) -> dict[str, Any]:
    line = comparison.lines[number]
    # what tells the runs of the row apart, and where each came from
    seeds = []
    for evaluation in line.evaluations:
        seeds.append({name: evaluation.summary[name] for name in ("seed", "metrics", "commit", "origin")})
        seeds[-1]["cost"] = evaluation.summary.get("cost")

    differences = comparison.differences.get(number, {})  # none for the baseline
    seen, elsewhere = _seen(line)
    return {
        **line.described,
        "labelled": line.labelled,
        "failed": list(line.failed),
        "labelled_images": line.evaluations[0].summary["meta"]["train_images"],
        "split": comparison.config.compare.split,
        "n": len(line.labels),
        "pretrained_on": seen,
        "seen_elsewhere": elsewhere,
        "intervals": {name: asdict(interval) for name, interval in line.intervals.items()},
        "seeds": seeds,
        "minus_baseline": {name: asdict(difference) for name, difference in differences.items()},
    }
