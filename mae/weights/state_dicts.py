"""What a file holds → the state dict of the one Vision Transformer or ResNet in it, without its wrappers.

Trainers wrap a model. Its tensors lie under a name beside other things, maybe several levels deep. Their own names
begin with, or contain, the names of the modules that held the model. None of this says anything about the weights, so
all of it is taken off, whatever its order: first the mappings, then the holders' names, then the prefix that is left.
"""

import argparse
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.errors import UserError, printable
from mae.engine.checkpoint import expect_finite

# every Vision Transformer of a program has one tensor of this name, and nothing else has it
LANDMARKS = {"timm": "patch_embed.proj.weight", "huggingface": "embeddings.patch_embeddings.projection.weight"}
# likewise of ResNets: torchvision's names, which timm and most trainers share, and those of transformers
RESNET_LANDMARKS = {"torchvision": "layer1.0.conv1.weight", "transformers": "embedder.embedder.convolution.weight"}
# if several models are beside each other, the first of these is meant; DINO's authors evaluate the teacher
PREFERRED = ("state_dict", "model", "model_state_dict", "module", "teacher")
# DataParallel, torch.compile, FSDP and activation checkpointing put these before, or into, the names of what they hold
HOLDERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_ALONE = "; save the one that is meant in a file of its own"


@dataclass(frozen=True)
class StateDict:
    """The tensors of a model by the names that its program gives them, and what was around them."""

    place: str
    program: str  # timm (facebookresearch/mae builds on it) or huggingface; of a ResNet, torchvision or transformers
    tensors: dict[str, Tensor]
    names: dict[str, str]  # the program's → the file's
    others: list[str] = field(default_factory=list)  # what the file holds besides, by the file's names
    wrappers: tuple[str, ...] = ()  # the names on the way to the tensors
    arguments: Mapping[str, Any] = field(default_factory=dict)  # the command line of the program that wrote it, if any


class _Found(NamedTuple):
    """A mapping with a model's tensors."""

    path: tuple[str, ...]  # the names on the way to it
    chain: tuple[Mapping[Any, Any], ...]  # the mappings on the way, itself the last


def state_dict_of(raw: Any, place: str, programs: Iterable[str] = tuple(LANDMARKS)) -> StateDict:
    """The state dict in what a file holds; UserError unless there is one model in it, of one of the programs."""
    return _state_dict(raw, place, {program: LANDMARKS[program] for program in programs}, "Vision Transformer")


def resnet_state_dict_of(raw: Any, place: str) -> StateDict:
    """As `state_dict_of`, of the one ResNet in what a file holds."""
    return _state_dict(raw, place, RESNET_LANDMARKS, "ResNet")


def _state_dict(raw: Any, place: str, landmarks: Mapping[str, str], kind: str) -> StateDict:
    found = _the_one(raw, place, landmarks.values(), kind)
    others = _beside(found)
    tensors: dict[str, Tensor] = {}
    for key, value in found.chain[-1].items():
        name = printable(key)
        if torch.is_tensor(value):
            tensors[name] = value.detach()
        elif "." in name:
            raise UserError(f"{place}: found {type(value).__name__} under {name}, expected a tensor")
        else:
            others.append(".".join((*found.path, name)))

    program, names = _own_names(tensors, place, landmarks, kind)
    others += [name for name in tensors if name not in names.values()]
    expect_finite({old: tensors[old] for old in names.values()}, place)
    return StateDict(
        place=place,
        program=program,
        tensors={new: tensors[old] for new, old in names.items()},
        names=names,
        others=others,
        wrappers=found.path,
        arguments=_arguments(found),
    )


def holds_a_resnet(raw: Any) -> bool:
    """Whether another program's ResNet is in what a file holds."""
    return any(_has_landmark(found, RESNET_LANDMARKS.values()) for found in _mappings(raw, RESNET_LANDMARKS.values()))


# ---------------------------------------------------------------- the mappings around the tensors


