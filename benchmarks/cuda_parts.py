"""The parts of benchmarks/cuda.sh, one after the other: each has a time limit, and one that fails costs no other.

    python benchmarks/cuda_parts.py OUT                        # on a GPU: at most nine minutes
    python benchmarks/cuda_parts.py OUT --device cpu           # the same in small, to see that all of it runs

It writes OUT/cuda.json after each part, and OUT/cuda.log with all output of the parts.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 540  # seconds
TAIL = 15  # lines of a failed part's output that the JSON keeps
NEEDED = ["torch", "einops", "numpy", "pandas", "scipy", "sklearn", "pydicom", "PIL", "yaml", "pydantic"]
NEEDED += ["tensorboard", "tqdm", "matplotlib", "jinja2", "safetensors"]
COMMAND = "from {room}.cli import {name}; {name}()"


@dataclass(frozen=True)
class Part:
    name: str
    command: list[str]
    seconds: int  # at most, and what the parts before it have left of theirs
    result: Path | None = None  # JSON that it writes


def parts_for(out: Path, device: str, store: Path | None, only: list[str]) -> list[Part]:
    """The parts in order: tests, speed, and whether a training learns."""
    python = sys.executable
    small = device == "cpu"
    found = [Part("tests", [python, "-m", "pytest", "-q", "-m", "not slow" if small else "cuda", "tests/cuda"], 120)]

    step = [python, "benchmarks/pretrain_step.py", "--device", device, "--case", "same"]
    if small:
        step += ["--preset", "vit_tiny_patch16", "--size", "32", "--batch", "2", "--rounds", "1", "--square", "64"]
        speeds = {"step": (60, [])}
    else:
        step += ["--precision", "bf16", "--square", "8192"]
        speeds = {
            "step, batch 256": (45, ["--batch", "256", "--rounds", "10"]),
            "step, batch 256, compiled": (90, ["--batch", "256", "--rounds", "10", "--compile"]),
            "step, batch 1024": (60, ["--batch", "1024", "--rounds", "5"]),
            "step, batch 1024, compiled": (90, ["--batch", "1024", "--rounds", "5", "--compile"]),
        }
    for name, (seconds, words) in speeds.items():
        file = out / f"{name.replace(', ', '-').replace(' ', '')}.json"
        found.append(Part(name, [*step, *words, "--json", str(file)], seconds, file))

    file = out / "end_to_end.json"
    end = [python, "benchmarks/end_to_end.py", "--device", device, "--json", str(file)]
    if small:
        end += ["--preset", "vit_tiny_patch16", "--size", "32", "--images", "60", "--batch", "12", "--epochs", "2"]
    else:
        end += ["--precision", "bf16", "--batch", "256"]
    found.append(Part("end to end", end, 65, file))
    found.append(Part("evidence", evidence(out, device, store), 65, out / "evidence.json"))
    if small:  # only to see that they run: how long they take on a busy CPU does not matter
        found = [replace(part, seconds=4 * part.seconds) for part in found]
    return [part for part in found if not only or part.name in only]


def evidence(out: Path, device: str, store: Path | None) -> list[str]:
    """A short pretraining with a probe of its features; its log is read after it has ended."""
    words = ["--config", "pneumoniamnist", f"run={out}/evidence", f"device={device}", f"data.store={out}/stores"]
    words += ["pretrain.probe_every=20", "pretrain.panel_images=0", "engine.pictures_every=1000", "engine.log_every=50"]
    if store:
        words += ["data.source=table", f"data.root={store}", "data.image_size=64", "model.patch_size=8"]
    else:
        words += ["data.root=shipped:pneumoniamnist_demo.npz"]
    if device == "cpu":
        words += ["pretrain.epochs=1", "pretrain.optimizer.warmup_epochs=0", "pretrain.probe_every=1"]
        words += ["model.depth=1", "model.width=12", "model.decoder_width=8", "model.decoder_depth=1"]
        words += ["model.decoder_heads=2", "pretrain.batch_size=256"]
    else:
        words += ["precision=bf16", "pretrain.epochs=60", "pretrain.batch_size=256", "pretrain.validate_every=10"]
    return [sys.executable, "-c", COMMAND.format(room="mae", name="pretrain"), *words]


def probed(folder: Path) -> dict[str, Any]:
    """The last losses and probe scores of a run."""
    path = folder / "metrics.jsonl"
    rows = []
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {}
    for row in rows:
        found |= {name: value for name, value in row.items() if name.startswith(("validate/", "probe/", "train/"))}
    return found


def run(part: Part, log: Path, seconds: float) -> dict[str, Any]:
    """The outcome of a part that may take so long: exit code, seconds, its JSON; after a failure its last lines too."""
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n==== {part.name}: {' '.join(part.command)}\n")
        file.flush()
        place = file.tell()
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)

    outcome: dict[str, Any] = {"exit_code": code, "seconds": round(time.monotonic() - start, 1)}
    said = log.read_bytes()[place:].decode(errors="replace").splitlines()
    if part.name == "evidence" and part.result:  # a run that was stopped has learnt something too
        outcome["result"] = probed(part.result.with_suffix(""))
    elif code == 0 and part.result:
        outcome["result"] = json.loads(part.result.read_text(encoding="utf-8"))
    if code == 0:
        outcome["said"] = said[-1:]
    else:
        outcome["failed"] = f"ended by its limit of {seconds:.4g} s" if code is None else f"exit code {code}"
        outcome["said"] = said[-TAIL:]
    return outcome


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "TOKENIZERS_PARALLELISM": "false"}


def end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue


def refuse(why: str) -> NoReturn:
    print(f"error: benchmarks/cuda.sh: {why}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="images with a manifest.csv, for the short run")
    parser.add_argument("--part", action="append", default=[], help="this part alone; may be repeated")
    arguments = parser.parse_args()

    for name in NEEDED:
        if find_spec(name) is None:
            refuse(
                f"found no {name} in {sys.executable}, expected a Python that has it; give PYTHON=/path/to/python, or "
                f"put its wheel into .gpu/ ({arguments.out}/cuda.log has what pip said of those that are there)"
            )
    import torch  # after --help

    if arguments.device == "cuda" and not torch.cuda.is_available():
        refuse(
            f"found no CUDA device (torch {torch.__version__}), expected one; run it on a machine with a GPU, or give "
            "DEVICE=cpu to see its parts run in small"
        )

    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    store = arguments.store.resolve() if arguments.store else None
    began = time.monotonic()
    report: dict[str, Any] = {"device": arguments.device, "torch": torch.__version__, "parts": {}}
    if arguments.device == "cuda":
        report["gpu"] = torch.cuda.get_device_name()

    # written after each part, so that an early end keeps the results so far
    planned = 0.0
    for part in parts_for(out, arguments.device, store, arguments.part):
        planned += part.seconds
        passed = time.monotonic() - began
        if WHOLE - passed < 5:
            report["parts"][part.name] = {"failed": "no time was left"}
        else:
            limit = min(max(part.seconds, planned - passed), WHOLE - passed)
            report["parts"][part.name] = run(part, out / "cuda.log", limit)
        report["seconds"] = round(time.monotonic() - began, 1)
        (out / "cuda.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        outcome = report["parts"][part.name]
        print(f"{part.name}: {outcome.get('failed', 'done')} ({outcome.get('seconds', 0)} s)", flush=True)

    failed = [name for name, outcome in report["parts"].items() if "failed" in outcome]
    print(f"{out}/cuda.json: {len(report['parts']) - len(failed)} of {len(report['parts'])} parts done")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
