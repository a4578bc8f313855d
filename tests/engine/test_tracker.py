"""Laws of what is logged: each step once, whatever was interrupted."""

from mae.engine.hparams import _fenced
from mae.engine.tracker import Tracker, read_metrics


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


def test_no_name_in_a_config_ends_its_block_of_code_in_tensorboard(tmp_path):
    name = "```\n<b>run\n````"
    assert _fenced(f"run: {name}") == f"`````\nrun: {name}\n`````"
    assert _fenced(" run: x \n") == "```\nrun: x\n```"
