"""ImageFiles: training straight from files (`data.store: false`), which worker processes read ahead of the batches.

For a first look, or where a store of large images finds no room. Pixels, rows and random draws are the store's, but
every epoch decodes everything again. Nobody has read the files before, so unreadable ones turn up during training.
"""

import sys
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from data.environment import ranks_here, usable_cores
from data.errors import LONGEST, UserError, printable
from data.images import read_fitted
from data.manifest import Manifest
from data.preparation import allowed, describe_store
from data.refusal import NotNow, UnreadableImage, is_damage, may_pass, trouble, without_path
from data.settings import DataSettings, Resize, Size, Tone, height_and_width
from data.store import Postponed, make_array
from data.store_integrity import pixel_digest
from data.workers import start_processes

DIGESTED = 64  # images that are read at a time for their digests
JOB = 8  # images a process reads at a time: many processes share a batch


class ImageFiles:
    """Stands in for an `ImageStore` in training. `unreadable`: rows met so far whose file has no image."""

    def __init__(self, settings: DataSettings, manifest: Manifest):
        """Raises UserError where none of the files that the data set's CSVs list is on disk."""
        for look in manifest.looks:
            look.require_some()
        table = manifest.table.sort_values("image_id")  # the store's rows
        self.paths: list[str] = table["path"].tolist()
        self.index = {image_id: row for row, image_id in enumerate(table["image_id"])}
        self.fingerprint: str = describe_store(settings, table)["fingerprint"]
        self.unreadable: set[int] = set()
        self.damaged = 0
        self.secret = manifest.credentialed  # paths hold ids
        self.allowed = allowed(settings.max_rejected, len(table))
        self.how = (settings.image_size, settings.resize, settings.tone)

        self.workers = settings.workers or max(1, usable_cores() // ranks_here())
        self.pool: Executor | None = None
        self.folder = TemporaryDirectory(prefix="mae-")  # deleted with this object
        self.scratch = Path(self.folder.name)
        self.number = count()

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Rows (n) int64 of the images; -1 where there is none."""
        return np.fromiter((self.index.get(image_id, -1) for image_id in image_ids), np.int64)

    def digests(self) -> dict[int, str]:
        """Empty: nobody has read the files before."""
        return {}

    def pixel_digests(self, rows: np.ndarray) -> dict[int, str]:
        """row → digest of its pixels, of these rows; reads each file, and leaves unreadable ones out."""
        found: dict[int, str] = {}
        batches = [rows[start : start + DIGESTED] for start in range(0, len(rows), DIGESTED)]
        with closing(self.read(batches)) as images:
            for batch, block in zip(batches, images, strict=True):
                found |= {row: pixel_digest(image) for row, image in zip(batch.tolist(), block, strict=True)}
        return {row: digest for row, digest in found.items() if row not in self.unreadable}

    def read(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Images (b h w) uint8 of each batch of rows, in order, whatever the number of processes.

        Another image of its batch, or black, takes the place of an unreadable one; its row is in `unreadable`, and a
        warning names its file. UserError if there are more than `data.max_rejected` allows, or if the system twice
        fails to read a file: that may pass, so the file is not left out.
        """
        ahead: deque[_Asked] = deque()
        try:
            for rows in batches:
                ahead.append(self._ask(rows))
                # ask for twice as much as keeps every process busy, and hand out the oldest
                waiting = sum(len(asked.rows) for asked in ahead)
                if waiting > 2 * max(len(rows), JOB * self.workers):
                    yield self._collect(ahead.popleft())
            while ahead:
                yield self._collect(ahead.popleft())
        finally:  # perhaps nobody wants the rest
            for asked in ahead:
                asked.forget()

    def _ask(self, rows: np.ndarray) -> "_Asked":
        for _ in range(2):
            if self.pool is None:
                self.pool = start_processes(self.workers)

            asked = _Asked(rows, self.pool, self.scratch / f"{next(self.number)}.npy")
            shape = (len(rows), *height_and_width(self.how[0]))
            make_array(asked.place, shape)
            try:
                asked.submit([self.paths[row] for row in rows], self.how)
            except (BrokenProcessPool, OSError):  # the latter: it breaks just as it starts another process
                asked.forget()
                self._let_go(asked.pool)
            else:
                return asked
        raise self._killed()

    def _collect(self, asked: "_Asked") -> np.ndarray:
        try:
            images, reasons = asked.collect()
        except BrokenProcessPool:  # one was killed: new ones try again
            self._let_go(asked.pool)
            images, reasons = self._collect_again(asked.rows)

        # once more, for what the system would not read just now
        waiting = np.flatnonzero([isinstance(reason, Postponed) for reason in reasons])
        if len(waiting):
            images[waiting], again = self._collect_again(asked.rows[waiting])
            for place, reason in zip(waiting.tolist(), again, strict=True):
                reasons[place] = reason
        for row, reason in zip(asked.rows.tolist(), reasons, strict=True):
            if isinstance(reason, Postponed):
                raise UserError(f"{self._said(row, reason)}, which may pass: run again")

        # another image of the batch stands in for one that cannot be read, and black where there is no other
        if any(reasons):
            self._leave_out(asked.rows, reasons)
            missing = np.array([reason is not None for reason in reasons])
            images[missing] = 0
            if not missing.all():
                images[missing] = images[~missing][0]
        return images

    def _collect_again(self, rows: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
        try:
            return self._ask(rows).collect()
        except BrokenProcessPool:
            raise self._killed() from None

    def _let_go(self, pool: Executor) -> None:
        """Shut down a broken pool, unless a new one took its place already."""
        if self.pool is pool:
            pool.shutdown(wait=False)
            self.pool = None

    def _killed(self) -> UserError:
        return UserError(
            f"data.workers: found a process that reads images killed, and one more that took its place, expected "
            f"{self.workers} to live; if memory ran out, give fewer, or prepare a store (data.store=stores)"
        )

    def _leave_out(self, rows: np.ndarray, reasons: Sequence[str | None]) -> None:
        for row, reason in zip(rows.tolist(), reasons, strict=True):
            if reason and row not in self.unreadable:
                self.unreadable.add(row)
                self.damaged += is_damage(reason)
                tqdm.write(f"warning: {printable(self._said(row, reason), LONGEST)}; left out", file=sys.stderr)

        if self.damaged > self.allowed:
            raise UserError(
                f"data.store: found {self.damaged} unreadable files so far, expected at most {self.allowed} of "
                f"{len(self):,}; the warnings above name them; mend them, or go on without: "
                f"data.max_rejected={2 * self.damaged}"
            )
        if all(reasons) and (len(rows) > 1 or len(self.unreadable) == len(self)):
            raise UserError(f"data.store: found none of {len(rows)} files of a batch readable, expected some")

    def _said(self, row: int, reason: str) -> str:
        """Why an image is left out; for credentialed data without its path, which holds ids."""
        if not self.secret:
            return reason
        path = self.paths[row]
        why = without_path(reason, path)
        if why == reason or path in why:
            why = "its file cannot be read"
        return f"image {row} in the order of ids: {why}"


@dataclass(frozen=True)
class _Asked:
    """A batch that processes read into a file of its own.

    Through the pool's pipe an image would go in pieces. A process killed between two of them would leave its parent
    waiting for the rest for ever.
    """

    rows: np.ndarray
    pool: Executor
    place: Path
    jobs: list[Future[list[str | None]]] = field(default_factory=list)

    def submit(self, paths: Sequence[str], how: tuple[Size, Resize, Tone]) -> None:
        for start in range(0, len(paths), JOB):
            some = paths[start : start + JOB]
            self.jobs.append(self.pool.submit(read_some, str(self.place), start, some, *how))

    def collect(self) -> tuple[np.ndarray, list[str | None]]:
        """Images (b h w), and for each the reason why there is none, or None."""
        try:
            reasons: list[str | None] = []
            for job in self.jobs:
                reasons += job.result()
            return np.load(self.place), reasons
        finally:
            self.forget()

    def forget(self) -> None:
        for job in self.jobs:
            job.cancel()
        self.place.unlink(missing_ok=True)


def read_some(place: str, start: int, paths: Sequence[str], size: Size, resize: Resize, tone: Tone) -> list[str | None]:
    """Read files into an array file from row `start` on; returns for each why there is no image, or None."""
    try:
        images = np.load(place, mmap_mode="r+")
    except (OSError, MemoryError) as error:
        if not may_pass(error):
            raise
        return [Postponed(f"{place}: found {trouble(error)}, expected to write there")] * len(paths)

    reasons: list[str | None] = [None] * len(paths)
    for number, path in enumerate(paths):
        try:
            images[start + number] = read_fitted(path, size, resize, tone)
        except NotNow as error:
            reasons[number] = Postponed(error)
        except UnreadableImage as error:
            reasons[number] = str(error)
        except (OSError, MemoryError) as error:  # it went away just now
            reason = f"{path}: found {trouble(error)}, expected a readable image file"
            reasons[number] = Postponed(reason) if may_pass(error) else reason
    return reasons
