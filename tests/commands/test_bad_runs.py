"""Mistakes with checkpoints, run folders and grids: each is answered in one line, and nothing is lost."""

import json
import shutil

import pandas as pd
import pytest
import torch
from tiny_world import ONE_SEED, SETTINGS, World, edit_table, make_world, mistake, other_split, succeed

from classify.cli import compare, evaluate, finetune
from mae import load_checkpoint
from mae.cli import pretrain

# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_that_is_none(world, tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "torn.pt").write_bytes(world.pretrained.read_bytes()[:4000])
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    shutil.make_archive(str(tmp_path / "archive"), "zip", world.images)
    for name, found in {
        "missing.pt": "found no such file, expected a checkpoint",
        ".": "found a folder without best.pt, expected a checkpoint",
        "text.pt": "found an unreadable or foreign file, expected a checkpoint",
        "empty.pt": "found an unreadable or foreign file, expected a checkpoint",
        "torn.pt": "found an unreadable or foreign file, expected a checkpoint",
        "module.pt": "found a pickle that carries code (torch.nn.modules.linear.Linear), expected tensors",
        "archive.zip": "found an unreadable or foreign file, expected a checkpoint",
        "foreign.pt": "found weights of another program, expected --config for the data",
        "list.pt": "found weights of another program, expected --config for the data",
    }.items():
        line = mistake(finetune, "--checkpoint", tmp_path / name, f"finetune.run={tmp_path}/run", keep=tmp_path)
        assert line.startswith(f"error: {tmp_path / name}: {found}")
    assert not (tmp_path / "run").exists()


def test_a_classifiers_checkpoint_is_not_fine_tuned(world, tmp_path):
    best = world.classifier / "best.pt"
    line = mistake(finetune, "--checkpoint", best, f"finetune.run={tmp_path}/run", keep=world.root)
    assert line.startswith(f"error: {best}: found a checkpoint of kind classifier, expected mae")


@pytest.mark.parametrize(
    ("setting", "given"), [("data.image_size", 48), ("data.resize", "crop"), ("data.tone", "mimic_jpg")]
)
def test_images_read_otherwise_than_the_checkpoint_did(setting, given, world, tmp_path):
    was = {"data.image_size": SETTINGS["data.image_size"], "data.resize": "pad", "data.tone": "window"}[setting]
    message = f"found {setting} = {was}, expected {given} by the config; give {setting}={was}"
    words = ["--checkpoint", world.pretrained, f"{setting}={given}", f"finetune.run={tmp_path}/run"]
    assert mistake(finetune, *words, keep=world.root) == f"error: {world.pretrained}: {message}"
    assert (
        mistake(finetune, "--config", world.config, *words, keep=world.root) == f"error: {world.pretrained}: {message}"
    )
    line = mistake(evaluate, world.classifier, f"{setting}={given}", keep=world.root)
    assert line == f"error: {world.classifier}/best.pt: {message}"


def test_a_config_of_another_model_size(world, tmp_path):
    words = ["--checkpoint", world.pretrained, f"finetune.run={tmp_path}/run"]
    line = mistake(finetune, "--config", world.config, *words, "model.width=48", keep=world.root)
    assert "found model.width = 12, expected 48 by the config; leave model.width out, or pretrain that size" in line
    line = mistake(finetune, *words, "model.width=48", keep=world.root)
    assert "found model.width = 12, expected 48" in line
    assert not (tmp_path / "run").exists()


def test_a_resnet_takes_no_checkpoint(world, tmp_path):
    line = mistake(
        finetune, "--checkpoint", world.pretrained, "finetune.model=resnet18", f"run={tmp_path}/run", keep=world.root
    )
    assert line == "error: finetune.model: found resnet18, expected vit with a --checkpoint"


# ---------------------------------------------------------------- runs


def test_a_run_folder_made_by_another_config(world):
    line = mistake(pretrain, "--config", world.config, "pretrain.mask_ratio=0.5", keep=world.root)
    assert line.startswith(
        f"error: {world.pretrained.parent}: found a run made with pretrain.mask_ratio = 0.75, expected 0.5;"
    )
    line = mistake(finetune, "--checkpoint", world.pretrained, "finetune.optimizer.base_lr=1", keep=world.root)
    assert line.startswith(
        f"error: {world.classifier}: found a run made with finetune.optimizer.base_lr = None, expected 1.0;"
    )


def test_a_run_folder_made_with_other_labels(tmp_path):
    world = make_world(tmp_path / "world")
    succeed(finetune, "--config", world.config)
    table = pd.read_csv(world.images / "manifest.csv")
    table.assign(label=1 - table["label"]).to_csv(world.images / "manifest.csv", index=False)
    line = mistake(finetune, "--config", world.config, keep=world.root)
    assert "found a run made with labels = " in line


def test_a_run_folder_of_the_other_stage(world):
    line = mistake(finetune, "--config", world.config, f"finetune.run={world.pretrained.parent}", keep=world.root)
    assert line.startswith(f"error: {world.pretrained.parent}")
    line = mistake(pretrain, "--config", world.config, f"run={world.classifier}", keep=world.root)
    assert line.startswith(f"error: {world.classifier}")


def test_evaluating_what_is_no_classifier(world, tmp_path):
    line = mistake(evaluate, tmp_path, keep=world.root)
    assert line.startswith(f"error: {tmp_path}: found a folder without best.pt, expected")
    line = mistake(evaluate, tmp_path / "nowhere", keep=world.root)
    assert line.startswith(
        f"error: {tmp_path}/nowhere: found no such folder, expected the folder of a mae-finetune run"
    )
    line = mistake(evaluate, world.pretrained.parent, keep=world.root)
    assert "found a checkpoint of kind mae, expected classifier" in line
    assert mistake(evaluate, keep=world.root).startswith(
        "error: command line: the following arguments are required: RUN"
    )
    assert mistake(evaluate, "seed=1", keep=world.root).startswith(
        "error: command line: found no RUN, expected the folder"
    )
    assert "invalid choice: 'train'" in mistake(evaluate, world.classifier, "--split", "train", keep=world.root)


