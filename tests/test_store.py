"""Laws of the store, of preparing it, and of the loader's order."""

import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_runs import tiny_config, write_table

import data.preparation
import data.store
from data.config import UserError
from data.images import read_fitted
from data.loader import Loader, open_data
from data.manifest import open_manifest
from data.preparation import describe_store, prepare
from data.store import ImageStore, StoreWriter

TESTS = Path(__file__).parent
STORE_FILES = ("images.npy", "index.csv", "rejected.csv", "store.json")


def bytes_of(store: ImageStore) -> dict[str, bytes]:
    return {name: (store.folder / name).read_bytes() for name in STORE_FILES}


def stop_at(monkeypatch, call: int, error: type[BaseException] = KeyboardInterrupt) -> list[str]:
    """Let reading fail at its n-th call; returns the paths read so far."""
    read, paths = data.store.read_fitted, []

    def interrupted(path, *rest):
        paths.append(path)
        if len(paths) == call:
            raise error
        return read(path, *rest)

    monkeypatch.setattr(data.store, "read_fitted", interrupted)
    return paths


# ---------------------------------------------------------------- what a store holds


def test_store_holds_every_image_as_read(tmp_path):
    config = tiny_config(tmp_path)
    table, store = open_manifest(config).table, prepare(config)
    assert len(store) == len(table) == 60
    assert store.images.shape == (60, 12, 12)
    assert store.images.dtype == np.uint8
    for image_id, path, row in zip(table["image_id"], table["path"], store.rows(table["image_id"]), strict=True):
        assert (store.images[row] == read_fitted(path, 12)).all(), image_id
    assert not (store.folder / "state.npy").exists()


def test_images_npy_is_numpys_own_format_and_read_only(tmp_path):
    store = prepare(tiny_config(tmp_path))
    assert (np.load(store.folder / "images.npy") == store.images).all()
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_index_counts_the_bytes_of_each_file(tmp_path):
    store = prepare(tiny_config(tmp_path))
    with (store.folder / "index.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            assert int(line["bytes"]) == (tmp_path / "images" / line["image_id"]).stat().st_size


def test_index_holds_the_digest_of_each_file(tmp_path):
    store = prepare(tiny_config(tmp_path))
    for image_id, row in store.index.items():
        whole = hashlib.sha256((tmp_path / "images" / image_id).read_bytes()).hexdigest()
        assert store.digests()[row] == whole[:32]


def test_an_image_that_is_not_there_has_row_minus_one(tmp_path):
    assert prepare(tiny_config(tmp_path)).rows(["0000.png", "absent", "0001.png"]).tolist() == [0, -1, 1]


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"found no store.json, expected a finished store; run mae-prepare"):
        ImageStore(tmp_path)


