"""A run keeps its calibration, evaluation applies it, and both score images by the same numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from tiny_world import World, call, edit_table, make_world, mistake, succeed

import classify.finetune
from classify.cli import compare, evaluate, finetune
from classify.metrics import auc, binary_metrics
from classify.metrics.recalibration import Calibration, fit_calibration, log_loss
from classify.scores import full_precision
from mae import load_checkpoint
from mae.engine.checkpoint import save_checkpoint

DECISIONS = {"accuracy", "precision", "recall", "specificity", "f1", "auc", "average_precision", "threshold"}


def copied(world: World, place: Path) -> Path:
    shutil.copytree(world.classifier, place)
    shutil.rmtree(place / "predictions", ignore_errors=True)
    return place


def exactly(path: Path) -> pd.DataFrame:
    """A predictions CSV with its numbers to the last bit."""
    table = pd.read_csv(path, dtype=str)
    numbers = dict.fromkeys(("label", "logit", "score", "calibrated", "predicted"), float)
    return table.astype(numbers)


def with_meta(run: Path, **changed: object) -> None:
    """Give best.pt other facts; None takes one away."""
    checkpoint = load_checkpoint(run / "best.pt")
    meta = {name: value for name, value in (checkpoint.meta | changed).items() if value is not None}
    save_checkpoint(replace(checkpoint, meta=meta), run / "best.pt")


def test_the_calibration_of_a_run_is_that_of_its_validation(world, tmp_path):
    run = copied(world, tmp_path / "run")
    succeed(evaluate, run, *world.data, "--split", "validate")
    table = exactly(run / "predictions/validate.csv")
    expected = fit_calibration(table["label"], table["logit"])
    kept = load_checkpoint(run / "best.pt").meta["calibration"]
    assert kept["image"] == pytest.approx(expected.as_dict(), rel=1e-6)
    assert set(kept) == {"image", "study"}


def test_calibrated_scores_keep_order_and_decisions(world, tmp_path):
    run = copied(world, tmp_path / "run")
    succeed(evaluate, run, *world.data, "--split", "test")
    table = exactly(run / "predictions/test.csv")
    meta = load_checkpoint(run / "best.pt").meta
    calibration = Calibration(**meta["calibration"]["image"])
    np.testing.assert_allclose(table["calibrated"], calibration.probabilities(table["logit"]), rtol=1e-14)
    assert auc(table["label"], table["calibrated"]) == auc(table["label"], table["score"])
    assert (table["predicted"] == (table["score"] >= meta["threshold"]["image"])).all()

    # the same decisions by the calibrated score, at the calibrated threshold
    threshold = meta["threshold"]["image"]
    moved = calibration.probabilities(np.log(threshold / (1 - threshold)))
    assert (table["predicted"] == (table["calibrated"] >= moved)).all()

    summary = json.loads((run / "predictions/test.json").read_text())
    assert summary["calibration"] == meta["calibration"]["image"]
    assert not DECISIONS & set(summary["calibrated"]["metrics"])
    logits = table["logit"].to_numpy()
    for found, of in ((summary["metrics"], logits), (summary["calibrated"]["metrics"], calibration.logits(logits))):
        assert found["brier"] == pytest.approx(binary_metrics(table["label"], expit(of)).brier)
        assert found["log_loss"] == pytest.approx(log_loss(table["label"], of))
    for name in ("brier", "ece"):
        low, high = summary["calibrated"]["intervals"][name]
        assert low <= summary["calibrated"]["metrics"][name] <= high


def test_undefined_numbers_are_null(world, tmp_path, monkeypatch):
    run = copied(world, tmp_path / "run")

    def separated(*arguments: object) -> torch.Tensor:
        found = real(*arguments)
        found[:, 0] = 9 * found[:, 1] - 4
        return found

    real = classify.evaluate.predict_logits
    monkeypatch.setattr(classify.evaluate, "predict_logits", separated)
    succeed(evaluate, run, *world.data, "--split", "test")
    text = (run / "predictions/test.json").read_text()
    assert "NaN" not in text
    summary = json.loads(text)
    assert summary["metrics"]["calibration_slope"] is None and "slope" in str(summary["interval_notes"])
    succeed(evaluate, run, *world.data, "--split", "test")
    assert (run / "predictions/test.json").read_text() == text  # read back


def test_a_study_has_a_calibration_of_its_own(tmp_path):
    world = make_world(tmp_path)
    number = np.arange(60)
    override = edit_table(
        world, "studies", lambda table: table.assign(study_id=number // 2, label=number // 2 % 5 % 2, view="AP")
    )
    succeed(finetune, "--config", world.config, override, f"finetune.run={tmp_path}/run")
    meta = load_checkpoint(tmp_path / "run/best.pt").meta
    assert meta["calibration"]["study"] != meta["calibration"]["image"]
    succeed(evaluate, tmp_path / "run", "evaluate.unit=study", "--split", "test")
    table = exactly(tmp_path / "run/predictions/test.csv")
    expected = Calibration(**meta["calibration"]["study"]).probabilities(table["logit"])
    np.testing.assert_allclose(table["calibrated"], expected, rtol=1e-14)


# ---------------------------------------------------------------- earlier versions and strangers


def test_a_run_of_an_earlier_version_is_evaluated_without_calibration_and_on_validation(world, tmp_path):
    run = copied(world, tmp_path / "run")
    with_meta(run, calibration=None, validate_cases=None)
    said = succeed(evaluate, run, *world.data)
    assert f"note: {run}/best.pt: found no calibration" in said
    table = pd.read_csv(run / "predictions/validate.csv")
    assert table["calibrated"].equals(table["score"])
    summary = json.loads((run / "predictions/validate.json").read_text())
    assert summary["calibration"] is None
    assert not (run / "predictions/test.csv").exists()  # though its settings name test, as all did then

    succeed(evaluate, run, *world.data, "--split", "test")
    assert (run / "predictions/test.csv").exists()


@pytest.mark.parametrize(
    "calibration", [{"temperature": 0.0, "intercept": 1.0}, {"temperature": -2.0}, {"slope": 1.0}, {"intercept": 3.0}]
)
def test_a_calibration_that_cannot_be_is_named(world, tmp_path, calibration):
    run = copied(world, tmp_path / "run")
    with_meta(run, calibration={"image": calibration})
    if "slope" in calibration or calibration["temperature" if "temperature" in calibration else "intercept"] != 3.0:
        line = mistake(evaluate, run, *world.data, keep=world.root)
        assert "best.pt: meta.calibration: found {" in line
    else:  # values that are left out change nothing
        succeed(evaluate, run, *world.data)


def test_validation_is_the_default(tmp_path):
    world = make_world(tmp_path)
    settings = world.config.read_text().replace("evaluate: {split: test}\n", "")
    world.config.write_text(settings)
    said = succeed(finetune, "--config", world.config, f"finetune.run={tmp_path}/run")
    assert f"next: mae-evaluate {tmp_path}/run\n" in said
    assert f"at the very end: mae-evaluate {tmp_path}/run --split test, which opens" in said
    said = succeed(evaluate, tmp_path / "run")
    assert "(on validation)" in said and "the numbers are too optimistic" in said
    assert [path.name for path in sorted((tmp_path / "run/predictions").glob("*.csv"))] == ["validate.csv"]


# ---------------------------------------------------------------- one precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
@pytest.mark.parametrize("model", [["finetune.model=vit"], ["finetune.model=resnet18", "finetune.stem=imagenet"]])
def test_training_and_evaluation_score_alike(tmp_path, monkeypatch, precision, model):
    """In whatever precision training computes, and however many images are scored at once."""
    world = make_world(tmp_path)
    scored = []
    real = classify.finetune.with_scores
    monkeypatch.setattr(classify.finetune, "with_scores", lambda *rest: scored.append(real(*rest)) or scored[-1])
    words = [f"precision={precision}", f"finetune.run={tmp_path}/run", "evaluate.batch_size=256"]
    succeed(finetune, "--config", world.config, *words, *model)

    [in_training] = scored
    in_training = in_training.sort_values("image_id")
    for size, at_evaluation in ((256, precision), (1, "fp32"), (3, "bf16")):
        words = [f"evaluate.batch_size={size}", f"precision={at_evaluation}"]
        succeed(evaluate, tmp_path / "run", "--split", "validate", *words)
        table = exactly(tmp_path / "run/predictions/validate.csv")
        found = table.sort_values("image_id")["logit"].to_numpy()
        if size == 256:
            assert found.tolist() == in_training["logit"].tolist()  # to the last bit
        np.testing.assert_allclose(found, in_training["logit"], rtol=1e-4, atol=1e-5)


def test_full_precision_leaves_the_process_as_it_was():
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# ---------------------------------------------------------------- few cases, conflicting studies


def test_few_cases_are_said_beside_the_numbers(world, tmp_path):
    run = copied(world, tmp_path / "run")
    said = succeed(evaluate, run, *world.data, "--split", "test")
    [line] = [line for line in said.splitlines() if line.startswith("few cases: ")]
    assert line.startswith("few cases: test has 6 normal and 4 abnormal images, validate has 6 normal and 4 abnormal ")
    summary = json.loads((run / "predictions/test.json").read_text())
    assert summary["few"] == {split: {"normal": 6, "abnormal": 4} for split in ("test", "validate")}


def test_fine_tuning_says_at_its_start_that_cases_are_few(tmp_path):
    world = make_world(tmp_path)
    words = [f"finetune.run={tmp_path}/run", "finetune.sample=20", "finetune.sample_covers=train_and_validate"]
    said = succeed(finetune, "--config", world.config, *words)
    [line] = [line for line in said.splitlines() if line.startswith("few cases: ")]
    assert "validate has 2 normal and 2 abnormal images" in line or "validate has 3 normal and 1 abnormal" in line
    assert "test has 6 normal and 4 abnormal images" in line


def test_studies_of_two_labels_are_counted(tmp_path):
    world = make_world(tmp_path)
    number = np.arange(60)
    labels = (number + number // 2) % 2
    override = edit_table(world, "studies", lambda table: table.assign(study_id=number // 2, label=labels))
    succeed(finetune, "--config", world.config, override, f"finetune.run={tmp_path}/run")
    said = succeed(evaluate, tmp_path / "run", "--split", "test")
    assert "5 studies have images of two labels, each counted by its own" in said
    assert json.loads((tmp_path / "run/predictions/test.json").read_text())["conflicting_studies"] == 5


def test_a_comparison_carries_calibrations(tmp_path):
    world = make_world(tmp_path)
    outcome = call(compare, "--config", world.config, f"run={tmp_path}/grid", "compare.rows=[{name: ViT}]")
    assert outcome.code == 0, outcome.err
    [found] = (tmp_path / "grid").glob("*/predictions/validate.json")
    assert set(json.loads(found.read_text())["calibrated"]["metrics"]) >= {"brier", "log_loss", "ece"}
