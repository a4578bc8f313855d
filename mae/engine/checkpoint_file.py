"""Which file a `--checkpoint` means: itself, or a run folder's best.pt. Light: bad paths are refused without torch."""

import os
import re
from pathlib import Path

from data.errors import UserError, printable

ADDRESS = r"\w{2,}:/"  # how an address begins; a Path has one slash of its two, and a drive has one letter
# what some programs put before a hub's `owner/name`
HUB = r"^(hf|hf[-_]hub):/?(?=[\w-]+/[\w.-]+$)|^https?:/(huggingface\.co|hf\.co)/(?=[\w-]+/[\w.-]+$)"
NAMED = 8  # runs of a comparison that a message lists


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint file for a path, which may be a run's folder; UserError if there is none."""
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(
                f"{path}: found no such file, expected a checkpoint (.pt) or the folder of a run{_not_here(path)}"
            )
        return path

    best = path / "best.pt"
    if best.is_file():
        return best
    if is_run(path):
        raise UserError(
            f"{path}: found a run without best.pt, expected one that has ended an epoch with a validation; wait for "
            "it, or give its last.pt by name"
        )
    runs = runs_in(path)
    if runs:
        shown = ", ".join(printable(name) for name in runs[:NAMED])
        more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
        raise UserError(
            f"{path}: found a folder of {len(runs)} runs ({shown}{more}), expected one of them; "
            f"give {path / runs[0]}, say"
        )
    raise UserError(f"{path}: found a folder without best.pt, expected a checkpoint (.pt) or the folder of a run")


def best_of(run: str | Path) -> Path:
    """The best.pt of a classifier's run, the one that is evaluated; UserError if there is none."""
    path = Path(run)
    if not path.exists():
        raise UserError(f"{run}: found no such folder, expected the folder of a mae-finetune run")
    if path.is_file() and path.name != "best.pt":
        raise UserError(f"{run}: found a file, expected the folder of a mae-finetune run, whose best.pt is evaluated")
    return checkpoint_file(path)


def existing(path: str | Path) -> Path:
    """The path of weights; UserError if nothing is there, with advice on an address or a name on a hub."""
    path = Path(path)
    if path.exists():
        return path
    raise UserError(f"{path}: found no such file or folder, expected weights{_not_here(path)}")


def _not_here(path: Path) -> str:
    """What to do with an address, or with `owner/name`, as names on a hub of weights are; empty for other paths."""
    name = re.sub(HUB, "", str(path))
    if re.fullmatch(r"[\w-]+/[\w.-]+", name) and (name != str(path) or not path.parent.exists()):
        folder = Path(name).name
        return f"; nothing is downloaded here: hf download {name} --local-dir {folder}, then give that folder"
    if re.match(ADDRESS, name):
        return "; nothing is downloaded here: download it, then give the file"
    return ""


def stands_somewhere(folder: Path) -> bool:
    """Whether the folder holds a training that can be resumed: one that has saved a checkpoint."""
    return any((folder / name).exists() for name in ("last.pt", "previous.pt"))


def is_run(folder: Path) -> bool:
    """Whether a training has begun in the folder; false if the folder may not be read."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return False
    if any((folder / name).is_file() for name in ("best.pt", "last.pt", "previous.pt")):
        return True
    return (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()


def runs_in(folder: Path) -> list[str]:
    """Names of the runs directly below a folder, such as a comparison's; those with a best.pt come first."""
    runs = sorted(each for each in folder.iterdir() if each.is_dir() and is_run(each))
    runs.sort(key=lambda run: not (run / "best.pt").is_file())
    return [run.name for run in runs]
