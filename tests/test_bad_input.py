"""A user's mistake is one line on stderr and exit code 2; nothing that stood there is touched."""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mimic_tree import build_mimic_tree
from PIL import Image
from tiny_world import World, call, make_world, radiograph, succeed

from classify.cli import compare, evaluate, finetune
from mae import load_checkpoint
from mae.cli import pretrain

prepare = import_module("data.preparation").main


def files(root: Path) -> dict[Path, tuple[int, int]]:
    """Every file with time and size; a store's lock is opened by every reader."""
    found = (path for path in root.rglob("*") if path.is_file() and path.name != "lock")
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def mistake(main: Callable, *argv: object, keep: Path) -> str:
    """Run a command that must refuse in one line and leave all files below `keep` as they are."""
    before = files(keep)
    outcome = call(main, *argv)
    assert outcome.code == 2
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in outcome.err + outcome.out
    after = files(keep)
    assert {path: after.get(path) for path in before} == before
    return line


def edit_table(world: World, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
    """Write a changed copy of the world's CSV beside it; the override that reads it."""
    table = pd.read_csv(world.images / "manifest.csv")
    change(table).to_csv(world.images / f"{name}.csv", index=False)
    return f"data.table={name}.csv"


# ---------------------------------------------------------------- config


@pytest.mark.parametrize("main", [prepare, pretrain, finetune, compare])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "demo", "data.sorce=x"], "command line: data.sorce is unknown; did you mean data.source?"),
        (["--config", "demo", "seed=x"], 'command line: seed: found "x", expected a valid integer'),
        (["--config", "dmo"], "dmo: no such config file, nor a shipped config; shipped are "),
        (["--config", "demo", "seed"], "command line: found 'seed', expected key=value such as pretrain.epochs=3"),
        (["--confg", "demo"], "command line: unrecognized arguments: --confg"),
        (["--config"], "command line: argument --config: expected one argument"),
        ([], "command line: --config"),
    ],
)
def test_mistakes_in_the_config(main, words, message, tmp_path):
    assert mistake(main, *words, keep=tmp_path).startswith(f"error: {message}")


@pytest.mark.parametrize("main", [prepare, pretrain, finetune, compare])
def test_a_file_without_a_source(main, tmp_path):
    (tmp_path / "my.yaml").write_text("seed: 1\n")
    line = mistake(main, "--config", tmp_path / "my.yaml", keep=tmp_path)
    assert line.startswith(f"error: {tmp_path}/my.yaml: data.source is missing")


def test_an_environment_variable_that_is_not_set(monkeypatch, tmp_path):
    monkeypatch.delenv("NOT_SET", raising=False)
    line = mistake(pretrain, "--config", "demo", "data.root=${NOT_SET}", keep=tmp_path)
    assert line == "error: data.root: ${NOT_SET} is not set; export NOT_SET=/path, or give data.root=/path"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("main", [prepare, pretrain, finetune])
@pytest.mark.parametrize(
    "source",
    ["mimic-cxr-jpg", "mimic-cxr-dicom", "chexpert", "nih-cxr14", "folder", "images", "table", "medmnist"],
)
def test_a_root_that_does_not_exist(main, source, world, tmp_path):
    words = ["--config", world.config, f"data.source={source}", f"data.root={tmp_path}/nowhere", f"run={tmp_path}/run"]
    assert f"{tmp_path}/nowhere: no such " in mistake(main, *words, keep=world.root)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["metadata", "split", "chexpert"])
def test_a_mimic_tree_without_its_csvs_says_which_and_where_to_get_it(kind, world, tmp_path):
    rng = np.random.default_rng(0)
    build_mimic_tree(tmp_path / "mimic", [radiograph(False, rng) for _ in range(4)], [False] * 4)
    for path in (tmp_path / "mimic").glob(f"*-{kind}.csv*"):
        path.unlink()
    words = ["--config", world.config, "data.source=mimic-cxr-jpg", f"data.root={tmp_path}/mimic"]
    line = mistake(pretrain, *words, f"run={tmp_path}/run", keep=tmp_path)
    assert f"mimic-cxr-*-{kind}.csv" in line and "https://physionet.org/content/mimic-cxr-jpg" in line


def test_a_csv_without_a_needed_column(world, tmp_path):
    labels = edit_table(world, "unlabelled", lambda table: table.drop(columns="label"))
    line = mistake(pretrain, "--config", world.config, labels, f"run={tmp_path}/run", keep=world.root)
    assert line == (
        f"error: {world.images}/unlabelled.csv: found columns path, patient_id, split, expected column label"
    )


def test_an_empty_split(world, tmp_path):
    only = edit_table(world, "only-test", lambda t: t.assign(split="test"))
    line = mistake(pretrain, "--config", world.config, only, f"run={tmp_path}/run", keep=world.root)
    assert line.startswith("error: data: found images in test 60, expected some in ")
    line = mistake(finetune, "--config", world.config, only, f"run={tmp_path}/run", keep=world.root)
    assert line == "error: data: found images in test 60, expected some in train"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("split", "kept"), [("train", 0), ("train", 1), ("validate", 0), ("validate", 1)])
