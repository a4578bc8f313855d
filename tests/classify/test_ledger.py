"""Every look at test labels is recorded, in the run and beside the data, and nothing written there harms a reader."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import call, edit_table, make_world, succeed

from classify.cli import compare, evaluate, finetune
from classify.ledger import LEDGER, Opening, data_ledger, openings, record
from data.settings import DataSettings
from data.writing import append_line, keep_private, restoring_umask


def opening(checkpoint: str = "c1", split: str = "s1", read_back: bool = False, **changed) -> Opening:
    return Opening(run="/runs/a", checkpoint=checkpoint, split=split, n=7, read_back=read_back, **changed)


def both(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "run").mkdir()
    return tmp_path / "run", tmp_path / "stores"


def test_openings_are_numbered_per_split_in_both_places(tmp_path):
    run, stores = both(tmp_path)
    for checkpoint, split in (("c1", "s1"), ("c2", "s1"), ("c1", "s2"), ("c1", "s1")):
        record(opening(checkpoint, split), run, stores)
    for folder in (run, stores):
        assert [(line["split"], line["times"]) for line in openings(folder)] == [
            ("s1", 1),
            ("s1", 2),
            ("s2", 1),
            ("s1", 3),
        ]
        assert len(openings(folder, "s1")) == 3
    line = openings(stores)[0]
    assert line["time"].endswith("+00:00") and line["n"] == 7 and line["run"] == "/runs/a" and line["command"]


def test_predictions_read_back_are_recorded_once_and_only_where_they_are_not_known(tmp_path):
    run, stores = both(tmp_path)
    record(opening(), run, stores)
    record(opening(read_back=True), run, stores)
    assert len(openings(run)) == len(openings(stores)) == 1
    (stores / LEDGER).unlink()
    for _ in range(2):
        record(opening(read_back=True), run, stores)
    assert len(openings(run)) == len(openings(stores)) == 1
    assert openings(stores)[0]["read_back"]


STRANGE = [
    b"",
    b"[1, 2]",
    b"null",
    b'{"time": 3}',
    b"[" * 100_000,
    b"\xff\xfe\x00",
    b'{"time": "now", "comm',
    b'{"time": "", "command": "", "run": "", "checkpoint": "c", "split": "s", "n": 1, "times": true}',
    b'{"time": "", "command": "", "run": "", "checkpoint": ["c"], "split": "s", "n": 1, "times": 1}',
]


@pytest.mark.parametrize("strange", STRANGE)
def test_torn_and_strange_lines_are_passed_over(tmp_path, strange):
    run, stores = both(tmp_path)
    record(opening(), run, stores)
    with (stores / LEDGER).open("ab") as file:
        file.write(strange)  # without an end of line
    record(opening("c2"), run, stores)
    assert [line["checkpoint"] for line in openings(stores)] == ["c1", "c2"]
    assert openings(stores)[-1]["times"] == 2


def test_what_is_read_moves_no_cursor(tmp_path):
    run, stores = both(tmp_path)
    record(opening(command="\x1b[2J\nmae"), run, stores)
    [line] = openings(stores)
    assert line["command"].isprintable()


def test_a_folder_without_a_ledger_has_no_openings(tmp_path):
    assert openings(tmp_path) == openings(tmp_path / "nothing") == []
    (tmp_path / LEDGER).mkdir()
    assert openings(tmp_path) == []


def test_two_at_once_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from classify.ledger import Opening, record\n"
        "place = Path(sys.argv[1]); run = place / sys.argv[2]; run.mkdir()\n"
        "for number in range(20): record(Opening(str(run), f'{run.name}{number}', 's', 3, False), run, place / 'data')"
    )
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [one.wait() for one in several] == [0, 0, 0]
    lines = openings(tmp_path / "data")
    assert [line["times"] for line in lines] == list(range(1, 61))
    assert len({line["checkpoint"] for line in lines}) == 60


def test_without_a_store_the_ledger_stands_where_one_would_be():
    settings = DataSettings(source="table")
    assert data_ledger(settings.model_copy(update={"store": False})) == data_ledger(settings) == Path("stores")
    assert data_ledger(settings.model_copy(update={"store": "elsewhere"})) == Path("elsewhere")


def test_what_is_private_is_private_from_then_on(tmp_path):
    path = tmp_path / "lines"
    with restoring_umask():
        os.umask(0o022)
        append_line(path, "for all")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        keep_private(["credentialed"], "private")
        append_line(path, "for me")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    append_line(path, "for all")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "for all\nfor me\nfor all\n"


def test_a_line_that_the_disk_does_not_take_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "first")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "second")
    assert path.read_text() == "first\n"


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lines").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        append_line(tmp_path / "lines", "theirs")
    assert (tmp_path / "precious").read_text() == "mine"


# ---------------------------------------------------------------- commands


@pytest.fixture
def own(tmp_path):
    """A world of this test's own, with a classifier: every test writes to the ledgers of the shared one."""
    made = make_world(tmp_path)
    succeed(finetune, "--config", made.config, f"finetune.run={tmp_path}/run")
    return made


