"""One number stands for each case: its 64-bit logit, by which thresholds are chosen, cases judged and files written."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from sklearn import metrics as sk
from tiny_world import World, call, make_world, mistake, succeed

import classify.evaluate
import classify.finetune
from classify.cli import compare, evaluate, finetune
from classify.metrics import auc, binary_metrics, bootstrap_differences, bootstrap_intervals, choose_threshold
from classify.scores import in_units, with_scores
from data.config import parse_overrides
from data.errors import UserError
from mae import load_checkpoint

SATURATED = np.array(
    [-100.0, 18.0, 30.0, 38.0, 40.0, 41.0, 100.0]
)  # above 17 a 32-bit sigmoid is 1, above 37 a 64-bit one
SATURATED_LABELS = np.array([0, 0, 1, 0, 1, 1, 1])


def images(labels: np.ndarray) -> pd.DataFrame:
    ids = [f"i{number}" for number in range(len(labels))]
    return pd.DataFrame({"image_id": ids, "patient_id": ids, "study_id": ids, "split": "test", "label": labels * 1.0})


def predicted(logits: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack([logits, labels], axis=1), dtype=torch.float32)


def copied(world: World, place: Path) -> Path:
    """The world's classifier, with nothing predicted yet."""
    shutil.copytree(world.classifier, place)
    shutil.rmtree(place / "predictions", ignore_errors=True)
    return place


# ---------------------------------------------------------------- functions


def test_saturated_logits_keep_their_order():
    scored = with_scores(images(SATURATED_LABELS), predicted(SATURATED, SATURATED_LABELS), None, "here")
    assert scored["logit"].tolist() == SATURATED.tolist()
    found = binary_metrics(scored["label"], scored["score"], 0.5, scored["logit"])
    assert found.auc == pytest.approx(sk.roc_auc_score(SATURATED_LABELS, SATURATED), rel=1e-15)
    assert found.average_precision == pytest.approx(sk.average_precision_score(SATURATED_LABELS, SATURATED))
    assert found.auc > binary_metrics(scored["label"], scored["score"], 0.5).auc
    assert found.brier == pytest.approx(np.mean((expit(SATURATED) - SATURATED_LABELS) ** 2))


def test_large_logits_alone_are_ranked_as_scikit_learn_ranks_them():
    labels = np.array([0] + [1] * 14)  # torchmetrics 2819, where the area is .5
    above_98 = [0.1, 0.46, 0.11, 0.15, -0.4, 0.94, 1.26, 1.5, 1.73, 1.66, 1.69, 1.47, 1.96, 1.89, 1.88]
    logits = 98 + np.array(above_98)
    scored = with_scores(images(labels), predicted(logits, labels), None, "here")
    found = binary_metrics(scored["label"], scored["score"], logits=scored["logit"]).auc
    assert found == pytest.approx(sk.roc_auc_score(labels, logits.astype(np.float32)), rel=1e-15)


def test_resamples_are_ordered_by_logits_and_judged_by_scores():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 31)
    logits = 60 * rng.normal(size=(2, 31)) + 40 * labels
    scores = expit(logits)
    options = {"replicates": 200, "metrics": ("auc", "average_precision")}
    of_both = bootstrap_intervals(labels, scores, logits=logits, **options)
    assert of_both == bootstrap_intervals(labels, logits, **options)
    differences = bootstrap_differences(labels, scores, scores[:1], logits=(logits, logits[:1]), **options)
    assert differences == bootstrap_differences(labels, logits, logits[:1], **options)

    judged = bootstrap_intervals(labels, scores, metrics=("accuracy",), threshold=0.9, logits=logits)["accuracy"]
    assert judged.estimate == pytest.approx(((scores >= 0.9) == labels).mean())


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits have shape \(2,\), scores \(3,\)"):
        binary_metrics([0, 1, 1], [0.1, 0.2, 0.3], logits=[1, 2])
    with pytest.raises(ValueError, match="threshold is NaN"):
        binary_metrics([0, 1], [0.1, 0.2], np.nan)


def test_a_study_is_told_by_its_mean_score_also_where_that_rounds_to_one():
    table = images(np.array([0, 0, 1, 1, 0]))
    table["patient_id"] = table["study_id"] = ["a", "a", "b", "b", "c"]
    numbers = np.array([-1.5, 0.75, 0.25, 3.0, -100.0])
    studies = in_units(table.assign(logit=numbers, score=expit(numbers)), "study")
    assert studies["score"].tolist() == pytest.approx(
        [expit(numbers[:2]).mean(), expit(numbers[2:4]).mean(), expit(-100.0)], rel=1e-14
    )
    assert studies["logit"].tolist() == pytest.approx([*logit(studies["score"][:2]), -100.0], rel=1e-13)

    # the mean of 1 - p is what is left of p: (e^-50 + e^-60) / 2
    numbers = np.array([50.0, 60.0, 55.0, 55.0, 90.0])
    studies = in_units(table.assign(logit=numbers, score=expit(numbers)), "study")
    assert studies["score"].tolist() == [1.0, 1.0, 1.0]
    small = (np.exp(-50.0) + np.exp(-60.0)) / 2
    assert studies["logit"].tolist() == pytest.approx([-np.log(small), 55.0, 90.0], rel=1e-14)


