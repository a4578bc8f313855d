"""A run folder: which config made it, on what, and whether it may be continued."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ValidationError

from data.config import make_config, print_config, with_new_names
from data.errors import UserError
from data.locks import locked
from data.plain_values import read_json_values, read_yaml
from data.writing import expect_no_links_out, write_json, write_text
from mae.engine import distributed
from mae.engine.checkpoint import check_finished, check_kept, latest_checkpoint, load_checkpoint
from mae.engine.checkpoint_file import stands_somewhere
from mae.settings import MAEConfig


@dataclass(frozen=True)
class Resumable:
    """Which settings a stage's runs depend on, and which of these may change when a run is continued."""

    sections: tuple[str, ...]  # that the stage reads; what another command reads may always change
    free: frozenset[str]  # dotted keys that do not affect what is learned
    epochs: str  # the dotted key that may grow: more epochs continue a run, fewer never do

    def may_change(self, key: str, before: Any, after: Any) -> bool:
        if key in self.free or (key == self.epochs and before < after):
            return True
        if key.endswith(".batch_size") and after == "auto":  # it takes whatever number the run began with
            return True

        # in a list of sections, such as data.sources, the keys that are free in the section are free in its entries
        section = key.rpartition(".")[0]
        then = self.binding(before, section)
        now = self.binding(after, section)
        return then is not None and then == now

    def binding(self, entries: Any, section: str) -> list[dict[str, Any]] | None:
        """What may not change in a list of sections; None if it is no such list."""
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return None
        kept = []
        for entry in entries:
            # the root tells an entry from the others
            fixed = {
                name: value for name, value in entry.items() if f"{section}.{name}" not in self.free or name == "root"
            }
            kept.append({name: value for name, value in fixed.items() if value is not None})
        return kept


def check_run(
    folder: Path,
    config: MAEConfig,
    resumable: Resumable,
    facts: Mapping[str, Any] | None = None,
    same_epochs: bool = False,
) -> None:
    """Raise UserError if the folder holds a run of another config, naming the first difference.

    facts: what else must not have changed (data fingerprint, initial checkpoint); None leaves them out.
    same_epochs: the number of epochs must be the same, too: not even more of them continue the run.
    """
    # config.yaml is for people; the run resumes from the checkpoint. The two may disagree, or one may be missing
    made = _made_with(folder / "config.yaml")
    saved = saved_with(folder)
    branch = "pretrain" in resumable.sections and config.pretrain.continue_from is not None
    if not (branch or stands_somewhere(folder)):
        _expect_nothing_lost(folder)
    if made is None and saved is None:
        return

    # the settings that the stage reads, then and now
    wanted = config.model_dump(mode="json")
    now = flat({name: wanted.get(name) for name in resumable.sections})
    if made is not None:
        made = _with_newer_settings(made)
        then = flat({name: made.get(name) for name in resumable.sections})
        _expect_same(folder, then, now, resumable, same_epochs)
    if saved is not None:
        then = flat({name: saved.settings.get(name) for name in resumable.sections})
        known = {key: value for key, value in now.items() if key in then}  # an old checkpoint lacks newer settings
        _expect_same(folder, then, known, resumable, same_epochs=same_epochs and made is None)
        _expect_not_cooled(folder, saved.trained, then, known, resumable)
    if facts is not None:
        known = _environment(folder).facts
        if facts and not known:
            raise UserError(
                f"{folder / 'environment.json'}: found no record of the images that the run trains on, expected the "
                "one it wrote there; put the file back, or choose another folder (run=…, in stage two finetune.run=…)"
            )
        _expect_same(folder, known, dict(facts), resumable, same_epochs=False)


def _expect_nothing_lost(folder: Path) -> None:
    """UserError if a run would begin anew over weights that it has kept, as somebody has removed its last.pt.

    The first best.pt is written a moment before the first last.pt, and a kill may come between them. After the first
    epoch little is lost by that; a run that continues another one's begins later, so it is not asked.
    """
    best = folder / "best.pt"
    try:
        reached = load_checkpoint(best, numbers=False).epoch
    except UserError:  # there is none, or none that anybody could use
        return
    if reached > 1:
        raise UserError(
            f"{best}: found the weights of epoch {reached} without a last.pt to go on from, expected both: the run "
            "would begin anew and replace them; put last.pt back, choose another folder (run=…, in stage two "
            "finetune.run=…), or remove best.pt"
        )


