"""Laws of training straight from files: the store's pixels and draws, and what becomes of files without an image."""

import gc
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import call, tiny_config

import data.image_files
from classify.evaluate import evaluate
from classify.finetune import finetune
from data.cli import prepare as main
from data.config import load_config
from data.errors import UserError
from data.loader import Loader, open_data
from data.store import Postponed
from mae.dry_run import dry_run
from mae.engine.checkpoint import load_checkpoint
from mae.pretrain import pretrain


def from_files(root, **changed):
    """A config that reads the files with one process: starting one takes longer than reading all of them."""
    return tiny_config(root, **{"data__store": False, "data__workers": 1} | changed)


def batches_of(opened, seed=None, size=7, epoch=3, start=0):
    loader = Loader(opened, opened.split("train"), size, seed)
    return [tuple(part.numpy() for part in batch) for batch in loader.epoch(epoch, start)]


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for parts in zip(one, other, strict=True):
        for a, b in zip(*parts, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def stored(opened):
    return opened


@pytest.fixture(scope="module")
def read(place):
    return open_data(from_files(place, data__workers=2).data)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize(("size", "start"), [(1, 33), (7, 0), (7, 2), (60, 0)])
def test_files_give_the_stores_batches(stored, read, seed, size, start):
    assert_same(batches_of(stored, seed, size, start=start), batches_of(read, seed, size, start=start))


def test_the_number_of_processes_changes_nothing(place, read):
    assert_same(batches_of(read, 5), batches_of(open_data(from_files(place, data__workers=3).data), 5))


def test_who_stops_early_may_begin_again(stored, read):
    first = next(Loader(read, read.split("train"), 2, 5).epoch())
    assert len(first.numbers) == 2
    assert_same(batches_of(stored, 5), batches_of(read, 5))


def test_a_killed_process_costs_nothing(stored, place):
    opened = open_data(from_files(place, data__workers=2).data)
    loader = Loader(opened, opened.split("train"), 2, 5)
    batches = loader.epoch(3)
    begun = list(islice(batches, 3))
    for process in list(opened.store.pool._processes.values()):
        with suppress(ProcessLookupError):  # the pool has ended the second already
            os.kill(process.pid, signal.SIGKILL)
    rest = list(batches)
    got = [tuple(part.numpy() for part in batch) for batch in begun + rest]
    assert_same(got, batches_of(stored, 5, 2))


def test_processes_killed_again_and_again_are_one_line(place, monkeypatch):
    ending = partial(ProcessPoolExecutor, mp_context=get_context("spawn"), initializer=os._exit, initargs=(1,))
    monkeypatch.setattr(data.image_files, "start_processes", ending)
    with pytest.raises(UserError, match=r"^data.workers: found a process that reads images killed.*give fewer"):
        batches_of(open_data(from_files(place).data))


def test_interrupts_are_for_the_parent_to_follow(stored, place):
    opened = open_data(from_files(place, data__workers=1).data)
    batches = Loader(opened, opened.split("train"), 2, 5).epoch(3)
    begun = list(islice(batches, 3))
    for process in opened.store.pool._processes.values():
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGUSR1)
    pool = opened.store.pool
    got = [tuple(part.numpy() for part in batch) for batch in begun + list(batches)]
    assert opened.store.pool is pool
    assert_same(got, batches_of(stored, 5, 2))


def test_training_from_files_equals_training_from_a_store(place, stored, read, tmp_path):
    runs, scores = [], []
    few = {"pretrain__epochs": 2, "finetune__epochs": 2}
    configs = (tiny_config(place, **few), from_files(place, **few, data__workers=2))
    for name, opened, config in zip(("stored", "files"), (stored, read), configs, strict=True):
        config = config.model_copy(update={"run": str(tmp_path / name)})
        folder = pretrain(config, opened)
        best = finetune(config, folder / "last.pt", opened)
        runs += [load_checkpoint(folder / "last.pt").weights, load_checkpoint(best / "last.pt").weights]
        scores.append(evaluate(best, {"evaluate.split": "validate"}, opened).predictions)
    for one, other in zip(runs[:2], runs[2:], strict=True):
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    pd.testing.assert_frame_equal(*scores)


def test_a_run_may_go_on_from_files_and_from_a_store(place, stored, read, tmp_path):
    config = tiny_config(place, run=str(tmp_path / "run"), pretrain__epochs=2)
    pretrain(config, stored)
    on = from_files(place, run=str(tmp_path / "run"), pretrain__epochs=3)
    assert load_checkpoint(pretrain(on, read) / "last.pt").progress["epoch"] == 3


# ---------------------------------------------------------------- files without an image


@pytest.fixture
def spoilt(tmp_path):
    """A training and a validation file that hold no image."""
    tiny_config(tmp_path)
    table = pd.read_csv(tmp_path / "images/manifest.csv")
    bad = [table.loc[table["split"] == split, "path"].iloc[1] for split in ("train", "validate")]
    for name in bad:
        (tmp_path / "images" / name).write_bytes(b"nothing")
    return bad


