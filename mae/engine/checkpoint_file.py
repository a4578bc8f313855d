"""Which file a `--checkpoint` means: itself, or a run folder's best.pt. Light: bad paths are answered without torch."""

from pathlib import Path

from data.errors import UserError, printable

NAMED = 8  # runs of a comparison that a message lists


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that a path names, which may be a run's folder; UserError where there is none."""
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: found no such file, expected a checkpoint (.pt) or the folder of a run")
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


def is_run(folder: Path) -> bool:
    """Whether a training has begun in the folder."""
    if any((folder / name).is_file() for name in ("best.pt", "last.pt", "previous.pt")):
        return True
    return (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()


def runs_in(folder: Path) -> list[str]:
    """Names of the runs right below a folder, as below a comparison's; those with a best.pt go first."""
    runs = sorted(each for each in folder.iterdir() if each.is_dir() and is_run(each))
    runs.sort(key=lambda run: not (run / "best.pt").is_file())
    return [run.name for run in runs]
