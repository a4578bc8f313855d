"""Laws of what is logged: each step once, whatever was interrupted."""

import pytest

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
