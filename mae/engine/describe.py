"""What TensorBoard tells of a run besides its curves: config and environment as text, hyperparameters to compare by."""

import json
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from data.config import Root, print_config
from mae.engine.run import environment

# its own file, because a name that stays is replaced at each start; it sorts before the curves' files, since
# TensorBoard's slow reader leaves a file for good when there is a later one
HYPERPARAMETERS = "events.out.tfevents.0000000000.hyperparameters"


def describe_run(board: SummaryWriter, config: Root, step: int) -> None:
    """Config and environment in the Text tab, at the first step they hold for."""
    board.add_text("config", _fenced(print_config(config)), step + 1)
    board.add_text("environment", _fenced(json.dumps(environment(), indent=1)), step + 1)


def _fenced(text: str) -> str:
    return f"```\n{text.strip()}\n```"


def write_hyperparameters(folder: Path, values: dict[str, float | str]) -> None:
    """What a run is known by in the HParams tab; of several starts the last one's stands.

    No list of metrics goes with it, so that the tab shows those of all runs below a --logdir, whatever their stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HYPERPARAMETERS).open("wb") as file:
        records = RecordWriter(file)
        for content in ({"file_version": "brain.Event:2"}, {"summary": _session(values)[0]}):
            records.write(Event(wall_time=time.time(), **content).SerializeToString())
        records.flush()


def end_session(board: SummaryWriter) -> None:
    """Let the HParams tab show the run as finished."""
    board.file_writer.add_summary(_session({})[1])


def _session(values: dict[str, Any]) -> tuple[Summary, Summary]:
    """Start and end of what the HParams tab calls a session."""
    _, start, end = hparams(values, {})
    return start, end
