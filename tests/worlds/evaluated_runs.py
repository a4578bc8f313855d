"""What holds for every evaluated run, and whether runs are the same."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from classify.report.tables import COLUMNS
from mae import load_checkpoint

FIRST = ["image_id", "patient_id", "study_id", "label", "logit", "score", "calibrated", "predicted"]


def weights_equal(a: Path, b: Path) -> bool:
    first, second = load_checkpoint(a).weights, load_checkpoint(b).weights
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_evaluated(run: Path, printed: str, test_images: int) -> None:
    """The printed table's columns, and one prediction per labelled test image."""
    header = next(line for line in printed.splitlines() if line.startswith("| Model"))
    assert tuple(cell.strip() for cell in header.strip("|").split("|")) == COLUMNS
    predictions = pd.read_csv(run / "predictions/test.csv")
    assert list(predictions)[:8] == FIRST
    assert len(predictions) == predictions["image_id"].nunique() == test_images
    assert predictions["score"].between(0, 1).all() and predictions["label"].isin([0, 1]).all()
    summary = json.loads((run / "predictions/test.json").read_text())
    threshold = load_checkpoint(run / "best.pt").meta["threshold"]["image"]
    assert (predictions["predicted"] == (predictions["score"] >= threshold)).all()
    accuracy = (predictions["predicted"] == predictions["label"]).mean()
    assert summary["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert summary["n"] == test_images


def snapshot(root: Path, *endings: str) -> dict[Path, tuple[int, bytes]]:
    files = (path for path in root.rglob("*") if path.suffix in endings)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