def test_equal_images_make_equal_studies_in_any_order():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=7)
    both = np.concatenate([numbers, rng.permutation(numbers)])
    table = images(np.ones(14))
    table["patient_id"] = table["study_id"] = ["a"] * 7 + ["b"] * 7
    first, second = in_units(table.assign(logit=both, score=expit(both)), "study")["logit"]
    assert first == second


def test_scores_that_are_not_finite_are_no_scores():
    numbers = np.array([0.0, np.nan, np.inf, -np.inf, 1.0])
    labels = np.array([0, 1, 0, 1, 1])
    message = r"^here: found 3 of 5 scores of split 'test' not finite, expected numbers; .*$"
    with pytest.raises(UserError, match=message):
        with_scores(images(labels), predicted(numbers, labels), None, "here")


# ---------------------------------------------------------------- commands


def answering(monkeypatch: pytest.MonkeyPatch, module: object, logits: object) -> None:
    """Let the model of a stage answer with these logits, a function of the labels (n)."""
    real = module.predict_logits

    def instead(*arguments: object) -> torch.Tensor:
        found = real(*arguments)
        found[:, 0] = torch.as_tensor(logits(found[:, 1].numpy()))
        return found

    monkeypatch.setattr(module, "predict_logits", instead)


def in_bits(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as Python's own reader and float see them."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cases_are_judged_by_the_numbers_that_chose_the_threshold(world, tmp_path):
    run = copied(world, tmp_path / "run")
    succeed(evaluate, run, *world.data, "--split", "validate")
    rows = in_bits(run / "predictions/validate.csv")
    labels = np.array([float(row["label"]) for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    assert scores.tolist() == expit([float(row["logit"]) for row in rows]).tolist()

    meta = load_checkpoint(run / "best.pt").meta
    assert meta["threshold"]["image"] == choose_threshold(labels, scores)
    summary = json.loads((run / "predictions/validate.json").read_text())
    assert summary["metrics"]["threshold"] == meta["threshold"]["image"]
    assert summary["metrics"]["auc"] == meta["validate_auc"] == auc(labels, scores)
    assert [int(row["predicted"]) for row in rows] == (scores >= meta["threshold"]["image"]).astype(int).tolist()


def test_numbers_are_read_back_to_the_last_bit(world, tmp_path, monkeypatch):
    run = copied(world, tmp_path / "run")
    drawn = np.random.default_rng(1).normal(size=10) * 10.0 ** np.arange(-5, 5)
    answering(monkeypatch, classify.evaluate, lambda labels: drawn.astype(np.float32))
    predictions = classify.evaluate.evaluate(run, parse_overrides(world.data)).predictions
    assert sorted(predictions["logit"]) == sorted(drawn.astype(np.float32).astype(float))
    assert predictions["score"].tolist() == expit(predictions["logit"].to_numpy()).tolist()


def saturated(labels: np.ndarray) -> np.ndarray:
    """Correct for every case, and all beyond what a sigmoid can tell apart."""
    return 60 + 5 * labels + np.arange(len(labels)) % 3


def test_saturated_logits_are_ranked_by_every_command(world, tmp_path, monkeypatch):
    answering(monkeypatch, classify.finetune, saturated)
    answering(monkeypatch, classify.evaluate, saturated)
    words = ["--config", world.config, f"run={tmp_path}/grid", "compare.rows=[{name: ViT}, {name: B}]"]
    said = succeed(compare, *words)
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith(("| ViT", "| B "))]
    assert all(row[-1].strip().startswith("1.000 [") for row in rows[:2])
    assert "+.000 [+.000, +.000]" in said
    meta = load_checkpoint(tmp_path / "grid/vit-seed0/best.pt").meta
    assert meta["validate_auc"] == 1.0
    [row, _] = json.loads((tmp_path / "grid/comparison.json").read_text())["rows"]
    assert row["intervals"]["auc"]["estimate"] == row["seeds"][0]["metrics"]["auc"] == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_command_prints_a_metric_of_scores_that_are_not_finite(world, tmp_path, monkeypatch, value):
    run = copied(world, tmp_path / "run")
    for module in (classify.finetune, classify.evaluate):
        answering(monkeypatch, module, lambda labels: np.where(np.arange(len(labels)) < 2, value, 0.0))
    line = mistake(evaluate, run, *world.data, keep=world.root)
    assert line.startswith(f"error: {run}/best.pt: found 2 of 10 scores of split 'test' not finite, expected numbers;")
    assert not list(run.glob("predictions/*.*"))

    words = ["--config", world.config, f"run={tmp_path}/new"]
    for command, more in ((finetune, ()), (compare, ("compare.rows=[{name: ViT}]",))):
        outcome = call(command, *words, *more)
        assert outcome.code == 2
        *_, warning, _, error = outcome.err.splitlines()
        assert "validation: found 2 of 10 scores of split 'validate' not finite, expected numbers;" in warning
        assert error.startswith("error: ")
        assert "found no validation with finite numbers" in error


# ---------------------------------------------------------------- predictions on disk


@pytest.fixture
def evaluated(world, tmp_path) -> Path:
    run = copied(world, tmp_path / "run")
    succeed(evaluate, run, *world.data)
    return run


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_predictions_that_were_changed_are_made_anew(evaluated, world, ending):
    path = evaluated / f"predictions/test.{ending}"
    before = path.read_bytes()
    if ending == "csv":
        pd.read_csv(path).sort_values("score").to_csv(path, index=False)
    else:
        summary = json.loads(before)
        summary["metrics"]["threshold"] = 0.123
        path.write_text(json.dumps(summary))
    said = succeed(evaluate, evaluated, *world.data)
    assert f"{evaluated}/predictions/test.csv: changed since it was written, so it is predicted anew" in said
    assert path.read_bytes() == before
    assert "changed since" not in succeed(evaluate, evaluated, *world.data)


def edited_score(csv, summary):
    table = pd.read_csv(csv, dtype=str)
    table.loc[3, ["logit", "score"]] = "0.25"
    table.to_csv(csv, index=False)


def half_a_file(csv, summary):
    csv.write_bytes(csv.read_bytes()[: csv.stat().st_size // 2])


def one_row_less(csv, summary):
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:-1]))


def missing_table(csv, summary):
    csv.unlink()


def missing_summary(csv, summary):
    summary.unlink()


def half_a_summary(csv, summary):
    summary.write_bytes(summary.read_bytes()[: summary.stat().st_size // 2])


def a_list_for_a_summary(csv, summary):
    summary.write_text("[1, 2]")


def a_summary_without_bottom(csv, summary):
    summary.write_text("[" * 100_000)


def a_summary_without_a_digest(csv, summary):
    content = json.loads(summary.read_text())
    del content["digest"]
    summary.write_text(json.dumps(content))


def another_splits_table(csv, summary):
    shutil.copy(csv.with_name("validate.csv"), csv)


def another_split_renamed(csv, summary):
    for path in (csv, summary):
        shutil.copy(path.with_name(f"validate{path.suffix}"), path)


CHANGES = [
    *(edited_score, half_a_file, one_row_less, missing_table, missing_summary, half_a_summary, a_list_for_a_summary),
    *(a_summary_without_bottom, a_summary_without_a_digest, another_splits_table, another_split_renamed),
]


@pytest.mark.parametrize("change", CHANGES)
def test_only_predictions_as_they_were_written_are_read_back(evaluated, world, change):
    table, summary = (evaluated / f"predictions/test.{ending}" for ending in ("csv", "json"))
    before = (table.read_bytes(), summary.read_bytes())
    if change in (another_splits_table, another_split_renamed):
        succeed(evaluate, evaluated, *world.data, "--split", "validate")
    change(table, summary)
    succeed(evaluate, evaluated, *world.data)
    assert (table.read_bytes(), summary.read_bytes()) == before


def test_a_torn_or_foreign_metrics_row_ends_no_comparison(tmp_path):
    world = make_world(tmp_path)
    words = ["--config", world.config, f"run={tmp_path}/grid", "compare.rows=[{name: ViT}]"]
    succeed(compare, *words)
    drawn = (tmp_path / "grid/report.html").read_text().count("Training of ")
    with (tmp_path / "grid/vit-seed0/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "epoch": 7}\n[3]\n{"step": 9, "epoch": "x"}\n{"step": 9, "epo')
    outcome = call(compare, *words)
    assert outcome.code == 0
    assert outcome.err.count("metrics.jsonl: found 3 torn or foreign rows") == 1
    assert (tmp_path / "grid/report.html").read_text().count("Training of ") == drawn > 0


def test_rows_are_compared_case_by_case_whatever_order_the_table_had(tmp_path):
    world = make_world(tmp_path)
    rows = "compare.rows=[{name: ViT}, {name: B, set: {finetune.drop_path: 0.5}}]"
    words = ["--config", world.config, f"run={tmp_path}/grid", rows]
    succeed(compare, *words)
    before = json.loads((tmp_path / "grid/comparison.json").read_text())

    # the second row is evaluated again, when the table has been sorted otherwise
    table = pd.read_csv(world.images / "manifest.csv").sample(frac=1, random_state=5)
    table.to_csv(world.images / "manifest.csv", index=False)
    shutil.rmtree(tmp_path / "grid/b-seed0/predictions")
    succeed(compare, *words)
    after = json.loads((tmp_path / "grid/comparison.json").read_text())
    orders = [pd.read_csv(tmp_path / f"grid/{row}-seed0/predictions/validate.csv")["image_id"] for row in ("vit", "b")]
    assert orders[0].tolist() != orders[1].tolist()
    assert before["contrasts"] == after["contrasts"]
    for row, other in zip(before["rows"], after["rows"], strict=True):
        assert row["intervals"] == other["intervals"]
