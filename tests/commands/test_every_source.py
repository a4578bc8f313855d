"""Every source from its files to the table of results; files that cannot be read, among good ones."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkout import ORIGINALS
from evaluated_runs import check_evaluated
from mimic_tree import build_mimic_tree
from PIL import Image
from tiny_world import TINY, call, make_world, radiograph, succeed, write_table

import classify.cli
from classify.cli import evaluate, finetune
from data.config import load_config
from data.loader import open_data
from mae.cli import pretrain

prepare = import_module("data.cli").prepare


# ---------------------------------------------------------------- every source, all the way


def phantom(root: Path) -> tuple[list[str], int | None]:
    return ["data.source=phantom", f"data.root={root}/drawn", "data.phantom.images=60"], None


def table(root: Path) -> tuple[list[str], int]:
    write_table(root / "table")
    return ["data.source=table", f"data.root={root}/table"], 10


def class_folders(root: Path) -> tuple[list[str], int]:
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6), ("test", 4)):
        for name in ("NORMAL", "PNEUMONIA"):
            (root / "folder" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(radiograph(name != "NORMAL", rng))
                image.save(root / "folder" / split / name / f"{split}{number}.jpeg")
    return ["data.source=folder", f"data.root={root}/folder"], 8


def medmnist(root: Path) -> tuple[list[str], int]:
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 30), ("val", 10), ("test", 12)):
        labels = np.arange(count)[:, None] % 2
        arrays |= {f"{part}_images": np.stack([radiograph(bool(sick), rng, 28) for sick in labels[:, 0]])}
        arrays |= {f"{part}_labels": labels.astype(np.uint8)}
    np.savez(root / "small.npz", **arrays)
    return ["data.source=medmnist", f"data.root={root}/small.npz"], 12


def mimic(root: Path) -> tuple[list[str], int]:
    rng, sick = np.random.default_rng(0), [number % 3 == 0 for number in range(60)]
    build_mimic_tree(root / "mimic", [radiograph(one, rng) for one in sick], sick)
    return ["data.source=mimic-cxr-jpg", f"data.root={root}/mimic"], 12


@pytest.mark.parametrize("source", [phantom, table, class_folders, medmnist, mimic])
def test_files_to_table(source: Callable, tmp_path):
    settings, test_images = source(tmp_path)
    config = tmp_path / "source.yaml"
    config.write_text("data: {source: table}\n")  # replaced below: overrides beat the file
    settings = ["--config", config, *settings, *TINY, f"run={tmp_path}/runs/mae", f"data.store={tmp_path}/stores"]
    assert "store: " in succeed(prepare, *settings)
    assert f"next: mae-finetune --checkpoint {tmp_path}/runs/mae\n" in succeed(pretrain, *settings)
    assert f"{tmp_path}/runs/mae-full" in succeed(finetune, "--checkpoint", tmp_path / "runs/mae/last.pt")
    if test_images is None:  # drawn: as many as have a label
        manifest = open_data(load_config(config, settings[2:]).data).manifest
        test_images = int(manifest.of_split("test")["label"].notna().sum())
    check_evaluated(tmp_path / "runs/mae-full", succeed(evaluate, tmp_path / "runs/mae-full"), test_images)


def test_a_mix_pretrains_and_one_of_it_fine_tunes(tmp_path):
    (own, test_images), _ = table(tmp_path), class_folders(tmp_path)
    config = tmp_path / "mix.yaml"
    config.write_text(f"""
run: {tmp_path}/runs/mix
data:
  store: {tmp_path}/stores
  sources:
    - {{source: table, root: "{tmp_path}/table"}}
    - {{source: folder, root: "{tmp_path}/folder"}}
