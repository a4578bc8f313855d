"""Batches from the store: a deterministic order that can start anywhere."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.errors import UserError
from data.image_files import ImageFiles
from data.manifest import Manifest, hashed, open_manifest
from data.preparation import prepare
from data.privacy import kept_key, secret_key
from data.rejections import read_rejections
from data.settings import DataSettings
from data.store import ImageReader


class Batch(NamedTuple):
    images: Tensor  # (b 1 h w) uint8
    labels: Tensor  # (b) float32: 1 abnormal, 0 normal, NaN unknown
    numbers: Tensor  # (b) int64: the image's row in the store, which its random draws depend on

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while it computes."""
        return Batch(*(tensor.pin_memory() for tensor in self))

    def without_images(self) -> "Batch":
        """What names the images, without the memory that they take."""
        return self._replace(images=self.images.new_empty(0))

    def parts(self, count: int) -> list["Batch"]:
        """The batch in `count` equal parts."""
        images = self.images.chunk(count)
        labels = self.labels.chunk(count)
        numbers = self.numbers.chunk(count)
        return [Batch(*part) for part in zip(images, labels, numbers, strict=True)]


@dataclass(frozen=True)
class Data:
    """A manifest with its store."""

    manifest: Manifest
    store: ImageReader

    def split(self, name: str) -> pd.DataFrame:
        """The split's manifest rows that could be read, with their store row; UserError if there are none."""
        table = self._readable(self.manifest.of_split(name))
        if table.empty:
            raise UserError(
                f"data: found no readable image in split {name!r}, expected some; see mae-prepare's summary"
            )
        return table

    def everything(self) -> pd.DataFrame:
        """The rows of all splits that could be read, with their store row."""
        return self._readable(self.manifest.table)

    def _readable(self, table: pd.DataFrame) -> pd.DataFrame:
        table = table.assign(row=self.store.rows(table["image_id"]))
        return table[table["row"] >= 0]

    def identities(self, table: pd.DataFrame) -> np.ndarray:
        """(n 2) int64: what checkpoints remember of images they have seen, without naming them.

        One hash is of the image's id in its own data set, the same alone and in a mix. The other is of its file's
        content, the same under any id and in any folder. Where contents are not known, both are of the id. `table`:
        rows of `split`. Ids of credentialed data are hashed with a secret of this machine, else anybody could check a
        guessed id.
        """
        by_id = hashed(_own_ids(table), secret_key() if self.manifest.credentialed else b"")
        by_content = self._contents(table)
        return np.stack([by_id, by_id if by_content is None else by_content], axis=1)

    def known_by(self, table: pd.DataFrame) -> np.ndarray:
        """(n k) int64: all hashes by which a checkpoint may remember these images, credentialed at that time or not."""
        names = [hashed(_own_ids(table))]
        key = kept_key()
        if key is not None:
            names.append(hashed(_own_ids(table), key))
        by_content = self._contents(table)
        if by_content is not None:
            names.append(by_content)
        return np.stack(names, axis=1)

    def trained_on(self, table: pd.DataFrame) -> np.ndarray:
        """(k) int64, sorted: what a classifier's checkpoint remembers of images that trained or chose it.

        These are hashes of each image's file and of its stored pixels. So an image is recognised under any name, in
        any folder and encoded anew, and another image of the same name is not taken for it. Where the files have not
        been read (`data.store: false`), they are hashes of the ids, as in `identities`.
        """
        if self._contents(table) is None:
            return np.unique(self.identities(table)[:, 0])
        return np.unique(self.contents(table))

    def contents(self, table: pd.DataFrame) -> np.ndarray:
        """(n 2) int64: hashes of each image's file and of its pixels; the files must have been read."""
        by_file = self._contents(table)
        assert by_file is not None
        return np.stack([by_file, self._pixels(table)], axis=1)

    def trained_by(self, table: pd.DataFrame, pixels: bool = True) -> np.ndarray:
        """(n k) int64: all hashes by which `trained_on` may remember these images.

        pixels: hashes of the pixels too, which reads files that nobody has read before; of no use where ids alone are
        remembered.
        """
        known = self.known_by(table)
        if not pixels:
            return known
        return np.concatenate([known, self._pixels(table)[:, None]], axis=1)

    def _pixels(self, table: pd.DataFrame) -> np.ndarray:
        """(n) int64: hashes of the pixels as models see them; for an image that cannot be read, of its row."""
        rows = table["row"].to_numpy()
        digests = self.store.pixel_digests(rows)
        return hashed(f"pixels:{digests.get(row, f'unread {row}')}" for row in rows.tolist())

    def _contents(self, table: pd.DataFrame) -> np.ndarray | None:
        """(n) int64: hashes of the files' bytes; None where nobody has read them before."""
        digests = self.store.digests()
        if not digests:
            return None
        return hashed(f"sha256:{digests[row]}" for row in table["row"].tolist())

    def overfit(self, count: int, labelled: bool = False) -> "Data":
        """The first `count` training images, for training and for validation: a check of the machinery.

        labelled: normal and abnormal ones in turn, as far as there are any.
        """
        what = "training images"
        table = self.split("train").drop(columns="row")
        if labelled:
            what = "labelled training images"
            table = table[table["label"].notna()]
            turns = table.groupby("label").cumcount().sort_values(kind="stable")
            table = table.loc[turns.index]
        if len(table) < count:
            raise UserError(f"command line: --overfit: found {count}, expected at most the {len(table):,} {what}")

        chosen = table.head(count)
        table = pd.concat([chosen.assign(split="train"), chosen.assign(split="validate")], ignore_index=True)
        note = f"overfit: trains and validates on the same {count} images; a check of the machinery, not a result"
        return Data(replace(self.manifest, table=table, notes=(*self.manifest.notes, note)), self.store)


