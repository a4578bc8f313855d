"""All commands over a credentialed hospital full of marks: what is written and printed is searched for them."""

import contextlib
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from marked_hospital import DATE, ID, MARK, SIDE, everything_written, write_hospital
from tiny_world import ONE_EPOCH, SETTINGS, Outcome, call, other_split, write_config

from classify.cli import compare, evaluate, export, finetune, predict, report
from mae.cli import pretrain, reconstruct

prepare = import_module("data.cli").prepare

# files that must hold ids to serve at all: whose row is which, whose file was unreadable, who scored what
MAY_HOLD_IDS = ("index.csv", "rejected.csv", "predictions/*.csv")
GRID = "compare={split: test, pretrainings: {a: {}}, rows: [{name: A, pretraining: [a]}, {name: B}]}"


class Told(NamedTuple):
    root: Path
    words: str  # all that was printed


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Told:
    """Every command has run, with a umask that restricts nobody."""
    root = tmp_path_factory.mktemp("credentialed")
    hospital = write_hospital(root / "hospital")
    again = pd.read_csv(hospital / "manifest.csv")
    other_split(again).to_csv(hospital / "again.csv", index=False)

    settings = SETTINGS | ONE_EPOCH | {"pretrain.panel_images": 2, "pretrain.probe_every": 1}
    settings |= {"data.source": "table", "data.root": str(hospital), "data.credentialed": True}
    settings |= {"run": f"{root}/made/runs/mae", "data.store": f"{root}/made/stores", "finetune.pool": "cls"}
    config = write_config(root / "config.yaml", settings)
    run = root / "made/runs/mae"

    shutil.copy(hospital / f"{ID}-0000.dcm", root / "shown.dcm")
    words = []
    before = os.umask(0)
    try:
        for main, *argv in (
            (prepare, "--config", config),
            (pretrain, "--config", config, "--verbose"),
            (finetune, "--checkpoint", run / "last.pt", "--verbose"),
            (evaluate, f"{run}-full"),
            # some images are in two splits, so that the audit has something to say
            (evaluate, f"{run}-full", "data.table=again.csv"),
            (pretrain, "--config", config, "data.store=false", f"run={root}/made/runs/files"),
            (compare, "--config", config, GRID, f"run={root}/made/runs/grid"),
            (report, f"{root}/made/runs/grid"),
            *((main, "--config", config, "--print-config") for main in (prepare, pretrain, finetune, compare)),
            (finetune, "--checkpoint", run / "last.pt", "--print-config"),
            (pretrain, "--config", config, "--dry-run"),
            (finetune, "--config", config, "--dry-run"),
            (prepare, "--config", config, "--verify"),
            # an image with a file name of its own, as somebody who shows one names it
            (reconstruct, root / "shown.dcm", "--checkpoint", run / "last.pt", "--out", root / "made/pictures"),
            (predict, "--checkpoint", f"{run}-full", hospital, "--out", root / "made/predictions/answers.csv"),
            (
                *(predict, "--checkpoint", f"{run}-full", root / "shown.dcm", "--heatmaps", root / "made/heat"),
                *("--out", root / "made/shown.csv"),
            ),
            (export, "--checkpoint", run / "last.pt", "--out", root / "made/exported"),
            (export, "--checkpoint", f"{run}-full/best.pt", "--out", root / "made/exported-classifier"),
        ):
            outcome = call(main, *argv)
            assert outcome.code == 0, outcome.err
            words += [outcome.out, outcome.err]
    finally:
        os.umask(before)
    return Told(root, "\n".join(words))


def test_no_mark_is_printed(told):
    assert "3 unreadable files are listed in" in told.words
    assert "served pretraining" in told.words
    assert MARK not in told.words and DATE not in told.words


