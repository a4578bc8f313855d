"""Nothing but an evaluation of test uses test labels: with most of them changed, everything else is equal, bit for bit.

Under fixed splits: a table with a split column. Splits that are drawn are stratified by label.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluated_runs import weights_equal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_world import SETTINGS, make_world, places, succeed, write_config

from classify.cli import compare, evaluate, finetune
from mae import load_checkpoint
from mae.cli import pretrain

# each kind of training goes all the way, with all that looks at labels switched on
TWO_EPOCHS = {
    "pretrain.epochs": 2,
    "pretrain.batch_size": 16,
    "pretrain.optimizer.warmup_epochs": 0,
    "pretrain.probe_every": 1,
    "finetune.epochs": 2,
    "finetune.batch_size": 8,
    "finetune.optimizer.warmup_epochs": 0,
    "data.sample": 36,
    "finetune.sample": 30,
    "finetune.sample_covers": "train_and_validate",
}
RUNS = ("mae", "mae-full", "mae-linear", "resnet", "mae-study")
OF_THE_MACHINE = {"train/images_per_second", "train/data_wait_share", "train/peak_memory_gb"}  # time and memory


def permuted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with other test labels: most images get the other one."""
    test = table["split"] == "test"
    labels = table.loc[test, "label"].to_numpy()
    turned = np.where(np.arange(len(labels)) % 3, np.roll(labels, 3), 1 - labels)
    assert (turned != labels).sum() > len(labels) / 2
    return table.assign(label=table["label"].mask(test, pd.Series(turned, table.index[test])).astype(int))


