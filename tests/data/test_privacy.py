"""Laws of credentialed data: consent stays with its data, new files with their owner, ids with those who know them."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mimic_tree import build_mimic_tree
from tiny_world import tiny_config, write_table

from data.config import make_config
from data.dicom_ids import read_ids
from data.errors import UserError, quoted, withholding
from data.files_on_disk import exist
from data.loader import open_data
from data.manifest import hashed, open_manifest
from data.preparation import prepare
from data.privacy import (
    credentialed_sources,
    data_sets,
    is_credentialed,
    may_hand_on,
    may_show,
    secret_key,
    with_settings,
)
from data.settings import DataSettings
from data.sources.found_images import find_images
from data.writing import as_cell, keep_private, of_cell, read_csv, restoring_umask, write_csv, write_text


def umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


@pytest.fixture
def open_umask():
    """A umask that restricts nobody."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def key_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home/mae-cxr"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---------------------------------------------------------------- which data


def test_a_mix_names_its_credentialed_parts():
    parts = [
        {"source": "nih-cxr14", "root": "a"},
        {"source": "chexpert", "root": "b"},
        {"source": "mimic-cxr-jpg", "root": "c", "name": "boston"},
    ]
    mix = make_config({"data": {"sources": parts}}, "test").data
    assert credentialed_sources(mix) == ("chexpert", "boston")
    assert credentialed_sources(mix.model_copy(update={"credentialed": True})) == ("nih-cxr14", "chexpert", "boston")
    assert not is_credentialed(mix.model_copy(update={"credentialed": False}))


@pytest.mark.parametrize(
    ("credentialed", "wished", "shown"),
    [(False, None, True), (False, False, False), (True, None, False), (True, True, True), (True, False, False)],
)
def test_credentialed_data_is_shown_only_where_it_is_wished_for(credentialed, wished, shown):
    assert may_show(credentialed, wished) is shown


def test_columns_of_credentialed_tables_go_on_by_their_name_alone():
    for column in ("surname", "accession", "ward", "raceway"):
        assert may_hand_on(column, credentialed=False, wished=())
        assert not may_hand_on(column, credentialed=True, wished=("site",))
        assert may_hand_on(column, credentialed=True, wished=("site", column))
    for column in ("race", "Ethnicity", "Marital Status", "PRIMARY_RACE"):
        assert may_hand_on(column, credentialed=True, wished=())


# ---------------------------------------------------------------- consent


def allowing() -> object:
    data = {"source": "table", "root": "/hospital", "credentialed": False, "share": "group"}
    return make_config({"data": data, "report": {"images": True}}, "test")


OTHER = {"data.source": "mimic-cxr-jpg", "data.root": "/mimic"}


@pytest.mark.parametrize(
    "changes",
    [
        {"data.source": "mimic-cxr-jpg"},
        {"data.root": "/elsewhere"},
        {"data.table": "other.csv"},
        {"data": {"root": "/elsewhere"}},
        {"data.source": "mix", "data.sources": [{"source": "chexpert", "root": "/chexpert"}]},
    ],
)
def test_what_is_allowed_for_some_data_is_not_for_other_data(changes):
    changed = with_settings(allowing(), changes)
    assert (changed.report.images, changed.data.credentialed, changed.data.share) == (None, None, "private")


def test_what_is_allowed_anew_holds():
    given = {"data.root": "/elsewhere", "report": {"images": True}, "data.credentialed": False, "data.share": "group"}
    changed = with_settings(allowing(), given)
    assert (changed.report.images, changed.data.credentialed, changed.data.share) == (True, False, "group")


def test_the_same_data_keeps_what_is_allowed():
    changed = with_settings(allowing(), {"data.store": "/fast", "data.sample": 5, "finetune.epochs": 3})
    assert (changed.report.images, changed.data.credentialed, changed.data.share) == (True, False, "group")


def consents(root: str, changed_root: str) -> bool | None:
    """`report.images` after a table's root is written differently."""
    made = make_config({"data": {"source": "table", "root": root}, "report": {"images": True}}, "test")
    return with_settings(made, {"data.root": changed_root}).report.images


def test_a_place_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path / "a"))
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = ["a", "./a/", "b/../a", f"{tmp_path}/a", f"{tmp_path}//b/../a/", "link", "${PLACE}", "${NONE:-a}", "~/a"]
    for one in ways:
        for other in ways:
            assert consents(one, other) is True, (one, other)
        for other in ("b", "a/b", f"{tmp_path}/A", "${PLACE}b", "${NOT_SET}", "link/../b"):
            assert consents(one, other) is None, (one, other)
            assert consents(other, one) is None, (one, other)


