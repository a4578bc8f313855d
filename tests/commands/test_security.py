"""What a run folder, a config or a file name brings is data, never code; and nothing calls home."""

import html
import socket
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from code_carrier import Code
from tiny_world import World, call, files, make_world, mistake, succeed

from classify.cli import compare, evaluate, finetune
from mae.cli import pretrain
from mae.engine.checkpoint import FORMAT

prepare = import_module("data.cli").prepare
NASTY = "<img src=x onerror=alert(1)>"


def carrier(path: Path, ran: Path) -> Path:
    """A checkpoint whose loading would write the file `ran`, if it were run."""
    torch.save({"format": FORMAT, "kind": "mae", "meta": Code(ran)}, path)
    return path


def test_a_run_folder_that_brings_code_is_refused_and_not_run(world: World, tmp_path):
    run, ran = tmp_path / "run", tmp_path / "ran"
    words = ["--config", world.config, f"run={run}", "pretrain.epochs=2"]
    run.mkdir()
    carrier(run / "last.pt", ran)
    line = mistake(pretrain, *words, keep=tmp_path)
    assert line.startswith(f"error: {run}/last.pt: found a pickle that carries code")
    carrier(run / "previous.pt", ran)
    outcome = call(pretrain, *words)
    warning, error = outcome.err.splitlines()
    assert outcome.code == 2
    assert warning.startswith(f"warning: {run}/last.pt: found a pickle that carries code")
    assert error.startswith(f"error: {run}/previous.pt: found a pickle that carries code")
    assert not ran.exists()


def test_a_checkpoint_given_that_brings_code_is_refused_and_not_run(world: World, tmp_path):
    path = carrier(tmp_path / "given.pt", tmp_path / "ran")
    for main, *words in (
        (finetune, "--checkpoint", path),
        (finetune, "--config", world.config, "--checkpoint", path, f"finetune.run={tmp_path}/run"),
        (pretrain, "--config", world.config, f"model.init={path}", f"run={tmp_path}/run"),
    ):
        assert str(path) in mistake(main, *words, keep=tmp_path)
    (tmp_path / "classifier").mkdir()
    carrier(tmp_path / "classifier/best.pt", tmp_path / "ran")
    assert "best.pt: found a pickle that carries code" in mistake(evaluate, tmp_path / "classifier", keep=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("main", [prepare, pretrain, finetune])
def test_yaml_that_makes_objects_is_refused_and_not_run(main, tmp_path):
    ran, made = tmp_path / "ran", "!!python/object/apply:os.mkdir"
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{source: phantom}}\nrun: {made} ['{ran}']\n")
    assert mistake(main, "--config", config, keep=tmp_path).startswith(f"error: {config}: not valid YAML: could not")
    line = mistake(main, "--config", "demo", f"run={made} ['{ran}']", keep=tmp_path)
    assert line.startswith("error: command line: run: not valid YAML: could not determine a constructor")
    assert not ran.exists()


def test_a_run_folders_config_makes_no_objects(world: World, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    line = mistake(pretrain, "--config", world.config, f"run={tmp_path}/run", keep=tmp_path)
    assert line.startswith(f"error: {tmp_path}/run/config.yaml: ")
    assert not (tmp_path / "ran").exists()


def test_file_names_and_patients_are_no_markup_in_the_report(tmp_path):
    world = make_world(tmp_path / "<b>world")
    table = pd.read_csv(world.images / "manifest.csv")
    for number, name in enumerate(table["path"]):
        (world.images / name).rename(world.images / f"{number}<b>.png")
    table["path"] = [f"{number}<b>.png" for number in range(len(table))]
    table["patient_id"] = [f"{NASTY}{number // 2}" for number in range(len(table))]
    table.to_csv(world.images / "manifest.csv", index=False)
    grid = "compare={split: test, rows: [{name: vit, set: {finetune.mode: full}}]}"
    succeed(compare, "--config", world.config, grid, f"run={world.root}/grid")
    report = (world.root / "grid/report.html").read_text()
    assert "<img src=x" not in report and "<b>.png" not in report and "<b>world" not in report
    assert html.escape("<b>world/images") in report


def test_training_and_evaluation_use_no_network(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError(f"network access: {arguments}")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    with pytest.raises(AssertionError, match="network access"):
        socket.create_connection(("localhost", 80))
    world = make_world(tmp_path)
    succeed(prepare, "--config", world.config)
    succeed(pretrain, "--config", world.config, "pretrain.probe_every=1")
    succeed(finetune, "--checkpoint", world.pretrained)
    succeed(evaluate, world.classifier)
    assert files(world.classifier / "predictions")
