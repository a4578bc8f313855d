"""`pretrain.continue_from`: another end for a constant-rate run, from weights that it kept on its way.

Until a constant rate cools down, nothing depends on the length of the run. So the weights that a run of 300 epochs
keeps after epoch 100 are those of a run of 110 epochs, of which only the last ten epochs remain to be trained. The
branch equals that run, bit for bit: hence all settings and images must be the same.
"""

import re
from pathlib import Path
from typing import Any

import torch

from data.config import change_config, expand
from data.errors import UserError
from mae.engine.checkpoint import Checkpoint, kept_name, load_checkpoint
from mae.engine.checkpoint_file import stands_somewhere
from mae.engine.run import Resumable, flat
from mae.settings import MAEConfig

PLACE = "pretrain.continue_from"
# settings in which a branch may differ: its length, how it is monitored and what is kept of it
OWN = frozenset(
    {
        *("pretrain.epochs", "pretrain.optimizer.cooldown_epochs", PLACE, "pretrain.keep_epochs"),
        *("pretrain.validate_every", "pretrain.probe_every", "pretrain.select"),
    }
)


def branch_of(config: MAEConfig, folder: Path) -> Checkpoint | None:
    """The other run's checkpoint to start from; None without one, or if the run's own folder has a checkpoint."""
    if config.pretrain.continue_from is None or stands_somewhere(folder):
        return None
    return load_checkpoint(expand(config.pretrain.continue_from, PLACE), "mae")


def begins_after(config: MAEConfig) -> int:
    """The epochs that another run has trained for this one; 0 if there are none, or the file's name does not tell."""
    if config.pretrain.continue_from is None:
        return 0
    named = re.fullmatch(r"epoch(\d+)\.pt", Path(config.pretrain.continue_from).name)
    return int(named[1]) if named else 0


def own_epochs(config: MAEConfig) -> int:
    """The epochs that the run trains itself."""
    return max(config.pretrain.epochs - begins_after(config), 1)


def as_begun(config: MAEConfig, branch: Checkpoint) -> MAEConfig:
    """The config with auto replaced by the values that the other run began with."""
    made = branch.config
    decided: dict[str, Any] = {}
    if config.pretrain.batch_size == "auto":
        decided["pretrain.batch_size"] = made.pretrain.batch_size
    if config.product == "auto":
        decided["product"] = made.product
    return change_config(config, decided, branch.place) if decided else config


def check_branch(config: MAEConfig, branch: Checkpoint, seen: torch.Tensor, resumable: Resumable) -> None:
    """UserError if the run could not have begun as the other one did."""
    _expect_same_settings(config, branch.config, branch.place, resumable)
    if not torch.as_tensor(branch.fact("seen")).equal(seen):
        raise UserError(f"{branch.place}: found a run on other images (or with no store), expected this config's")
    _expect_not_cooled(config, branch.config, branch.place, branch.trained)


def check_planned(config: MAEConfig, other: MAEConfig, folder: Path, resumable: Resumable) -> None:
    """The same as far as settings tell, while the other run has yet to be trained.

    folder: the run's own. UserError also if the other run will not keep the weights that are asked for.
    """
    if config.pretrain.continue_from is None or stands_somewhere(folder):
        return
    path = Path(expand(config.pretrain.continue_from, PLACE))
    _expect_same_settings(config, other, str(path), resumable)
    epoch = begins_after(config)
    if not epoch:
        return
    kept = [kept_name(each) for each in other.pretrain.keep_epochs]
    if path.name not in kept and not path.exists():
        keeps = ", ".join(kept) or "no epochs"
        raise UserError(f"{path}: found a run that keeps {keeps}, expected {epoch} in its pretrain.keep_epochs")
    _expect_not_cooled(config, other, str(path), epoch)


def _expect_same_settings(config: MAEConfig, other: MAEConfig, place: str, resumable: Resumable) -> None:
    begun = other.model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    then = flat({name: begun[name] for name in resumable.sections})
    now = flat({name: wanted[name] for name in resumable.sections})
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if before in (after, "auto") or key in OWN or resumable.may_change(key, before, after):
            continue
        raise UserError(f"{place}: found a run made with {key} = {before}, expected {after}")


def _expect_not_cooled(config: MAEConfig, other: MAEConfig, place: str, epoch: float) -> None:
    """UserError if either of the two has begun to cool down by that epoch, or keeps an earlier one anew."""
    for name, each in (("its run", other), ("this one", config)):
        cools_from = each.pretrain.epochs - each.pretrain.optimizer.cooldown_epochs
        if epoch > cools_from or each.pretrain.epochs <= epoch - (each is other):
            raise UserError(
                f"{place}: found weights after epoch {epoch:g}, expected some from before {name} cools down, at epoch "
                f"{cools_from:g}"
            )
    earlier = [each for each in config.pretrain.keep_epochs if each <= epoch]
    if earlier:
        raise UserError(f"pretrain.keep_epochs: found {earlier[0]}, expected epochs after {epoch:g} of {PLACE}")