def test_a_link_out_of_a_place_is_another_place(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    assert consents(f"{tmp_path}/a", f"{tmp_path}/link/..") is True
    assert consents(f"{tmp_path}/x", f"{tmp_path}/link/../x") is None


def test_consent_is_for_what_the_place_was_when_it_was_given(tmp_path, monkeypatch):
    made = make_config({"data": {"source": "table", "root": "${PLACE}"}, "report": {"images": True}}, "test")
    monkeypatch.setenv("PLACE", f"{tmp_path}/open")
    then = data_sets(made.data)
    assert with_settings(made, {"data.sample": 5}, made_on=then).report.images is True
    monkeypatch.setenv("PLACE", f"{tmp_path}/mimic")
    assert with_settings(made, {"data.sample": 5}, made_on=then).report.images is None
    assert with_settings(made, {"report.images": True}, made_on=then).report.images is True
    assert with_settings(made, {"data.sample": 5}).report.images is True  # in one command nothing moves


def test_a_mix_allows_it_for_each_of_its_parts():
    parts = [{"source": "table", "root": "/one", "name": "one"}, {"source": "nih-cxr14", "root": "/two"}]
    mix = make_config({"data": {"sources": parts}, "report": {"images": True}}, "test")
    alone = {"data.sources": [], "data.source": "table", "data.root": "/one"}
    assert with_settings(mix, alone).report.images is True
    assert with_settings(mix, alone | {"data.root": "/three"}).report.images is None


def test_what_is_allowed_in_between_is_for_the_data_in_between():
    there, back = OTHER | {"report.images": True}, {"data.source": "table", "data.root": "/hospital"}
    private = make_config({"data": {"source": "table", "root": "/hospital", "credentialed": True}}, "test")
    assert with_settings(private, there).report.images is True
    assert with_settings(private, there, back).report.images is None
    assert with_settings(allowing(), OTHER, back).report.images is True  # for its own data it was allowed before


def test_what_is_forbidden_stays_forbidden():
    data = {"source": "table", "root": "/hospital", "credentialed": True}
    made = make_config({"data": data, "report": {"images": False}}, "test")
    changed = with_settings(made, {"data.root": "/elsewhere"})
    assert (changed.report.images, changed.data.credentialed) == (False, True)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(("share", "file", "folder"), [("private", 0o600, 0o700), ("group", 0o640, 0o750)])
@pytest.mark.parametrize("before", [0o022, 0o077, 0o027])
def test_new_files_are_private_whatever_the_umask(before, share, file, folder, tmp_path):
    outer = os.umask(before)
    try:
        with restoring_umask():
            keep_private(["mimic-cxr-jpg"], share)
            write_text(tmp_path / "file", "text")
            (tmp_path / "folder").mkdir()
        assert umask() == before
    finally:
        os.umask(outer)
    assert (mode(tmp_path / "file"), mode(tmp_path / "folder")) == (file, folder)


def test_a_group_that_writes_goes_on_writing(open_umask, tmp_path):
    with restoring_umask():
        keep_private(["chexpert"], "group")
        write_text(tmp_path / "file", "text")
    assert mode(tmp_path / "file") == 0o660


def test_one_private_data_set_among_shared_ones_decides(open_umask, tmp_path):
    with restoring_umask():
        keep_private(["mimic-cxr-jpg"], "private")
        with restoring_umask():
            keep_private(["chexpert"], "group")
            write_text(tmp_path / "file", "text")
    assert mode(tmp_path / "file") == 0o600


def test_what_a_killed_writer_left_open_is_not_written_into(open_umask, tmp_path):
    (tmp_path / "file.tmp").write_text("half")
    with restoring_umask():
        keep_private(["chexpert"], "private")
        write_text(tmp_path / "file", "whole")
    assert mode(tmp_path / "file") == 0o600


def test_a_store_of_mimic_is_private_and_one_of_open_data_has_the_umask(open_umask, tmp_path):
    rng = np.random.default_rng(0)
    build_mimic_tree(tmp_path / "mimic", [rng.integers(0, 255, (20, 20), np.uint8) for _ in range(20)], [True] * 20)
    write_table(tmp_path / "images", count=12)
    for source, root, file, folder in (
        ("mimic-cxr-jpg", "mimic", 0o600, 0o700),
        ("table", "images", 0o666, 0o777),  # afterwards: nothing is left behind
    ):
        places = {"data__root": f"{tmp_path}/{root}", "data__store": f"{tmp_path}/stores-{root}"}
        store = prepare(tiny_config(tmp_path, data__source=source, **places).data)
        assert mode(tmp_path / f"stores-{root}") == mode(store.folder) == folder
        assert {mode(path) for path in store.folder.iterdir()} == {file}


# ---------------------------------------------------------------- ids that are remembered


def test_the_secret_is_made_once_and_for_its_owner(open_umask, key_folder):
    key = secret_key()
    assert len(key) == 32 and secret_key() == key
    assert (mode(key_folder), mode(key_folder / "key")) == (0o700, 0o600)
    assert [path.name for path in key_folder.iterdir()] == ["key"]


def test_where_no_secret_can_be_kept_it_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert secret_key() != secret_key()
    assert "warning: no secret kept" in capsys.readouterr().err


def test_remembered_ids_of_credentialed_data_cannot_be_guessed(tmp_path, key_folder):
    data = open_data(tiny_config(tmp_path, data__credentialed=True).data)
    table = data.split("train")
    remembered = data.identities(table)
    guesses = hashed(table["image_id"])  # what somebody who knows or guesses all ids can work out
    assert not np.isin(guesses, remembered).any()
    assert np.isin(hashed(table["image_id"], secret_key()), remembered).all()


@pytest.mark.parametrize("then", [None, True])
@pytest.mark.parametrize("now", [None, True])
def test_images_are_known_again_however_they_were_declared(then, now, tmp_path, key_folder):
    made = open_data(tiny_config(tmp_path, data__credentialed=then, data__store=False).data)  # without contents
    seen = np.unique(made.identities(made.split("train")))
    data = open_data(tiny_config(tmp_path, data__credentialed=now, data__store=False).data)
    assert np.isin(data.known_by(data.split("train")), seen).any(axis=1).all()
    assert not np.isin(data.known_by(data.split("test")), seen).any()


# ---------------------------------------------------------------- what messages quote


def test_nothing_is_quoted_of_credentialed_data_but_its_shape():
    assert quoted("Doe, Jane 10000032.0") == "Doe, Jane 10000032.0"
    with withholding(True):
        assert quoted("Doe, Jane 10000032.0") == "xxx, xxxx 00000000.0"
        assert quoted("Zoë/Γ7", "a file") == "a file"
        with withholding(False):
            assert quoted("open") == "open"
        assert quoted("Zoë Γ7") == "xxx x0"


def change(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    table = table.astype({column: object})
    table.loc[3, column] = value
    return table


SECRET = "Zq7Mark"
MISTAKES = {
    "a label": lambda table: change(table, "label", SECRET),
    "a split": lambda table: change(table, "split", SECRET),
    "a torn patient": lambda table: table.assign(patient_id=SECRET),
    "a repeated id": lambda table: table.assign(image_id=SECRET),
    "two spellings": lambda table: table.assign(patient_id=[f"{SECRET}7{'.0' * (n % 2)}" for n in range(len(table))]),
    "no header": lambda table: table.set_axis([f"{SECRET}{n}" for n in range(table.shape[1])], axis=1),
    "a column twice": lambda table: table.set_axis([SECRET, SECRET, "path", "label"], axis=1),
    "a finding": lambda table: table.assign(Pneumonia=SECRET),
    "a surrogate": lambda table: change(table, "path", f"{SECRET}\udc80"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_credentialed_table_quote_nothing_of_it(mistake, tmp_path):
    table = MISTAKES[mistake](write_table(tmp_path / "images", count=12))
    with (tmp_path / "images/manifest.csv").open("w", encoding="utf-8", errors="surrogateescape") as file:
        table.to_csv(file, index=False)
    settings = DataSettings(source="table", root=f"{tmp_path}/images", credentialed=True)
    with pytest.raises(UserError) as caught:
        open_manifest(settings)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("credentialed", [False, True])
@pytest.mark.parametrize("kind", ["tables", "folders", "headers"])
def test_what_the_system_refuses_of_credentialed_data_is_not_quoted(kind, credentialed, tmp_path, monkeypatch):
    folder = tmp_path / SECRET
    folder.mkdir()
    (folder / SECRET).write_bytes(b"x" * 128 + b"DICM")
    trouble = OSError(errno.EIO, "Input/output error", str(folder))
    asked = {
        "tables": exist,
        "headers": lambda paths: read_ids(paths, b"salt"),
        "folders": lambda paths: find_images(tmp_path),
    }

    def fail(*_, **__):
        raise trouble

    place = {"tables": "data.files_on_disk.os.stat", "headers": "data.dicom_ids.read_partial", "folders": "os.scandir"}
    monkeypatch.setattr(place[kind], fail)
    with pytest.raises(UserError, match=r"input/output error.*; run again") as caught, withholding(credentialed):
        asked[kind]([str(folder / SECRET)])
    assert (SECRET not in str(caught.value)) == credentialed


# ---------------------------------------------------------------- cells

CELLS = ["=1+1", "+7", "-5", "@SUM(A1)", "\tx", "\rx", "'=1", "''-1", "＝1", "'quoted'", "'", "", "a=b", "7-8"]


def test_no_cell_of_ours_begins_a_formula_and_none_is_lost(tmp_path):
    write_csv(tmp_path / "cells.csv", ("image_id", "score"), [(cell, -0.5) for cell in CELLS])
    lines = list(read_csv(tmp_path / "cells.csv"))
    assert [line["image_id"] for line in lines] == CELLS
    written = pd.read_csv(tmp_path / "cells.csv", dtype={"image_id": str}, na_filter=False)
    assert not [cell for cell in written["image_id"] if cell[:1] and cell[0] in "=+-@\t\r＝"]
    assert written["score"].tolist() == [-0.5] * len(CELLS)  # a number stays a number


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_read_as_it_was(cell):
    assert of_cell(as_cell(cell)) == cell


def test_a_store_knows_ids_that_look_like_formulas(tmp_path):
    table = write_table(tmp_path / "images", count=12)
    table = table.assign(image_id=["=1", "+2", "-3", "@4", "'5", "'=6", *"abcdef"])
    table.to_csv(tmp_path / "images/manifest.csv", index=False)
    store = prepare(tiny_config(tmp_path).data)
    assert set(store.index) == set(table["image_id"])
    assert len(store.digests()) == 12