def test_one_class_only(split, kept, world, tmp_path):
    name = f"{split}-{kept}"
    table = edit_table(world, name, lambda t: t[(t["split"] != split) | (t["label"] == kept)])
    words = ["--config", world.config, table, f"run={tmp_path}/run", f"finetune.run={tmp_path}/run"]
    what = "abnormal" if kept else "normal"
    line = mistake(finetune, *words, keep=world.root)
    assert (
        line.startswith(f"error: data: found only {what} images (")
        and f"in split '{split}', expected normal and" in line
    )
    assert not (tmp_path / "run").exists()


def test_one_class_only_of_a_target(world, tmp_path):
    table = edit_table(world, "no-pneumonia", lambda t: t[t["label"] == 0].rename(columns={"label": "Pneumonia"}))
    words = ["--config", world.config, table, "data.target=Pneumonia", f"finetune.run={tmp_path}/run"]
    line = mistake(finetune, *words, keep=world.root)
    assert line == "error: data: found only negative images (24) in split 'train', expected negative and positive"


def test_no_labels_at_all(world, tmp_path):
    table = edit_table(world, "blank", lambda t: t.assign(label=None))
    line = mistake(finetune, "--config", world.config, table, f"finetune.run={tmp_path}/run", keep=world.root)
    assert line == "error: data: found no labelled image among 40 in split 'train', expected some"


def test_a_test_split_of_one_class(world):
    table = edit_table(world, "healthy-test", lambda t: t[(t["split"] != "test") | (t["label"] == 0)])
    line = mistake(evaluate, world.classifier, table, keep=world.classifier)
    assert line.startswith("error: data: found only normal images (") and "in split 'test'" in line


@pytest.mark.parametrize("key", ["data.sample", "finetune.sample"])
def test_more_labelled_images_than_there_are(key, world, tmp_path):
    words = ["--config", world.config, f"{key}=41", f"finetune.run={tmp_path}/run"]
    line = mistake(finetune, *words, keep=world.root)
    assert line == f"error: {key}: found 40 labelled training images, expected at least 41"


def test_many_unreadable_images_stop_with_a_message(tmp_path):
    world = make_world(tmp_path / "world")
    for number in range(11):
        (world.images / f"{number:03}.png").write_bytes(b"garbage")
    line = mistake(prepare, "--config", world.config, keep=world.images)
    assert "found 11 unreadable of 60 files, expected at most 10" in line and "rejected" in line
    for number in range(11):  # mended: the same command goes on
        Image.fromarray(radiograph(False, np.random.default_rng(number))).save(world.images / f"{number:03}.png")
    shutil.rmtree(next((world.root / "stores").iterdir()))
    assert "(60 images of" in succeed(prepare, "--config", world.config)


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
        ".": "found a folder, expected a checkpoint",
        "text.pt": "found an unreadable or foreign file, expected a checkpoint",
        "empty.pt": "found an unreadable or foreign file, expected a checkpoint",
        "torn.pt": "found an unreadable or foreign file, expected a checkpoint",
        "module.pt": "found an unreadable or foreign file, expected a checkpoint",
        "archive.zip": "found an unreadable or foreign file, expected a checkpoint",
        "foreign.pt": "found a torch file of another program, expected a checkpoint",
        "list.pt": "found a torch file of another program, expected a checkpoint",
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
    was = {"data.image_size": 32, "data.resize": "pad", "data.tone": "window"}[setting]
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
    assert "found model.width = 24, expected 48 by the config; leave model.width out, or pretrain that size" in line
    line = mistake(finetune, *words, "model.width=48", keep=world.root)
    assert "found model.width = 24, expected 48" in line
    assert not (tmp_path / "run").exists()


def test_a_resnet_takes_no_checkpoint(world, tmp_path):
    line = mistake(
        finetune, "--checkpoint", world.pretrained, "finetune.model=resnet18", f"run={tmp_path}/run", keep=world.root
    )
    assert line == "error: finetune.model: found resnet18, expected vit with a --checkpoint"


def test_a_resnet_is_not_probed_from_random_weights(world, tmp_path):
    words = ["--config", world.config, "finetune.model=resnet18", "finetune.mode=linear", f"run={tmp_path}/run"]
    assert mistake(finetune, *words, keep=world.root).startswith("error: finetune.mode: found linear, expected full")


# ---------------------------------------------------------------- runs