def image_names(table: pd.DataFrame, batch: Batch, named: bool) -> list[str]:
    """The image ids of a batch drawn from `table`; where they may not be named, rows of the store's `index.csv`."""
    rows = batch.numbers.tolist()
    if not named:
        return [f"row {row}" for row in rows]
    return table.set_index("row")["image_id"].loc[rows].tolist()


def _own_ids(table: pd.DataFrame) -> pd.Series:
    """Ids as an image has them in its own data set, alone and in a mix."""
    return table["own_id"] if "own_id" in table else table["image_id"]


def open_data(settings: DataSettings) -> Data:
    """Manifest and store of a config's data, decoding first where needed; its files if `data.store` is false."""
    manifest = open_manifest(settings)
    if settings.store is False:
        return Data(manifest, ImageFiles(settings, manifest))
    store = prepare(settings, manifest)
    rejected = [line["image_id"] for line in read_rejections(store.folder)]
    return Data(manifest.without(rejected), store)


class Loader:
    """Batches of the table's images: shuffled by (seed, epoch) where a seed is given, else in order.

    share: (rank, world_size). Each rank takes every world_size-th image of each shuffled batch, or of an ordered table.
    """

    def __init__(
        self,
        data: Data,
        table: pd.DataFrame,
        batch_size: int,
        seed: int | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        rank, world_size = share
        if seed is None:
            table = table.iloc[rank::world_size]

        self.store = data.store
        self.rows = table["row"].to_numpy(np.int64)
        self.labels = table["label"].to_numpy(np.float32, na_value=np.nan)
        self.seed = seed
        self.share = share
        self.batch_size = max(min(batch_size, len(table)), 1)  # of all ranks together, where it is shuffled

    def __len__(self) -> int:
        """Batches per epoch; a shuffled epoch leaves its last, smaller one out (batch statistics)."""
        full, rest = divmod(len(self.rows), self.batch_size)
        return full + (self.seed is None and rest > 0)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on."""
        order = np.arange(len(self.rows))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)

        # places in the table, batch by batch; of a shuffled batch every rank takes its share
        rank, world_size = self.share
        batches = []
        for number in range(start, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            if self.seed is not None:
                chosen = chosen[rank::world_size]
            batches.append(chosen)

        read = self.store.read(self.rows[chosen] for chosen in batches)
        with closing(read):  # a reader that reads ahead drops what is no longer wanted
            for chosen, images in zip(batches, read, strict=True):
                yield self._batch(chosen, images)

    def _batch(self, chosen: np.ndarray, images: np.ndarray) -> Batch:
        rows = self.rows[chosen]
        labels = self.labels[chosen]
        if self.store.unreadable:  # another image stands in for it: that must not get its label, nor be scored
            labels[np.isin(rows, list(self.store.unreadable))] = np.nan
        return Batch(torch.from_numpy(images[:, None]), torch.from_numpy(labels), torch.from_numpy(rows))