def test_a_second_prepare_reads_nothing(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    store = prepare(config)
    paths = stop_at(monkeypatch, 0)
    assert prepare(config).folder == store.folder
    assert not paths


def test_labels_and_splits_change_without_decoding_again(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    before = open_data(config)
    table = pd.read_csv(tmp_path / "images/manifest.csv").sample(frac=1, random_state=0)
    table["label"], table["split"] = (
        1 - table["label"],
        table["split"].replace({"test": "validate", "validate": "test"}),
    )
    table.to_csv(tmp_path / "images/manifest.csv", index=False)
    paths = stop_at(monkeypatch, 0)
    after = open_data(config)
    assert not paths
    assert after.store.folder == before.store.folder
    labels = [found.manifest.table.set_index("image_id")["label"].sort_index() for found in (before, after)]
    assert (labels[1] == 1 - labels[0]).all()
    assert set(after.split("test")["image_id"]) == set(before.split("validate")["image_id"])


def test_fingerprint_changes_with_whatever_changes_pixels(tmp_path):
    def table(*ids, folder="images"):
        return pd.DataFrame({"image_id": ids, "path": [f"{tmp_path}/{folder}/{one}.png" for one in ids]})

    def fingerprint(**changed):
        config = tiny_config(tmp_path, **changed)
        return describe_store(config, table("a", "b"))["fingerprint"]

    plain = fingerprint()
    assert fingerprint(data__store="elsewhere", seed=5, data__workers=2) == plain
    others = [
        fingerprint(data__image_size=13),
        fingerprint(data__resize="squash"),
        fingerprint(data__resize="crop"),
        fingerprint(data__tone="mimic_jpg"),
        fingerprint(data__root=str(tmp_path)),
        describe_store(tiny_config(tmp_path), table("a", "b", "c"))["fingerprint"],
        describe_store(tiny_config(tmp_path), table("a", "c"))["fingerprint"],
    ]
    assert len({plain, *others}) == 8
    assert describe_store(tiny_config(tmp_path), table("b", "a"))["fingerprint"] == plain
    assert describe_store(tiny_config(tmp_path), table("a", "b", folder="moved"))["fingerprint"] != plain


def test_a_number_sign_in_a_file_name_is_part_of_it(tmp_path):
    folder = tmp_path / "images" / "train" / "NORMAL"
    folder.mkdir(parents=True)
    for name in ("a#1.png", "a#2.png"):
        Image.fromarray(np.full((9, 9), 7, np.uint8)).save(folder / name)
    store = prepare(tiny_config(tmp_path, data__source="folder"))
    assert sorted(store.index) == ["train/NORMAL/a#1.png", "train/NORMAL/a#2.png"]


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("call", [1, 37, 60])
def test_an_interrupted_prepare_finishes_to_the_same_bytes(call, tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    monkeypatch.setattr(data.preparation, "CHUNK", 5)
    with monkeypatch.context() as patch:
        stop_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    folder = tmp_path / "stores" / whole.folder.name
    assert not (folder / "store.json").exists()
    with monkeypatch.context() as patch:
        paths = stop_at(patch, 0)
        store = prepare(config)
    assert bytes_of(store) == bytes_of(whole)
    assert len(paths) == 60 - (call - 1) // 5 * 5  # what was reported is not read again


@pytest.mark.parametrize("victim", ["state.npy", "bytes.npy", "digests.npy", "images.partial.npy"])
def test_a_kill_while_the_arrays_are_made_is_mended(victim, tmp_path, monkeypatch):
    """Whichever array file is written last, the next start finds all it needs."""
    allocate = data.store._allocate

    def interrupted(path, *rest):
        if path.name == victim:
            raise KeyboardInterrupt
        allocate(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(data.store, "_allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    assert len(prepare(tiny_config(tmp_path))) == 60


@pytest.mark.parametrize("name", ["index.csv", "rejected.csv", "images.npy", "store.json"])
def test_a_kill_while_finishing_is_mended(name, tmp_path, monkeypatch):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    replace, write = Path.replace, data.store._write_csv

    def interrupted(path: Path, *rest):
        if path.name == name or Path(rest[0]).name == name:
            raise KeyboardInterrupt
        return (write if path.suffix == ".csv" else replace)(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        patch.setattr(data.store, "_write_csv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)


PROGRAM = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from tiny_runs import tiny_config
    import data.preparation, data.store

    if __name__ == "__main__":
        data.preparation.CHUNK, noted, note = 2, [], data.store.StoreWriter.note

        def counted(self, row, *rest):
            note(self, row, *rest)
            noted.append(row)
            if len(noted) == {stop}:
                os.kill(os.getpid(), signal.SIGKILL)

        data.store.StoreWriter.note = counted
        data.preparation.prepare(tiny_config(Path({root!r}), data__workers={workers}))
        print(len(noted))
"""


def start_prepare(root: Path, stop: int, workers: int) -> subprocess.Popen:
    program = root / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(tests=str(TESTS), root=str(root), stop=stop, workers=workers)))
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(
        [sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_prepare_finishes_to_the_same_bytes_and_leaves_no_worker(workers, tmp_path):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    killed = start_prepare(tmp_path, 23, workers)
    killed.communicate(timeout=60)  # ends when the last process that holds its output has ended
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "stores" / whole.folder.name / "store.json").exists()
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)


SLOW_PROGRAM = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from tiny_runs import tiny_config
    import data.preparation, data.store

    read = data.store.read_fitted

    def slowly(*arguments):  # in the workers too, so that there is a moment to hit
        time.sleep(0.004)
        return read(*arguments)

    data.store.read_fitted = slowly
    if __name__ == "__main__":
        data.preparation.CHUNK = 3
        data.preparation.prepare(tiny_config(Path({root!r}), data__workers=3))
"""


def test_three_kills_at_random_moments_leave_the_same_bytes(tmp_path):
    write_table(tmp_path / "images", 300)
    spoil(tmp_path / "images", 6)
    config = tiny_config(tmp_path)
    program = textwrap.dedent(SLOW_PROGRAM.format(tests=str(TESTS), root=str(tmp_path)))
    moments = sorted(random.Random().sample(range(1, 240), 3))  # another three each time; the law holds at any
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    folder = tmp_path / "stores" / whole.folder.name
    for moment in moments:
        kill_at(moment, program, tmp_path / "program.py", folder / "state.npy")
        assert not (folder / "store.json").exists(), moments
    (tmp_path / "program.py").write_text(program)
    subprocess.run([sys.executable, tmp_path / "program.py"], env=in_checkout(), check=True, timeout=120)
    assert bytes_of(prepare(config)) == bytes_of(whole), moments


def kill_at(moment: int, program: str, place: Path, state: Path) -> None:
    """Run the program and kill it, with SIGKILL, once so many rows are done; returns when its workers have gone."""
    place.write_text(program)
    process = subprocess.Popen([sys.executable, str(place)], env=in_checkout(), stdout=subprocess.PIPE)
    while process.poll() is None and not (state.exists() and np.count_nonzero(np.load(state)) >= moment):
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, moment


def in_checkout() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(TESTS.parent)}


def test_two_prepares_at_once_decode_each_image_once(tmp_path):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    both = [start_prepare(tmp_path, -1, 1) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sorted(int(out) for out, _ in ends) == [0, 60]
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)


def test_workers_write_the_same_bytes_as_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(data.preparation, "CHUNK", 5)
    one = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "one")))
    two = prepare(tiny_config(tmp_path, data__workers=2))
    assert bytes_of(one) == bytes_of(two)


# ---------------------------------------------------------------- bad files


def spoil(images: Path, count: int) -> list[str]:
    """Truncate, empty, remove or replace the first files; returns their ids."""
    ids = sorted(path.name for path in images.glob("*.png"))[:count]
    for number, image_id in enumerate(ids):
        path = images / image_id
        content = (path.read_bytes()[:200], b"", None, b"no image")[number % 4]
        path.unlink() if content is None else path.write_bytes(content)
    return ids


def test_unreadable_files_are_rejected_and_the_rest_goes_on(tmp_path, capsys):
    config = tiny_config(tmp_path)
    bad = spoil(tmp_path / "images", 7)
    opened = open_data(config)
    store = opened.store
    assert len(store) == 53
    assert (store.rows(bad) == -1).all()
    rejected = pd.read_csv(store.folder / "rejected.csv")
    assert rejected["image_id"].tolist() == bad
    assert rejected["path"].tolist() == [str(tmp_path / "images" / image_id) for image_id in bad]
    assert rejected["reason"].str.contains("found").all()
    assert not rejected["reason"].str.contains("\n").any()
    assert f"7 unreadable files are listed in {store.folder / 'rejected.csv'}" in capsys.readouterr().err
    splits = [opened.split(name) for name in ("train", "validate", "test")]
    assert sum(map(len, splits)) == 53
    assert not set(bad) & set(pd.concat(splits)["image_id"])


def test_a_rejected_file_is_listed_once_though_prepare_was_interrupted(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    spoil(tmp_path / "images", 3)
    with monkeypatch.context() as patch:
        note = StoreWriter.note

        def killed(self, row, *rest):
            if row == 2:  # its reason is written, that it is done is not
                monkeypatch.setattr(self, "state", self.state.copy())
                note(self, row, *rest)
                raise KeyboardInterrupt
            note(self, row, *rest)

        patch.setattr(StoreWriter, "note", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert len(pd.read_csv(prepare(config).folder / "rejected.csv")) == 3


@pytest.mark.parametrize(("images", "bad", "stops"), [(60, 10, False), (60, 11, True), (1210, 12, False)])
def test_more_than_ten_files_and_one_percent_stop(images, bad, stops, tmp_path, monkeypatch):
    write_table(tmp_path / "images", images)
    config = tiny_config(tmp_path)
    spoil(tmp_path / "images", bad)
    if not stops:
        assert len(prepare(config)) == images - bad
        return
    with pytest.raises(UserError) as caught:
        prepare(config)
    assert f"found {bad} unreadable of {images} files, expected at most 10" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("stores/*/store.json"))
    paths = stop_at(monkeypatch, 0)
    with pytest.raises(UserError):  # again, at once
        prepare(config)
    assert not paths


@pytest.mark.parametrize(("limit", "stops"), [(12, False), (11, True), (0.2, False), (0.19, True), (0, True)])
def test_how_many_files_may_be_unreadable_can_be_set(limit, stops, tmp_path, capsys):
    write_table(tmp_path / "images", 60)
    spoil(tmp_path / "images", 12)
    if not stops:
        assert len(prepare(tiny_config(tmp_path, data__max_rejected=limit))) == 48
        return
    with pytest.raises(UserError, match=r"found 12 unreadable of 60 files.*go on without them: data.max_rejected=12$"):
        prepare(tiny_config(tmp_path, data__max_rejected=limit))
    assert len(prepare(tiny_config(tmp_path, data__max_rejected=12))) == 48  # as it says; nothing is decoded again


def test_a_limit_of_rejected_files_is_a_count_or_a_share(tmp_path):
    with pytest.raises(UserError, match=r"data.max_rejected.*a count of files, a share below 1, or null"):
        tiny_config(tmp_path, data__max_rejected=1.5)


def test_a_store_begun_before_digests_is_begun_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 37)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    [digests] = tmp_path.glob("stores/*/digests.npy")
    digests.unlink()
    assert all(prepare(tiny_config(tmp_path)).digests().values())


# ---------------------------------------------------------------- loader


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
        open_data(tiny_config(tmp_path)).split("validate")


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    write_table(tmp_path / "images", 12)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"GB free, expected .* GB for a store \(No space left on device\)"):
        prepare(tiny_config(tmp_path))
    monkeypatch.undo()
    assert len(prepare(tiny_config(tmp_path))) == 12
