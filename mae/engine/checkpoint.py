"""Checkpoints: weights together with their config, written so that a kill never leaves half of one."""

import math
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from data.config import make_config, with_new_names
from data.errors import Diverged, UserError, printable
from data.plain_values import plain
from data.privacy import credentialed_by_name, data_sets
from data.writing import flush_to_disk, replacing
from mae.engine.checkpoint_file import checkpoint_file
from mae.engine.digests import content_digest
from mae.engine.shapes import shapes_only
from mae.engine.torch_files import Refused, load_torch_file
from mae.settings import MAEConfig

FORMAT = "mae-cxr 1"
SAID = ("kind", "settings", "meta", "progress")  # what a checkpoint says; digested apart, as some calls read only this
NUMBERS = ("weights", "optimizer", "state")

# files that this process has checked, by their `identity`, and whether their numbers were checked too:
# a command reads some files ten times, and checking a gigabyte takes seconds
_LOOKED_THROUGH: dict[tuple[int, ...], bool] = {}
_SAID: dict[tuple[int, ...], "Checkpoint"] = {}  # and what the last of them say, without their numbers
REMEMBERED = 32  # files


@dataclass(frozen=True)
class Checkpoint:
    """What a run hands on. `kind` is mae or classifier; `meta` holds what else this kind needs (threshold, …)."""

    kind: str
    settings: dict[str, Any]  # the config as plain values
    weights: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)  # other tensors: raw weights beside an average, known images, …
    place: str = "checkpoint"

    @cached_property
    def config(self) -> MAEConfig:
        """The config that the weights were made with; settings of earlier versions get their current names."""
        config = make_config(with_new_names(self.settings, self.place), self.place)
        assert isinstance(config, MAEConfig)
        return config

    @property
    def epoch(self) -> int:
        """Epochs that the run had trained for."""
        epoch = self.progress.get("epoch")
        if not isinstance(epoch, int):
            raise UserError(f"{self.place}: found progress.epoch {printable(epoch)}, expected a whole number")
        return epoch

    @property
    def trained(self) -> float:
        """The same with the share of the epoch it stands in; the first one, whose length is not known, counts whole."""
        batch, step = self.progress.get("batch"), self.progress.get("step")
        if not isinstance(batch, int) or not isinstance(step, int) or batch < 1:
            return self.epoch
        if not self.epoch or step <= batch:
            return self.epoch + 1
        return self.epoch + batch * self.epoch / (step - batch)

    def fact(self, name: str) -> Any:
        """What `meta` says under this name; UserError where it says nothing."""
        if name not in self.meta:
            raise UserError(f"{self.place}: found no {name} beside the weights, expected what this version keeps there")
        return self.meta[name]

    @property
    def credentialed(self) -> tuple[str, ...]:
        """The credentialed data sets that the weights have seen, in this run and in those it began from."""
        return tuple(sorted({*credentialed_by_name(self.config.data), *self.meta.get("credentialed", ())}))

    @property
    def made_on(self) -> Collection[str]:
        """The data sets that its settings led to when it was made, named as by `data_sets` in data/privacy.py."""
        if self.meta.get("data_sets") is not None:
            return tuple(self.meta["data_sets"])

        # earlier versions did not record them: the settings tell them if they contain no variable
        written = self.config.data.model_dump_json(include={"root", "table", "sources"})
        return () if "$" in written else tuple(data_sets(self.config.data))


class NotSaved(Exception):
    """A checkpoint could not be written, because the disk is full, say; what was there before is kept."""


def save_checkpoint(checkpoint: Checkpoint, path: Path, previous: Path | None = None) -> None:
    """Write to a temporary file, flush, rename it into place; the old file is replaced, or renamed to `previous`.

    Raises NotSaved if the disk does not take it, and UserError if a weight is not finite. Both keep what is there.
    """
    expect_finite(checkpoint.weights, path)
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                content = _shallow(checkpoint)
                digests = {"said": _digest_of(content, SAID), "numbers": _digest_of(content, NUMBERS)}
                torch.save({"format": FORMAT, "digests": digests, **content}, file)
                flush_to_disk(file)

            # between these two renames there is only `previous`, and `latest_checkpoint` finds it
            if previous and path.exists():
                path.replace(previous)
        _LOOKED_THROUGH[identity(path)] = False  # what it says is known here; its numbers may still be damaged
    except (OSError, RuntimeError) as error:  # RuntimeError: torch raises it after a short write
        raise NotSaved(f"{path}: not written ({str(error).splitlines()[0]})") from None