""")
    succeed(pretrain, "--config", config, *TINY)
    alone = ["data.sources=[]", *own]  # as docs/data.md says
    succeed(finetune, "--checkpoint", tmp_path / "runs/mix/last.pt", *alone, f"finetune.run={tmp_path}/runs/own")
    check_evaluated(tmp_path / "runs/own", succeed(evaluate, tmp_path / "runs/own"), test_images)


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="needs ../shared/data/kermany_originals: real JPEG radiographs")
def test_real_radiographs_in_a_mimic_tree(tmp_path):
    pairs = zip(*(sorted((ORIGINALS / name).iterdir())[:30] for name in ("NORMAL", "PNEUMONIA")), strict=True)
    images = [path for pair in pairs for path in pair]
    metadata = build_mimic_tree(
        tmp_path / "mimic", images, [path.parent.name != "NORMAL" for path in images], compress=True
    )
    config = tmp_path / "real.yaml"
    config.write_text(f"""
run: {tmp_path}/runs/mae
data: {{source: mimic-cxr-jpg, root: "{tmp_path}/mimic", image_size: 64, store: {tmp_path}/stores}}
""")
    settings = ["--config", config, *(word for word in TINY if "image_size" not in word)]
    assert f"({len(metadata)} images of 64x64)" in succeed(prepare, *settings)
    succeed(pretrain, *settings)
    succeed(finetune, "--checkpoint", tmp_path / "runs/mae/best.pt", "finetune.mode=linear")
    check_evaluated(tmp_path / "runs/mae-linear", succeed(evaluate, tmp_path / "runs/mae-linear"), 12)


# ---------------------------------------------------------------- bad files among good ones


def test_unreadable_images_are_listed_and_the_rest_goes_on(tmp_path):
    other = make_world(tmp_path / "world")
    (other.images / "0000.png").write_bytes(b"garbage")
    (other.images / "0001.png").write_bytes((other.images / "0001.png").read_bytes()[:300])
    (other.images / "0002.png").write_bytes(b"")
    (other.images / "0010.png").unlink()
    assert "(56 images of" in succeed(prepare, "--config", other.config)
    [listed] = other.root.glob("stores/*/rejected.csv")
    rejected = pd.read_csv(listed)
    assert set(rejected["image_id"]) == {"0000.png", "0001.png", "0002.png", "0010.png"}
    assert rejected["reason"].str.len().min() > 5
    succeed(pretrain, "--config", other.config)
    succeed(finetune, "--checkpoint", other.pretrained)
    check_evaluated(other.classifier, succeed(evaluate, other.classifier), 9)


# ---------------------------------------------------------------- rectangles, all the way


@pytest.mark.parametrize(
    "settings",
    [
        ["data.image_size=[40,24]", "model.patch_size=8"],
        [
            *("data.image_size=[16,48]", "data.resize=crop", "model.in_channels=3", "model.decoder=cross"),
            *("model.pixel_mean=[.485,.456,.406]", "model.pixel_std=[.229,.224,.225]", "pretrain.predict_ratio=.3"),
        ],
    ],
    ids=["tall", "wide, three channels"],
)
def test_a_comparison_of_rectangles_goes_all_the_way(settings, tmp_path):
    world = make_world(tmp_path)
    rows = "{name: A, pretraining: [a]}, {name: L, pretraining: [a], set: {finetune.mode: linear}}"
    grid = ["compare.pretrainings={a: {}}", f"compare.rows=[{rows}, {{name: R, set: {{finetune.model: resnet18}}}}]"]
    printed = succeed(classify.cli.compare, "--config", world.config, *settings, *grid)
    assert all(f"| {name}" in printed for name in "ALR")
    height, width = settings[0].removeprefix("data.image_size=[").removesuffix("]").split(",")
    assert f"{height} × {width} pixels" in (tmp_path / "runs/mae/report.html").read_text()


def test_weights_of_another_rectangle_are_refused_with_the_setting_to_give(world, tmp_path):
    changed = ["data.image_size=[12,8]", f"finetune.run={tmp_path}"]
    outcome = call(classify.cli.finetune, "--checkpoint", world.pretrained, *changed)
    found = "found data.image_size = 12, expected [12, 8] by the config; give data.image_size=12"
    assert (outcome.code, outcome.err) == (2, f"error: {world.pretrained}: {found}\n")