def _mappings(raw: Any, landmarks: Collection[str]) -> Iterator[_Found]:
    """Every mapping at any depth, the outermost first; none below a mapping that holds a landmark."""
    todo = deque([_Found((), (raw,))])
    met = set()  # a mapping may hold itself
    while todo:
        found = todo.popleft()
        content = found.chain[-1]
        if not isinstance(content, Mapping) or id(content) in met:
            continue
        met.add(id(content))
        yield found

        if not _has_landmark(found, landmarks):
            for name, part in content.items():
                todo.append(_Found((*found.path, printable(name)), (*found.chain, part)))


def _has_landmark(found: _Found, landmarks: Collection[str]) -> bool:
    names = [_without_holders(str(name)) for name in _tensor_names(found)]
    return any(_ends(name, landmark) for name in names for landmark in landmarks)


def _tensor_names(found: _Found) -> list[Any]:
    return [name for name, value in found.chain[-1].items() if torch.is_tensor(value)]


def _the_one(raw: Any, place: str, landmarks: Collection[str], kind: str) -> _Found:
    """The model that is meant; UserError if there is none, or several with no telling which."""
    mappings = list(_mappings(raw, landmarks))
    models = sorted((found for found in mappings if _has_landmark(found, landmarks)), key=_preference)
    if not any(_tensor_names(found) for found in mappings):
        raise UserError(f"{place}: found no state dict, expected names with tensors")
    if not models:
        wanted = " or ".join(landmarks)
        raise UserError(f"{place}: found no {wanted}, expected the state dict of one {kind}")
    if len(models) > 1 and _preference(models[0]) == _preference(models[1]):
        names = ", ".join(sorted(".".join(found.path) for found in models))
        raise UserError(f"{place}: found {len(models)} models ({names}), expected the state dict of one {kind}{_ALONE}")
    return models[0]


def _preference(found: _Found) -> list[int]:
    """A key that sorts the model that is meant first."""
    return [PREFERRED.index(name) if name in PREFERRED else len(PREFERRED) for name in found.path]


def _beside(found: _Found) -> list[str]:
    """The names of everything that is not on the way to the tensors."""
    others = []
    for depth, wrapper in enumerate(found.path):
        beside = [printable(name) for name in found.chain[depth]]
        others += [".".join((*found.path[:depth], name)) for name in beside if name != wrapper]
    return others


def _arguments(found: _Found) -> Mapping[str, Any]:
    """`args` beside the model or above it: a namespace, as facebookresearch's programs save it, or a mapping."""
    for content in reversed(found.chain):
        arguments = content.get("args")
        if isinstance(arguments, argparse.Namespace):
            return vars(arguments)
        if isinstance(arguments, Mapping):
            return arguments
    return {}


# ---------------------------------------------------------------- what stands before, or in, the names


def _own_names(
    tensors: Mapping[str, Tensor], place: str, landmarks: Mapping[str, str], kind: str
) -> tuple[str, dict[str, str]]:
    """The program whose names these are, and the names of the model's tensors: the program's → the file's."""
    plain: dict[str, str] = {}
    for name in tensors:
        bare = _without_holders(name)
        if bare in plain:
            raise UserError(f"{place}: found {plain[bare]} and {name}, expected the state dict of one model")
        plain[bare] = name

    # one landmark, and the prefix before it is the prefix of all names of its model
    places = [
        (program, name.removesuffix(landmark))
        for program, landmark in landmarks.items()
        for name in plain
        if _ends(name, landmark)
    ]
    if len(places) != 1:
        prefixes = ", ".join(sorted(prefix for _, prefix in places))
        raise UserError(
            f"{place}: found {len(places)} models ({prefixes}), expected the state dict of one {kind}{_ALONE}"
        )
    [(program, prefix)] = places
    if program != "huggingface":
        return program, {bare.removeprefix(prefix): old for bare, old in plain.items() if bare.startswith(prefix)}

    # a bare ViTModel's names lack the prefix that holders give it, and a ViTMAE's decoder stands beside its ViT
    outer = re.sub(r"(^|\.)vit\.$", r"\1", prefix)
    names = {}
    for bare, old in plain.items():
        if bare.startswith(prefix):
            names["vit." + bare.removeprefix(prefix)] = old
        elif bare.startswith(outer):
            names[bare.removeprefix(outer)] = old
    return program, names


def _without_holders(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in HOLDERS)


def _ends(name: str, landmark: str) -> bool:
    return f".{name}".endswith(f".{landmark}")