def latest_checkpoint(folder: Path, kind: str | None = None) -> Checkpoint | None:
    """Where a run stands: its last.pt, else its previous.pt with a warning; None if it has neither."""
    last = folder / "last.pt"
    previous = folder / "previous.pt"
    if not previous.exists():
        return load_checkpoint(last, kind) if last.exists() else None

    # an unfinished run has both, and a power cut may have left only the older one whole
    try:
        return load_checkpoint(last, kind)
    except UserError as error:
        print(f"warning: {error}; going on from {previous}", file=sys.stderr)
        return load_checkpoint(previous, kind)


def kept_name(epoch: int) -> str:
    """The name of the file that keeps an epoch's weights for good."""
    return f"epoch{epoch:03}.pt"


def check_kept(folder: Path, last: Checkpoint, epochs: Collection[int]) -> None:
    """UserError unless each of these epochs that the run has passed has its file, with the weights of that epoch."""
    for epoch in epochs:
        if epoch > last.epoch:
            continue
        path = folder / kept_name(epoch)
        if not path.exists() or load_checkpoint(path, last.kind, numbers=False).epoch != epoch:
            raise UserError(
                f"{path}: found no weights of epoch {epoch}, which the run has passed, expected those it kept there; "
                f"put them back, or take {epoch} out of pretrain.keep_epochs"
            )


def check_finished(folder: Path, last: Checkpoint) -> None:
    """UserError unless the best.pt that belongs to the folder's last checkpoint is there, and whole."""
    best = folder / "best.pt"

    # a run whose every validation was not finite has none
    if not best.exists() and last.progress.get("best") == -math.inf:
        raise Diverged(
            f"{folder}: found no validation with finite numbers, expected one for best.pt; "
            "start another run (run=…) with lower base_lr or precision=fp32"
        )
    if not best.exists():
        raise UserError(
            f"{best}: found no such file, expected the best weights of this finished run; put it back, start another "
            "run (run=…), or remove this folder"
        )

    if load_checkpoint(best, last.kind).progress.get("best") != last.progress.get("best"):
        raise UserError(
            f"{best}: found the weights of another epoch than the best one, expected those; they were not written "
            "when they were there: start another run (run=…), or remove this folder"
        )


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is written: every field but the place. Unlike asdict, this copies no weights."""
    written = [part.name for part in fields(checkpoint) if part.name != "place"]
    return {name: getattr(checkpoint, name) for name in written}


def load_checkpoint(path: str | Path, kind: str | None = None, numbers: bool = True) -> Checkpoint:
    """Read a checkpoint to CPU, tensors and plain values only (`weights_only`). A run's folder means its best.pt.

    numbers: false if only what it says is wanted; its weights, optimizer and state are left out then.

    Raises UserError if the file is missing, is no checkpoint of this project or is of another kind, and if its content
    was changed since it was written or a weight is not finite. To look for the fault in such a file, read it with
    `torch.load`.
    """
    path = checkpoint_file(path)
    if not numbers and (said := _remembered(path)):
        return _expect_kind(said, kind)

    file, raw = _read(path)
    digests = raw.pop("digests", None)
    checkpoint = _expect_kind(_whole(raw, path), kind)

    looked_at_numbers = _LOOKED_THROUGH.get(file)
    if looked_at_numbers is None or (numbers and not looked_at_numbers):
        _look_through(checkpoint, raw, digests, path, numbers)
        _LOOKED_THROUGH[file] = numbers
    return checkpoint if numbers else _remember(checkpoint, file)


def _read(path: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The identity and the content of a file of ours; UserError for any other."""
    try:
        file = identity(path)
        raw = load_torch_file(path, held=file in _LOOKED_THROUGH)
    except Refused as odd:
        raise UserError(f"{path}: {odd}") from None
    except Exception:  # torch raises many kinds of error for a damaged or foreign file
        raise UserError(
            f"{path}: found an unreadable or foreign file, expected a checkpoint of mae-pretrain or mae-finetune"
        ) from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise UserError(f"{path}: found a torch file of another program, expected a checkpoint ({FORMAT})")
    return file, raw


