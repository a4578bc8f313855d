"""A store that is not what was written is refused in one line, when it is opened or by mae-prepare --verify."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_world import call, tiny_config, write_config, write_table

import data.store_integrity
from data.cli import prepare as main
from data.errors import UserError
from data.loader import open_data
from data.preparation import prepare
from data.store import ImageStore


@pytest.fixture
def config(tmp_path):
    write_table(tmp_path / "images", 13)
    return tiny_config(tmp_path)


@pytest.fixture
def folder(config) -> Path:
    return prepare(config).folder


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def half_an_index(folder):
    lines = lines_of(folder / "index.csv")
    (folder / "index.csv").write_text("".join(lines[:7]))


def an_index_torn_in_a_line(folder):
    content = (folder / "index.csv").read_bytes()
    (folder / "index.csv").write_bytes(content[: len(content) // 2])


def reversed_rows(folder):
    table = pd.read_csv(folder / "index.csv", dtype=str)
    table["row"] = table["row"].to_numpy()[::-1]
    table.to_csv(folder / "index.csv", index=False)


def two_rows_exchanged(folder):
    table = pd.read_csv(folder / "index.csv", dtype=str)
    table.loc[[2, 5], "row"] = table.loc[[5, 2], "row"].to_numpy()
    table.to_csv(folder / "index.csv", index=False, lineterminator="\r\n")


def through_a_spreadsheet(folder):
    table = pd.read_csv(folder / "index.csv").sort_values("bytes")
    table.to_csv(folder / "index.csv", index=False, sep=";", encoding="utf-8-sig")


def no_index(folder):
    (folder / "index.csv").unlink()


def another_rejected(folder):
    (folder / "rejected.csv").write_text("image_id,path,reason,plugins\nx,y,z,\n")


def zeroed_pixels(folder):
    np.load(folder / "images.npy", mmap_mode="r+")[4] = 0


def one_pixel_else(folder):
    np.load(folder / "images.npy", mmap_mode="r+")[12, 11, 11] ^= 1


def swapped_pixels(folder):
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[[3, 7]] = images[[7, 3]]


def a_truncated_array(folder):
    content = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(content[:-150])


def a_longer_array(folder):
    with (folder / "images.npy").open("ab") as file:
        file.write(bytes(144))


def no_array(folder):
    (folder / "images.npy").unlink()


def an_empty_array(folder):
    (folder / "images.npy").write_bytes(b"")


def an_array_of_another_shape(folder):
    np.save(folder / "images.npy", np.load(folder / "images.npy").reshape(13, 6, 24))


def an_archive_for_an_array(folder):
    np.savez(folder / "images.npz", np.zeros(1))
    (folder / "images.npz").replace(folder / "images.npy")


def edited(folder, **changed):
    description = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(description | changed))


def another_size(folder):
    edited(folder, image_size=13)


def another_fingerprint(folder):
    edited(folder, fingerprint="0" * 64)


def files_that_are_none(folder):
    edited(folder, files=["images.npy"])


def a_description_that_is_a_list(folder):
    (folder / "store.json").write_text("[1, 2]")


def half_a_description(folder):
    content = (folder / "store.json").read_bytes()
    (folder / "store.json").write_bytes(content[: len(content) // 2])


DAMAGES = [
    *(half_an_index, an_index_torn_in_a_line, reversed_rows, two_rows_exchanged, through_a_spreadsheet, no_index),
    *(zeroed_pixels, one_pixel_else, swapped_pixels, a_truncated_array, a_longer_array, no_array, an_empty_array),
    *(an_array_of_another_shape, an_archive_for_an_array, another_size, another_fingerprint, files_that_are_none),
    *(a_description_that_is_a_list, half_a_description),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_changed_store_is_refused_in_one_line(damage, config, folder):
    damage(folder)
    with pytest.raises(UserError, match=rf"^{folder}/[a-z]+\.\w+: found .*, expected .*; .*or delete {folder} and run"):
        open_data(config.data)


@pytest.mark.parametrize("damage", [*DAMAGES, another_rejected])
def test_verify_finds_what_was_changed(damage, config, folder, tmp_path):
    damage(folder)
    settings = {f"data.{name}": value for name, value in config.data.model_dump(mode="json").items() if value}
    outcome = call(main, "--config", write_config(tmp_path / "my.yaml", settings), "--verify")
    assert outcome.code == 2 and not outcome.out
    [line] = outcome.err.splitlines()
    assert line.startswith(f"error: {folder}/")


@pytest.mark.parametrize(
    ("damage", "taken"),
    [(half_an_index, 0), (reversed_rows, 0), (a_truncated_array, 0), (zeroed_pixels, 11), (swapped_pixels, 10)],
)
def test_nothing_of_a_changed_store_gets_into_another(damage, taken, config, folder, tmp_path, capsys):
    """Neither pixels nor rows: what cannot be trusted is decoded again."""
    damage(folder)
    pd.read_csv(tmp_path / "images/manifest.csv").head(12).to_csv(tmp_path / "images/manifest.csv", index=False)
    capsys.readouterr()
    other = prepare(config)
    assert other.folder != folder
    assert (f"{taken} images taken over" if taken else "") in capsys.readouterr().out
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    assert np.array_equal(other.images, whole.images) and other.index == whole.index


def test_another_stores_description_index_and_pixels_are_refused(config, folder, tmp_path):
    other = prepare(tiny_config(tmp_path, data__resize="squash")).folder
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for names in (
        ["store.json"],
        ["store.json", "index.csv", "rejected.csv"],
        [path.name for path in other.glob("*.*")],
    ):
        for name in names:
            shutil.copy(other / name, folder / name)
        with pytest.raises(UserError, match=rf"^{folder}/store\.json: found the description of another store"):
            open_data(config.data)
        for name, content in kept.items():
            (folder / name).write_bytes(content)
    open_data(config.data)


def test_another_stores_pixels_are_refused(config, folder, tmp_path):
    write_table(tmp_path / "others/images", 13, seed=1)
    other = prepare(tiny_config(tmp_path / "others"))
    shutil.copy(other.folder / "images.npy", folder / "images.npy")
    with pytest.raises(
        UserError, match=r"images\.npy: found pixels of 13 of 13 rows looked at .*\(rows 0, 1, 2, 3, 4, …"
    ):
        open_data(config.data)


def test_verify_counts_rows_that_a_sample_may_miss(config, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data.store_integrity, "SMALL", 0)
    monkeypatch.setattr(data.store_integrity, "SAMPLE", 0)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[[2, 9]] = images[[9, 2]]
    images[5, 0, 0] ^= 255
    images.flush()
    store = ImageStore(folder)  # by sizes and digests of the tables alone
    with pytest.raises(
        UserError, match=r"found pixels of 3 of 13 rows that were changed \(rows 2, 5, 9\), expected none"
    ):
        store.verify()


def test_a_sample_of_a_large_store_finds_a_lost_half(config, folder, monkeypatch):
    monkeypatch.setattr(data.store_integrity, "SMALL", 0)
    ImageStore(folder)
    np.load(folder / "images.npy", mmap_mode="r+")[:7] = 0
    with pytest.raises(UserError, match=r"found pixels of 7 of 13 rows looked at"):
        ImageStore(folder)


def test_verify_says_one_line_and_changes_nothing(config, folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    settings = {f"data.{name}": value for name, value in config.data.model_dump(mode="json").items() if value}
    yaml = write_config(tmp_path / "my.yaml", settings)
    outcome = call(main, "--config", yaml, "--verify")
    assert outcome == (0, f"verified: {folder} (13 images) is what was written\n", "")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    shutil.rmtree(folder)
    outcome = call(main, "--config", yaml, "--verify")
    assert outcome.code == 2 and "found no finished store, expected one; run mae-prepare" in outcome.err
    assert not folder.exists()
    outcome = call(main, "--config", yaml, "--verify", "data.store=false")
    assert outcome.code == 2 and outcome.err.startswith("error: data.store: found false")


def test_pixels_are_known_by_their_own_digest(folder):
    """BLAKE2b of a row's bytes, in 8 bytes."""
    images = np.load(folder / "images.npy")
    with (folder / "index.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            content = images[int(line["row"])].tobytes()
            assert line["pixels"] == hashlib.blake2b(content, digest_size=8).hexdigest()


# ---------------------------------------------------------------- stores older than digests


@pytest.fixture
def old(folder) -> Path:
    """A store as it was written before stores had digests of pixels and tables."""
    table = pd.read_csv(folder / "index.csv", dtype=str).drop(columns="pixels")
    table.to_csv(folder / "index.csv", index=False)
    pd.read_csv(folder / "rejected.csv").drop(columns="plugins").to_csv(folder / "rejected.csv", index=False)
    description = json.loads((folder / "store.json").read_text())
    del description["files"]
    (folder / "store.json").write_text(json.dumps(description))
    return folder


def test_an_old_store_opens_with_a_note(config, old, capsys):
    store = open_data(config.data).store
    assert store.folder == old and not store.vouched
    assert capsys.readouterr().err == f"note: {old}: made before stores had digests: its contents cannot be checked\n"
    with pytest.raises(UserError, match=r"found no digests of pixels, as the store is older .*, expected one in each"):
        store.verify()


@pytest.mark.parametrize(
    "damage", [half_an_index, reversed_rows, two_rows_exchanged, through_a_spreadsheet, a_truncated_array, another_size]
)
def test_what_an_old_store_tells_without_digests_is_refused(damage, config, old):
    damage(old)
    with pytest.raises(UserError, match=rf"^{old}/[a-z]+\.\w+: found .*, expected .*"):
        open_data(config.data)


# ---------------------------------------------------------------- stores under construction


def test_pixels_that_a_power_cut_lost_are_decoded_again(config, tmp_path, monkeypatch):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        patch.setattr(data.store.StoreWriter, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    [images] = tmp_path.glob("stores/*/images.partial.npy")
    np.load(images, mmap_mode="r+")[[0, 5]] = 0
    assert np.array_equal(prepare(config).images, whole.images)


def interrupted(*_):
    raise KeyboardInterrupt