def test_unreadable_files_are_named_once_and_neither_learnt_nor_scored(tmp_path, spoilt, capfd):
    config = from_files(tmp_path, finetune__epochs=2)
    opened = open_data(config.data)
    folder = finetune(config, None, opened)
    evaluation = evaluate(folder, {"evaluate.split": "validate"}, opened)
    err = capfd.readouterr().err
    for name in spoilt:
        assert err.count(f"{name}: found other bytes, expected JPEG, PNG or DICOM; left out") == 1
    whole = opened.split("validate")
    assert len(whole) == 10
    assert sorted(evaluation.predictions["image_id"]) == sorted(set(whole["image_id"]) - {spoilt[1]})
    assert evaluation.summary["n"] == 9


def test_another_image_of_the_batch_stands_in_without_a_label(tmp_path, spoilt):
    opened = open_data(from_files(tmp_path).data)
    stored = open_data(tiny_config(tmp_path).data)
    [batch] = Loader(opened, opened.split("train"), 60).epoch()
    [whole] = Loader(stored, stored.split("train"), 60).epoch()
    bad = torch.from_numpy(np.isin(batch.numbers, opened.store.rows([spoilt[0]])))
    assert bad.sum() == 1
    assert batch.labels[bad].isnan().all()
    assert torch.equal(batch.labels[~bad], whole.labels)
    assert torch.equal(batch.images[~bad], whole.images)
    assert (batch.images[~bad] == batch.images[bad]).flatten(1).all(1).any()
    assert set(batch.numbers.tolist()) - set(whole.numbers.tolist()) == set(opened.store.rows([spoilt[0]]).tolist())


def test_too_many_unreadable_files_are_one_line(tmp_path, spoilt):
    config = from_files(tmp_path, data__max_rejected=0)
    with pytest.raises(UserError, match=r"^data.store: found 1 unreadable files so far, expected at most 0 of 60; "):
        pretrain(config, open_data(config.data))


def test_a_folder_without_any_image_is_one_line(tmp_path):
    (tmp_path / "bare").mkdir()
    for number in range(8):
        (tmp_path / f"bare/{number}.jpg").write_text("nothing")
    config = from_files(tmp_path, data__source="images", data__root=str(tmp_path / "bare"))
    with pytest.raises(UserError, match=r"^data.store: found none of 5 files of a batch readable, expected some$"):
        pretrain(config, open_data(config.data))


def test_who_allows_more_goes_on(tmp_path, spoilt):
    strict, lax = (from_files(tmp_path, data__max_rejected=most, pretrain__epochs=2) for most in (0, 2))
    with pytest.raises(UserError, match=r"go on without: data.max_rejected=2$"):
        pretrain(strict, open_data(strict.data))
    assert load_checkpoint(pretrain(lax, open_data(lax.data)) / "last.pt").progress["epoch"] == 2


def test_nothing_is_left_behind(stored, place):
    opened = open_data(from_files(place).data)
    folder = opened.store.scratch
    batches = Loader(opened, opened.split("train"), 2, 5).epoch()
    next(batches)
    assert list(folder.iterdir())
    batches.close()
    assert not list(folder.iterdir())
    del opened, batches
    gc.collect()
    assert not folder.exists()


# ---------------------------------------------------------------- commands


def test_prepare_says_that_there_is_nothing_to_prepare(place):
    root = place / "images"
    settings = [f"data.root={root}", "data.source=table", "data.store=false"]
    outcome = call(main, "--config", "kermany", *settings)
    assert outcome.code == 0, outcome.err
    assert "nothing is decoded" in outcome.out
    assert not (place / "false").exists()


def test_a_dry_run_reads_the_files(place):
    assert "the config's images" in dry_run(from_files(place, run=str(place / "never")))
    assert not (place / "never").exists()


def test_the_store_is_a_folder_or_false():
    with pytest.raises(UserError, match=r"data\.store: .*a folder, or false"):
        load_config("demo", ["data.store=true"])
    with pytest.raises(UserError, match=r"data\.store: .*a folder, or false"):
        load_config("demo", ["data.store=''"])


def test_passing_trouble_with_a_credentialed_file_does_not_name_it(tmp_path, monkeypatch):
    files = open_data(tiny_config(tmp_path, data__store=False, data__credentialed=True).data).store
    reason = Postponed(f"{files.paths[1]}: found input/output error, expected a readable image file")

    class Asked:
        rows = np.array([0, 1])

        def collect(self):
            return np.zeros((2, 12, 12), np.uint8), [None, reason]

    monkeypatch.setattr(files, "_collect_again", lambda rows: (np.zeros((1, 12, 12), np.uint8), [reason]))
    with pytest.raises(UserError) as caught:
        files._collect(Asked())
    said = str(caught.value)
    assert said.startswith("image 1 in the order of ids: found input/output error")
    assert "which may pass: run again" in said
    assert "000" not in said and str(tmp_path) not in said
