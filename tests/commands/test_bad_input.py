"""Mistakes in configs, files and settings: each is answered in one line, and nothing is made or lost."""

import shutil
from importlib import import_module

import numpy as np
import pytest
import torch
from mimic_tree import build_mimic_tree
from PIL import Image
from tiny_world import edit_table, make_world, mistake, radiograph, succeed

from classify.cli import compare, evaluate, finetune
from mae.cli import pretrain

prepare = import_module("data.cli").prepare


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
        f"error: {world.images}/unlabelled.csv: found columns path, patient_id, split, expected column label; "
        "if another one is it, give data.columns.label=NAME"
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
        (world.images / f"{number:04}.png").write_bytes(b"garbage")
    line = mistake(prepare, "--config", world.config, keep=world.images)
    assert "found 11 unreadable of 60 files, expected at most 10" in line and "rejected" in line
    for number in range(11):  # mended: the same command goes on
        Image.fromarray(radiograph(False, np.random.default_rng(number))).save(world.images / f"{number:04}.png")
    shutil.rmtree(next((world.root / "stores").iterdir()))
    assert "(60 images of" in succeed(prepare, "--config", world.config)


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize("main", [pretrain, finetune])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.patch_size=5"], "model.patch_size: found 5, expected a divisor of the image size"),
        (["model.patch_size=12"], "model.patch_size: found 12, expected at least two patches"),
        (["model.heads=5"], "model.heads: found 5, expected a divisor of width 12"),
        (["model.width=30"], "model.width: found 30, expected a multiple of 4"),
        (["model.decoder_heads=3"], "model.decoder_heads: found 3, expected a divisor of decoder_width 8"),
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
    assert line.startswith(f"error: device: found '{device}', which is not available; expected auto, cpu or cuda")
    assert not any(tmp_path.iterdir())


def test_batch_normalisation_needs_a_batch(world, tmp_path):
    words = ["--checkpoint", world.pretrained, "finetune.batch_size=1", "finetune.mode=linear"]
    line = mistake(finetune, *words, f"finetune.run={tmp_path}/run", keep=world.root)
    assert line.startswith("error: finetune.batch_size: found 1, expected at least 2 for batch normalisation")
