"""`mae-compare --data FOLDER`: the rows of a comparison on images that nobody has written a config for."""

import shlex
from collections.abc import Iterable, Sequence

from classify.settings import ClassifyConfig
from data.errors import UserError
from data.sources.detect import Detected
from mae.own_data import Facts, Pick, Say, config_for_data
from mae.recipes import PROBE_LR

ONE_SEED = "one seed, to save time on a CPU; more would show how much training itself varies"
SEEDS = "several, to show how much training itself varies"


def comparison_for_data(found: Detected, overrides: Sequence[str], write: bool, say: Say) -> ClassifyConfig:
    """The config that `mae-compare --data …` runs."""
    config = config_for_data(found, overrides, "mae-compare", write, say, more=_rows)
    assert isinstance(config, ClassifyConfig)
    return config


def _rows(facts: Facts) -> Iterable[Pick]:
    """What a pretraining buys: probes and trainings from its weights and from random ones, and a ResNet."""
    _expect_both_classes(facts)
    probe = {"finetune.mode": "linear", "finetune.optimizer.base_lr": PROBE_LR}
    rows = [
        {"name": "MAE, linear probe", "pretraining": ["mae75"], "set": probe},
        {"name": "Random encoder, linear probe", "set": probe},
        {"name": "MAE, fine-tuned", "pretraining": ["mae75"]},
        {"name": "Random ViT, trained"},
        {"name": "ResNet-18", "set": {"finetune.model": "resnet18"}},
    ]
    several = facts.kind == "cuda"
    yield Pick("compare.split", "validate", "use test only at the very end: each opening is recorded")
    yield Pick("compare.seeds", [0, 1, 2] if several else [0], SEEDS if several else ONE_SEED)
    yield Pick("compare.pretrainings", {"mae75": {}})
    yield Pick("compare.rows", rows)


def _expect_both_classes(facts: Facts) -> None:
    """UserError if there are no two classes to tell apart; it says what can be done with such images."""
    instead = f"pretrain on them: mae-pretrain --data {shlex.quote(facts.place)}"
    place = f"--data: {facts.place}"
    everything = facts.table["label"].dropna()
    if everything.empty:
        found = f"found {len(facts.table):,} images without labels"
        raise UserError(f"{place}: {found}, expected normal and abnormal ones to compare; {instead}")
    for split in ("train", "validate"):
        labels = facts.labels(split)
        if labels.nunique() == 2:
            continue
        one = "no labelled"
        if len(labels):
            one = f"{len(labels):,} {'abnormal' if labels.iloc[0] else 'normal'} and no other"
        raise UserError(f"{place}: found {one} images in {split}, expected normal and abnormal ones; {instead}")
