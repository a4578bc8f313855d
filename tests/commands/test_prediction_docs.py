"""The Python in docs/prediction.md runs: on a classifier, and on what mae-embed writes."""

import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
from checkout import ROOT
from PIL import Image
from tiny_world import World, succeed

from classify.cli import embed


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/prediction.md").read_text(), re.S)


def test_a_notebook_asks_a_classifier(world: World, tmp_path, monkeypatch):
    shutil.copytree(world.images, tmp_path / "scans")
    shutil.copytree(world.classifier, tmp_path / "runs/demo-full")
    monkeypatch.chdir(tmp_path)
    [block] = [block for block in blocks() if "Predictor" in block]
    array = np.arange(35, dtype=np.uint8).reshape(5, 7)
    found: dict = {"array": array, "picture": Image.fromarray(array.T.copy())}
    exec(block, found)
    assert found["table"]["path"].tolist() == ["image 0", "image 1"]
    assert found["heat"].shape == (60, 12, 12)


def test_neighbours_and_picture_are_made_of_features(world: World, tmp_path, monkeypatch, capsys):
    shutil.copytree(world.images, tmp_path / "images")
    monkeypatch.chdir(tmp_path / "images")
    (tmp_path / "images/0003.png").write_bytes(b"no image")  # a training image without a row
    succeed(embed, "--checkpoint", world.classifier, "manifest.csv", "--out", "features.npy")

    found: dict = {}
    plt.switch_backend("agg")
    for block in blocks():
        if "Predictor" not in block:
            exec(block, found)
    plt.close("all")

    assert found["features"].shape[0] == len(found["listed"]) == 59
    assert found["nearest"].shape == (10, 20) and found["places"].shape == (10, 2)
    assert 0 <= float(re.search(r"right: (\S+)", capsys.readouterr().out)[1]) <= 1
    assert (tmp_path / "images/pca.png").stat().st_size > 1000
