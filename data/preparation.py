"""Manifest → ImageStore, parallel and resumable; bad files are listed, never silently dropped."""

import sys
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from data.checksums import Listing, absolute, differing_tables, published_digests, read_listings, summary
from data.config import expand
from data.environment import usable_cores
from data.errors import UserError, quoted, withholding
from data.images import READER_VERSION, read_fitted
from data.locks import locked
from data.manifest import Manifest, open_manifest
from data.moved_stores import digest_of, moved_store
from data.privacy import credentialed_sources
from data.refusal import UnreadableImage, is_damage
from data.rejections import read_rejections, rejection_lines, waiting_for_plugins
from data.settings import DataConfig, DataSettings, Size
from data.store import Decoded, ImageStore, Postponed, StoreWriter, decode_rows
from data.store_integrity import described, facts_of, read_description
from data.store_reuse import forget_plan, take_over
from data.workers import TRIES, Job, Killed, run_jobs, run_one_by_one
from data.writing import keep_private, read_json, restoring_umask

AGAIN = 64  # images that are tried once more where the system would not read them
SUCCEEDS = "succeeds"  # in a description: the fingerprint of the store that this one replaces
CHUNK = 32  # images a worker decodes between two reports


@restoring_umask()
def prepare(config: DataConfig | DataSettings, manifest: Manifest | None = None, try_again: bool = False) -> ImageStore:
    """The store of the images of a config (or of its data section), decoded now if that has not been done.

    Without a manifest it looks anew which files are on disk. try_again, or no manifest: files that were rejected for
    want of a plugin are tried again if the plugins have changed since. Raises UserError if there is no image, if more
    than `data.max_rejected` cannot be read, or if an existing store is not what was written.
    """
    settings = config if isinstance(config, DataSettings) else config.data
    keep_private(credentialed_sources(settings), settings.share)
    if manifest is None:
        manifest = open_manifest(settings, look_again=True)
        try_again = True
    description = known_as(settings, manifest.table)

    finished = finished_store(settings, description)
    folder = finished or _make(settings, manifest, description)
    store = _opened(folder, description, manifest.table)
    if try_again:
        store = _with_files_of_new_plugins(settings, manifest, store)
    _say_what_is_unreadable(store, in_full=try_again or not finished)

    for look in manifest.looks:
        look.remember(stores_folder(settings))
    for headers in manifest.headers:
        headers.remember(stores_folder(settings))
    return store


def _make(settings: DataSettings, manifest: Manifest, description: dict[str, Any]) -> Path:
    """The folder of the store of that description, made now unless another command has just done so."""
    for look in manifest.looks:
        look.require_some()
    folder = _place(settings, description)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"waiting for another command that prepares {folder}", wait=True):
        if not (folder / "store.json").exists():
            with withholding(manifest.credentialed):
                _write(settings, folder, manifest.table, description)
    return folder


def _place(settings: DataSettings, description: dict[str, Any]) -> Path:
    name = f"{settings.source}-{_pixels(settings.image_size)}px-{description['fingerprint'][:12]}"
    return stores_folder(settings) / name


def known_as(settings: DataSettings, table: pd.DataFrame) -> dict[str, Any]:
    """The description of these images' store: with their place of today, or the one they had when it was made."""
    description = describe_store(settings, table)
    if (_place(settings, description) / "store.json").exists():
        return description
    roots = [expand(source.root, "data.root") for source in settings.each_source().values()]
    moved = moved_store(stores_folder(settings), settings, table, description, roots)
    if moved is None:
        return description

    before = facts_of(read_description(moved))
    then = before["root"] if isinstance(before["root"], str) else ", ".join(before["root"])
    made = f"made when the images were at {then}"
    if before["root"] == description["root"]:  # the same place, but another size or date
        made = f"made before the files of {then} were written anew"
    print(f"note: {moved}: {made}; the images are the same, so it is used", file=sys.stderr)
    return described(before)


