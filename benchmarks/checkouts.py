"""Two checkouts of this project beside each other: images per second of a stage, as its own command logs them.

    git worktree add /tmp/before COMMIT
    python benchmarks/checkouts.py /tmp/before . --config phantom pretrain.epochs=2

The two take turns, each in processes of its own. They prepare and read one store, so that only the training differs.
Everything is read from what a run leaves behind, so that any two versions can be compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import report

COMMANDS = {
    "pretrain": "from mae.cli import pretrain as command; command()",
    "finetune": "from classify.cli import finetune as command; command()",
}
PHANTOM = Path(__file__).resolve().parents[1] / "configs/phantom.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another checkout")
    parser.add_argument("--config", default=str(PHANTOM), help="a config that both know, or a file that both read")
    parser.add_argument("--stages", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=5, help="runs of each stage in each checkout")
    parser.add_argument("--data", type=Path, default=Path(), help="where relative data roots start from")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()

    results = {stage: rates_of(stage, arguments) for stage in arguments.stages}
    print(f"images/s, medians of {arguments.rounds} runs in turn")
    for stage, result in results.items():
        print(f"{stage}: before {result['before']:.1f}, after {result['after']:.1f}, ratio {result['ratio']:.3f}")
    report(arguments.json, arguments, {"stages": results})


def rates_of(stage: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median rate of both checkouts, and the median of the rounds' ratios (after / before)."""
    rates: dict[str, list[float]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds + 1):
            # the order alternates, and the first round only warms up: it draws, decodes and fills caches
            order = ("before", "after") if number % 2 else ("after", "before")
            for name in order:
                run = Path(folder) / f"{name}-{number}"
                rate = images_per_second(stage, getattr(arguments, name), run, Path(folder) / "stores", arguments)
                if number:
                    rates[name].append(rate)

    ratios = [after / before for before, after in zip(rates["before"], rates["after"], strict=True)]
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return medians | {"ratio": statistics.median(ratios)}


def images_per_second(stage: str, checkout: Path, run: Path, stores: Path, arguments: argparse.Namespace) -> float:
    """Median of the rates that a run logs, without the first, which warms up."""
    key = "run" if stage == "pretrain" else "finetune.run"
    command = [
        sys.executable,
        "-P",  # so that nothing in the current folder is imported
        "-c",
        COMMANDS[stage],
        "--config",
        arguments.config,
        f"{key}={run}",
        f"data.store={stores}",
    ]
    subprocess.run(
        [*command, *arguments.overrides],
        check=True,
        capture_output=True,
        cwd=arguments.data,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
    )

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
    return statistics.median(looks[1:] or looks)


if __name__ == "__main__":
    main()
