"""`pretrain.continue_from`: another end for a constant-rate run, from weights that it kept on its way.

Until a constant rate cools down, nothing depends on the length of the run. So the weights that a run of 300 epochs
keeps after epoch 100 are those of a run of 110 epochs, of which only the last ten epochs remain to be trained. The
branch equals that run, bit for bit: hence all settings and images must be the same.
"""

from pathlib import Path
from typing import Any

import torch

from data.config import change_config, expand
from data.errors import UserError
from mae.engine.checkpoint import Checkpoint, load_checkpoint
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
    made = branch.config
    begun = made.model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    then = flat({name: begun[name] for name in resumable.sections})
    now = flat({name: wanted[name] for name in resumable.sections})
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if before != after and key not in OWN and not resumable.may_change(key, before, after):
            raise UserError(f"{branch.place}: found a run made with {key} = {before}, expected {after}")
    if not torch.as_tensor(branch.fact("seen")).equal(seen):
        raise UserError(f"{branch.place}: found a run on other images (or with no store), expected this config's")

    # neither of the two may have begun to cool down
    for name, each in (("its run", made), ("this one", config)):
        cools_from = each.pretrain.epochs - each.pretrain.optimizer.cooldown_epochs
        if branch.epoch > cools_from or each.pretrain.epochs <= branch.epoch - (each is made):
            raise UserError(
                f"{branch.place}: found weights after epoch {branch.epoch}, expected some from before {name} cools "
                f"down, at epoch {cools_from:g}"
            )
    earlier = [epoch for epoch in config.pretrain.keep_epochs if epoch <= branch.epoch]
    if earlier:
        raise UserError(f"pretrain.keep_epochs: found {earlier[0]}, expected epochs after {branch.epoch} of {PLACE}")
