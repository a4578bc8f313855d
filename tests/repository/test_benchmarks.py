"""The benchmarks run and say what they measured; how fast is not a test's business."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from checkout import ROOT, in_checkout
from tiny_world import ONE_EPOCH, SETTINGS, places, tiny_config, write_config, write_table

from classify.finetune import finetune
from classify.grid import expand_grid
from classify.trained import load_trained
from data.config import load_config
from data.errors import UserError
from mae.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mae.model import mae_from

# Runs the benchmark and what it starts in processes that have torch already imported, and measures the machine itself
# by a smaller product of matrices.
PROGRAM = """
import runpy, subprocess, sys
from pathlib import Path

import forked

really_run = subprocess.run

def run(command, cwd=None, **how):
    if command[0] != sys.executable:
        return really_run(command, cwd=cwd, **how)
    _, program, *words = command
    done = forked.run(*words, cwd=cwd) if program == "-c" else forked.run(PROGRAM, PROGRAM, program, *words, cwd=cwd)
    done.check_returncode()
    return done

subprocess.run = run
PROGRAM, *sys.argv[:] = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import results

results.SQUARE = 64
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def measure(name: str, out: Path, *words: object) -> tuple[dict, str]:
    """Run a benchmark of this name: its JSON, and what it printed."""
    script = ROOT / "benchmarks" / f"{name}.py"
    done = forked.run(PROGRAM, PROGRAM, script, *words, "--json", out / "out.json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "out.json").read_text()), done.stdout


def test_throughput_times_every_part(tmp_path):
    small = ["--rounds", "1", "--size", "32", "--patch", "16", "--batch", "3"]
    result, printed = measure("throughput", tmp_path, *small)
    assert all(rate > 0 for rate in result["images_per_second"].values())
    assert all(name in printed for name in result["images_per_second"])
    assert result["environment"]["packages"]["torch"]


def test_engine_is_compared_with_a_bare_loop(tmp_path):
    small = ["--size", "32", "--patch", "16", "--batch", "2", "--steps", "3", "--rounds", "1", "--device", "cpu"]
    result, printed = measure("engine", tmp_path, *small)
    assert set(result["models"]) == {"one linear layer", "vit_tiny_patch16"}
    for name, row in result["models"].items():
        assert min(row["fit_ms"], row["bare_ms"], row["end_of_epoch_ms"]) > 0
        assert f"{name:20s} {row['fit_ms']:9.2f} {row['bare_ms']:9.2f} {row['engine_ms']:9.2f}" in printed


def test_ingest_times_every_kind_of_file(tmp_path):
    small = ["--shrink", "8", "--size", "32", "--rounds", "1", "--images", "96"]
    result, printed = measure("ingest", tmp_path, *small)
    for row in result["jpeg"].values():
        assert min(row["ms"].values()) > 0 and row["difference"] < 1.5
    assert min(*result["dicom_ms"].values(), *result["processes"].values()) > 0
    assert all(f"JPEG, {kind}" in printed for kind in result["jpeg"])


def test_manifest_times_the_opening_of_official_csvs(tmp_path):
    result, _ = measure("manifest", tmp_path, "--images", "300", "--files", "--rounds", "1")
    looked, remembered = (result[f"chexpert, files {how}"] for how in ("looked for", "remembered"))
    assert 0 < looked["rows"] == remembered["rows"] < 300  # laterals are left out
    assert looked["open_seconds"] > 0 and looked["peak_bytes"] > 10**7


def test_loading_times_every_way_and_a_first_batch(tmp_path):
    small = ["--images", "60", "--rows", "60", "--batch", "7", "--size", "32", "--rounds", "1", "--shrink", "16"]
    result, printed = measure("loading", tmp_path, *small)
    assert all(rate > 0 and way in printed for way, rate in result["images_per_second"].items())
    [first] = result["first_batch"]
    assert first["rows"] == 60 and 0 < first["opened_seconds"] < first["first_batch_seconds"]


def test_the_audit_is_timed_on_images_it_finds_copies_in(tmp_path):
    result, _ = measure("audit", tmp_path, "--images", "300", "--size", "48")
    [row] = result["audits"]
    assert row["found"] >= 7 and row["seconds"] > 0


def test_images_of_other_kinds_are_counted_as_known_or_not(tmp_path):
    write_table(tmp_path / "images", 156)
    run = finetune(tiny_config(tmp_path, finetune__run=f"{tmp_path}/run", finetune__epochs=1))
    result, printed = measure("out_of_domain", tmp_path, run, "--images", f"its own={tmp_path}/images")
    rows = {row["images"]: row for row in result["runs"]["run"]}
    assert rows["own validation images"]["domain"] <= 5 and rows["its own"]["n"] == 156
    assert rows["nearly white"]["domain"] == 100
    assert str(tmp_path) not in printed + json.dumps(result["settings"])


def test_models_are_asked_about_images_with_faults(world, tmp_path, monkeypatch):
    run = world.classifier
    result, printed = measure("robustness", tmp_path, f"One={run}", f"Twice={run},{run}")
    aucs = {row["fault"]: row["auc"] for row in result["rows"]}
    assert aucs["none"]["One"] == load_checkpoint(run).fact("validate_auc")
    assert all(auc["One"] == auc["Twice"] for auc in aucs.values()) and result["n"] > result["abnormal"] > 0
    assert all(fault in printed for fault in aucs) and str(tmp_path) not in json.dumps(result["settings"])

    # every fault is a different one, on images of any shape
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    faults = import_module("robustness").FAULTS
    assert faults.keys() == aucs.keys()
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 14, 10), dtype=np.uint8)
    spoilt = [fault(images) for fault in faults.values()]
    assert all(each.shape == images.shape and each.dtype == np.uint8 for each in spoilt)
    assert len({each.tobytes() for each in spoilt}) == len(faults) and spoilt[0] is images