def test_no_mark_is_written_but_ids_where_they_must_be(told):
    searched = set()
    with_ids = set()
    for path, content in everything_written(told.root / "made"):
        searched.add(path.name)
        if any(path.match(pattern) for pattern in MAY_HOLD_IDS):
            with_ids.add(path.name)
            content = content.replace(ID.encode(), b"")
        assert MARK.encode() not in content, path
        assert DATE.encode() not in content, path
    of_other_data = {name for name in with_ids if "test-" in name}
    assert with_ids == {"index.csv", "rejected.csv", "test.csv", "answers.csv"} | of_other_data
    kinds = {"metrics.jsonl", "report.html", "comparison.md", "best.pt", "audit.json", "config.yaml", "images.npy"}
    assert kinds <= searched
    assert any(name.startswith("events.out") for name in searched)


def test_no_radiograph_is_shown(told):
    for path, content in everything_written(told.root / "made"):
        assert b"data:image" not in content, path
        if path.name.startswith("events.out"):
            assert b"worst_mistakes" not in content and b"\x0ereconstruction" not in content, path


def test_everything_is_for_its_owner_alone_whatever_the_umask(told):
    for path in (told.root / "made", *(told.root / "made").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_what_is_made_of_it_says_so(told):
    said = "Made from credentialed data (table): check the data use agreement"
    assert said in told.words
    assert said in (told.root / "made/runs/grid/report.html").read_text()
    assert said in (told.root / "made/runs/grid/comparison.md").read_text()
    assert said in (told.root / "made/exported/README.md").read_text()


# ---------------------------------------------------------------- what goes wrong


def damaged_store(told: Told, folder: Path) -> Path:
    """A copy of the store with changed pixels."""
    stores = Path(shutil.copytree(told.root / "made/stores", folder / "stores"))
    for path in stores.glob("*/images.npy"):
        data = bytearray(path.read_bytes())
        data[-SIDE:] = bytes(SIDE)
        path.write_bytes(data)
    return stores


def changed_table(told: Told, **changed: object) -> str:
    """A table beside the hospital's with a mistake in it; returns the override that reads it."""
    table = pd.read_csv(told.root / "hospital/manifest.csv", dtype=object)
    for column, value in changed.items():
        table.loc[7, column] = value
    table.to_csv(told.root / "hospital/mistake.csv", index=False)
    return "data.table=mistake.csv"


MISTAKES: dict[str, Callable[[Told, Path], list[object]]] = {
    "a label": lambda told, folder: [changed_table(told, label=f"{MARK}?")],
    "a split": lambda told, folder: [changed_table(told, split=f"{MARK}?")],
    "an id twice": lambda told, folder: [changed_table(told, image_id=f"{ID}-image-0000")],
    "a patient in two splits": lambda told, folder: [changed_table(told, patient_id=f"{ID}-patient-4")],
    "no such file": lambda told, folder: [changed_table(told, path=f"{ID}-none.dcm"), "data.max_rejected=0"],
    "too many unreadable": lambda told, folder: ["data.max_rejected=1", f"data.store={folder}"],
    "the same without a store": lambda told, folder: ["data.max_rejected=1", "data.store=false"],
    "a damaged store": lambda told, folder: [f"data.store={damaged_store(told, folder)}"],
    "a path that is a folder": lambda told, folder: [changed_table(told, path=f"../{MARK}"), f"data.store={folder}"],
    "a path with a NUL": lambda told, folder: [changed_table(told, path=f"{MARK}\udc80"), f"data.store={folder}"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune"])
def test_no_mark_is_in_what_is_said_of_a_mistake(command, mistake, told, tmp_path):
    with contextlib.suppress(UnicodeEncodeError):
        words = ["--config", told.root / "config.yaml", *MISTAKES[mistake](told, tmp_path)]
        words += [f"run={tmp_path}/run", f"finetune.run={tmp_path}/run"]
        main = {"prepare": prepare, "pretrain": pretrain, "finetune": finetune}[command]
        outcome: Outcome = call(main, *words)
        assert MARK not in outcome.out + outcome.err
        assert "Traceback" not in outcome.err