def all_stages(root: Path, name: str) -> Path:
    """Both stages and both kinds of fine-tuning, and their validation; returns the folder of the runs."""
    config = write_config(root / "config.yaml", places(root, f"{name}/mae") | SETTINGS | TWO_EPOCHS)
    runs = root / name
    succeed(pretrain, "--config", config)
    succeed(finetune, "--checkpoint", runs / "mae/last.pt")
    succeed(finetune, "--checkpoint", runs / "mae/last.pt", "finetune.mode=linear", "finetune.draw=1")
    small = ["finetune.model=resnet18", "finetune.epochs=1", f"finetune.run={runs}/resnet"]
    succeed(finetune, "--config", config, *small)
    study = ["evaluate.unit=study", "finetune.select=loss", f"finetune.run={runs}/mae-study"]
    succeed(finetune, "--checkpoint", runs / "mae/best.pt", *study)
    for run in RUNS[1:]:
        succeed(evaluate, runs / run, "--split", "validate")
    return runs


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> tuple[Path, Path]:
    """The same runs twice: with test labels as they are, and with all of them permuted in the very same table."""
    root = tmp_path_factory.mktemp("labels")
    csv = make_world(root).images / "manifest.csv"
    table = pd.read_csv(csv)
    table = table.assign(study_id=table["patient_id"], label=table.index // 2 % 5 % 2)
    table.to_csv(csv, index=False)
    first = all_stages(root, "first")
    permuted(table).to_csv(csv, index=False)
    return first, all_stages(root, "other")


def of_learning(values: dict) -> dict:
    return {name: value for name, value in values.items() if name not in OF_THE_MACHINE}


@pytest.mark.parametrize("run", RUNS)
def test_weights_and_what_is_chosen_with_them_are_equal(twins, run):
    for name in ("best.pt", "last.pt"):
        first, other = (load_checkpoint(runs / run / name) for runs in twins)
        assert weights_equal(twins[0] / run / name, twins[1] / run / name)
        metas = [dict(checkpoint.meta) for checkpoint in (first, other)]
        for meta in metas:
            meta.pop("pretrained_from", None)  # a path
            hashes = {name: value.tolist() for name, value in meta.items() if torch.is_tensor(value)}
            assert hashes
            meta.update(hashes)
        assert metas[0] == metas[1]
        assert first.progress == other.progress
    if run != "mae":
        assert set(first.meta["calibration"]) == set(first.meta["threshold"]) == {"image", "study"}


@pytest.mark.parametrize("run", RUNS)
def test_logs_are_equal(twins, run):
    rows = []
    for runs in twins:
        lines = (runs / run / "metrics.jsonl").read_text().splitlines()
        rows.append([of_learning(json.loads(line)) for line in lines])
    assert rows[0] == rows[1]
    assert any("validate/" in name for row in rows[0] for name in row)

    scalars = []
    for runs in twins:
        board = EventAccumulator(str(runs / run), size_guidance={"scalars": 0})
        board.Reload()
        points = {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}
        scalars.append(of_learning(points))
    assert scalars[0] == scalars[1]
    assert any("validate/" in name for name in scalars[0])


@pytest.mark.parametrize("run", RUNS)
def test_facts_of_runs_are_equal(twins, run):
    facts = [json.loads((runs / run / "environment.json").read_text())["facts"] for runs in twins]
    for each in facts:
        each.pop("checkpoint", None)  # of a file that holds a path
    assert facts[0] == facts[1]


@pytest.mark.parametrize("run", RUNS[1:])
def test_evaluations_of_validation_are_equal(twins, run):
    tables = [(runs / run / "predictions/validate.csv").read_bytes() for runs in twins]
    assert tables[0] == tables[1]
    summaries = [json.loads((runs / run / "predictions/validate.json").read_text()) for runs in twins]
    for name in ("metrics", "intervals", "calibration", "calibrated", "few", "n"):
        assert summaries[0][name] == summaries[1][name]


def test_test_labels_do_differ(twins):
    """Both runs use the table as it is now, with permuted labels; the first was trained before they were permuted."""
    tables = []
    for runs in twins:
        succeed(evaluate, runs / "mae-full", "--split", "test")
        tables.append(pd.read_csv(runs / "mae-full/predictions/test.csv"))
    assert tables[0].equals(tables[1])
    as_drawn = pd.Series(range(60)) // 2 % 5 % 2
    drawn = tables[0]["image_id"].str.removesuffix(".png").astype(int).map(as_drawn)
    assert (drawn != tables[0]["label"]).sum() > len(tables[0]) / 2


# ---------------------------------------------------------------- a comparison


GRID = {
    "finetune.epochs": 1,
    "finetune.batch_size": 8,
    "finetune.optimizer.warmup_epochs": 0,
    "compare.split": "test",
    "compare.seeds": [0, 1],
    "compare.ensembles": True,
    "compare.tune": {"finetune.optimizer.base_lr": [0.001, 0.02]},
}


@pytest.fixture(scope="module")
def grids(tmp_path_factory) -> tuple[Path, Path]:
    """A tuned grid with an ensemble and a reader, twice: before and after test labels were permuted."""
    root = tmp_path_factory.mktemp("grids")
    csv = make_world(root).images / "manifest.csv"
    table = pd.read_csv(csv).assign(label=lambda table: table.index // 2 % 5 % 2)
    reader = root / "reader.csv"
    rng = np.random.default_rng(3)
    pd.DataFrame({"path": table["path"], "score": rng.uniform(size=len(table)).round(3)}).to_csv(reader, index=False)
    rows = [{"name": "ViT"}, {"name": "Reader", "predictions": str(reader)}]

    runs = []
    for name, today in (("first", table), ("other", permuted(table))):
        today.to_csv(csv, index=False)
        settings = places(root, name) | SETTINGS | GRID | {"compare.rows": rows}
        succeed(compare, "--config", write_config(root / f"{name}.yaml", settings))
        runs.append(root / name)
    return runs[0], runs[1]


def test_a_grid_chooses_without_test_labels(grids):
    """Settings, weights and thresholds, of single seeds, their ensemble and a reader."""
    choices = [json.loads((grid / "tune/vit-seed0.json").read_text()) for grid in grids]
    for choice in choices:
        choice.pop("seconds")  # time
    assert choices[0] == choices[1]
    for seed in (0, 1):
        assert weights_equal(*(grid / f"vit-seed{seed}/best.pt" for grid in grids))

    rows = ("vit-seed0", "vit-seed1", "vit-ensemble", "reader-file0")
    labels = []
    for row in rows:
        summaries = [json.loads((grid / row / "predictions/test.json").read_text()) for grid in grids]
        assert summaries[0]["metrics"]["threshold"] == summaries[1]["metrics"]["threshold"]
        assert summaries[0]["meta"].get("operating") == summaries[1]["meta"].get("operating")
        predictions = [pd.read_csv(grid / row / "predictions/test.csv") for grid in grids]
        for column in ("logit", "score", "predicted"):
            assert predictions[0][column].tolist() == predictions[1][column].tolist()
        labels.append([each["label"].tolist() for each in predictions])
    assert all(first != other for first, other in labels)
