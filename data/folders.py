"""A folder written whole or not at all, and files that belong together: by one command at a time."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import UserError, printable
from data.locks import FILES, locked


@contextmanager
def _held(path: Path) -> Iterator[Path]:
    """The folder beside `path` that is held while `path` is written; UserError where another command holds it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a read-only folder, say: speak of the path that was asked for
        error.filename = str(path)
        raise
    with locked(partial, f"{path}: found another command that writes it, expected none; wait for it", wait=False):
        yield partial


@contextmanager
def written_by_one(path: Path) -> Iterator[None]:
    """In the block only this command writes the file `path` and what belongs to it; UserError where another does."""
    if path.exists() and not path.is_file():  # a pipe or a terminal
        yield
        return
    with _held(path) as partial:
        try:
            yield
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path, names: Collection[str]) -> Iterator[Path]:
    """A folder to write files of these names to; it takes the place of `path` when the block ends well.

    An earlier folder of the same kind is replaced whole. Raises UserError, before anything is written, if `path` holds
    files of other names, or if another command is writing it.
    """
    before = path.with_name(f".{path.name}.before")
    if before.is_dir() and not path.exists():  # killed between the two renames below
        before.rename(path)
    _expect_replaceable(path, names)

    with _held(path) as partial:
        _empty(partial)  # of what a killed command left
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for name in FILES:
            (partial / name).unlink(missing_ok=True)

        # a folder cannot be renamed over another
        shutil.rmtree(before, ignore_errors=True)
        if path.exists():
            path.rename(before)
        partial.rename(path)
        shutil.rmtree(before, ignore_errors=True)


def _expect_replaceable(path: Path, names: Collection[str]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: found a file, expected a folder to write, or none there")
    others = sorted(each.name for each in path.iterdir() if each.name not in names)
    if others:
        raise UserError(
            f"{path}: found {printable(others[0])} there, expected no folder, or one that this command wrote earlier; "
            "choose another one"
        )


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.name in FILES:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
