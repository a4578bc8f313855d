"""Every command of the README runs: `mae-…` here in small, `make …` by CI, `tensorboard` here for real."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from checkout import ROOT
from documented_commands import MAINS, commands, run_in_small, write_what_readers_have

PAGE = "README.md"


def test_readme_names_only_commands_that_something_runs():
    known = {*MAINS, "make", "export", ".", ".venv/bin/tensorboard"}
    assert {words[0] for words in commands(PAGE)} == known


def test_readme_make_targets_exist_and_ci_runs_the_main_ones():
    named = {words[1] for words in commands(PAGE) if words[0] == "make"}
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci/run").read_text()
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.M))
    assert {"demo", "test", "lint"} <= set(re.findall(r"^make (\w+)", ci, re.M))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize(("target", "tools"), [("demo", False), ("install", False), ("test", True), ("lint", True)])
def test_make_installs_test_tools_only_for_who_tests(target, tools):
    said = subprocess.run(["make", "-nB", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" in said
    assert ("[test]" in said) == tools


def test_readme_commands_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_what_readers_have(tmp_path)
    ran = run_in_small(commands(PAGE), tmp_path, monkeypatch)
    assert {command.name for command in ran} == set(MAINS)
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
            server.kill()  # it has nothing to save, and has been seen to hang at its end
    assert runs == '["run"]'


def _get_until(address: str, wanted: str, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while True:
        text = urllib.request.urlopen(address).read().decode().strip()
        if text == wanted or time.monotonic() > end:
            return text
        time.sleep(0.2)