def test_a_run_folder_made_by_another_config(world):
    line = mistake(pretrain, "--config", world.config, "pretrain.mask_ratio=0.5", keep=world.root)
    assert line.startswith(
        f"error: {world.pretrained.parent}: found a run made with pretrain.mask_ratio = 0.75, expected 0.5;"
    )
    line = mistake(finetune, "--checkpoint", world.pretrained, "finetune.base_lr=1", keep=world.root)
    assert line.startswith(f"error: {world.classifier}: found a run made with finetune.base_lr = None, expected 1.0;")


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
    assert line.startswith(f"error: {tmp_path}: found no best.pt, expected the folder of a mae-finetune run")
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


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize("main", [pretrain, finetune])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.patch_size=12"], "model.patch_size: found 12, expected a divisor of the image size"),
        (["model.patch_size=32"], "model.patch_size: found 32, expected at least two patches"),
        (["model.heads=5"], "model.heads: found 5, expected a divisor of width 24"),
        (["model.width=30"], "model.width: found 30, expected a multiple of 4"),
        (["model.decoder_heads=3"], "model.decoder_heads: found 3, expected a divisor of decoder_width 16"),
    ],
)
def test_sizes_that_do_not_divide_are_told_before_anything_is_decoded(main, settings, message, world, tmp_path):
    words = ["--config", world.config, *settings, f"data.store={tmp_path}/stores", f"run={tmp_path}/run"]
    assert mistake(main, *words, keep=world.root).startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("main", [pretrain, finetune])
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "gpu"])
def test_a_device_that_is_not_there(main, device, world, tmp_path):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    words = ["--config", world.config, f"device={device}", f"data.store={tmp_path}/stores", f"run={tmp_path}/run"]
    line = mistake(main, *words, keep=world.root)
    assert line == f"error: device: found '{device}', which is not available; expected auto, cpu or cuda"
    assert not any(tmp_path.iterdir())


def test_batch_normalisation_needs_a_batch(world, tmp_path):
    words = ["--checkpoint", world.pretrained, "finetune.batch_size=1", "finetune.mode=linear"]
    line = mistake(finetune, *words, f"finetune.run={tmp_path}/run", keep=world.root)
    assert line == "error: finetune.batch_size: found 1, expected at least 2 for batch normalisation"


# ---------------------------------------------------------------- grids

P = "{pretrainings: {p: {}}, rows: [{name: A, pretraining: [p], "


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{}", "compare.rows: found none, expected rows such as"),
        ("{rows: [{name: A, pretraining: [x]}]}", "compare.rows: found pretraining 'x', expected one of"),
        ("{rows: [{name: A}, {name: A}]}", "compare.rows: found two rows for"),
        ("{rows: [{name: A, set: {finetune.epoch: 1}}]}", "compare.rows: A: finetune.epoch is unknown; did you mean"),
        ("{rows: [{name: A, set: {finetune.epochs: x}}]}", 'compare.rows: A: finetune.epochs: found "x", expected'),
        ("{rows: [{name: A, st: {}}]}", "{config}: compare.rows.0.st is unknown; did you mean compare.rows.set?"),
        ("{pretrainings: {p: {sed: 1}}, rows: [{name: A, pretraining: [p]}]}", "compare.pretrainings: sed is unknown;"),
        ("{rows: [{name: A}], baseline: a}", "compare.baseline: found 'a', expected a row's name: A"),
        ("{rows: [{name: A}], labelled: [9999]}", "finetune.sample: found"),
        (P + "set: {pretrain.mask_ratio: .5}}]}", "compare.rows: A: found pretrain changed, expected"),
        (P + "set: {model.width: 48}}]}", "compare.rows: A: found model changed, expected"),
        (P + "set: {finetune.model: resnet18}}]}", "compare.rows: A: found resnet18, expected vit with a pretraining"),
    ],
)
def test_grids_that_do_not_fit_together(grid, message, world, tmp_path):
    config = tmp_path / "grid.yaml"
    config.write_text(world.config.read_text() + f"compare: {grid}\n")
    line = mistake(compare, "--config", config, f"run={tmp_path}/grid", keep=world.root)
    assert line.startswith("error: " + message.replace("{config}", str(config)))
    assert not (tmp_path / "grid").exists()


def test_rows_that_test_other_cases_are_not_compared(world, tmp_path):
    table = pd.read_csv(world.images / "manifest.csv")
    swapped = table["split"].replace({"test": "validate", "validate": "test"})
    table.assign(split=swapped).to_csv(world.images / "swapped.csv", index=False)
    config = tmp_path / "grid.yaml"
    rows = "{rows: [{name: A}, {name: B, set: {data.table: swapped.csv}}]}"
    config.write_text(world.config.read_text() + f"compare: {rows}\n")
    line = mistake(compare, "--config", config, f"run={tmp_path}/grid", keep=world.root)
    assert line.startswith("error: compare.rows: B: found other validate images or labels than the rows before it")


def test_a_grid_of_other_epochs_is_refused_before_anything_is_trained(world, tmp_path):
    config, run = tmp_path / "grid.yaml", tmp_path / "grid"
    config.write_text(world.config.read_text() + f"compare: {P}}}]}}\n")
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
    succeed(evaluate, run)
    mistake(evaluate, run, f"data.root={tmp_path}/nowhere", keep=run)
    summary = json.loads((run / "predictions/test.json").read_text())
    assert summary["meta"]["threshold"] == load_checkpoint(run / "best.pt").meta["threshold"]
