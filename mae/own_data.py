"""`--data FOLDER`: chooses a config for images that have none, from what is there, and gives the reasons.

The config is written as YAML, so that it can be read and edited. Once the file exists, it is what counts: the same
command resumes the same run. The values to choose from stand in `mae/recipes.py`.
"""

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml

from data.config import beside, expand, load_config, make_config, parse_overrides, single_settings
from data.environment import usable_cores
from data.errors import UserError, printable
from data.image_sizes import sampled_sizes
from data.images import read_fitted
from data.locks import locked
from data.manifest import open_manifest
from data.places import expect_unlabelled, told_as
from data.privacy import credentialed_sources
from data.refusal import UnreadableImage
from data.settings import DataSettings
from data.sources.detect import Detected
from data.writing import keep_private, write_text
from mae.batch_size import chosen_batch
from mae.engine import distributed
from mae.engine.machine import free_memory
from mae.engine.run import device_of
from mae.model import check_sizes
from mae.pretrain_cost import pretraining_memory
from mae.recipes import (
    BASE_LR,
    DROP_PATCHES,
    FINETUNE_LR,
    PRESETS,
    SMALL_GPU,
    SMALLEST,
    Device,
    good_batch,
    patch_for,
    recipe_for,
    size_for,
)
from mae.settings import MAEConfig

ENLARGED = 0.1  # share of the images that may be smaller than the chosen size: a few odd ones decide nothing
LONGEST = 60  # letters of a folder's name in a run's name
NO_BATCH = 1  # stands in for the batch size while memory is counted


class Pick(NamedTuple):
    """A setting that was chosen, and why."""

    key: str
    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Facts:
    """What the picks depend on."""

    place: str  # the data's root
    table: pd.DataFrame  # the manifest's
    device: torch.device
    unlabelled: int = 0  # images of `data.unlabelled`

    def labels(self, split: str) -> pd.Series:
        """The labels of a split's images that have one."""
        return self.table.loc[self.table["split"] == split, "label"].dropna()

    @property
    def images(self) -> int:
        """The number of training images of stage one."""
        return int((self.table["split"] == "train").sum()) + self.unlabelled

    @property
    def kind(self) -> Device:
        return "cuda" if self.device.type == "cuda" else "cpu"


More = Callable[[Facts], Iterable[Pick]]  # what a command chooses beside stage one; UserError if it cannot run
Say = Callable[[str], None]


def nothing_more(facts: Facts) -> Iterable[Pick]:
    return ()


def config_for_data(
    found: Detected, overrides: Sequence[str], command: str, write: bool, say: Say = print, more: More = nothing_more
) -> MAEConfig:
    """The config that `command --data …` runs: the one that it wrote earlier, else one chosen now.

    write: false leaves no file behind. say: is told what was found and chosen.
    """
    given = single_settings(parse_overrides(overrides))
    run = str(given.get("run") or _run_name(found, command))
    path = beside(Path(expand(run, "run")), ".yaml", "run")

    # with several ranks, the first one here chooses, and the others read what it wrote
    waiting = nullcontext()
    if write and distributed.launched():
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = locked(path.parent, f"waiting for another rank that chooses {path}", wait=True)  # type: ignore[assignment]
    with waiting:
        if path.exists():
            return _kept(path, found, overrides, say)
        config, text = _chosen(found, run, given, command, more)
        if write:
            keep_private(credentialed_sources(config.data), config.data.share)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)

    if distributed.is_main():
        say(f"data: {printable(found.saw)} (data.source={found.source})")
        say(f"settings, written to {path}:\n\n{text}" if write else f"settings, not written to {path}:\n\n{text}")
        if write:
            say(f"edit {path} and run: {command} --config {shlex.quote(str(path))}")
    return config


def _run_name(found: Detected, command: str) -> str:
    """runs/NAME, named after the folder or file; a comparison gets another name than a pretraining."""
    path = Path(found.settings["root"], found.settings.get("table", "")).resolve()
    name = path.name
    if path.suffix in (".csv", ".gz", ".npz"):
        name = path.name.split(".")[0]
        if found.source == "table":
            name = path.parent.name if name == "manifest" else name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST] or "images"
    ending = "-compare" if command == "mae-compare" else ""
    return f"runs/{plain}{ending}"


