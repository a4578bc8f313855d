"""mae-embed: one row for each readable image, whatever the encoder, and a table that says whose row it is."""

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_world import World, call, mistake, radiograph, succeed

import classify.embed
from classify.cli import embed, finetune
from classify.trained import load_trained
from data.images import read_fitted
from mae import load_checkpoint
from mae.reconstruct import model_of


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """Five images in a folder and its subfolder, and two files that are none."""
    rng = np.random.default_rng(0)
    (tmp_path / "images/more").mkdir(parents=True)
    for number in range(5):
        folder = tmp_path / "images" / ("more" if number > 2 else "")
        Image.fromarray(radiograph(bool(number % 2), rng)).save(folder / f"{number}.png")
    (tmp_path / "images/1b.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    Image.new("L", (9, 9), 77).save(tmp_path / "images/more/one_grey.png")
    return tmp_path / "images"


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: str) -> torch.Tensor:
    return torch.from_numpy(read_fitted(path, 12))[None, None]


@pytest.mark.parametrize("pool", [None, "mean", "cls"])
def test_rows_are_pooled_tokens_of_the_images_their_table_names(world: World, radiographs, tmp_path, pool):
    out = tmp_path / "new/features.npy"
    words = [] if pool is None else ["--pool", pool]
    succeed(embed, "--checkpoint", world.pretrained.parent, radiographs, "--out", out, *words)

    features, table = np.load(out, mmap_mode="r"), rows_of(out.with_suffix(".csv"))
    assert features.shape == (5, 12) and features.dtype == np.float32
    assert [row["path"] for row in table] == sorted(map(str, radiographs.rglob("*.png")))
    encoder = model_of(load_checkpoint(world.pretrained.with_name("best.pt"))).encoder
    for row in table:
        if row["row"] == "":
            assert Path(row["path"]).name in ("1b.png", "one_grey.png") and "found" in row["reason"]
            continue
        assert row["reason"] == ""
        with torch.no_grad():
            tokens = encoder(encoder.standardize(pixels(row["path"])))[0]
        expected = tokens[0] if pool == "cls" else tokens[1:].mean(0)
        assert np.allclose(features[int(row["row"])], expected, atol=1e-5)
    assert [row["row"] for row in table if row["row"]] == list("01234")
    assert {path.name for path in out.parent.iterdir()} == {"features.npy", "features.csv"}


def test_a_classifiers_features_are_what_its_head_sees(world: World, radiographs, tmp_path):
    run = tmp_path / "cls"
    changed = ["finetune.pool=cls", f"finetune.run={run}"]
    succeed(finetune, "--config", world.config, "--checkpoint", world.pretrained, *changed)
    for checkpoint in (world.classifier, run):
        out = tmp_path / f"{checkpoint.name}.npy"
        succeed(embed, "--checkpoint", checkpoint, radiographs / "0.png", "--out", out)
        expected = load_trained(checkpoint, "cpu").features(pixels(str(radiographs / "0.png")))
        assert np.allclose(np.load(out), expected, atol=1e-5)


def test_a_resnet_has_features_and_no_tokens(world: World, radiographs, tmp_path):
    run = tmp_path / "resnet"
    succeed(finetune, "--config", world.config, "finetune.model=resnet18", f"finetune.run={run}")
    out = tmp_path / "resnet.npy"
    succeed(embed, "--checkpoint", run, radiographs, "--out", out)
    assert np.load(out).shape == (5, 8 * classify.models.resnet.WIDTH)
    words = ["--checkpoint", run, radiographs, "--out", tmp_path / "other.npy", "--pool", "cls"]
    assert "leave --pool out" in mistake(embed, *words, keep=tmp_path)