@pytest.mark.parametrize("setting", ["model.width=48", "finetune.pool=cls", "seed=3"])
def test_evaluation_changes_nothing_that_was_trained(setting, world):
    line = mistake(evaluate, world.classifier, setting, keep=world.root)
    assert line.startswith(f"error: command line: found {setting.split('=')[0]}, expected settings of data, evaluate, ")


def test_a_file_where_the_run_folder_should_be(world, tmp_path):
    (tmp_path / "file").write_text("mine\n")
    line = mistake(pretrain, "--config", world.config, f"run={tmp_path}/file", keep=tmp_path)
    assert line.startswith(f"error: {tmp_path}/file")


def test_a_torn_last_checkpoint_is_named(world, tmp_path):
    run = shutil.copytree(world.pretrained.parent, tmp_path / "run")
    (run / "last.pt").write_bytes(b"torn")
    line = mistake(pretrain, "--config", world.config, f"run={run}", keep=tmp_path)
    assert line.startswith(f"error: {run}/last.pt: found an unreadable or foreign file")


# ---------------------------------------------------------------- grids


def with_grid(world: World, grid: str) -> str:
    """The world's config file with a comparison of one seed."""
    return world.config.read_text().replace(ONE_SEED, "") + f"compare: {{seeds: [0], {grid.removeprefix('{')}\n"


P = "{pretrainings: {p: {}}, rows: [{name: A, pretraining: [p], "


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{}", "compare.rows: found none, expected rows such as"),
        ("{rows: [{name: A, pretraining: [x]}]}", "compare.rows: found pretraining 'x', expected one of"),
        (
            "{rows: [{name: A}, {name: A}]}",
            "compare.rows: found two rows named 'A', expected a name of its own for each",
        ),
        ("{rows: [{name: A, set: {finetune.epoch: 1}}]}", "compare.rows: A: finetune.epoch is unknown; did you mean"),
        ("{rows: [{name: A, set: {finetune.epochs: x}}]}", 'compare.rows: A: finetune.epochs: found "x", expected'),
        ("{rows: [{name: A, st: {}}]}", "{config}: compare.rows.0.st is unknown; did you mean compare.rows.set?"),
        (
            "{pretrainings: {p: {sed: 1}}, rows: [{name: A, pretraining: [p]}]}",
            "compare.pretrainings: p: sed is unknown;",
        ),
        ("{rows: [{name: A}], baseline: a}", "compare.baseline: found 'a', expected a row's name: A"),
        ("{rows: [{name: A}], labelled: [9999]}", "compare.labelled: found 9999"),
        ("{rows: [{name: A}], labelled: [0]}", "compare.labelled: found 0, expected 2 images or more"),
        (P + "set: {pretrain.mask_ratio: .5}}]}", "compare.rows: A: found pretrain changed, expected"),
        (P + "set: {model.width: 48}}]}", "compare.rows: A: found model changed, expected"),
        (P + "set: {finetune.model: resnet18}}]}", "compare.rows: A: found resnet18, expected vit with a pretraining"),
    ],
)
def test_grids_that_do_not_fit_together(grid, message, world, tmp_path):
    config = tmp_path / "grid.yaml"
    config.write_text(with_grid(world, grid))
    line = mistake(compare, "--config", config, f"run={tmp_path}/grid", keep=world.root)
    assert line.startswith("error: " + message.replace("{config}", str(config)))
    assert not (tmp_path / "grid").exists()


def test_rows_that_test_other_cases_are_not_compared(world, tmp_path):
    edit_table(world, "swapped", other_split)
    config = tmp_path / "grid.yaml"
    rows = "{rows: [{name: A}, {name: B, set: {data.table: swapped.csv}}]}"
    config.write_text(with_grid(world, rows))
    line = mistake(compare, "--config", config, f"run={tmp_path}/grid", keep=world.root)
    assert line.startswith("error: compare.rows: B: found other validate images or labels than the rows before it")


def test_a_grid_of_other_epochs_is_refused_before_anything_is_trained(world, tmp_path):
    config, run = tmp_path / "grid.yaml", tmp_path / "grid"
    config.write_text(with_grid(world, P + "}]}"))
    succeed(compare, "--config", config, f"run={run}")
    for epochs in ("pretrain.epochs=2", "finetune.epochs=2"):
        line = mistake(compare, "--config", config, f"run={run}", epochs, keep=run)
        assert f"found a run made with {epochs.split('=')[0]} = 1, expected 2" in line


def test_a_run_is_not_taken_for_one_of_fewer_epochs(world, tmp_path):
    run = tmp_path / "mae"
    succeed(pretrain, "--config", world.config, f"run={run}", "pretrain.epochs=2")
    line = mistake(pretrain, "--config", world.config, f"run={run}", keep=run)
    assert "found a run made with pretrain.epochs = 2, expected 1" in line


# ---------------------------------------------------------------- nothing is lost


def test_predictions_of_the_right_settings_survive_a_mistake(world, tmp_path):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    succeed(evaluate, run, *world.data)
    mistake(evaluate, run, *world.data, f"data.root={tmp_path}/nowhere", keep=run)
    summary = json.loads((run / "predictions/test.json").read_text())
    assert summary["meta"]["threshold"] == load_checkpoint(run / "best.pt").meta["threshold"]
