"""Manifest → ImageStore, parallel and resumable; bad files are listed, never silently dropped."""

import hashlib
import json
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from data.checksums import Listing, absolute, differing_tables, published_digests, read_listings, summary
from data.config import expand
from data.errors import UserError, quoted, withholding
from data.images import READER_VERSION
from data.locks import locked
from data.manifest import Manifest, open_manifest
from data.privacy import credentialed_sources
from data.settings import DataConfig, DataSettings, Size
from data.store import Decoded, ImageStore, Postponed, StoreWriter, decode_rows
from data.store_reuse import forget_plan, take_over
from data.workers import TRIES, Job, Killed, run_jobs, run_one_by_one, usable_cores
from data.writing import keep_private, restoring_umask

AGAIN = 64  # images that are tried once more where the system would not read them
CHUNK = 32  # images a worker decodes between two reports


@restoring_umask()
def prepare(config: DataConfig | DataSettings, manifest: Manifest | None = None) -> ImageStore:
    """The store of the images of a config (or of its data section), decoded now where that has not been done.

    Without a manifest it looks anew which files are on disk. Raises UserError when none is, and when more
    than `data.max_rejected` cannot be read.
    """
    settings = config if isinstance(config, DataSettings) else config.data
    keep_private(credentialed_sources(settings), settings.share)
    manifest = manifest or open_manifest(settings, look_again=True)
    description = describe_store(settings, manifest.table)
    name = f"{settings.source}-{_pixels(settings.image_size)}px-{description['fingerprint'][:12]}"
    stores = stores_folder(settings)
    folder = stores / name

    if not (folder / "store.json").exists():
        for look in manifest.looks:
            look.require_some()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, f"waiting for another command that prepares {folder}", wait=True):
            if not (folder / "store.json").exists():  # another command may just have written it
                with withholding(manifest.credentialed):
                    _write(settings, folder, manifest.table, description)

    for look in manifest.looks:
        look.remember(stores)
    return ImageStore(folder)


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

    # the same images under another root are another store only by `root`, not by every path
    mixed = settings.source == "mix"
    prefix = "" if mixed else expand(settings.root, "data.root")
    pairs = zip(table["image_id"], table["path"], strict=True)
    images = sorted(f"{image_id}\t{path.removeprefix(prefix)}" for image_id, path in pairs)

    size = settings.image_size
    description = {
        "source": settings.source,
        "root": roots if mixed else roots[0],
        "archive": archives if mixed else archives[0],
        "image_size": size if isinstance(size, int) else list(size),  # as JSON has it
        "resize": settings.resize,
        "tone": settings.tone,
        "reader_version": READER_VERSION,
        "images": len(images),
        "image_ids_and_paths": hashlib.sha256("\n".join(images).encode()).hexdigest(),
    }
    text = json.dumps(description, sort_keys=True)
    return {**description, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


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
    if writer.rejected > most:
        raise UserError(
            f"{folder / 'rejected.partial.csv'}: found {writer.rejected} unreadable of {len(table)} files, expected at "
            f"most {most}; see the reasons there, mend the files or data.root, delete {folder} and run again, or go "
            f"on without them: data.max_rejected={writer.rejected}"
        )
    writer.finish(description)
    forget_plan(folder)
    if writer.rejected:
        print(f"{writer.rejected} unreadable files are listed in {folder / 'rejected.csv'}", file=sys.stderr)


def _warn(lines: list[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _compared(writer: StoreWriter, listings: list[Listing]) -> list[str]:
    """What came of each list of checksums, in a line."""
    if not listings:
        return []
    images = {absolute(path) for path in writer.paths if ".npz#" not in path}  # of an archive the whole is listed
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

    Raises UserError for images whose process was killed, alone, when all others are decoded: it may be for lack of
    memory, so they are not rejected; nor are those that the system would not read, which may pass.
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

        # which of a chunk's images is it? And does it go better now what the system would not do just now?
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
    """Record what is decoded; adds to `postponed` the rows for which the time is not now, with the reason."""
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
    """What to say of images whose process is killed, which are remembered as such."""
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
