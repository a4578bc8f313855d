"""The benchmarks run and say what they measured; how fast is not a test's business."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from checkout import ROOT


def test_throughput_times_every_part(tmp_path):
    small = ["--rounds", "1", "--size", "32", "--patch", "16", "--batch", "3"]
    command = [sys.executable, "benchmarks/throughput.py", *small, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert all(rate > 0 for rate in result["images_per_second"].values())
    assert all(name in done.stdout for name in result["images_per_second"])
    assert result["environment"]["packages"]["torch"]


def test_engine_is_compared_with_a_bare_loop(tmp_path):
    small = ["--size", "32", "--patch", "16", "--batch", "2", "--steps", "3", "--rounds", "1", "--device", "cpu"]
    command = [sys.executable, "benchmarks/engine.py", *small, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["models"]) == {"one linear layer", "vit_tiny_patch16"}
    for name, row in result["models"].items():
        assert min(row["fit_ms"], row["bare_ms"], row["end_of_epoch_ms"]) > 0
        assert f"{name:20s} {row['fit_ms']:9.2f} {row['bare_ms']:9.2f} {row['engine_ms']:9.2f}" in done.stdout


def test_ingest_times_every_kind_of_file(tmp_path):
    small = ["--shrink", "8", "--size", "32", "--rounds", "1", "--images", "96", "--json", str(tmp_path / "out.json")]
    command = [sys.executable, "benchmarks/ingest.py", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    for row in result["jpeg"].values():
        assert min(row["ms"].values()) > 0 and row["difference"] < 1.5
    assert min(*result["dicom_ms"].values(), *result["processes"].values()) > 0
    assert all(f"JPEG, {kind}" in done.stdout for kind in result["jpeg"])


def test_manifest_times_the_opening_of_official_csvs(tmp_path):
    small = ["--images", "300", "--files", "--rounds", "1", "--json", str(tmp_path / "out.json")]
    subprocess.run([sys.executable, "benchmarks/manifest.py", *small], cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "out.json").read_text())
    looked, remembered = (result[f"chexpert, files {how}"] for how in ("looked for", "remembered"))
    assert 0 < looked["rows"] == remembered["rows"] < 300  # laterals are left out
    assert looked["open_seconds"] > 0 and looked["peak_bytes"] > 10**7


def test_loading_times_every_way_and_a_first_batch(tmp_path):
    small = ["--images", "60", "--rows", "60", "--batch", "7", "--size", "32", "--rounds", "1", "--shrink", "16"]
    command = [sys.executable, "benchmarks/loading.py", *small, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert all(rate > 0 and way in done.stdout for way, rate in result["images_per_second"].items())
    [first] = result["first_batch"]
    assert first["rows"] == 60 and 0 < first["opened_seconds"] < first["first_batch_seconds"]


def test_the_audit_is_timed_on_images_it_finds_copies_in(tmp_path):
    command = [sys.executable, "benchmarks/audit.py", "--images", "300", "--size", "48"]
    subprocess.run([*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, check=True)
    [row] = json.loads((tmp_path / "out.json").read_text())["audits"]
    assert row["found"] >= 7 and row["seconds"] > 0


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers, which ours is compared with, is missing")
def test_pretrain_step_compares_speed_and_memory(tmp_path):
    small = ["--preset", "vit_tiny_patch16", "--size", "32", "--batch", "2", "--rounds", "1", "--square", "64"]
    command = [sys.executable, "benchmarks/pretrain_step.py", *small, "--case", "same", "--markdown"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    result = json.loads((tmp_path / "out.json").read_text())
    systems = result["cases"]["same"]["systems"]
    assert set(systems) == {"ours", "transformers"}
    assert systems["transformers"]["ratio_of_transformers"] == 1
    for name, row in systems.items():
        assert all(row[number] > 0 for number in ("images_per_second", "peak_memory_bytes", "share_of_best_product"))
        assert f"| {name} | {row['images_per_second']:.2f} |" in done.stdout
    assert 0.8 < systems["ours"]["flops_per_image"] / systems["transformers"]["flops_per_image"] < 1  # embeds fewer
    assert result["environment"]["cpu"] and result["environment"]["threads"]
    assert str(tmp_path) not in done.stdout


@pytest.mark.slow
def test_coverage_is_simulated_for_every_cell(tmp_path):
    command = [sys.executable, "benchmarks/coverage.py", "--trials", "2", "--json", str(tmp_path / "out.json")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/worlds")])
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=os.environ | {"PYTHONPATH": paths})
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert len({(cell["area"], cell["n"]) for cell in cells}) == len(cells) == 8
