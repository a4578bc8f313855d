"""The Python in docs/prediction.md runs on what mae-embed writes."""

import re
import shutil

import matplotlib.pyplot as plt
from checkout import ROOT
from tiny_world import World, succeed

from classify.cli import embed


def test_neighbours_and_picture_are_made_of_features(world: World, tmp_path, monkeypatch, capsys):
    shutil.copytree(world.images, tmp_path / "images")
    monkeypatch.chdir(tmp_path / "images")
    (tmp_path / "images/0003.png").write_bytes(b"no image")  # a training image without a row
    succeed(embed, "--checkpoint", world.classifier, "manifest.csv", "--out", "features.npy")

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/prediction.md").read_text(), re.S)
    found: dict = {}
    plt.switch_backend("agg")
    for block in blocks:
        exec(block, found)
    plt.close("all")

    assert found["features"].shape[0] == len(found["listed"]) == 59
    assert found["nearest"].shape == (10, 20) and found["places"].shape == (10, 2)
    assert 0 <= float(re.search(r"right: (\S+)", capsys.readouterr().out)[1]) <= 1
    assert (tmp_path / "images/pca.png").stat().st_size > 1000
