"""A run folder: which config made it, on what, and whether it may be continued."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from data.config import Root, UserError, print_config
from mae.engine import distributed
from mae.engine.checkpoint import latest_checkpoint, replace_text

# what a run may be continued with, besides the sections another command reads
FREE = {"data.store", "data.workers", "data.max_rejected", "pretrain.panel_images", "finetune.run"}
FREE |= {"pretrain.epochs", "finetune.epochs"}


def check_run(
    folder: Path,
    config: Root,
    sections: Iterable[str],
    facts: Mapping[str, Any] | None = None,
    fixed: Collection[str] = (),
) -> None:
    """Raise UserError if the folder holds a run of another config, naming the first difference.

    sections: the parts of the config that the stage reads, and so must not have changed.
    facts: what else must not have changed (data fingerprint, initial checkpoint); None leaves them out.
    fixed: settings that may otherwise change, but not here. More epochs continue a run; fewer never do.
    """
    if not (folder / "config.yaml").exists():
        return
    made, plain = _made_with(folder / "config.yaml"), config.model_dump(mode="json")
    then, now = (flat({name: part.get(name) for name in sections}) for part in (made, plain))
    if facts is not None:
        then, now = then | _facts(folder), now | dict(facts)
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        free = key in FREE and key not in fixed and not (key.endswith(".epochs") and before > after)
        if before != after and not free:
            raise UserError(
                f"{folder}: found a run made with {key} = {before}, expected {after}; "
                "choose another folder (run=…, in stage two finetune.run=…), or remove this one"
            )


def _made_with(path: Path) -> dict[str, Any]:
    try:
        made = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        made = None
    if not isinstance(made, dict):
        raise UserError(f"{path}: found no settings, expected those of the run; remove the folder")
    return made


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the folder's run has trained for that many epochs."""
    last = latest_checkpoint(folder)
    return last is not None and last.progress["epoch"] >= epochs


def expect_checkpoint(folder: Path) -> None:
    """UserError where the folder has nothing to go on from, for who insists on that."""
    if not any((folder / name).exists() for name in ("last.pt", "previous.pt")):
        raise UserError(f"{folder}: found no last.pt, expected one with --resume; leave --resume out for a new run")


def start_run(folder: Path, config: Root, facts: Mapping[str, Any]) -> None:
    """Write config.yaml, and environment.json with an entry for every start (first and resumed)."""
    if not distributed.is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    starts = json.loads((folder / "environment.json").read_text())["starts"] if _facts(folder) else []
    here = environment() | {"device": str(device_of(config)), "seed": config.seed}
    record = {"facts": dict(facts), "starts": [*starts, here]}
    replace_text(folder / "environment.json", json.dumps(record, indent=1))
    replace_text(folder / "config.yaml", print_config(config) + "\n")


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return json.loads(path.read_text())["facts"] if path.exists() else {}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings → `{"data.image_size": 224, …}`."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, part in tree.items() for k, v in flat(part, f"{prefix}.{name}".strip(".")).items()}


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what one needs to explain a number later."""
    packages = ("torch", "numpy", "pandas", "scikit-learn", "pillow", "pydicom", "einops", "tensorboard", "mae-cxr")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "ranks": distributed.ranks(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda_version": torch.version.cuda,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout this code runs from, marked if files differ; None from a wheel."""
    here = Path(__file__).parents[2]
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    if not (here / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def training_device(config: Root) -> torch.device:
    """`device_of`, and UserError where `compile` lacks its compiler: before hours of decoding."""
    device = device_of(config)
    if config.compile and device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch's own choice
        if shutil.which(compiler) is None:
            raise UserError(
                f"compile: found no C++ compiler {compiler!r}, expected one on the PATH or named by CXX; "
                "install one, or give compile=false"
            )
    return device


def device_of(config: Root) -> torch.device:
    """The device a config asks for; also sets what torch keeps for the whole process: threads, tf32, determinism."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.launched():
        name = f"cuda:{distributed.local_rank()}"
    if name.startswith("cuda") and config.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device: found {name!r}, which is not available; expected auto, cpu or cuda") from None
    return device
