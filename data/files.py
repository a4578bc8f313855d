"""ImageFiles: training straight from files (`data.store: false`), which worker processes read ahead of the batches.

For a first look, or where a store of large images finds no room: pixels, rows and random draws are the store's, but
every epoch decodes everything again. Nobody has read the files before, so the unreadable ones are met on the way.
"""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.config import Root, UserError
from data.images import UnreadableImage, read_fitted
from data.manifest import Manifest
from data.preparation import allowed, describe_store, start_processes
from data.settings import Size, height_and_width

JOB = 8  # images a process reads at a time: many processes share a batch


class ImageFiles:
    """What an `ImageStore` is to training, without one. `unreadable`: rows met so far whose file has no image."""

    def __init__(self, config: Root, manifest: Manifest):
        """Raises UserError where none of the files that the data set's CSVs list is on disk."""
        for look in manifest.looks:
            look.require_some()
        table = manifest.table.sort_values("image_id")  # the store's rows
        self.paths: list[str] = table["path"].tolist()
        self.index = {image_id: row for row, image_id in enumerate(table["image_id"])}
        self.fingerprint: str = describe_store(config, table)["fingerprint"]
        self.unreadable: set[int] = set()
        self.allowed = allowed(config.data.max_rejected, len(table))
        self.how = (config.data.image_size, config.data.resize, config.data.tone)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's ranks on this machine
        self.workers = config.data.workers or max(1, len(os.sched_getaffinity(0)) // here)
        self.pool: ProcessPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Rows (n) int64 of the images; -1 where there is none."""
        return np.fromiter((self.index.get(image_id, -1) for image_id in image_ids), np.int64)

    def read(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Images (b h w) uint8 of each batch of rows, in order, whatever the number of processes.

        An unreadable one shows another image of its batch; its row is in `unreadable`, and a warning names its
        file. UserError when there are more than `data.max_rejected` allows.
        """
        ahead: deque[_Asked] = deque()
        try:
            for rows in batches:
                ahead.append(self._ask(rows))
                if sum(len(asked.rows) for asked in ahead) > 2 * max(len(rows), JOB * self.workers):
                    yield self._collect(ahead.popleft())
            while ahead:
                yield self._collect(ahead.popleft())
        finally:  # nobody may want the rest
            for asked in ahead:
                for job in asked.jobs:
                    job.cancel()

    def _ask(self, rows: np.ndarray) -> "_Asked":
        try:
            return self._submit(rows)
        except (BrokenProcessPool, OSError):  # the latter: it breaks just as it starts another process
            self._let_go(self.pool)
            return self._submit(rows)

    def _submit(self, rows: np.ndarray) -> "_Asked":
        if self.pool is None:
            self.pool = start_processes(self.workers)
        paths = [self.paths[row] for row in rows]
        jobs = [self.pool.submit(read_some, paths[i : i + JOB], *self.how) for i in range(0, len(paths), JOB)]
        return _Asked(rows, self.pool, jobs)

    def _collect(self, asked: "_Asked") -> np.ndarray:
        try:
            parts = [job.result() for job in asked.jobs]
        except BrokenProcessPool:  # one was killed: new ones try again
            self._let_go(asked.pool)
            parts = self._once_more(asked.rows)
        images = np.concatenate([images for images, _ in parts])
        reasons = [reason for _, reasons in parts for reason in reasons]
        if any(reasons):
            self._leave_out(asked.rows, reasons)
            there = [number for number, reason in enumerate(reasons) if reason is None]
            images[[number for number, reason in enumerate(reasons) if reason]] = images[there[0]] if there else 0
        return images

    def _let_go(self, pool: ProcessPoolExecutor | None) -> None:
        """Of a broken pool, unless a new one took its place already."""
        if self.pool is pool and pool is not None:
            pool.shutdown(wait=False)
            self.pool = None

    def _once_more(self, rows: np.ndarray) -> list[tuple[np.ndarray, list[str | None]]]:
        try:
            return [job.result() for job in self._ask(rows).jobs]
        except (BrokenProcessPool, OSError):
            raise UserError(
                f"data.workers: found a process that reads images killed, and one more that took its place, expected "
                f"{self.workers} to live; if memory ran out, give fewer, or prepare a store (data.store=stores)"
            ) from None

    def _leave_out(self, rows: np.ndarray, reasons: Sequence[str | None]) -> None:
        for row, reason in zip(rows.tolist(), reasons, strict=True):
            if reason and row not in self.unreadable:
                self.unreadable.add(row)
                tqdm.write(f"warning: {reason}; left out", file=sys.stderr)
        if len(self.unreadable) > self.allowed:
            raise UserError(
                f"data.store: found {len(self.unreadable)} unreadable files so far, expected at most {self.allowed} of "
                f"{len(self):,}; the warnings above name them; mend them, or go on without: data.max_rejected=0.05"
            )


class _Asked(NamedTuple):
    """A batch that processes are reading."""

    rows: np.ndarray
    pool: ProcessPoolExecutor
    jobs: list[Future]


def read_some(paths: Sequence[str], size: Size, resize: str, tone: str) -> tuple[np.ndarray, list[str | None]]:
    """Images (k h w) uint8 of files, and for each why there is none; what a worker process runs."""
    images, reasons = np.zeros((len(paths), *height_and_width(size)), np.uint8), [None] * len(paths)
    for number, path in enumerate(paths):
        try:
            images[number] = read_fitted(path, size, resize, tone)
        except UnreadableImage as error:
            reasons[number] = str(error)
    return images, reasons
