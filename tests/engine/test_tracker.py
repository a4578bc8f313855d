"""Laws of what is logged: each step once, whatever was interrupted."""

import json

import pytest

from mae.engine.hparams import _fenced
from mae.engine.tracker import Progress, Tracker, read_metrics


def test_what_was_logged_after_the_resumed_step_is_dropped(tmp_path):
    tracker = Tracker(tmp_path, 0)
    for step in (2, 4, 6):
        tracker.scalars(step, {"train/loss": step / 2})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # torn by a kill
    tracker = Tracker(tmp_path, 4)
    tracker.scalars(6, {"train/loss": 7.0})
    tracker.close()
    assert read_metrics(tmp_path) == [
        {"step": 2, "train/loss": 1.0},
        {"step": 4, "train/loss": 2.0},
        {"step": 6, "train/loss": 7.0},
    ]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        tracker = Tracker(tmp_path, start)
        for step in steps:
            tracker.scalars(step, {"train/loss": float(start)})
        tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0)]


def test_a_folder_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_a_log_gets_a_line_an_epoch_and_no_bar(enabled, capsys):
    progress = Progress("pretrain", images=100, done=0, enabled=enabled)
    for _ in range(10):
        progress.advance(10)
        progress.show(loss=0.5)
    progress.line("epoch 1")
    progress.close()
    assert capsys.readouterr() == ("", "epoch 1\n" if enabled else "")  # tqdm 750: no carriage returns


STRANGE = [
    b"\n",
    b"[1, 2]\n",
    b"7\n",
    b"null\n",
    b'{"epoch": 3}\n',
    b'{"step": "4", "epoch": 3}\n',
    b'{"step": 4, "validate/auc": "high"}\n',
    b'{"step": true, "epoch": 1}\n',
    b'{"step": 9, "epoch": [1]}\n',
    b"\xff\xfe\x00\n",
    b'{"step": 4, "train/lo\xc3\n',
    b"[" * 100_000 + b"\n",
    b'{"step": ' + b"1" * 5000 + b"}\n",
    b'{"step": 4, "epoch": ' + b"9" * 400 + b"}\n",
    b"step,loss\n1,2\n",
    b'{"step": 4, "train/l',
]


@pytest.mark.parametrize("strange", STRANGE)
def test_a_torn_or_foreign_row_costs_no_other(strange, tmp_path, capsys):
    """Rows before, after, and one that follows a torn row on its line."""
    first, second = {"step": 2, "train/loss": 1.5}, {"step": 6, "epoch": 1, "validate/auc": 0.5}
    rows = [json.dumps(row).encode() for row in (first, second)]
    (tmp_path / "metrics.jsonl").write_bytes(rows[0] + b"\n" + strange + rows[1] + b"\n")
    assert read_metrics(tmp_path) == [first, second]
    said = capsys.readouterr().err
    assert said.count("\n") == (strange != b"\n")
    if said:
        assert said.startswith(f"warning: {tmp_path / 'metrics.jsonl'}: found ") and "expected none" in said

    tracker = Tracker(tmp_path, 4)  # a run resumed from step 4 mends the file
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == rows[0] + b"\n"


def test_numbers_that_are_none_are_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "train/loss": NaN, "validate/loss": 2.0}\n')
    assert read_metrics(tmp_path) == [{"step": 1, "epoch": 1, "validate/loss": 2.0}]


def test_no_name_in_a_config_ends_its_block_of_code_in_tensorboard(tmp_path):
    name = "```\n<b>run\n````"
    assert _fenced(f"run: {name}") == f"`````\nrun: {name}\n`````"
    assert _fenced(" run: x \n") == "```\nrun: x\n```"
