"""Test images that served a pretraining are counted, whatever they were called there."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tiny_world import (
    ONE_EPOCH,
    SETTINGS,
    mistake,
    other_split,
    places,
    succeed,
    tiny_config,
    write_config,
    write_table,
)

from classify.cli import evaluate, export, finetune
from data.loader import open_data
from mae import load_checkpoint
from mae.cli import pretrain


def served(run: Path, *overrides: str) -> tuple[int, int, str]:
    """How many of the test images served the pretraining, how many there are, and what is said."""
    said = succeed(evaluate, run, *overrides)
    [found] = run.glob("predictions/test*.json")
    summary = json.loads(found.read_text())
    return summary["pretrained_on"], summary["n"], said


@pytest.fixture
def classified(tmp_path):
    """classified(pretraining's settings) → a classifier of the tiny images, from a pretraining made so."""
    write_table(tmp_path / "images")

    def make(**changed: object) -> Path:
        own = SETTINGS | ONE_EPOCH | places(tmp_path, "mae") | {k.replace("__", "."): v for k, v in changed.items()}
        succeed(pretrain, "--config", write_config(tmp_path / "pretrain.yaml", own))
        config = write_config(tmp_path / "finetune.yaml", SETTINGS | ONE_EPOCH | places(tmp_path, "mae"))
        succeed(finetune, "--config", config, "--checkpoint", tmp_path / "mae/last.pt", f"finetune.run={tmp_path}/run")
        return tmp_path / "run"

    return make


def swapped(root: Path) -> None:
    """The same files in another folder, the test images among those to validate on."""
    shutil.copytree(root / "images", root / "again")
    other_split(pd.read_csv(root / "again/manifest.csv")).to_csv(root / "again/manifest.csv", index=False)


def renamed(root: Path, table: pd.DataFrame, prefix: str) -> None:
    """Every file under another name, which is its id."""
    for name in table["path"]:
        (root / name).rename(root / f"{prefix}{name}")
    table.assign(path=prefix + table["path"]).to_csv(root / "manifest.csv", index=False)


def test_a_pretraining_on_a_mix_has_seen_the_images_of_its_parts(classified, tmp_path):
    swapped(tmp_path)
    write_table(tmp_path / "others", seed=7)
    parts = [{"source": "table", "root": f"{tmp_path}/{name}", "name": name} for name in ("again", "others")]
    run = classified(data__source="mix", data__root="phantom", data__sources=parts)
    count, n, said = served(run)
    assert count == n == 10
    assert "of which 10 images served pretraining" in said


def test_a_mix_without_the_test_images_has_not_seen_them(classified, tmp_path):
    for name, seed in (("one", 5), ("two", 7)):
        images = write_table(tmp_path / name, seed=seed)
        renamed(tmp_path / name, images, f"{name}-")
    parts = [{"source": "table", "root": f"{tmp_path}/{name}", "name": name} for name in ("one", "two")]
    run = classified(data__source="mix", data__root="phantom", data__sources=parts)
    assert served(run)[:2] == (0, 10)


def test_an_image_is_known_by_its_content_under_another_name(classified, tmp_path):
    swapped(tmp_path)
    renamed(tmp_path / "again", pd.read_csv(tmp_path / "again/manifest.csv"), "renamed-")
    run = classified(data__root=f"{tmp_path}/again")
    assert served(run)[:2] == (10, 10)


def test_a_checkpoint_names_nobody(classified, tmp_path):
    run = classified()
    for checkpoint in (tmp_path / "mae/last.pt", run / "best.pt"):
        seen = load_checkpoint(checkpoint).meta["seen"]
        assert len(seen) == 2 * (40 + 10)  # an id and a content of every image that is trained or validated on
        assert b"0000.png" not in checkpoint.read_bytes()


def test_weights_of_another_program_have_seen_what_is_not_known(classified, tmp_path):
    own = classified()
    assert "not known" not in served(own)[2]
    succeed(export, "--checkpoint", tmp_path / "mae/last.pt", "--out", tmp_path / "hf")
    config = tmp_path / "finetune.yaml"
    succeed(finetune, "--config", config, "--checkpoint", tmp_path / "hf", f"finetune.run={tmp_path}/foreign")
    count, _, said = served(tmp_path / "foreign")
    assert count == 0
    assert "weights of another program had seen unknown images" in said

    # and a pretraining that continues from them knows no more
    succeed(pretrain, "--config", config, f"model.init={tmp_path}/hf", f"run={tmp_path}/further")
    assert load_checkpoint(tmp_path / "further/last.pt").meta["seen_elsewhere"] is True


def test_a_mix_keeps_each_images_own_id(tmp_path):
    parts = []
    for name, seed in (("one", 1), ("two", 2)):
        write_table(tmp_path / name, count=12, seed=seed)
        parts.append({"source": "table", "root": f"{tmp_path}/{name}", "name": name})
    mixed = open_data(tiny_config(tmp_path, data__source="mix", data__root="phantom", data__sources=parts).data)
    alone = open_data(tiny_config(tmp_path, data__root=f"{tmp_path}/two").data)
    of_two = mixed.split("train")
    of_two = of_two[of_two["image_id"].str.startswith("two/")]
    assert mixed.identities(of_two).tolist() == alone.identities(alone.split("train")).tolist()


def as_archive(root: Path, table: pd.DataFrame) -> dict[str, str]:
    """Some of the labelled images in a folder without labels, re-encoded under other names."""
    (root / "archive").mkdir()
    for number, name in enumerate(table["path"]):
        Image.open(root / "images" / name).save(root / f"archive/x{number}.png", compress_level=1)
    return {"source": "images", "root": f"{root}/archive"}


def test_test_images_among_those_without_labels_are_counted(classified, tmp_path):
    table = pd.read_csv(tmp_path / "images/manifest.csv")
    archive = as_archive(tmp_path, table[table["split"] == "test"].head(3))
    run = classified(data__unlabelled=[archive])
    count, n, said = served(run)
    assert (count, n) == (3, 10)
    assert "of which 3 images served pretraining" in said


def test_images_without_labels_that_nobody_read_are_not_known(classified, tmp_path):
    table = pd.read_csv(tmp_path / "images/manifest.csv")
    archive = as_archive(tmp_path, table[table["split"] == "test"].head(3))
    run = classified(data__unlabelled=[archive], data__store=False)
    assert load_checkpoint(run / "best.pt").meta["seen_unread"] is True
    count, _, said = served(run)
    assert count == 0
    said_so = "which images without labels served pretraining is not known: nobody had read them (data.store=false)"
    assert said_so in said

    # and a pretraining that continues from it knows no more
    again = [f"model.init={tmp_path}/mae/last.pt", f"run={tmp_path}/further", "data.unlabelled=[]"]
    succeed(pretrain, "--config", tmp_path / "finetune.yaml", *again)
    assert load_checkpoint(tmp_path / "further/last.pt").meta["seen_unread"] is True


def test_images_without_labels_train_stage_one_and_nothing_else(classified, tmp_path):
    write_table(tmp_path / "other", seed=9)
    archive = {"source": "images", "root": f"{tmp_path}/other"}  # whose files have the names of the labelled ones
    run = classified(data__unlabelled=[archive])
    seen = load_checkpoint(tmp_path / "mae/last.pt")
    assert len(seen.meta["seen"]) == 2 * (40 + 10 + 60)
    assert seen.progress["step"] == (40 + 60) // ONE_EPOCH["pretrain.batch_size"]
    assert served(run)[:2] == (0, 10)
    assert load_checkpoint(run / "best.pt").meta["train_images"] == 40

    # stage two from the checkpoint's own config, when the archive is gone
    shutil.rmtree(tmp_path / "other")
    succeed(finetune, "--checkpoint", tmp_path / "mae/last.pt", f"finetune.run={tmp_path}/again")
    assert served(tmp_path / "again")[:2] == (0, 10)


def test_a_run_goes_on_with_its_images_without_labels_alone(classified, tmp_path):
    write_table(tmp_path / "other", seed=9)
    classified(data__unlabelled=[{"source": "images", "root": f"{tmp_path}/other"}])
    line = mistake(pretrain, "--config", tmp_path / "pretrain.yaml", "data.unlabelled=[]", keep=tmp_path / "mae")
    assert "found a run made with data.unlabelled" in line