def _expect_kind(checkpoint: Checkpoint, kind: str | None) -> Checkpoint:
    if kind and checkpoint.kind != kind:
        raise UserError(
            f"{checkpoint.place}: found a checkpoint of kind {checkpoint.kind}, expected {kind}{_advice(checkpoint)}"
        )
    return checkpoint


def _remember(checkpoint: Checkpoint, file: tuple[int, ...]) -> Checkpoint:
    """What the checkpoint says. It is remembered: commands ask some files five times, and torch reads slowly."""
    said = replace(checkpoint, weights={}, optimizer=None, state={})
    _SAID[file] = deepcopy(said)
    if len(_SAID) > REMEMBERED:
        del _SAID[next(iter(_SAID))]
    return said


def _remembered(path: Path) -> Checkpoint | None:
    """What the file says, if it was asked before and is the same file still."""
    with suppress(OSError):  # without a file, reading it says what is missing
        if said := _SAID.get(identity(path)):
            return replace(deepcopy(said), place=str(path))
    return None


def identity(path: Path) -> tuple[int, ...]:
    """Numbers that differ between files, and change whenever a file changes; OSError if there is no file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _look_through(checkpoint: Checkpoint, raw: dict[str, Any], digests: Any, path: Path, numbers: bool) -> None:
    """UserError where a number is not finite, or where anything is not as it was written."""
    # whatever it is read for: to resume, to begin from it, to evaluate, export or show it
    if numbers:
        expect_finite(checkpoint.weights, path)
        expect_finite({"state": checkpoint.state, "optimizer": checkpoint.optimizer}, path)

    # checkpoints of earlier versions have no digests
    if digests is not None:
        _expect_unchanged(raw, digests, path, numbers)


def _advice(checkpoint: Checkpoint) -> str:
    """What to do with a checkpoint of the wrong kind; empty for a kind that only a later version knows."""
    place = shlex.quote(checkpoint.place)
    if checkpoint.kind == "mae":
        return f"; mae-finetune --checkpoint {place} trains a classifier from it"
    if checkpoint.kind != "classifier":
        return ""
    folder = shlex.quote(str(Path(checkpoint.place).parent))
    began_from = checkpoint.meta.get("pretrained_from")
    pretraining = f" that it began from ({printable(began_from)})" if began_from else ""
    return f"; give the checkpoint of the pretraining{pretraining}; a classifier is for mae-evaluate {folder}"


def _digest_of(content: Mapping[str, Any], names: Sequence[str]) -> str:
    return content_digest({name: content[name] for name in names})


def _expect_unchanged(raw: dict[str, Any], digests: Any, path: Path, numbers: bool) -> None:
    """UserError where what was read is not what `save_checkpoint` wrote: an edited threshold, a damaged weight."""
    wanted: dict[str, tuple[str, Sequence[str]]] = {"said": ("settings or facts", SAID)}
    if numbers:
        wanted["numbers"] = ("weights", NUMBERS)
    for name, (found, parts) in wanted.items():
        try:
            same = isinstance(digests, dict) and digests.get(name) == _digest_of(raw, parts)
        except ValueError:  # it holds what no checkpoint of ours does
            same = False
        if not same:
            raise UserError(
                f"{path}: found {found} that were changed since they were written, expected what the run wrote; "
                "put back the file as it was, or train again"
            )


def _whole(raw: dict[str, Any], path: Path) -> Checkpoint:
    """What was read, as a checkpoint; UserError if a part is missing, superfluous or of another type."""
    try:
        checkpoint = Checkpoint(**raw, place=str(path))
    except TypeError:
        raise UserError(f"{path}: found no whole checkpoint, expected all of its parts and no others") from None
    if not isinstance(checkpoint.kind, str):
        raise UserError(f"{path}: found {type(checkpoint.kind).__name__} for kind, expected mae or classifier")
    for name in ("settings", "weights", "meta", "progress", "state"):
        part = getattr(checkpoint, name)
        if not isinstance(part, dict):
            raise UserError(f"{path}: found {type(part).__name__} for {name}, expected values by name")
    if not isinstance(checkpoint.optimizer, dict | None):
        raise UserError(f"{path}: found {type(checkpoint.optimizer).__name__} for optimizer, expected values by name")
    if not all(isinstance(name, str) and is_dense(tensor) for name, tensor in checkpoint.weights.items()):
        raise UserError(f"{path}: found weights that are no dense tensors, expected names with tensors")

    # these parts are made plain values: they are read, printed and written as JSON
    return replace(
        checkpoint,
        settings=plain(checkpoint.settings, f"{path}: settings"),
        meta=_checked_meta(checkpoint.meta, path),
        progress=plain(checkpoint.progress, f"{path}: progress"),
    )


# hashes of images in a checkpoint's meta: of those that served pretraining, trained a classifier, and chose it
HASHES = ("seen", "trained_on", "validated_on")


class _Meta(BaseModel):
    """The types of what stages keep beside their weights. All of it is optional; a later version may keep more."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    # of a pretraining, and of a classifier that began from one
    seen_elsewhere: bool = False
    seen_unread: bool = False
    credentialed: list[str] = []
    data_sets: list[str] | None = None  # those that its config's consent covered
    license: str | dict[str, str] | None = None
    init: str | None = None
    # of a classifier
    pretrained_from: str | None = None
    threshold: dict[str, float] | None = None
    calibration: dict[str, dict[str, float]] | None = None
    operating: dict[str, dict[str, list[float]]] | None = None
    validate_cases: dict[str, int] | None = None
    domain: dict[str, Any] | None = None
    images: str = ""
    train_images: int = 0