def _kept(path: Path, found: Detected, overrides: Sequence[str], say: Say) -> MAEConfig:
    """The config of an earlier call, edited or not; UserError if it is for other images."""
    config = load_config(path, overrides)
    assert isinstance(config, MAEConfig)
    root = Path(expand(config.data.root, "data.root"))
    wanted = Path(found.settings["root"])
    if root.resolve() != wanted.resolve() or config.data.table != found.settings.get("table", config.data.table):
        raise UserError(
            f"{path}: found settings for {root}, expected those for {wanted}; give another run=…, or delete {path}"
        )
    if distributed.is_main():
        say(f"settings: {path}, which exists already (delete it to have settings chosen anew)")
    return config


# ---------------------------------------------------------------- what is chosen


def _chosen(found: Detected, run: str, given: dict[str, Any], command: str, more: More) -> tuple[MAEConfig, str]:
    """The config, and its text with a reason beside each pick. The command line takes precedence."""
    data = {f"data.{name}": value for name, value in found.settings.items()}
    first = _made([Pick(key, value) for key, value in {"run": run, **data}.items()], given)
    table = open_manifest(first.data).table
    facts = Facts(found.settings["root"], table, device_of(first.device), _count_unlabelled(first.data))
    _expect_both_splits(facts)
    extra = list(more(facts))  # a command that cannot run says so before anything is measured

    picks = [Pick("run", run, "this run's folder")]
    for key, value in data.items():
        picks.append(Pick(key, value, found.saw if key == "data.source" else ""))
    picks += _of_images(facts, given)
    picks += _of_machine(facts, given)
    picks += extra

    # the batch that fits is counted for the chosen model
    config = _made([*picks, Pick("pretrain.batch_size", NO_BATCH)], given)
    check_sizes(config.model, config.data.image_size)
    if "pretrain.batch_size" not in given:
        picks.append(_batch(config, facts))
    picks = [Pick(key, given.get(key, value), _why(key, reason, given)) for key, value, reason in picks]
    chosen = {pick.key for pick in picks}
    for key, value in given.items():
        if key not in chosen:
            picks.append(Pick(key, value, "given on the command line"))
    header = f"# {command} --config {run}.yaml\n#\n# Chosen for {facts.images:,} training images on {facts.device}.\n"
    return _made(picks, {}), header + _as_yaml(picks)


def _count_unlabelled(settings: DataSettings) -> int:
    """The images of `data.unlabelled`: only pretraining has them."""
    further = settings.of_unlabelled()
    if further is None:
        return 0
    expect_unlabelled(settings)
    with told_as("data.unlabelled"):
        return len(open_manifest(further).table)


def _expect_both_splits(facts: Facts) -> None:
    train, held_out = (int((facts.table["split"] == split).sum()) for split in ("train", "validate"))
    if not train or not held_out:
        raise UserError(
            f"--data: {facts.place}: found {train:,} images for training and {held_out:,} for validation, "
            "expected some for each; give more images"
        )


def _why(key: str, reason: str, given: Collection[str]) -> str:
    return "given on the command line" if key in given else reason


def _made(picks: Iterable[Pick], given: dict[str, Any]) -> MAEConfig:
    tree: dict[str, Any] = {}
    for key, value, _ in picks:
        _put(tree, key, value)
    config = make_config(tree, "--data", given)
    assert isinstance(config, MAEConfig)
    return config


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _of_images(facts: Facts, given: dict[str, Any]) -> list[Pick]:
    """Image size, model, epochs and rates, by the number and the size of the images."""
    recipe = recipe_for(facts.kind, facts.images)
    width = recipe.width
    about = f"for {facts.images:,} training images on a {'GPU' if facts.kind == 'cuda' else 'CPU'}"
    if facts.kind == "cuda" and width == "base" and free_memory(facts.device) < SMALL_GPU:
        width = "small"
        about += f" with less than {SMALL_GPU / 1e9:.0f} GB free"

    side, seen = _side(facts)
    size = size_for(side, recipe.side)
    asked = given.get("data.image_size")
    shown = asked if isinstance(asked, int) else size.side
    patch = patch_for(shown)
    why = f"the largest size chosen {about}; {seen}" if size.side >= recipe.side else f"enlarges no image: {seen}"

    picks = [
        Pick("data.image_size", size.side, why),
        Pick("model.preset", PRESETS[width, patch], about),
        Pick("model.patch_size", patch, f"{(shown // patch) ** 2} patches an image"),
    ]
    rate = f"for {width} models, at batch 256"
    picks += [
        Pick("pretrain.epochs", recipe.epochs, about),
        Pick("pretrain.optimizer.base_lr", BASE_LR[width], rate),
    ]
    labelled = len(facts.labels("train"))
    if labelled:
        picks += [
            Pick(
                "finetune.epochs",
                recipe_for(facts.kind, labelled).finetune_epochs,
                f"for {labelled:,} labelled training images",
            ),
            Pick("finetune.optimizer.base_lr", FINETUNE_LR[width], rate),
            Pick("finetune.batch_size", good_batch("finetune", labelled), "an epoch has several steps"),
        ]
        if DROP_PATCHES[facts.kind]:
            picks.append(Pick("finetune.drop_patches", DROP_PATCHES[facts.kind], "left out of a ViT's training steps"))
    return picks


