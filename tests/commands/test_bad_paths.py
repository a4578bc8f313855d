"""A path that leads nowhere is reported in one line, before any import that takes seconds."""

import subprocess
import sys

import pytest
from checkout import in_checkout
from tiny_world import edit_table, mistake

from classify.cli import compare, finetune
from data.cli import prepare
from mae.cli import pretrain

HEAVY = ("torch", "pandas", "scipy", "sklearn", "matplotlib", "tensorboard")
CODE = """
import sys
from importlib import import_module
from mae.commands import COMMANDS
name, *words = sys.argv[1:]
try:
    getattr(import_module(COMMANDS[name]), name)(words)
except SystemExit as stop:
    assert stop.code == 2
print([name for name in {heavy} if name in sys.modules])
"""
DEMO = ("--config", "demo")
FOLDER = (*DEMO, "data.source=folder")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["pretrain", *FOLDER, "data.root=nowhere"], "data.root: nowhere: no such folder"),
        (["pretrain", *DEMO, "data.source=table", "data.root=."], "manifest.csv: no such file"),
        (["pretrain", *DEMO, "data.source=medmnist", "data.root=no.npz"], "data.root: no.npz: no such file"),
        (["pretrain", *DEMO, "model.init=nowhere"], "nowhere: found no such file or folder, expected weights"),
        (["pretrain", *DEMO, "model.init=facebook/vit-mae-base"], "hf download facebook/vit-mae-base"),
        (["prepare", *FOLDER, "data.root=nowhere"], "data.root: nowhere"),
        (["prepare", *FOLDER, "data.root=a/../nowhere"], "data.root: nowhere"),
        (["finetune", "--checkpoint", "nowhere"], "nowhere: found no such file, expected a checkpoint"),
        (["finetune", *DEMO, "--checkpoint", "nowhere.pt"], "nowhere.pt: found no such file"),
        (["finetune", "--checkpoint", "facebook/vit-mae-base"], "hf download facebook/vit-mae-base"),
        (["finetune", *FOLDER, "data.root=nowhere"], "data.root: nowhere"),
        (["finetune", *DEMO, "model.init=nowhere"], "nowhere: found no such file or folder"),
        (["compare", "--config", "nowhere"], "nowhere"),
        (["compare", *FOLDER, "data.root=nowhere"], "data.root: nowhere"),
        (["evaluate", "nowhere"], "nowhere: found no such folder"),
        (["evaluate", "."], ".: found a folder without best.pt"),
        (["export", "--checkpoint", "nowhere", "--out", "out"], "nowhere: found no such file"),
        (["export", "--checkpoint", ".", "--out", "out"], ".: found a folder without best.pt"),
        (["reconstruct", "a.png", "--checkpoint", "nowhere", "--out", "out"], "nowhere: found no such file"),
        (["report", "nowhere"], "nowhere: found no such folder"),
        (["report", "."], ".: found no comparison.json"),
    ],
    ids=" ".join,
)
def test_a_bad_path_is_answered_before_torch_is_imported(words, named, tmp_path):
    command = [sys.executable, "-c", CODE.format(heavy=HEAVY), *words]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=in_checkout())
    [line] = answer.stderr.splitlines()
    assert line.startswith("error: ") and named in line
    assert answer.stdout.splitlines() == ["[]"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [prepare, pretrain, finetune, compare])
@pytest.mark.parametrize("source", ["folder", "images", "table", "nih-cxr14", "medmnist", "chexpert"])
def test_a_forgotten_root_is_asked_for(command, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(f"data: {{source: {source}}}\n")
    line = mistake(command, "--config", "own.yaml", keep=tmp_path)
    assert line == (
        f"error: data.root: found none for data.source={source}, expected the data set's; give data.root=FOLDER"
    )


def test_a_mix_names_the_source_that_is_not_there(world, tmp_path):
    sources = f"[{{source: table, root: {world.images}}}, {{source: images, root: {tmp_path}/nowhere, name: other}}]"
    words = ["--config", world.config, "data.source=mix", f"data.sources={sources}", "data.root=x"]
    assert mistake(pretrain, *words, keep=world.root).startswith(f"error: data.root: {tmp_path}/nowhere: no such")


def test_the_phantom_needs_no_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from data.places import expect_places
    from data.settings import DataSettings

    expect_places(DataSettings(source="phantom"))


def test_a_table_that_is_there_is_found(world):
    from data.config import load_config
    from data.places import expect_places

    override = edit_table(world, "another", lambda table: table)
    expect_places(load_config(world.config, [override]).data)
