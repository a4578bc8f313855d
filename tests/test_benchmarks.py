"""The benchmarks run and say what they measured; how fast is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_throughput_times_every_part(tmp_path):
    small = ["--rounds", "1", "--size", "32", "--patch", "16", "--batch", "3"]
    command = [sys.executable, "benchmarks/throughput.py", *small, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert all(rate > 0 for rate in result["images_per_second"].values())
    assert all(name in done.stdout for name in result["images_per_second"])
    assert result["environment"]["packages"]["torch"]