def finished_store(settings: DataSettings, description: dict[str, Any]) -> Path | None:
    """The folder of the finished store of that description, or of the one that replaced it; else None."""
    folder = _place(settings, description)
    if not (folder / "store.json").exists():
        return None

    # a store is never changed: when plugins made more files readable, another one replaced it
    successors: dict[str, Path] = {}
    for path in sorted(folder.parent.glob(f"{settings.source}-*/store.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):
            successors[read_json(path)[SUCCEEDS]] = path.parent
    fingerprint = description["fingerprint"]
    while fingerprint in successors:
        folder = successors.pop(fingerprint)
        fingerprint = read_description(folder)["fingerprint"]
    return folder


def _opened(folder: Path, description: dict[str, Any], table: pd.DataFrame, sampled: bool = True) -> ImageStore:
    """The store of that description; UserError where it is another one, or not what was written."""
    store = ImageStore(folder, sampled)
    wanted = facts_of(description)
    found = {name: value for name, value in facts_of(store.description).items() if name in wanted}
    if found != wanted:
        raise UserError(
            f"{folder / 'store.json'}: found the description of another store ({store.fingerprint[:12]}), "
            f"expected that of this one; put it back, or delete {folder} and run mae-prepare"
        )
    if not store.vouched:
        _check_order(store, table)
        print(f"note: {folder}: made before stores had digests: its contents cannot be checked", file=sys.stderr)
    return store


def _check_order(store: ImageStore, table: pd.DataFrame) -> None:
    """UserError where an image of a store without digests has another row than it was given."""
    for row, image_id in enumerate(sorted(table["image_id"])):
        if store.index.get(image_id, row) != row:
            raise UserError(
                f"{store.folder / 'index.csv'}: found row {store.index[image_id]} where row {row} was written, "
                f"expected the rows in their order; put it back, or delete {store.folder} and run mae-prepare"
            )


def verify(config: DataConfig | DataSettings) -> ImageStore:
    """The store of a config, after all of it, every pixel included, is compared with what was written.

    Raises UserError where it is not, naming the first rows that differ, and where no store is finished.
    """
    settings = config if isinstance(config, DataSettings) else config.data
    if settings.store is False:
        raise UserError("data.store: found false, expected the folder of the store to verify")
    table = open_manifest(settings).table
    description = known_as(settings, table)
    folder = finished_store(settings, description)
    if folder is None:
        place = _place(settings, description)
        raise UserError(f"{place}: found no finished store, expected one; run mae-prepare")
    store = _opened(folder, description, table, sampled=False)
    store.verify()
    return store


def _with_files_of_new_plugins(settings: DataSettings, manifest: Manifest, store: ImageStore) -> ImageStore:
    """The store, or one that replaces it if a file that lacked a plugin can be read by now.

    Runs may depend on the first one, so it stays as it is.
    """
    lines = [line for line in read_rejections(store.folder) if line.get("plugins")]  # older stores have no such column
    if not lines:
        return store

    now = plugins_here()
    paths = waiting_for_plugins(lines, now)
    with withholding(manifest.credentialed):
        readable = any(_is_readable(settings, path) for path in paths)
    if not readable:
        return store
    print(f"{len(paths):,} files lacked a plugin when {store.folder} was made; they are tried again", flush=True)
    facts = facts_of(store.description) | {SUCCEEDS: store.fingerprint, "plugins": now}
    folder = _make(settings, manifest, described(facts))
    return _opened(folder, described(facts), manifest.table)


def _say_what_is_unreadable(store: ImageStore, in_full: bool) -> None:
    """in_full: how many and why. Else only that another try may help; until then a run keeps the images it has."""
    lines = read_rejections(store.folder)
    if not lines:
        return
    now = plugins_here()
    waiting = waiting_for_plugins(lines, now)
    if in_full:
        said = rejection_lines(store.folder, store.description.get("images", len(store) + len(lines)), now)
        print(*said, sep="\n", file=sys.stderr, flush=True)
    elif waiting:
        print(f"note: {len(waiting):,} rejected files lacked a plugin; other plugins are here: mae-prepare tries again")


def _is_readable(settings: DataSettings, path: str) -> bool:
    try:
        read_fitted(path, settings.image_size, settings.resize, settings.tone)
    except UnreadableImage:
        return False
    return True


def plugins_here() -> str:
    """The packages that decode compressed DICOM files here, with their versions."""
    from data.dicom import plugins  # pydicom is loaded where it is needed

    return plugins()


def stores_folder(settings: DataSettings) -> Path:
    """Where stores lie; a config without one (`data.store: false`) has none."""
    assert settings.store is not False
    return Path(expand(settings.store, "data.store"))


def describe_store(settings: DataSettings, table: pd.DataFrame) -> dict[str, Any]:
    """What the store holds and how it was read; its fingerprint changes with any of it."""
    roots = []
    archives = []
    for source in settings.each_source().values():
        path = Path(expand(source.root, "data.root"))
        roots.append(str(path.resolve()))
        archives.append(_size_and_time(path))

    # under another root, the same images change `root` alone, and not every path
    mixed = settings.source == "mix"
    prefix = "" if mixed else expand(settings.root, "data.root")
    paths = [path.removeprefix(prefix) for path in table["path"]]

    size = settings.image_size
    facts = {
        "source": settings.source,
        "root": roots if mixed else roots[0],
        "archive": archives if mixed else archives[0],
        "image_size": size if isinstance(size, int) else list(size),  # as JSON has it
        "resize": settings.resize,
        "tone": settings.tone,
        "reader_version": READER_VERSION,
        "images": len(table),
        "image_ids_and_paths": digest_of(table["image_id"], paths),
    }
    return described(facts)


def _size_and_time(path: Path) -> list[int] | None:
    """What tells an archive from a rewritten one; None for a folder."""
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _pixels(size: Size) -> str:
    """64, or 40x24: height and width."""
    if isinstance(size, int):
        return str(size)
    height, width = size
    return f"{height}x{width}"


def _write(settings: DataSettings, folder: Path, table: pd.DataFrame, description: dict[str, Any]) -> None:
    table = table.sort_values("image_id")  # rows do not depend on splits or on the order of the CSVs
    paths = table["path"].tolist()

    # what is published of the files, and whether the tables are what was published
    listings = read_listings(settings)
    for listing in listings:
        _warn(listing.warnings)
    _warn(differing_tables(listings))
    said = published_digests(listings)
    published = [said.get(absolute(path)) if said else None for path in paths]

    writer = StoreWriter(folder, table["image_id"].tolist(), paths, settings.image_size, published)
    for earlier, count in take_over(writer, description):
        print(f"{count:,} images taken over from {earlier}; delete it if no run needs it", flush=True)
    writer.doubt()
    _doubt_plugins(writer)
    _decode_all(settings, writer)
    for line in _compared(writer, listings):
        print(line, flush=True)

    # too many unreadable files are a mistake; a few are named and left out
    most = allowed(settings.max_rejected, len(table))
    if writer.rejected == len(table):
        raise UserError(
            f"{folder / 'rejected.partial.csv'}: found none of {len(table)} files readable, expected some; see the "
            f"reasons there, mend the files or data.root, delete {folder} and run again"
        )
    damaged = sum(map(is_damage, writer.reasons().values()))
    if damaged > most:
        raise UserError(
            f"{folder / 'rejected.partial.csv'}: found {damaged} unreadable of {len(table)} files, expected at "
            f"most {most}; see the reasons there, mend the files or data.root, delete {folder} and run again, or go "
            f"on without them: data.max_rejected={damaged}"
        )
    writer.finish(description)
    forget_plan(folder)


def _doubt_plugins(writer: StoreWriter) -> None:
    """Have files decoded again that lacked a plugin in an earlier attempt, if the plugins have changed since."""
    lacking = writer.lacking()
    if lacking:
        now = plugins_here()
        writer.try_again(row for row, then in lacking.items() if then != now)


def _warn(lines: list[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _compared(writer: StoreWriter, listings: list[Listing]) -> list[str]:
    """What came of each list of checksums, in a line."""
    if not listings:
        return []
    images = {absolute(path) for path in writer.paths if ".npz#" not in path}  # lists name only whole archives
    reasons = writer.reasons()

    lines = []
    for listing in listings:
        differing = 0
        for row in writer.rejected_rows():
            published = writer.published[row]
            if published and listing.files.get(absolute(writer.paths[row])) == published:
                differing += f"by {published.where}" in reasons[writer.image_ids[row]]
        if images and listing.files:
            lines.append(summary(listing, images, differing))
    return lines


def allowed(limit: int | float | None, count: int) -> int:
    """How many of `count` files may be unreadable."""
    if limit is None:
        return max(10, count // 100)
    if isinstance(limit, int):
        return limit
    return int(limit * count)


def _decode_all(settings: DataSettings, writer: StoreWriter) -> None:
    """Decode what the writer still lacks, in chunks that processes share.

    Raises UserError, after all others are decoded, for images whose process was killed even when it read them alone,
    and for those that the system would not read. Both may pass, so they are not rejected.
    """
    todo = writer.todo().tolist()
    suspects = writer.killers().tolist()
    jobs = []
    for start in range(0, len(todo), CHUNK):
        jobs.append(_job(settings, writer, todo[start : start + CHUNK]))

    workers = min(settings.workers or usable_cores(), len(jobs))
    size = _pixels(settings.image_size)
    with tqdm(total=len(todo) + len(suspects), desc=f"decode to {size} px", unit="image", disable=None) as bar:
        postponed: dict[int, str] = {}
        try:
            _note_all(writer, run_jobs(decode_rows, jobs, workers), bar, postponed)
        except Killed as killed:
            for _, chunk, *_ in killed.jobs:
                suspects += [row for row, *_ in chunk]

        # which of a chunk's images is it? And does the system now read what it would not read before?
        if len(postponed) <= AGAIN:
            suspects += postponed
            postponed = {}
        try:
            alone = [_job(settings, writer, [row]) for row in suspects]
            _note_all(writer, run_one_by_one(decode_rows, alone), bar, postponed)
        except Killed as killed:
            raise _killed(writer, [chunk[0][0] for _, chunk, *_ in killed.jobs]) from None
    if postponed:
        row, reason = next(iter(postponed.items()))
        reason = quoted(reason, f"row {row} of {writer.folder}: the system does not read its file")
        raise UserError(
            f"{reason} ({len(postponed)} such files), which may pass; all others are decoded and kept: run again"
        )


def _job(settings: DataSettings, writer: StoreWriter, rows: list[int]) -> Job:
    chunk = [(row, writer.paths[row], writer.published[row]) for row in rows]
    return str(writer.images), chunk, settings.image_size, settings.resize, settings.tone


def _note_all(
    writer: StoreWriter, decoded: Generator[list[Decoded]], bar: "tqdm[Any]", postponed: dict[int, str]
) -> None:
    """Record what is decoded; adds rows that must wait to `postponed`, with the reason."""
    with closing(decoded):
        for results in decoded:
            for result in results:
                writer.note(*result)
                row, *_, reason = result
                if isinstance(reason, Postponed):
                    postponed[row] = reason
                else:
                    bar.update()


def _killed(writer: StoreWriter, rows: list[int]) -> UserError:
    """What to say of images whose process is killed; their rows are remembered as such."""
    for row in rows:
        writer.suspect(row)
    more = ""
    if len(rows) > 1:
        more = f" ({len(rows)} such files)"
    place = quoted(writer.paths[rows[0]], f"row {rows[0]} of {writer.folder}")
    return UserError(
        f"{place}: found the process that reads it killed {TRIES} times{more}, expected it to live; "
        f"all others are decoded and kept: run again with more memory free, or take the file away"
    )