def _checked_meta(meta: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The values by name; UserError if one has another type."""
    rest: dict[str, Any] = plain({name: part for name, part in meta.items() if name not in HASHES}, f"{path}: meta")
    try:
        _Meta.model_validate(rest)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: meta.{name}: found {first['input']!r}, expected another type: {first['msg']}"
        ) from None

    for name in HASHES:
        if name in meta:
            rest[name] = _whole_numbers(meta[name], f"{path}: meta.{name}")
    return rest


def _whole_numbers(hashes: Any, place: str) -> Any:
    """The hashes, as a tensor or a list; UserError if they are not whole numbers."""
    sound = isinstance(hashes, list) and all(type(each) is int and abs(each) < 2**63 for each in hashes)
    if is_dense(hashes):
        sound = not (hashes.is_floating_point() or hashes.is_complex())
    if not sound:
        raise UserError(f"{place}: found {type(hashes).__name__}, expected whole numbers")
    return hashes


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copy all weights into the model; UserError naming the first that does not fit."""
    check_weights(model, checkpoint)
    model.load_state_dict(checkpoint.weights)


def expect_fit(build: Callable[[], torch.nn.Module], checkpoint: Checkpoint) -> None:
    """As `check_weights`, before memory is allocated: settings only claim sizes, the weights really have them."""
    with shapes_only():
        check_weights(build(), checkpoint)


def check_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """UserError naming the first weight that does not fit the model."""
    # comparing names and shapes is enough: a missing or superfluous weight has no partner
    own = model.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{checkpoint.place}: {printable(name)}: found {found.get(name, 'nothing')}, "
                f"expected {wanted.get(name, 'nothing')}; the config describes a model of another size"
            )
        tensor = checkpoint.weights[name]
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex() or tensor.is_quantized:
            raise UserError(f"{checkpoint.place}: {printable(name)}: found {tensor.dtype}, expected {own[name].dtype}")


def expect_finite(content: Any, place: str | Path) -> None:
    """UserError naming the first tensor, at any depth, that holds NaN or infinity: no result of it would be valid."""
    todo = [("", content)]
    met = set()  # a mapping may contain itself
    while todo:
        name, part = todo.pop(0)
        if isinstance(part, Mapping) and id(part) not in met:
            met.add(id(part))
            todo += [(f"{name}.{inner}".strip("."), value) for inner, value in part.items()]
        elif is_dense(part) and part.is_floating_point() and not _is_finite(part):
            raise UserError(f"{place}: {printable(name)}: found NaN or infinity, expected finite numbers")


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.itemsize == 1:  # torch cannot compare 8-bit numbers
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def is_dense(content: Any) -> bool:
    """Whether it is a tensor with all its numbers in memory, each at its own place."""
    if not torch.is_tensor(content):
        return False
    return content.layout == torch.strided and not content.is_meta and not content.is_nested
