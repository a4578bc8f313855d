"""Whether what a config names is there at all. Light: a bad path is reported before pandas or torch is imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.config import as_typed, expand
from data.errors import UserError, quoted
from data.settings import DataSettings

GIVE = "give data.root=FOLDER"
TABLES = (".csv", ".csv.gz", ".tsv", ".txt", ".xlsx", ".xls", ".ods")


def expect_places(settings: DataSettings) -> None:
    """UserError naming the first data set that is not where the settings say, or for which they say nothing."""
    if settings.source not in ("mix", "phantom") and "root" not in settings.model_fields_set:
        raise UserError(f"data.root: found none for data.source={settings.source}, expected the data set's; {GIVE}")

    for source in settings.sources or (settings,):
        if source.source == "phantom":  # drawn if it is missing
            continue
        root = Path(expand(source.root, "data.root"))
        if source.source == "medmnist":
            require_file(root)
            continue
        require_folder(root)
        if source.source == "table":
            require_table(root, source.table or settings.table)


def expect_unlabelled(settings: DataSettings) -> None:
    """The same for `data.unlabelled`, which only pretraining reads."""
    for number, entry in enumerate(settings.unlabelled):
        alone = settings.model_copy(update={"unlabelled": (entry,)}).of_unlabelled()
        assert alone is not None
        with told_as(f"data.unlabelled.{number}"):
            expect_places(alone)


@contextmanager
def told_as(place: str) -> Iterator[None]:
    """Errors about further data name their place, and leave out the advice that is meant for the labelled data."""
    try:
        yield
    except UserError as error:
        said = str(error).replace(f"; {GIVE}", "").replace(f", or {GIVE}", "").removeprefix("data.root: ")
        raise UserError(said if said.startswith(place) else f"{place}: {said}") from None


def require_folder(root: Path) -> None:
    """UserError unless `root` is a folder."""
    if not root.is_dir():
        found = f"is a file, expected a folder; {GIVE}" if root.exists() else "no such folder"
        raise UserError(f"data.root: {root}: {found}")


def require_file(root: Path) -> None:
    """UserError unless `root` is a file, as MedMNIST's is."""
    if not root.is_file():
        found = "is a folder, expected a MedMNIST .npz file" if root.exists() else "no such file"
        raise UserError(f"data.root: {root}: {found}")


def require_table(root: Path, table: str) -> Path:
    """The CSV of a source that is a table; UserError where it is not there."""
    place = root / expand(table, "data.table")
    if place.is_file():
        return place
    others = sorted(path.name for path in root.iterdir() if path.name.lower().endswith(TABLES))
    hint = ""
    if others:
        hint = quoted(f"; did you mean {as_typed('data.table', others[0])}?", instead="")
    raise UserError(f"{place}: no such file, expected the CSV that data.table names below data.root{hint}")
