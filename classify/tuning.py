"""Equal tuning: each row tries equally many settings, validation judges them, and the best serves all its seeds."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from classify.cases import splits_of
from classify.finetune import RESUMABLE
from classify.grid import Cell, trials_of
from data.config import expand
from data.errors import Diverged, UserError
from data.loader import Data
from data.writing import read_json, write_json
from mae.engine.checkpoint import load_checkpoint
from mae.engine.run import flat
from mae.pretrain import RESUMABLE as PRETRAIN_RESUMABLE


@dataclass(frozen=True)
class Choice:
    """What a row tried under a label budget, and what it took."""

    row: str
    labelled: int | None
    seed: int  # at which all were tried
    metric: str  # of validation images, the best epoch's
    settings: list[dict[str, Any]]
    scores: list[float | None]  # None: diverged
    chosen: int  # number of the setting, from 0
    runs: list[str]  # names of the folders
    seconds: list[float | None]  # of training, and so on
    flops: list[int | None]
    made_with: str  # digest of the other settings that these runs depended on
    images: str | None = None  # fingerprint of the images and labels that were learnt and judged by
    pretraining: str | None = None  # digest of the seed and the data of the pretraining

    @property
    def setting(self) -> dict[str, Any]:
        return self.settings[self.chosen]


def choose(
    cell: Cell, diverged: Collection[str], costs: Sequence[tuple[float | None, int | None]], data: Data
) -> Choice:
    """The setting with the highest validation score of its best epoch, the first of equals; it is written down.

    cell: at the first seed, its trials done. diverged: the folder names of trials that diverged.
    costs: seconds and FLOPs of each trial. data: the cell's.
    """
    trials = trials_of(cell)
    scores = [None if trial.folder in diverged else _score(trial) for trial in trials]
    known = [score for score in scores if score is not None]
    if not known:
        raise Diverged(f"{cell.run}: found all {len(trials)} settings of tune diverged, expected one to learn")

    metric = cell.config.finetune.select
    choice = Choice(
        row=cell.name,
        labelled=cell.labelled,
        seed=cell.config.seed,
        metric=metric,
        settings=list(cell.choices),
        # the loss is shown as it is, though the lowest wins
        scores=[-score if score is not None and metric == "loss" else score for score in scores],
        chosen=scores.index(max(known)),
        runs=[trial.folder for trial in trials],
        seconds=[seconds for seconds, _ in costs],
        flops=[flops for _, flops in costs],
        made_with=_digest(trials),
        images=_images(cell, data),
        pretraining=_pretraining(cell),
    )
    write_json(_place(cell), asdict(choice))
    return choice


def serve_first_seed(cell: Cell, choice: Choice) -> None:
    """Use the winning trial as the cell's own training, which would be the same to the last bit: its folder moves.

    cell: at the first seed, at which all settings were tried.
    """
    trial = Path(expand(trials_of(cell)[choice.chosen].run, "run"))
    run = Path(expand(cell.run, "run"))
    if trial.is_dir() and not run.exists():
        trial.rename(run)


def kept_choice(cell: Cell, data: Data | None) -> Choice | None:
    """The earlier choice for the cell's row, among the very same settings, all else equal; None if there is none.

    It stands even if its trials are gone: they may be deleted. So it knows by itself which images, labels and
    pretraining it was made with: UserError if these are others by now. data: the cell's; None: not at hand, not
    compared.
    """
    try:
        choice = Choice(**read_json(_place(cell)))
    except (OSError, ValueError, TypeError):
        return None
    if choice.settings != json.loads(json.dumps(cell.choices)) or choice.made_with != _digest(trials_of(cell)):
        return None
    if type(choice.chosen) is not int or not 0 <= choice.chosen < len(choice.settings):
        return None

    # a choice of an earlier version does not say
    if data is not None and choice.images not in (None, _images(cell, data)):
        raise UserError(_of_others(cell, "images or labels"))
    if choice.pretraining not in (None, _pretraining(cell)):
        raise UserError(_of_others(cell, "a pretraining"))
    return choice


def _of_others(cell: Cell, what: str) -> str:
    return (
        f"{_place(cell)}: found a setting that was chosen with {what} other than today's, expected the same; choose "
        "another folder (run=…), or remove this file and the trainings of its row"
    )


def _images(cell: Cell, data: Data) -> str:
    """The images and labels that the cell's trials learn from and are judged by."""
    return f"{data.store.fingerprint} {splits_of(data, cell.config).fingerprint()}"


def _pretraining(cell: Cell) -> str | None:
    """16 hexadecimal digits of what the pretraining depends on and `_digest` does not know: its seed and its data."""
    if cell.pretrain_config is None:
        return None
    wanted = cell.pretrain_config.model_dump(mode="json")
    kept = {}
    for key, value in flat({section: wanted[section] for section in PRETRAIN_RESUMABLE.sections}).items():
        if key not in PRETRAIN_RESUMABLE.free:
            entries = PRETRAIN_RESUMABLE.binding(value, key.rpartition(".")[0])
            kept[key] = value if entries is None else entries
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _place(cell: Cell) -> Path:
    return Path(expand(cell.run, "run")).parent / "tune" / f"{cell.folder}.json"


def _score(trial: Cell) -> float:
    """The score that its best epoch was chosen by: the higher, the better."""
    best = load_checkpoint(Path(expand(trial.run, "run")) / "best.pt", "classifier")
    return float(best.progress["best"])


def _digest(trials: list[Cell]) -> str:
    """16 hexadecimal digits of all that the trials' weights depend on, and of the pretraining they begin from."""
    settings = []
    for trial in trials:
        wanted = trial.config.model_dump(mode="json")
        leaves = flat({section: wanted[section] for section in RESUMABLE.sections})
        settings.append({key: value for key, value in leaves.items() if key not in RESUMABLE.free})
        if trial.pretrain_config:
            settings.append(trial.pretrain_config.pretrain.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