def _expect_same(
    folder: Path, then: dict[str, Any], now: dict[str, Any], resumable: Resumable, same_epochs: bool
) -> None:
    """UserError naming the first difference that is not allowed."""
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        fixed = same_epochs and key == resumable.epochs
        if before != after and (fixed or not resumable.may_change(key, before, after)):
            raise UserError(
                f"{folder}: found a run made with {key} = {before}, expected {after}; "
                "choose another folder (run=…, in stage two finetune.run=…), or remove this one"
            )


def _expect_not_cooled(
    folder: Path, reached: float, then: dict[str, Any], now: dict[str, Any], resumable: Resumable
) -> None:
    """UserError for more epochs after a constant rate began to cool down: it would jump back to its peak."""
    optimizer = f"{resumable.epochs.rpartition('.')[0]}.optimizer"
    before, after = then.get(resumable.epochs), now.get(resumable.epochs)
    if before == after or then.get(f"{optimizer}.schedule") != "constant":
        return
    cools_from = before - then[f"{optimizer}.cooldown_epochs"]
    if reached > cools_from:
        raise UserError(
            f"{folder}: found a run of {before} epochs whose rate has been cooling down since epoch {cools_from:g}, "
            f"expected one that has not for {resumable.epochs} = {after}; let another run go on from weights that it "
            "kept before (pretrain.continue_from)"
        )


def settings_of_run(folder: Path) -> dict[str, Any] | None:
    """The settings that a run was begun with; None where the folder holds none."""
    made = _made_with(folder / "config.yaml")
    if made:
        return made
    saved = saved_with(folder)
    return saved.settings if saved else None


class Saved(NamedTuple):
    """The settings that a run's checkpoint was saved with, and how far it has come."""

    settings: dict[str, Any]
    epoch: int  # completed
    trained: float  # with the share of the epoch that it stands in


def saved_with(folder: Path) -> Saved | None:
    """From the run's checkpoint; None if none can be read. The training will report that."""
    for name in ("last.pt", "previous.pt"):
        with suppress(UserError):
            checkpoint = load_checkpoint(folder / name, numbers=False)
            settings = with_new_names(checkpoint.settings, checkpoint.place)
            return Saved(settings, checkpoint.epoch, checkpoint.trained)
    return None


def _made_with(path: Path) -> dict[str, Any] | None:
    """The settings of a run's config.yaml; None where there is none."""
    if not path.exists():
        return None
    made = read_yaml(path)
    if not isinstance(made, dict):
        raise UserError(f"{path}: found no settings, expected those of the run; remove the folder")
    return with_new_names(made, str(path))