def said_of(outcome: str) -> list[str]:
    return [line for line in outcome.splitlines() if line.startswith("test opened")]


def test_evaluation_says_how_often_test_was_opened(own, tmp_path):
    run, stores = tmp_path / "run", own.root / "stores"
    assert said_of(succeed(evaluate, run, "--split", "validate")) == []
    assert openings(run) == openings(stores) == []

    assert said_of(succeed(evaluate, run, "--split", "test")) == ["test opened once on this data by 1 checkpoint"]
    assert said_of(succeed(evaluate, run, "--split", "test")) == ["test opened once on this data by 1 checkpoint"]

    # another look at the same weights, and other weights on the same images
    said = said_of(succeed(evaluate, run, "--split", "test", "evaluate.level=0.9"))
    assert said == ["test opened 2 times on this data by 1 checkpoint"]
    succeed(finetune, "--config", own.config, f"finetune.run={tmp_path}/other", "seed=1")
    flipped = edit_table(own, "flipped", lambda table: table.assign(label=1 - table["label"]))
    said = said_of(succeed(evaluate, tmp_path / "other", "--split", "test", flipped, f"data.root={own.images}"))
    assert said == ["test opened 3 times on this data by 2 checkpoints"]

    assert [line["times"] for line in openings(stores)] == [1, 2, 3]
    assert len(openings(run)) == 2 and len(openings(tmp_path / "other")) == 1
    assert {line["n"] for line in openings(stores)} == {10}
    assert openings(run)[0]["run"] == str(run)
    assert not (set(json.dumps(openings(stores)).split('"')) & {"0010.png", "p5"})  # nobody is named


def test_a_ledger_that_was_lost_learns_of_what_is_read_back(own, tmp_path):
    run, stores = tmp_path / "run", own.root / "stores"
    succeed(evaluate, run, "--split", "test")
    (stores / LEDGER).unlink()
    assert said_of(succeed(evaluate, run, "--split", "test")) == ["test opened once on this data by 1 checkpoint"]
    assert openings(stores)[0]["read_back"] and not openings(run)[0]["read_back"]


def test_a_comparison_on_test_is_recorded_once(tmp_path):
    world = make_world(tmp_path)
    words = ["--config", world.config, f"run={tmp_path}/grid", "compare.rows=[{name: ViT}, {name: B}]"]
    succeed(compare, *words)
    assert openings(world.root / "stores") == []
    for _ in range(2):
        succeed(compare, *words, "compare.split=test")
        assert len(openings(world.root / "stores")) == 2


def test_where_the_data_are_read_only_the_run_keeps_its_own(own, tmp_path, monkeypatch):
    import classify.ledger

    def refused(path, line):
        if path.parent == own.root / "stores":
            raise OSError(30, "Read-only file system", str(path))
        append_line(path, line)

    monkeypatch.setattr(classify.ledger, "append_line", refused)
    outcome = call(evaluate, tmp_path / "run", "--split", "test")
    assert outcome.code == 0
    assert "stores/test_openings.jsonl: not written (Read-only file system), so this opening of test" in outcome.err
    assert said_of(outcome.out) == ["test opened once on this data by 1 checkpoint"]
    assert openings(own.root / "stores") == [] and len(openings(tmp_path / "run")) == 1


def test_without_a_store_evaluation_records_too(tmp_path, monkeypatch):
    world = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [f"finetune.run={tmp_path}/run", "data.store=false"]
    succeed(finetune, "--config", world.config, *words)
    succeed(evaluate, tmp_path / "run", "--split", "test")
    assert len(openings("stores")) == 1
    shutil.rmtree("stores")