def test_models_of_other_images_are_not_compared_by_their_faults(world, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    model = load_trained(world.classifier)
    other = model.config.data.model_copy(update={"image_size": (96, 96)})
    elsewhere = replace(model, config=model.config.model_copy(update={"data": other}))
    with pytest.raises(UserError, match="found other images than those of"):
        import_module("robustness").validation_of([model, elsewhere])


def test_heatmaps_are_judged_against_what_does_not_look(world, tmp_path):
    result, printed = measure("heatmaps", tmp_path, world.classifier, "--images", "6", "--replicates", "50")
    [row] = result["runs"]
    assert row["n"] == 6 and row["kind"] == "vit"
    for name, found in row["methods"].items():
        low, high = found["minus_gaussian"]["interval"]
        assert low <= found["minus_gaussian"]["estimate"] <= high and name in printed
        assert found["score"] == pytest.approx(found["insertion"] - found["deletion"])
    winner = result["winners"]["vit"]
    assert winner["score"] == max(winner["means"].values()) and not {"gaussian", "random"} & winner["means"].keys()

    # the decision is made again from the earlier measurements
    earlier = (tmp_path / "out.json").rename(tmp_path / "earlier.json")
    again, _ = measure("heatmaps", tmp_path, "--measured", earlier)
    assert again["runs"] == result["runs"] and again["winners"] == result["winners"]


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers, which ours is compared with, is missing")
def test_pretrain_step_compares_speed_and_memory(tmp_path):
    small = ["--preset", "vit_tiny_patch16", "--size", "32", "--batch", "2", "--rounds", "1", "--square", "64"]
    result, printed = measure("pretrain_step", tmp_path, *small, "--case", "same", "--markdown")
    systems = result["cases"]["same"]["systems"]
    products = {"ours, oneDNN": "onednn", "ours, BLAS": "blas"}
    assert {"ours", "transformers"} <= set(systems) <= {"ours", "transformers", *products}
    assert {name: row["product"] for name, row in systems.items() if name in products} in ({}, products)
    assert systems["ours"]["product"] in ("onednn", "blas")
    assert systems["transformers"]["ratio_of_transformers"] == 1
    for name, row in systems.items():
        assert all(row[number] > 0 for number in ("images_per_second", "peak_memory_bytes", "share_of_best_product"))
        assert f"| {name} | {row['images_per_second']:.2f} |" in printed
    assert 0.8 < systems["ours"]["flops_per_image"] / systems["transformers"]["flops_per_image"] < 1  # embeds fewer
    assert result["environment"]["cpu"] and result["environment"]["threads"]
    assert str(tmp_path) not in printed


def refused_by_cuda_sh(folder: Path, python: str | Path, *words: str) -> str:
    """The one line in which cuda.sh, called in this folder, refuses to run with this Python."""
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/cuda.sh"), *words],
        capture_output=True,
        text=True,
        env=in_checkout(PYTHON=str(python)),
        cwd=folder,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("words", [(), ("out",)])
def test_without_a_gpu_cuda_sh_says_so_in_one_line(words, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    line = refused_by_cuda_sh(tmp_path, sys.executable, *words)
    assert line.startswith("error: benchmarks/cuda.sh: found no CUDA device") and "expected one" in line


def test_without_torch_cuda_sh_says_so_in_one_line(tmp_path):
    bare = tmp_path / "python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    line = refused_by_cuda_sh(tmp_path, bare)
    assert line.startswith("error: benchmarks/cuda.sh: found no torch in ") and "PYTHON=/path/to/python" in line


def test_cuda_sh_names_a_package_that_is_missing_before_nine_minutes_of_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = import_module("cuda_parts")
    monkeypatch.setattr(parts, "find_spec", lambda name: None if name == "pydantic" else find_spec(name))
    monkeypatch.setattr(sys, "argv", ["cuda_parts.py", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        parts.main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: benchmarks/cuda.sh: found no pydantic in ") and ".gpu/" in line
    assert not (tmp_path / "cuda.json").exists()


@pytest.mark.slow  # 45 s: make test-slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers, which ours is compared with, is missing")
def test_cuda_sh_records_a_part_that_fails_and_goes_on(tmp_path, monkeypatch):
    """The parts on a CPU, at small size. A time limit ends its tests, which this suite runs in any case."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = import_module("cuda_parts")
    whole = parts.parts_for(tmp_path, "cpu", None, [])
    assert [part.name for part in whole] == ["tests", "step", "end to end", "evidence"]
    monkeypatch.setattr(parts, "parts_for", lambda *_: [replace(whole[0], seconds=0.5), *whole[1:]])
    monkeypatch.setattr(sys, "argv", ["cuda_parts.py", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        parts.main()
    assert ended.value.code == 1

    report = json.loads((tmp_path / "cuda.json").read_text())["parts"]
    assert {name for name, outcome in report.items() if "failed" in outcome} == {"tests"}
    assert report["tests"]["failed"] == "ended by its limit of 0.5 s" and report["tests"]["seconds"] < 20
    run = report["end to end"]["result"]
    assert min(run["step_alone"], run["from_the_store"], run["share_of_step_alone"]) > 0
    assert run["looks"] == 1 and 0 <= run["data_wait_share"] < 1  # of two epochs the first is left out
    assert report["step"]["result"]["cases"]["same"]["systems"]["ours"]["images_per_second"] > 0
    assert 0 < report["evidence"]["result"]["probe/logistic_auc"] <= 1
    log = (tmp_path / "cuda.log").read_text()
    assert all(f"==== {name}: " in log for name in report)


def test_cuda_sh_fits_into_nine_minutes_whatever_each_part_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = import_module("cuda_parts")
    monkeypatch.setattr(parts, "parts_for", lambda *_: [parts.Part(name, ["false"], 100) for name in "ab"])
    monkeypatch.setattr(parts, "WHOLE", 4)
    monkeypatch.setattr(sys, "argv", ["cuda_parts.py", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit):
        parts.main()
    report = json.loads((tmp_path / "cuda.json").read_text())["parts"]
    assert {outcome["failed"] for outcome in report.values()} == {"no time was left"}


def test_what_a_part_of_cuda_sh_leaves_of_its_time_is_for_those_after_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = import_module("cuda_parts")
    commands = {"quick": (["true"], 30), "long": (["sleep", "0.5"], 0.1), "last": (["sleep", "9"], 0.1)}
    plan = [parts.Part(name, command, seconds) for name, (command, seconds) in commands.items()]
    monkeypatch.setattr(parts, "parts_for", lambda *_: plan)
    limits = []
    run = parts.run
    monkeypatch.setattr(parts, "run", lambda part, log, most: limits.append(most) or run(part, log, min(most, 0.8)))
    monkeypatch.setattr(sys, "argv", ["cuda_parts.py", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit):
        parts.main()
    report = json.loads((tmp_path / "cuda.json").read_text())["parts"]
    assert {name for name, outcome in report.items() if "failed" in outcome} == {"last"}
    assert all(limit >= part.seconds for limit, part in zip(limits, plan, strict=True))
    assert sum(part.seconds for part in plan) >= limits[-1] + report["long"]["seconds"]


@pytest.mark.slow
def test_coverage_is_simulated_for_every_cell(tmp_path):
    result, _ = measure("interval_coverage", tmp_path, "--trials", "2")
    cells = result["cells"]
    assert len({(cell["area"], cell["n"]) for cell in cells}) == len(cells) == 8


def test_recipes_are_compared_in_time_and_in_what_they_reach(tmp_path):
    half = {"finetune.drop_patches": 0.5, "finetune.epochs": 1}
    settings = {
        **SETTINGS,
        **ONE_EPOCH,
        **places(tmp_path, "grid"),
        "pretrain.epochs": 2,
        "pretrain.probe_every": 1,
        "finetune.epochs": 3,
        "compare.seeds": [3],
        "compare.pretraining_seeds": [7],
        "compare.labelled": [None, 20],
        "compare.pretrainings": {"long": {}, "short": {"pretrain.epochs": 1}},
        "compare.rows": [
            {"name": "Slow", "pretraining": ["long"]},
            {"name": "Fast", "pretraining": ["short"], "set": half},
        ],
        "compare.contrasts": [{"a": "Fast", "b": "Slow", "margin": 0.3}],
    }
    write_table(tmp_path / "images")
    config = write_config(tmp_path / "recipes.yaml", settings)
    result, printed = measure("time_to_quality", tmp_path, config, "--rounds", "1")

    slow, fast = ([row for row in result["rows"] if row["recipe"] == name] for name in ("Slow", "Fast"))
    assert [row["labelled"] for row in slow] == [row["labelled"] for row in fast] == [40, 20]
    assert [row["share_of_reference"] for row in slow] == [1, 1] and not any("difference" in row for row in slow)
    for row, of_reference in zip(fast, slow, strict=True):
        assert 0 < row["pretraining_seconds"] < row["seconds"] and row["seeds"] == 1 and row["n"] == 10
        assert row["flops"] < of_reference["flops"] / 2
        assert row["difference"][0] == pytest.approx(row["auc"][0] - of_reference["auc"][0])
        assert row["margin"] == 0.3 and 0 <= row["p_inferior"] <= 1 and row["probe_auc"] is not None
        assert of_reference["seconds_to_reference_probe"] <= of_reference["pretraining_seconds"]
        assert f"{row['seconds']:,.0f}" in printed
    assert str(tmp_path / "images") not in json.dumps(result["config"])

    with pytest.raises(AssertionError, match=r"found compare\.split test, expected validate"):
        measure("time_to_quality", tmp_path, config, "compare.split=test")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_grids_on_validation_with_margins_against_the_first_row(path, tmp_path, monkeypatch):
    config = load_config(path, ["data.root=/nowhere"])
    if "SMALL_IMAGES" in path.read_text():  # what the first of its two commands makes
        smaller = load_config(path, ["data.root=/nowhere", "data.image_size=16"])
        weights = mae_from(smaller.model, smaller.data.image_size).state_dict()
        meta = {"seen": torch.tensor([1])}
        save_checkpoint(Checkpoint("mae", smaller.model_dump(mode="json"), weights, meta), tmp_path / "best.pt")
        monkeypatch.setenv("SMALL_IMAGES", str(tmp_path / "best.pt"))
    cells = list(expand_grid(config, 4000))
    names = {cell.name for cell in cells}
    assert config.compare.split == "validate" and len({cell.run for cell in cells}) == len(cells)
    assert config.compare.contrasts
    for contrast in config.compare.contrasts:
        assert contrast.a in names and contrast.b == cells[0].name and contrast.margin