def _with_newer_settings(made: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version did not have get their defaults, which are what it did then."""
    with suppress(UserError):  # edited settings that are not valid are compared as they stand
        return make_config(made, "config.yaml").model_dump(mode="json")
    return made


def is_finished(folder: Path, epochs: int, kept: Collection[int] = ()) -> bool:
    """Whether the folder's run has trained for that many epochs, to its very end.

    kept: epochs whose weights are kept for good. Raises UserError if it has, but its best.pt is missing or another's,
    and if it has passed an epoch of `kept` whose weights are missing.
    """
    last = latest_checkpoint(folder)
    if last is not None:
        check_kept(folder, last, kept)
    if last is None or last.epoch < epochs or (folder / "previous.pt").exists():
        return False
    check_finished(folder, last)
    return True


def expect_checkpoint(folder: Path) -> None:
    """UserError if the folder has nothing to resume from, where --resume insists on it."""
    if not stands_somewhere(folder):
        raise UserError(f"{folder}: found no last.pt, expected one with --resume; leave --resume out for a new run")


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock the run folder for this command, creating it if needed; of several ranks the first one holds the lock.

    Raises UserError if another command trains there: two would overwrite each other's checkpoints in turn.
    """
    if not distributed.is_main():
        yield
        return

    folder.mkdir(parents=True, exist_ok=True)
    expect_no_links_out(folder)
    busy = (
        f"{folder}: found another command that trains there, expected none; "
        "wait for it, or choose another folder (run=…, in stage two finetune.run=…)"
    )
    with locked(folder, busy, wait=False):
        yield


def start_run(folder: Path, config: MAEConfig, facts: Mapping[str, Any]) -> None:
    """Write config.yaml, and environment.json with an entry for every start (first and resumed), into a held folder."""
    if not distributed.is_main():
        return

    # a run that is continued on another machine says so
    starts = _environment(folder).starts
    here = environment() | {"device": str(device_of(config.device)), "seed": config.seed, "product": config.product}

    write_json(folder / "environment.json", {"facts": dict(facts), "starts": [*starts, here]})
    if starts and not (folder / "config.yaml").exists():
        print(f"note: {folder / 'config.yaml'}: found no such file, so it is written anew", file=sys.stderr)
    write_text(folder / "config.yaml", print_config(config) + "\n")


class _Environment(BaseModel):
    """What environment.json holds."""

    facts: dict[str, Any] = {}
    starts: list[dict[str, Any]] = []


def _environment(folder: Path) -> _Environment:
    """The folder's environment.json; empty if it is missing, UserError if it is not valid."""
    path = folder / "environment.json"
    if not path.exists():
        return _Environment()
    try:
        return _Environment.model_validate(read_json_values(path), strict=True)
    except ValidationError as error:
        name = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its content"
        raise UserError(
            f"{path}: {name}: found no values by name, expected what the run wrote there; remove the folder"
        ) from None


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings → `{"data.image_size": 224, …}`; UserError if one is given both nested and dotted."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for name, part in tree.items():
        inner = flat(part, f"{prefix}.{name}".strip("."))
        for twice in inner.keys() & leaves.keys():
            raise UserError(f"{twice}: found it twice, nested and dotted, expected it once")
        leaves |= inner
    return leaves


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what one needs to explain a number later."""
    packages = ("torch", "numpy", "pandas", "scikit-learn", "pillow", "pydicom", "einops", "tensorboard", "mae-cxr")

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "ranks": distributed.world_size(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda_version": torch.version.cuda,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The commit of the checkout this code runs from, marked if files differ; None from a wheel.

    Asked once: the code in memory stays what it is, whatever happens to the checkout.
    """
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None

    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(git, capture_output=True, encoding="utf-8", errors="replace", timeout=10)
        return done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def training_device(config: MAEConfig) -> torch.device:
    """The device a training asks for; UserError if it is missing, or `compile` lacks its compiler.

    Call this before anything is decoded, which may take hours.
    """
    distributed.check_launch()
    device = device_of(config.device)

    # on a CPU, torch.compile writes C++
    if config.compile and device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch's own choice
        if shutil.which(compiler) is None:
            raise UserError(
                f"compile: found no C++ compiler {compiler!r}, expected one on the PATH or named by CXX; "
                "install one, or give compile=false"
            )
    return device


def device_of(name: str) -> torch.device:
    """The device that a config's `device` names; among several ranks each has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.launched():
        name = f"cuda:{distributed.local_rank()}"

    # a name may be well formed and its device missing, so try to put something there
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"device: found {name!r}, which is not available; expected auto, cpu or cuda{_why_no_cuda(name)}"
        ) from None
    return device


def _why_no_cuda(name: str) -> str:
    """What to do if a CUDA device was asked for and is missing; empty for other names."""
    if not re.fullmatch(r"cuda(:\d+)?", name):
        return ""
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"; {build} is built for CPUs alone: install one with CUDA by the command that pytorch.org gives, with "
            "--force-reinstall, or give device=cpu"
        )
    count = torch.cuda.device_count()
    if count:
        return f"; there are {count}, cuda:0 to cuda:{count - 1}"
    return f"; {build} is built for CUDA {torch.version.cuda}, but finds no GPU: see nvidia-smi, or give device=cpu"


def configure_torch(config: MAEConfig) -> None:
    """Set what torch keeps for the whole process: threads, determinism, precision of float32 products on CUDA."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    if torch.cuda.is_available():  # by default torch uses TF32 for convolutions, but not for matrix products
        torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
