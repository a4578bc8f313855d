"""What a training says when it starts and when it ends, and what it advises next."""

import re
import shlex
import shutil

import pytest
import torch
from tiny_world import call, edit_table, mistake, succeed

from classify.cli import finetune
from data.cli import prepare
from mae import load_checkpoint
from mae.cli import pretrain
from mae.engine.console import batch_text, duration
from mae.engine.run import device_of


def row(printed: str, name: str) -> str:
    """The text behind a name on a line of its own."""
    [line] = [line for line in printed.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).strip()


# ---------------------------------------------------------------- starts


def test_a_pretraining_says_what_it_begins_from_and_on_what(world, tmp_path):
    printed = succeed(pretrain, "--config", world.config, f"run={tmp_path}/a", "seed=3")
    assert row(printed, "begins from") == "random weights of vit_base_patch16, seed 3"
    assert row(printed, "device").startswith("CPU, 1 thread")
    assert row(printed, "images").startswith("40 to train on and 10 to validate on")
    assert row(printed, "batch") == "16 images, 2 steps an epoch"
    printed = succeed(pretrain, "--config", world.config, f"run={tmp_path}/b", f"model.init={tmp_path}/a")
    assert row(printed, "begins from") == f"weights of {tmp_path}/a/best.pt"


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        ([], "a random encoder (vit_base_patch16), not a pretrained one: that takes --checkpoint RUN; all weights"),
        (["finetune.mode=linear"], "not a pretrained one: that takes --checkpoint RUN; it stays frozen"),
        (["finetune.model=resnet18", "finetune.stem=imagenet"], "random weights of a resnet18"),
    ],
)
def test_a_fine_tuning_without_a_checkpoint_says_so(world, words, begins, tmp_path):
    printed = succeed(finetune, "--config", world.config, f"run={tmp_path}/x", *words)
    assert begins in row(printed, "begins from")


def test_a_fine_tuning_names_its_pretraining_and_its_budget(world, tmp_path):
    words = ["--checkpoint", world.pretrained.parent, f"finetune.run={tmp_path}/x", "finetune.sample=12"]
    printed = succeed(finetune, *words)
    assert row(printed, "begins from").startswith(f"the pretrained encoder of {world.pretrained.parent}/best.pt")
    assert re.match(r"1\d \(\d+ normal, \d+ abnormal\) to train on", row(printed, "images"))
    assert "(finetune.sample=12 of 40 labelled), 10 (6 normal, 4 abnormal) to validate on" in row(printed, "images")


