"""Laws of the loader's order: what an epoch shows, and where it may start."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import tiny_config, write_table

from data.errors import UserError
from data.loader import Loader, open_data


def loader_of(n: int, batch_size: int, seed: int | None = None) -> Loader:
    """A loader of n images whose pixels tell their row; row 2·i stands for the i-th of the table."""
    images = np.broadcast_to(np.arange(2 * n, dtype=np.uint8)[:, None, None], (2 * n, 3, 5))
    table = pd.DataFrame({"row": 2 * np.arange(n), "label": np.resize([1.0, 0.0, np.nan], n)})
    store = SimpleNamespace(read=lambda batches: (images[rows] for rows in batches), unreadable=())
    return Loader(SimpleNamespace(store=store), table, batch_size, seed)


def numbers_of(batches) -> list[list[int]]:
    return [batch.numbers.tolist() for batch in batches]


def flat(parts) -> list[int]:
    return list(chain.from_iterable(parts))


@pytest.mark.parametrize("n", [1, 2, 5, 7, 11])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
def test_loader_in_order_covers_each_image_once(n, batch_size):
    loader = loader_of(n, batch_size)
    batches = numbers_of(loader.epoch())
    assert flat(batches) == [2 * i for i in range(n)]
    assert len(batches) == len(loader)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 11])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
def test_shuffled_epoch_shows_each_image_at_most_once_in_full_batches(n, batch_size):
    loader = loader_of(n, batch_size, seed=0)
    batches = numbers_of(loader.epoch(3))
    shown = flat(batches)
    assert len(set(shown)) == len(shown) == len(loader) * loader.batch_size > n - batch_size
    assert {len(batch) for batch in batches} == {min(batch_size, n)}


def test_order_depends_on_seed_and_epoch_alone():
    plain = numbers_of(loader_of(23, 5, seed=1).epoch(2))
    loader = loader_of(23, 5, seed=1)
    for epoch in (0, 7):
        list(loader.epoch(epoch))
    assert numbers_of(loader.epoch(2)) == plain
    assert numbers_of(loader_of(23, 5, seed=2).epoch(2)) != plain
    assert numbers_of(loader_of(23, 5, seed=1).epoch(3)) != plain
    assert flat(numbers_of(loader_of(23, 7, seed=1).epoch(2)))[:20] == flat(plain)


def test_an_epoch_can_start_anywhere():
    loader = loader_of(23, 5, seed=1)
    whole = numbers_of(loader.epoch(2))
    for start in range(len(loader) + 1):
        assert numbers_of(loader.epoch(2, start)) == whole[start:]


def test_every_image_is_left_out_equally_often():
    loader = loader_of(7, 5, seed=0)
    shown = np.bincount(flat(flat(numbers_of(loader.epoch(e))) for e in range(700)), minlength=14)[::2]
    assert np.abs(shown / 700 - 5 / 7).max() < 0.09


def test_batches_carry_pixels_labels_and_numbers_together():
    for batch in loader_of(11, 3, seed=1).epoch(0):
        assert batch.images.shape == (3, 1, 3, 5)
        assert batch.images.dtype == torch.uint8
        assert (batch.images[:, 0, 0, 0] == batch.numbers).all()
        expected = np.resize(np.array([1, 0, np.nan], np.float32), 11)[batch.numbers.numpy() // 2]
        np.testing.assert_array_equal(batch.labels.numpy(), expected)
        assert batch.numbers.dtype == torch.int64
        assert [part.dtype for part in batch.to(torch.device("cpu"))] == [part.dtype for part in batch]


def test_loader_leaves_global_generators_alone():
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(loader_of(11, 3, seed=1).epoch(0))
    assert torch.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_a_split_without_readable_images_is_one_line(tmp_path):
    table = write_table(tmp_path / "images")
    for path in table.loc[table["split"] == "validate", "path"]:
        (tmp_path / "images" / path).unlink()
    with pytest.raises(UserError, match=r"found no readable image in split 'validate'"):
        open_data(tiny_config(tmp_path).data).split("validate")
