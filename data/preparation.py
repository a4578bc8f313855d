"""mae-prepare: Manifest → ImageStore, parallel and resumable; bad files are listed, never silently dropped."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from data.config import Root, UserError, command_parser, configure, expand, run_command

if TYPE_CHECKING:
    import pandas as pd

    from data.manifest import Manifest
    from data.store import ImageStore, StoreWriter

CHUNK = 32  # images a worker decodes between two reports


def prepare(config: Root, manifest: "Manifest | None" = None) -> "ImageStore":
    """The store of the config's images, decoded now where that has not been done.

    Raises UserError when more than max(10 files, 1 %) cannot be read.
    """
    from data.manifest import open_manifest
    from data.store import ImageStore

    table = (manifest or open_manifest(config)).table
    description = describe_store(config, table)
    name = f"{config.data.source}-{config.data.image_size}px-{description['fingerprint'][:12]}"
    folder = Path(expand(config.data.store, "data.store")) / name
    if not (folder / "store.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not (folder / "store.json").exists():  # another command may just have written it
                _write(config, folder, table, description)
    return ImageStore(folder)


def describe_store(config: Root, table: "pd.DataFrame") -> dict:
    """What the store holds and how it was read; its fingerprint changes with any of it."""
    from data.images import READER_VERSION

    data, root = config.data, expand(config.data.root, "data.root")
    images = sorted(f"{i}\t{path.removeprefix(root)}" for i, path in zip(table["image_id"], table["path"], strict=True))
    description = {
        "source": data.source,
        "root": str(Path(root).resolve()),
        "archive": [Path(root).stat().st_size, Path(root).stat().st_mtime_ns] if Path(root).is_file() else None,
        "image_size": data.image_size,
        "resize": data.resize,
        "tone": data.tone,
        "reader_version": READER_VERSION,
        "images": len(images),
        "image_ids_and_paths": hashlib.sha256("\n".join(images).encode()).hexdigest(),
    }
    text = json.dumps(description, sort_keys=True)
    return {**description, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another command that prepares {folder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(config: Root, folder: Path, table, description: dict) -> None:
    from data.store import StoreWriter

    table = table.sort_values("image_id")  # rows do not depend on splits or on the order of the CSVs
    writer = StoreWriter(folder, table["image_id"].tolist(), table["path"].tolist(), config.data.image_size)
    _decode_all(config, writer)
    allowed = max(10, len(table) // 100)
    if writer.rejected > allowed:
        raise UserError(
            f"{folder / 'rejected.partial.csv'}: found {writer.rejected} unreadable of {len(table)} files, expected at "
            f"most {allowed}; see the reasons there, mend the files or data.root, delete {folder} and run again"
        )
    writer.finish(description)
    if writer.rejected:
        print(f"{writer.rejected} unreadable files are listed in {folder / 'rejected.csv'}", file=sys.stderr)


def _decode_all(config: Root, writer: "StoreWriter") -> None:
    from tqdm import tqdm

    from data.store import decode_rows

    data, todo = config.data, writer.todo().tolist()
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    jobs = [
        (str(writer.images), [(r, writer.paths[r]) for r in rows], data.image_size, data.resize, data.tone)
        for rows in chunks
    ]
    workers = min(data.workers or len(os.sched_getaffinity(0)), len(jobs))
    bar = tqdm(total=len(todo), desc=f"decode to {data.image_size} px", unit="image", disable=None)
    with bar, closing(_run(decode_rows, jobs, workers)) as decoded:
        for results in decoded:
            for row, size, reason in results:
                writer.note(row, size, reason)
            bar.update(len(results))


def _run(function: Callable, jobs: list[tuple], workers: int) -> Generator:
    if workers <= 1 or len(jobs) <= 8:  # starting processes costs more than a few hundred small images
        yield from (function(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()
        finally:  # an interrupt does not wait for what is left
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker would wait for ever on a parent that was killed."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def main(argv: list[str] | None = None) -> None:
    run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    config = configure(
        command_parser("mae-prepare", "Decode a data set once, into a memory-mapped store.").parse_args(argv)
    )
    from data.manifest import open_manifest

    manifest = open_manifest(config)
    print(*manifest.notes, manifest.summary(), sep="\n")
    store = prepare(config, manifest)
    print(f"store: {store.folder} ({len(store)} images of {config.data.image_size}x{config.data.image_size})")