def test_a_continued_run_says_from_where(world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/a"]
    succeed(pretrain, *words)
    printed = succeed(pretrain, *words, "pretrain.epochs=2")
    assert row(printed, "begins from").startswith(
        f"{tmp_path}/a after epoch 1, continued; it began from random weights"
    )


@pytest.mark.parametrize(("main", "section"), [(pretrain, "pretrain"), (finetune, "finetune")])
def test_more_images_a_step_than_there_are_is_a_line(main, section, world, tmp_path):
    printed = succeed(main, "--config", world.config, f"run={tmp_path}/a", f"{section}.batch_size=5000")
    said = row(printed, "batch")
    assert said == "40 images, 1 step an epoch; batch_size 5,000 is more than the 40 training images, so each step " + (
        "takes all of them"
    )


def test_a_batch_that_fits_needs_no_word():
    assert batch_text(7, 7, 5) == "7 images, 5 steps an epoch"
    assert "more than" in batch_text(7, 5, 1)


def test_time_left_and_speed_are_told_after_each_epoch(world, tmp_path):
    outcome = call(pretrain, "--config", world.config, f"run={tmp_path}/a", "pretrain.epochs=2")
    lines = [line for line in outcome.err.splitlines() if ": epoch " in line]
    assert len(lines) == 2
    for line in lines:
        assert re.search(r"; [\d,]+ images/s, .* left$", line)
    assert lines[-1].endswith(" 0 s left")


@pytest.mark.parametrize(("seconds", "text"), [(7, "7 s"), (300, "5 min"), (7500, "2 h 5 min"), (273600, "3 days 4 h")])
def test_durations_have_two_units_at_most(seconds, text):
    assert duration(seconds) == text


# ---------------------------------------------------------------- ends


def test_the_end_of_a_fine_tuning_tells_the_best_auc_of_how_many_and_the_threshold(world, tmp_path):
    printed = succeed(finetune, "--checkpoint", world.pretrained, f"finetune.run={tmp_path}/x", "finetune.epochs=2")
    best = load_checkpoint(tmp_path / "x")
    low, high = best.meta["validate_auc_interval"]
    assert 0 <= low <= best.meta["validate_auc"] <= high <= 1
    assert row(printed, "best") == (
        f"AUC {best.meta['validate_auc']:.3f} [{low:.3f}, {high:.3f}] of 10 validation images (6 normal, 4 abnormal), "
        f"after epoch {best.epoch} of 2; these images chose it"
    )
    assert row(printed, "threshold").startswith(f"{best.meta['threshold']['image']:.3f}, chosen on them too")
    assert f"finished: {tmp_path}/x" in printed.splitlines()


def test_the_end_of_a_pretraining_tells_the_best_loss(world, tmp_path):
    printed = succeed(pretrain, "--config", world.config, f"run={tmp_path}/a", "pretrain.probe_every=1")
    loss = load_checkpoint(tmp_path / "a").meta["validate_loss"]
    assert row(printed, "best").startswith(f"reconstruction loss {loss:.4f}, probe knn auc ")
    assert row(printed, "best").endswith("on 10 validation images, after epoch 1 of 1")


@pytest.mark.parametrize("main", [pretrain, finetune])
def test_a_finished_run_says_that_nothing_was_done(main, world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/a", f"finetune.run={tmp_path}/a"]
    first = succeed(main, *words)
    again = succeed(main, *words)
    assert f"already finished, nothing done: {tmp_path}/a" in again
    assert "begins from" not in again and "already" not in first
    assert row(again, "best") == row(first, "best")


def test_a_checkpoint_of_an_earlier_version_ends_without_an_interval(world, tmp_path):
    shutil.copytree(world.classifier, tmp_path / "x")
    for name in ("last.pt", "best.pt"):
        raw = torch.load(tmp_path / "x" / name, weights_only=True)
        raw.pop("digests")
        raw["meta"].pop("validate_auc_interval")
        torch.save(raw, tmp_path / "x" / name)
    words = ["--checkpoint", world.pretrained, f"finetune.run={tmp_path}/x"]
    assert re.match(r"AUC [\d.]+ of 10 validation images", row(succeed(finetune, *words), "best"))


# ---------------------------------------------------------------- what comes next


def test_what_comes_next_begins_from_the_run_folder(world, tmp_path):
    printed = succeed(pretrain, "--config", world.config, f"run={tmp_path}/a")
    assert f"next: mae-finetune --checkpoint {tmp_path}/a" in printed.splitlines()
    printed = succeed(finetune, "--checkpoint", tmp_path / "a")
    assert f"next: mae-evaluate {tmp_path}/a-full" in printed.splitlines()
    assert f"mae-predict --checkpoint {tmp_path}/a-full" in printed

    # as it can be typed
    printed = succeed(pretrain, "--config", world.config, f"run={tmp_path}/it's a")
    [line] = [line for line in printed.splitlines() if line.startswith("next: ")]
    assert shlex.split(line)[-1] == f"{tmp_path}/it's a"


@pytest.mark.parametrize("left", ["nothing", "one class", "training alone"])
def test_fine_tuning_is_not_advised_where_nothing_is_labelled(world, left, tmp_path):
    def change(table):
        table["label"] = table["label"].astype(float)
        if left == "nothing":
            table["label"] = None
        elif left == "one class":
            table.loc[table["label"] == 1, "label"] = None
        else:
            table.loc[table["split"] != "train", "label"] = None
        return table

    words = ["--config", world.config, f"run={tmp_path}/a", edit_table(world, left.replace(" ", "-"), change)]
    printed = succeed(pretrain, *words, f"data.store={tmp_path}/stores")
    assert "mae-finetune" not in printed
    assert f"next: mae-reconstruct IMAGE --checkpoint {tmp_path}/a" in printed


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize("name", ["cuda", "cuda:99"])
def test_a_build_of_torch_without_cuda_is_named(name, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "empty", refusing)
    with pytest.raises(ValueError, match=f"found '{name}'.* built for CPUs alone: install one with CUDA") as caught:
        device_of(name)
    assert torch.__version__ in str(caught.value)


def test_a_build_with_cuda_that_finds_no_gpu_is_told_apart(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "empty", refusing)
    with pytest.raises(ValueError, match=r"built for CUDA 12\.8, but finds no GPU"):
        device_of("cuda")


def test_a_number_beyond_the_gpus_tells_which_there_are(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "empty", refusing)
    with pytest.raises(ValueError, match="there are 3, cuda:0 to cuda:2"):
        device_of("cuda:5")


@pytest.mark.parametrize("name", ["gpu", "tpu:0"])
def test_other_words_get_no_advice_on_cuda(name, world):
    line = mistake(pretrain, "--config", world.config, f"device={name}", keep=world.root)
    assert line.endswith("expected auto, cpu or cuda")


def refusing(*_, **__):
    raise RuntimeError("no such device")


def test_preparing_needs_no_device(world, tmp_path):
    succeed(prepare, "--config", world.config, "device=cuda", f"data.store={tmp_path}/stores")
