"""Batches from the store: a deterministic order that can start anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.config import Root, UserError
from data.manifest import Manifest, open_manifest
from data.preparation import prepare
from data.store import ImageStore


class Batch(NamedTuple):
    images: Tensor  # (b 1 h w) uint8
    labels: Tensor  # (b) float32: 1 abnormal, 0 normal, NaN unknown
    numbers: Tensor  # (b) int64: the image's row in the store, what random draws hang on

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class Data:
    """A manifest with its store."""

    manifest: Manifest
    store: ImageStore

    def split(self, name: str) -> pd.DataFrame:
        """The split's manifest rows that could be read, with their store row; UserError if there are none."""
        table = self.manifest.of_split(name)
        table = table.assign(row=self.store.rows(table["image_id"]))
        table = table[table["row"] >= 0]
        if table.empty:
            raise UserError(
                f"data: found no readable image in split {name!r}, expected some; see mae-prepare's summary"
            )
        return table


def open_data(config: Root) -> Data:
    """Manifest and store of a config, decoding first where needed."""
    manifest = open_manifest(config)
    return Data(manifest, prepare(config, manifest))


class Loader:
    """Batches of the table's images: shuffled by (seed, epoch) where a seed is given, else in order."""

    def __init__(self, data: Data, table: pd.DataFrame, batch_size: int, seed: int | None = None):
        self.images = data.store.images
        self.rows = table["row"].to_numpy(np.int64)
        self.labels = table["label"].to_numpy(np.float32, na_value=np.nan)
        self.seed, self.batch_size = seed, min(batch_size, len(table))
        self.pin = torch.cuda.is_available()

    def __len__(self) -> int:
        """Batches per epoch; a shuffled epoch leaves its last, smaller one out (batch statistics)."""
        full, rest = divmod(len(self.rows), self.batch_size)
        return full + (self.seed is None and rest > 0)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on."""
        order = np.arange(len(self.rows))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        for number in range(start, len(self)):
            yield self._gather(order[number * self.batch_size : (number + 1) * self.batch_size])

    def _gather(self, chosen: np.ndarray) -> Batch:
        rows = self.rows[chosen]
        batch = Batch(
            torch.from_numpy(self.images[rows][:, None]), torch.from_numpy(self.labels[chosen]), torch.from_numpy(rows)
        )
        return Batch(*(tensor.pin_memory() for tensor in batch)) if self.pin else batch
