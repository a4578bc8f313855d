"""Every command of the README runs: `mae-…` here in small, `make …` by CI, `tensorboard` here for real."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from PIL import Image
from tiny_world import radiograph

import classify.cli
import data.cli
import mae.cli
from data.phantom import write_tree

MAINS = {
    "mae-prepare": data.cli.prepare,
    "mae-pretrain": mae.cli.pretrain,
    "mae-reconstruct": mae.cli.reconstruct,
    "mae-finetune": classify.cli.finetune,
    "mae-evaluate": classify.cli.evaluate,
    "mae-compare": classify.cli.compare,
    "mae-report": classify.cli.report,
    "mae-embed": classify.cli.embed,
    "mae-predict": classify.cli.predict,
    "mae-export": classify.cli.export,
}
REPLICATES = "evaluate.replicates=100"
SMALL = [
    *("precision=fp32", "data.image_size=32", "data.phantom.images=60", "model.preset=vit_tiny_patch16"),
    "threads=1",
    *("model.patch_size=16", "model.width=24", "model.depth=1", "model.heads=3", "model.decoder_width=16"),
    *("model.decoder_depth=1", "model.decoder_heads=2", "pretrain.epochs=1", "pretrain.batch_size=16"),
    *("finetune.epochs=1", "finetune.batch_size=16", REPLICATES),
]

MAKE_DEMO = ["make", "demo"]
PLACES = {"MIMIC_CXR_ROOT": "mimic", "VIT_MAE_BASE": "runs/demo-hf"}  # what stands for what nobody may ship


def commands() -> list[list[str]]:
    """The words of every command in the README's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def steps_of_demo() -> list[list[str]]:
    """The words of every command that `make demo` runs after it has installed the package."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    return [shlex.split(line.replace("$(BIN)/", "")) for line in recipe[1].splitlines()]


def in_small(name: str, words: list[str]) -> list[str]:
    """A command's words, with sizes at which it takes seconds."""
    if name == "mae-evaluate":
        return [*words, REPLICATES]
    if name == "mae-predict":  # of a run whose name has 5 % of the labels in it
        return [word.replace("-n206-", "-n10-") for word in words]
    if name in ("mae-embed", "mae-export", "mae-reconstruct", "mae-report"):
        return words
    sample = ["data.sample=200"] if "demo" in words else []
    grid = ["compare.labelled=[24]", "compare.seeds=[0]"] if "compare_mimic" in words else []
    return [*words, *SMALL, *sample, *grid]


def test_readme_names_only_commands_that_something_runs():
    known = {*MAINS, "make", "export", ".", ".venv/bin/tensorboard"}
    assert {words[0] for words in commands()} == known


def test_readme_make_targets_exist_and_ci_runs_the_main_ones():
    named = {words[1] for words in commands() if words[0] == "make"}
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci/run").read_text()
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.M))
    assert {"demo", "test", "lint"} <= set(re.findall(r"^make (\w+)", ci, re.M))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize(("target", "tools"), [("demo", False), ("install", False), ("test", True), ("lint", True)])
def test_make_installs_test_tools_only_for_who_tests(target, tools):
    said = subprocess.run(["make", "-nB", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" in said
    assert ("[test]" in said) == tools


def test_readme_commands_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "mimic", 120)
    rng = np.random.default_rng(0)
    for number in range(60):  # a reader's own images
        folder = tmp_path / "radiographs" / ("normal", "pneumonia")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(radiograph(bool(number % 2), rng)).save(folder / f"{number}.png")
    ran = []
    for name, *words in [step for line in commands() for step in (steps_of_demo() if line == MAKE_DEMO else [line])]:
        if name == "export":
            variable = words[0].partition("=")[0]
            monkeypatch.setenv(variable, str(tmp_path / PLACES[variable]))
        if name in MAINS:
            with pytest.raises(SystemExit) as end:
                MAINS[name](in_small(name, words))
            passes = (0, 1) if "--overfit" in words else (0,)  # one epoch is too short to pass, which 1 says
            assert end.value.code in passes, f"{name} {words}: {capsys.readouterr().err}"
            ran.append(name)
    assert set(ran) == set(MAINS)
    for run in ("demo", "radiographs-compare", "phantom"):
        assert (tmp_path / "runs" / run / "report.html").exists()
    assert (tmp_path / "runs/compare_mimic/comparison.md").exists()


def test_readme_tensorboard_line_serves_a_run(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "run") as board:
        board.add_scalar("train/loss", 1.0, 1)
    command = [Path(sys.executable).with_name("tensorboard"), "--logdir", tmp_path, "--port", "0", "--load_fast=false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        try:
            address = next(found[0] for line in server.stderr if (found := re.findall(r"http://localhost:\d+/", line)))
            runs = _get_until(address + "data/runs", '["run"]')
        finally:
            server.terminate()
    assert runs == '["run"]'


def _get_until(address: str, wanted: str, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while True:
        text = urllib.request.urlopen(address).read().decode().strip()
        if text == wanted or time.monotonic() > end:
            return text
        time.sleep(0.2)
