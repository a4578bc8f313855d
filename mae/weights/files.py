"""Weights on disk: only tensors and plain values are read, and no code that a file carries is run."""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError, printable
from data.plain_values import read_json_values
from data.stand_ins import ENOUGH, stand_in
from mae.engine.digests import bits_of
from mae.engine.torch_files import Refused, load_torch_file


class NumpyValue:
    """Stands for a numpy number or array in a pickle: trainers keep metrics and random states as such.

    They are not needed here, so numpy does not create them, whatever size they claim.
    """

    def __init__(self, *parts: object): ...

    def __setstate__(self, state: object) -> None: ...


# by the names of numpy 1 and of numpy 2 (pytorch 138985)
OF_NUMPY: list[tuple[type, str]] = [
    (NumpyValue, f"numpy.{name}")
    for core in ("core", "_core")
    for name in ("dtype", "ndarray", f"{core}.multiarray.scalar", f"{core}.multiarray._reconstruct")
]
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SETTINGS = "config.json"
DESCRIBED_BY = {"model_type", "pretrained_cfg"}  # of a transformers' folder, and of timm's


def leads_out(path: Path) -> bool:
    """Whether a folder's file is a link to a file elsewhere, which is not part of the folder."""
    folder = path.parent.resolve()
    # a hub's cache keeps files' contents beside its snapshots of folders, which link to them
    return path.resolve().parent not in (folder, folder.parent.parent / "blobs")


def _expect_own(path: Path) -> None:
    if leads_out(path):
        raise UserError(f"{path}: found a link out of the folder, expected a file of its own")


def read_weights(path: Path, allowed: Sequence[type] = ()) -> Any:
    """What a weights file holds: safetensors' names and tensors, or a pickle's object, maybe of `allowed` classes."""
    return read_safetensors(path) if is_safetensors(path) else read_pickle(path, allowed)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception:  # a stranger's file can make its reader raise many things
        with path.open("rb") as file:
            instead = stand_in(file.read(ENOUGH))
        raise UserError(f"{path}: found {instead or 'a truncated or damaged file'}, expected safetensors") from None


def is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"  # eight bytes of length, then JSON
    except OSError as error:
        raise UserError(f"{path}: found {error.strerror}, expected a readable file of weights") from None


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """A torch file: tensors, plain values and objects of the `allowed` classes; UserError for any other.

    numpy's values become placeholders.
    """
    try:
        return load_torch_file(path, [*allowed, *OF_NUMPY])
    except Refused as odd:
        raise UserError(f"{path}: {odd}") from None
    except Exception:  # likewise
        raise UserError(
            f"{path}: found an unreadable file, expected weights (safetensors, or a torch file of tensors)"
        ) from None


def described_in(path: Path) -> Path | None:
    """The folder whose config.json describes the weights at a path: itself, or the one that a file of its lies in."""
    if path.is_dir():
        return path
    config = path.parent / SETTINGS
    if path.name not in (*NAMES, SETTINGS) or not config.is_file():
        return None
    return path.parent if DESCRIBED_BY & read_json(config).keys() else None


def read_folder(path: Path) -> Any:
    """What a folder in Hugging Face's layout holds: one file's content, or the tensors of several with an index.

    The path of one of its files, instead of the folder's, says which weights are meant if there are several.
    """
    folder = path if path.is_dir() else path.parent
    there = [folder / name for name in NAMES if (folder / name).is_file()]
    if not there:
        raise UserError(f"{folder}: found no weights, expected {NAMES[0]} or {NAMES[2]}")
    found = path if path in there else there[0]
    _expect_own(found)
    if found.suffix != ".json":
        return read_weights(found)

    # an index: it says in which file each tensor is
    places = read_json(found).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{found}: found no weight_map, expected the file of every tensor")

    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (shard := folder / Path(name).name).is_file():
            raise UserError(f"{found}: found no {printable(name)} beside it, expected every file it names")
        _expect_own(shard)
        content = read_weights(shard)
        if not isinstance(content, Mapping):
            raise UserError(f"{shard}: found no state dict, expected names with tensors")
        # if a tensor is in two files, the one that the index names counts
        tensors |= {tensor: value for tensor, value in content.items() if places.get(tensor, name) == name}

    lost = sorted(places.keys() - tensors.keys())
    if lost:
        raise UserError(
            f"{found}: found no tensor {printable(lost[0])} in {printable(places[lost[0]])}, expected what the index "
            "promises"
        )
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A folder's settings by name, as plain values; UserError if the file holds anything else."""
    _expect_own(path)
    raw = read_json_values(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: found {type(raw).__name__}, expected settings by name")
    return raw


def read_facebook(path: Path) -> Any:
    """As `read_weights`; the reference code keeps its command line, an argparse.Namespace, beside the weights."""
    return read_weights(path, (argparse.Namespace,))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of names, shapes and bits."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(bits_of(tensor))
    return hashed.hexdigest()[:16]
