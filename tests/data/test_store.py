"""Laws of the store and of preparing it: what it holds, and when it is made anew."""

import csv
import hashlib
import os

import numpy as np
import pandas as pd
import pytest
from interrupted_reading import stop_at
from PIL import Image
from tiny_world import other_split, tiny_config, write_table

from data.errors import UserError
from data.images import read_fitted
from data.loader import open_data
from data.manifest import open_manifest
from data.preparation import describe_store, prepare
from data.store import ImageStore


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
    before = open_data(config.data)
    table = pd.read_csv(tmp_path / "images/manifest.csv").sample(frac=1, random_state=0)
    table["label"] = 1 - table["label"]
    other_split(table).to_csv(tmp_path / "images/manifest.csv", index=False)
    paths = stop_at(monkeypatch, 0)
    after = open_data(config.data)
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
        return describe_store(config.data, table("a", "b"))["fingerprint"]

    plain = fingerprint()
    assert fingerprint(data__store="elsewhere", seed=5, data__workers=2) == plain
    others = [
        fingerprint(data__image_size=13),
        fingerprint(data__resize="squash"),
        fingerprint(data__resize="crop"),
        fingerprint(data__tone="mimic_jpg"),
        fingerprint(data__root=str(tmp_path)),
        describe_store(tiny_config(tmp_path).data, table("a", "b", "c"))["fingerprint"],
        describe_store(tiny_config(tmp_path).data, table("a", "c"))["fingerprint"],
    ]
    assert len({plain, *others}) == 8
    assert describe_store(tiny_config(tmp_path).data, table("b", "a"))["fingerprint"] == plain
    assert describe_store(tiny_config(tmp_path).data, table("a", "b", folder="moved"))["fingerprint"] != plain


def test_a_number_sign_in_a_file_name_is_part_of_it(tmp_path):
    folder = tmp_path / "images" / "train" / "NORMAL"
    folder.mkdir(parents=True)
    for name in ("a#1.png", "a#2.png"):
        Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9)).save(folder / name)
    store = prepare(tiny_config(tmp_path, data__source="folder"))
    assert sorted(store.index) == ["train/NORMAL/a#1.png", "train/NORMAL/a#2.png"]


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    write_table(tmp_path / "images", 12)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"GB free, expected .* GB for a store \(No space left on device\)"):
        prepare(tiny_config(tmp_path))
    monkeypatch.undo()
    assert len(prepare(tiny_config(tmp_path))) == 12
