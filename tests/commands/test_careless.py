"""What a careless user reads first: leaks, a test split opened again and again, and one seed."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tiny_world import call, make_world, other_split, succeed, write_table

from classify.cli import compare, evaluate, finetune
from mae.cli import pretrain


@pytest.fixture(scope="module")
def read_first(tmp_path_factory) -> dict[str, str]:
    """What stands before the first table: on the console, in comparison.md, and on the page."""
    root = tmp_path_factory.mktemp("careless")
    world = make_world(root)

    # test is opened five times by a classifier that is not in the table
    succeed(finetune, "--config", world.config, f"finetune.run={root}/tried")
    for size in range(3, 8):
        succeed(evaluate, root / "tried", "--split", "test", f"evaluate.batch_size={size}")

    # the pretraining's images hold the test images, under other names
    shutil.copytree(world.images, root / "again")
    other_split(pd.read_csv(root / "again/manifest.csv")).to_csv(root / "again/manifest.csv", index=False)
    write_table(root / "others", seed=7)
    mix = f"[{{source: table, root: {root}/again, name: again}}, {{source: table, root: {root}/others, name: others}}]"
    mixed = ["data.source=mix", "data.root=phantom", f"data.sources={mix}", f"run={root}/mix"]
    succeed(pretrain, "--config", world.config, *mixed)
    rows = f"[{{name: MAE, set: {{model.init: {root}/mix/last.pt}}}}, {{name: ViT}}]"
    grid = f"compare={{split: test, seeds: [0], rows: {rows}}}"
    outcome = call(compare, "--config", world.config, f"run={root}/grid", grid)
    assert outcome.code == 0, outcome.err
    return {"console": outcome.out, **_files(root / "grid")}


def _files(folder: Path) -> dict[str, str]:
    page = (folder / "report.html").read_text()
    body = page[page.index("<body") :]
    words = re.sub(r"<[^>]+>", " ", body[: body.index("<table")])
    return {"comparison.md": (folder / "comparison.md").read_text(), "report.html": " ".join(words.split())}


@pytest.mark.parametrize("place", ["console", "comparison.md", "report.html"])
def test_leaks_openings_and_the_single_seed_stand_before_any_number(read_first, place):
    text = read_first[place]
    if place == "console":
        text = text[text.index("Does pretraining help?") :]
    first = text.split("\n|")[0]
    assert re.search(r"Leak: 10 .*served pretraining", first)
    assert "Test was opened 5 times by 1 checkpoint not in this table" in first
    assert "these two trained models (a single training says nothing about the methods)" in first
    assert "Few cases: 6 normal and 4 abnormal in split test" in first


def test_the_first_of_them_is_the_leak(read_first):
    for text in read_first.values():
        assert text.index("served pretraining") < text.index("Test was opened 5 times")
