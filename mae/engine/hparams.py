"""What TensorBoard shows of a run besides its curves: config and environment as text, hyperparameters to compare by."""

import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from data.config import Settings, print_config
from data.writing import writing
from mae.engine.run import environment

# A file of its own with a fixed name, so that each start replaces it. The name sorts before the curves' files, because
# TensorBoard's slow reader leaves a file for good when there is a later one.
HYPERPARAMETERS = "events.out.tfevents.0000000000.hyperparameters"


def describe_run(board: SummaryWriter, config: Settings, step: int) -> None:
    """Config and environment in the Text tab, at the first step they hold for."""
    board.add_text("config", _fenced(print_config(config)), step + 1)
    board.add_text("environment", _fenced(json.dumps(environment(), indent=1)), step + 1)


def _fenced(text: str) -> str:
    """The text as a code block of Markdown, with fences longer than any inside it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.strip()}\n{fence}"


def write_hyperparameters(folder: Path, values: dict[str, float | str]) -> None:
    """Write the run's entry in the HParams tab; each start replaces that of the one before.

    No list of metrics goes with it, so that the tab shows those of all runs below a --logdir, whatever their stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    session = _session(values)
    if session is None:
        # the public way adds a file at each start, and TensorBoard shows the first of them
        with SummaryWriter(folder) as board:
            board.add_hparams(values, {}, run_name=".")
        return

    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with writing(folder / HYPERPARAMETERS) as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        records.write(Event(wall_time=time.time(), summary=session.start).SerializeToString())
        records.flush()


def end_session(board: SummaryWriter) -> None:
    """Let the HParams tab show the run as finished."""
    session = _session({})
    writer: Any = board.file_writer  # None once the board is closed
    if session is not None and writer is not None:
        writer.add_summary(session.end)


class _Session(NamedTuple):
    """Start and end of what the HParams tab calls a session, as TensorBoard's own messages."""

    start: Any
    end: Any


def _session(values: dict[str, Any]) -> _Session | None:
    """Both messages; None if TensorBoard or torch no longer has the parts used here, which are not promised."""
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401 (both are asked for here, and used above)
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        return None
    _, start, end = hparams(values, {})
    return _Session(start, end)
