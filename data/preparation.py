"""mae-prepare: Manifest → ImageStore, parallel and resumable; bad files are listed, never silently dropped."""

import fcntl
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from data.config import Root, UserError, command_parser, configure, expand, run_command
from data.settings import Size

if TYPE_CHECKING:
    import pandas as pd

    from data.manifest import Manifest
    from data.store import ImageStore, StoreWriter

CHUNK = 32  # images a worker decodes between two reports


def prepare(config: Root, manifest: "Manifest | None" = None) -> "ImageStore":
    """The store of the config's images, decoded now where that has not been done.

    Without a manifest it looks anew which files are on disk. Raises UserError when none is, and when more
    than `data.max_rejected` cannot be read.
    """
    from data.manifest import open_manifest
    from data.store import ImageStore

    manifest = manifest or open_manifest(config, look_again=True)
    table = manifest.table
    description = describe_store(config, table)
    name = f"{config.data.source}-{_pixels(config.data.image_size)}px-{description['fingerprint'][:12]}"
    stores = Path(expand(config.data.store, "data.store"))
    folder = stores / name
    if not (folder / "store.json").exists():
        for look in manifest.looks:
            look.require_some()
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not (folder / "store.json").exists():  # another command may just have written it
                _write(config, folder, table, description)
    for look in manifest.looks:
        look.remember(stores)
    return ImageStore(folder)


def describe_store(config: Root, table: "pd.DataFrame") -> dict:
    """What the store holds and how it was read; its fingerprint changes with any of it."""
    from data.images import READER_VERSION

    data = config.data
    roots = [Path(expand(one.root, "data.root")) for one in data.each_source().values()]
    files = [[root.stat().st_size, root.stat().st_mtime_ns] if root.is_file() else None for root in roots]
    mixed = data.source == "mix"
    prefix = "" if mixed else expand(data.root, "data.root")
    pairs = zip(table["image_id"], table["path"], strict=True)
    images = sorted(f"{image_id}\t{path.removeprefix(prefix)}" for image_id, path in pairs)
    description = {
        "source": data.source,
        "root": [str(root.resolve()) for root in roots] if mixed else str(roots[0].resolve()),
        "archive": files if mixed else files[0],
        "image_size": data.image_size if isinstance(data.image_size, int) else list(data.image_size),  # as JSON
        "resize": data.resize,
        "tone": data.tone,
        "reader_version": READER_VERSION,
        "images": len(images),
        "image_ids_and_paths": hashlib.sha256("\n".join(images).encode()).hexdigest(),
    }
    text = json.dumps(description, sort_keys=True)
    return {**description, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def _pixels(size: Size) -> str:
    """64, or 40x24: height and width."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


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
    from data.growth import forget_plan, take_over
    from data.store import StoreWriter

    table = table.sort_values("image_id")  # rows do not depend on splits or on the order of the CSVs
    writer = StoreWriter(folder, table["image_id"].tolist(), table["path"].tolist(), config.data.image_size)
    for earlier, count in take_over(writer, description):
        print(f"{count:,} images taken over from {earlier}; delete it if no run needs it", flush=True)
    _decode_all(config, writer)
    most = allowed(config.data.max_rejected, len(table))
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


def allowed(limit: int | float | None, count: int) -> int:
    """How many of `count` files may be unreadable."""
    if limit is None:
        return max(10, count // 100)
    return limit if isinstance(limit, int) else int(limit * count)


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
    bar = tqdm(total=len(todo), desc=f"decode to {_pixels(data.image_size)} px", unit="image", disable=None)
    with bar, closing(_run(decode_rows, jobs, workers)) as decoded:
        for results in decoded:
            for result in results:
                writer.note(*result)
            bar.update(len(results))


def _run(function: Callable, jobs: list[tuple], workers: int) -> Generator:
    if workers <= 1 or len(jobs) <= 8:  # starting processes costs more than a few hundred small images
        yield from (function(*job) for job in jobs)
        return
    with start_processes(workers) as pool:
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()
        finally:  # an interrupt does not wait for what is left
            pool.shutdown(cancel_futures=True)


def start_processes(workers: int) -> ProcessPoolExecutor:
    """Processes that read images. Signals to stop are their parent's to follow."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_process)


def _begin_process() -> None:
    for interrupt in (signal.SIGINT, signal.SIGUSR1):  # a terminal's Ctrl-C and Slurm's warning reach all processes
        signal.signal(interrupt, signal.SIG_IGN)
    # it would wait for ever on a parent that was killed
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def main(argv: list[str] | None = None) -> None:
    run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    config = configure(
        command_parser("mae-prepare", "Decode a data set once, into a memory-mapped store.").parse_args(argv)
    )
    from data.audit import audit_lines, audited, may_name
    from data.manifest import open_manifest

    manifest = open_manifest(config, look_again=True)
    print(*manifest.notes, manifest.breakdown(), sep="\n")
    if config.data.store is False:
        print("data.store is false: nothing is decoded now; training reads the files themselves")
        return
    store = prepare(config, manifest)
    print(*audit_lines(audited(manifest, store), store, may_name(config, manifest)), sep="\n")
    print(f"store: {store.folder} ({len(store)} images of {'x'.join(map(str, store.images.shape[1:]))})")