def _side(facts: Facts) -> tuple[int, str]:
    """A length that most images' longer side reaches, and what was seen, in words."""
    paths = facts.table["path"].tolist()
    sizes = sampled_sizes(paths)
    if not len(sizes):
        raise UserError(f"--data: {facts.place}: found no image that can be read; {_first_reason(paths)}")
    longer = sizes.max(axis=1)
    side = int(np.quantile(longer, ENLARGED, method="lower"))
    seen = f"{len(sizes):,} sampled images are {longer.min()} to {longer.max()} pixels high or wide"
    if longer.min() == longer.max():
        seen = f"{len(sizes):,} sampled images are {longer.max()} pixels high or wide"
    if side < SMALLEST:
        raise UserError(f"--data: {facts.place}: found images of {side} pixels, expected {SMALLEST} or more")
    return side, seen


def _first_reason(paths: list[str]) -> str:
    try:
        read_fitted(paths[0], SMALLEST)
    except UnreadableImage as error:
        return f"the first: {error}"
    return "their headers tell no size"


def _of_machine(facts: Facts, given: dict[str, Any]) -> list[Pick]:
    picks = [Pick("data.workers", 0, f"0: one process per usable core, here {usable_cores()}")]
    if facts.kind == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slow
        name = torch.cuda.get_device_name(facts.device)
        picks.append(Pick("precision", "bf16" if bf16 else "fp16", f"half the memory, and faster, on this {name}"))
    picks.append(Pick("evaluate.batch_size", 64, "images per forward pass: needs little memory"))
    return picks


def _batch(config: MAEConfig, facts: Facts) -> Pick:
    """The batch of stage one."""

    @cache
    def needs(part: int) -> int:
        return pretraining_memory(config, part, facts.device)

    accumulate = config.pretrain.optimizer.accumulate
    ranks = distributed.ranks_wanted()
    size = chosen_batch("pretrain", facts.images, ranks * accumulate, facts.device, needs)
    free = free_memory(facts.device) / 1e9
    what = f"needs about {needs(max(size // (ranks * accumulate), 1)) / 1e9:.2g} of {free:.3g} GB free"
    return Pick("pretrain.batch_size", size, f"for {facts.images:,} images; {what}")


# ---------------------------------------------------------------- as text


def _as_yaml(picks: Sequence[Pick]) -> str:
    """The picks as YAML, sections in their order, each with its reason."""
    tree: dict[str, Any] = {}
    for pick in picks:
        _put(tree, pick.key, pick)
    return "\n".join(_lines(tree, "")) + "\n"


def _lines(tree: dict[str, Any], indent: str) -> Iterable[str]:
    for name, part in tree.items():
        if isinstance(part, dict):
            yield f"{indent}{name}:"
            yield from _lines(part, indent + "  ")
            continue
        yield from _setting(name, part, indent)


def _setting(name: str, pick: Pick, indent: str) -> Iterable[str]:
    """A line, or for a list of mappings one for each."""
    if isinstance(pick.value, list) and pick.value and isinstance(pick.value[0], dict):
        yield f"{indent}{name}:"
        for entry in pick.value:
            yield f"{indent}  - {_inline(entry)}"
        return
    reason = f"  # {printable(pick.reason)}" if pick.reason else ""
    yield f"{indent}{name}: {_inline(pick.value)}{reason}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).strip()
    return text.removesuffix("\n...").strip()