def test_processes_change_nothing(world: World, radiographs, tmp_path):
    for number in range(40):
        shutil.copy(radiographs / f"{number % 3}.png", radiographs / f"copy{number}.png")
    words = ["--checkpoint", world.pretrained, radiographs]
    succeed(embed, *words, "--out", tmp_path / "one.npy", "--workers", 1)
    succeed(embed, *words, "--out", tmp_path / "two.npy", "--workers", 2)
    assert np.array_equal(np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy"))
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()


def test_a_table_brings_studies_and_keeps_its_order_and_doubles(world: World, radiographs, tmp_path):
    listed = pd.DataFrame({"path": ["2.png", "0.png", "gone.png", "2.png"], "study_id": ["s1", "s2", "s2", "=s3"]})
    listed.to_csv(radiographs / "list.csv", index=False)
    out = tmp_path / "features.npy"
    succeed(embed, "--checkpoint", world.pretrained, radiographs / "list.csv", "--out", out)
    table = rows_of(tmp_path / "features.csv")
    assert [row["path"] for row in table] == list(listed["path"])
    assert [row["row"] for row in table] == ["0", "1", "", "2"]
    assert [row["study_id"] for row in table] == ["s1", "s2", "s2", "'=s3"]
    features = np.load(out)
    assert np.allclose(features[0], features[2], atol=1e-6) and not np.allclose(features[0], features[1], atol=1e-3)


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_name_of_other_bytes_is_written_as_mae_predict_does(world: World, radiographs, tmp_path):
    (radiographs / "0.png").rename(os.fsdecode(os.fsencode(radiographs) + b"/M\xfcller.png"))
    succeed(embed, "--checkpoint", world.pretrained.parent, radiographs, "--out", tmp_path / "features.npy")
    assert f"{radiographs}/M\\xfcller.png" in [row["path"] for row in rows_of(tmp_path / "features.csv")]


def test_of_what_is_interrupted_nothing_is_left(world: World, radiographs, tmp_path, monkeypatch):
    out = tmp_path / "features.npy"
    words = ["--checkpoint", world.pretrained, radiographs, "--out", out]
    succeed(embed, *words)
    before = {path: path.read_bytes() for path in tmp_path.glob("features*")}

    def interrupted(*given):
        yield np.zeros((3, 12), np.float32)
        raise KeyboardInterrupt

    def full(*given):
        raise OSError(28, "No space left on device")

    # the disk is full when the table is written
    with monkeypatch.context() as patch:
        patch.setattr(classify.embed, "_write_table", full)
        assert "No space left on device" in mistake(embed, *words, keep=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("features*")} == before
    succeed(embed, *words)

    monkeypatch.setattr(classify.embed, "_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classify.embed.embed(world.pretrained, [str(radiographs)], out)
    assert {path: path.read_bytes() for path in tmp_path.glob("features*")} == before
    assert call(embed, *words[:-1], tmp_path / "fresh.npy").code != 0
    assert not list(tmp_path.glob("fresh*"))


def test_memory_does_not_grow_with_images(tmp_path):
    import tracemalloc

    def peak(count: int) -> int:
        tracemalloc.start()
        with (tmp_path / "rows.npy").open("wb") as file:
            found = classify.embed.write_rows(file, (np.ones((16, 384), np.float32) for _ in range(count)), 384)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == 16 * count and np.load(tmp_path / "rows.npy").shape == (16 * count, 384)
        return most

    assert peak(3000) < 1.5 * peak(30)


@pytest.mark.parametrize(
    "case",
    {
        "a folder": (["--out", "{root}"], "found a folder"),
        "no npy": (["--out", "{root}/features.csv"], "ends in .npy"),
        "somebody's array": (["--out", "{root}/own.npy"], "has not written"),
        "somebody's table": (["--out", "{root}/images/list.npy"], "has not written"),
        "an input": (["--out", "{root}/images/list.npy", "{root}/images/list.csv"], "would be written over"),
        "no images": (["--out", "{root}/f.npy"], "found no image"),
        "gone": (["--out", "{root}/f.npy", "{root}/gone.png"], "found no such file"),
        "no run": (["--out", "{root}/f.npy", "--checkpoint", "{root}/gone"], "found no such file"),
        "no checkpoint": (["--out", "{root}/f.npy", "--checkpoint", "{root}/empty"], "without best.pt"),
        "a pool": (["--out", "{root}/f.npy", "--pool", "max"], "max"),
        "processes": (["--out", "{root}/f.npy", "--workers", "-1"], "found -1"),
        "a device": (["--out", "{root}/f.npy", "--device", "abacus"], "abacus"),
    }.items(),
    ids=lambda case: case[0],
)
def test_mistakes_are_one_line_and_leave_everything_as_it_is(world: World, radiographs, tmp_path, case):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "own.npy", np.arange(3))
    (radiographs / "list.csv").write_text("path\n0.png\n")
    words, said = case[1]
    images = tmp_path / "empty" if case[0] == "no images" else radiographs / "0.png"
    words = ["--checkpoint", world.pretrained, images, *(word.format(root=tmp_path) for word in words)]
    assert said in mistake(embed, *words, keep=tmp_path)


def test_where_nothing_can_be_read_the_table_says_why(world: World, radiographs, tmp_path):
    out = tmp_path / "features.npy"
    outcome = call(embed, "--checkpoint", world.pretrained, radiographs / "1b.png", "--out", out)
    assert outcome.code == 2 and "found none of 1 images readable" in outcome.err
    assert np.load(out).shape == (0, 12)
    assert rows_of(tmp_path / "features.csv")[0]["reason"]


def test_features_of_credentialed_weights_are_their_owners(world: World, radiographs, tmp_path):
    run = tmp_path / "run"
    words = ["--config", world.config, "data.credentialed=true", f"finetune.run={run}"]
    succeed(finetune, *words)
    out = tmp_path / "features.npy"
    said = succeed(embed, "--checkpoint", run, radiographs, "--out", out)
    assert "data use agreement" in said
    for path in (out, out.with_suffix(".csv")):
        assert path.stat().st_mode & 0o077 == 0
