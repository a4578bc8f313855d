"""`data.unlabelled`: further images for pretraining alone, beside a labelled data set whose splits and store stay.

They have a manifest and a store of their own, so that nothing else ever meets them: opening the config's data opens the
labelled ones, and only pretraining asks for both.
"""

from collections.abc import Generator, Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass
from itertools import tee

import numpy as np
import pandas as pd

from data.loader import Data, open_data
from data.manifest import Manifest
from data.places import told_as
from data.settings import DataSettings
from data.store import ImageReader

FIRST_ROW = 10**9  # of images without labels: so draws for either kind do not depend on how many the other has
PREFIX = "unlabelled/"  # of their ids


def with_unlabelled(data: Data, settings: DataSettings) -> Data:
    """The data with the images of `data.unlabelled`, if there are any, among those to train on.

    Validation and test are those of `data`. Notes say how many images there are, and how many of them stand in the
    labelled set too.
    """
    further = settings.of_unlabelled()
    if further is None or isinstance(data, _WithUnlabelled):
        return data
    with told_as("data.unlabelled"):
        opened = open_data(further)
    return _joined(data, opened)


def has_unread(data: Data) -> bool:
    """Whether there are images without labels whose files nobody has read, so that none could be recognised again."""
    return isinstance(data, _WithUnlabelled) and not data.further.store.digests()


def _joined(labelled: Data, further: Data) -> "_WithUnlabelled":
    store = Chained(labelled.store, further.store)
    manifest = labelled.manifest
    others = further.manifest
    own_ids = manifest.table.get("own_id", manifest.table["image_id"])  # a mix has own ids already
    table = pd.concat([manifest.table.assign(own_id=own_ids), _renamed(others.table)], ignore_index=True)
    return _WithUnlabelled(
        manifest=Manifest(
            table=table,
            notes=(*manifest.notes, *_notes(labelled, further)),
            credentialed=manifest.credentialed or others.credentialed,
            patients_known=manifest.patients_known and others.patients_known,
            target=manifest.target,
            unreadable=manifest.unreadable | {PREFIX + image_id for image_id in others.unreadable},
        ),
        store=store,
        labelled=labelled,
        further=further,
    )


def _renamed(table: pd.DataFrame) -> pd.DataFrame:
    """Under ids that no labelled image has."""
    ids = {column: PREFIX + table[column] for column in ("image_id", "patient_id", "study_id")}
    return table.assign(**ids)


def _notes(labelled: Data, further: Data) -> Iterator[str]:
    for note in further.manifest.notes:
        yield f"data.unlabelled: {note}"
    table = further.everything()
    counts = ", ".join(f"{name} {n:,}" for name, n in table["source"].value_counts().items())
    yield f"data.unlabelled: {len(table):,} images serve pretraining alone ({counts})"

    if not further.store.digests():
        yield "data.unlabelled: not looked at whether labelled images stand there too: that needs a store (data.store)"
        return

    here = further.trained_on(table)
    for split in ("train", "validate", "test"):
        rows = labelled.everything()
        rows = rows[rows["split"] == split]
        if rows.empty:
            continue
        same = int(np.isin(labelled.trained_by(rows, bool(labelled.store.digests())), here).any(axis=1).sum())
        if same:
            yield f"data.unlabelled: {same:,} images of {split} stand there too, by their file or their pixels"


@dataclass(frozen=True)
class _WithUnlabelled(Data):
    """Labelled data with further images to train on."""

    labelled: Data
    further: Data

    def identities(self, table: pd.DataFrame) -> np.ndarray:
        """(n 2) int64, each image's as its own data set remembers it.

        For images without labels, hashes of the file and the pixels: names like 0001.png say nothing about other data
        sets.
        """
        ours = table["row"] < FIRST_ROW
        others = table[~ours].assign(row=table["row"][~ours] - FIRST_ROW)
        known = [self.labelled.identities(table[ours])]
        if self.further.store.digests():
            known.append(self.further.contents(others))
        else:  # nobody has read the files
            known.append(self.further.identities(others))
        return np.concatenate(known)


class Chained:
    """Two readers as one: rows of the second are counted from `FIRST_ROW`."""

    def __init__(self, first: ImageReader, second: ImageReader):
        self.first = first
        self.second = second
        self.fingerprint = f"{first.fingerprint}+{second.fingerprint}"
        self.index = first.index | {PREFIX + image_id: row + FIRST_ROW for image_id, row in second.index.items()}

    @property
    def unreadable(self) -> Set[int]:
        """Rows met so far whose file has no image."""
        return {*self.first.unreadable, *(row + FIRST_ROW for row in self.second.unreadable)}

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Rows (n) int64 of the images; -1 where there is none."""
        return np.fromiter((self.index.get(image_id, -1) for image_id in image_ids), np.int64)

    def digests(self) -> dict[int, str]:
        """row → digest of the file's bytes; empty unless those of all have been read."""
        first = self.first.digests()
        second = self.second.digests()
        if not first or not second:
            return {}
        return first | {row + FIRST_ROW: digest for row, digest in second.items()}

    def pixel_digests(self, rows: np.ndarray) -> dict[int, str]:
        """row → digest of its pixels, of these rows; those that cannot be read are left out."""
        second = self.second.pixel_digests(rows[rows >= FIRST_ROW] - FIRST_ROW)
        shifted = {row + FIRST_ROW: digest for row, digest in second.items()}
        return self.first.pixel_digests(rows[rows < FIRST_ROW]) | shifted

    def read(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Images (b h w) uint8 of each batch of rows, in order."""
        # each reader is asked for its part of each batch that has one, and may read ahead
        all_batches, for_first, for_second = tee(batches, 3)
        first = self.first.read(_parts(rows[rows < FIRST_ROW] for rows in for_first))
        second = self.second.read(_parts(rows[rows >= FIRST_ROW] - FIRST_ROW for rows in for_second))
        with closing(first), closing(second):
            for rows in all_batches:
                yield _merged(rows < FIRST_ROW, first, second)


def _parts(rows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    return (part for part in rows if len(part))


def _merged(of_first: np.ndarray, first: Iterator[np.ndarray], second: Iterator[np.ndarray]) -> np.ndarray:
    """The next images of each reader, at the places of its rows."""
    if of_first.all():
        return next(first)
    theirs = next(second)
    if not of_first.any():
        return theirs
    ours = next(first)
    images = np.empty((len(of_first), *ours.shape[1:]), np.uint8)
    images[of_first] = ours
    images[~of_first] = theirs
    return images
