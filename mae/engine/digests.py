"""A digest of nested values and tensors: is what is read back what was written?"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

DIGITS = 32  # hexadecimal
MOST = 10**6  # values: in a stranger's file, one object may be repeated billions of times
DEEPEST = 60  # nested mappings and lists


def content_digest(content: Any) -> str:
    """32 hexadecimal digits of names, values, types, shapes and bits; ValueError for what is no plain value or tensor.

    It reveals damage and edits, but not deception: an attacker can compute it as well.
    """
    hashed = hashlib.sha256()
    _feed(hashed, content, {}, iter(range(MOST)), DEEPEST)
    return hashed.hexdigest()[:DIGITS]


def _feed(hashed: Any, value: Any, known: dict[int, bytes], left: Iterator[int], depth: int) -> None:
    if next(left, None) is None or not depth:
        raise ValueError("found values without end")

    # each count is hashed too, so that no two contents are hashed alike
    if isinstance(value, Mapping):
        hashed.update(f"mapping {len(value)}\n".encode())
        for name, part in value.items():
            _feed(hashed, name, known, left, depth - 1)
            _feed(hashed, part, known, left, depth - 1)
    elif isinstance(value, list | tuple):
        hashed.update(f"list {len(value)}\n".encode())
        for part in value:
            _feed(hashed, part, known, left, depth - 1)
    elif torch.is_tensor(value):
        if id(value) not in known:  # a tensor that occurs in many places is read once
            known[id(value)] = _tensor_digest(value)
        hashed.update(known[id(value)])
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        hashed.update(f"text {len(text)}\n".encode() + text)
    elif value is None or isinstance(value, bool | int | float):
        hashed.update(f"{type(value).__name__} {value!r}\n".encode())
    else:
        raise ValueError(f"found {type(value).__name__}, expected a plain value or a tensor")


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or tensor.is_quantized:
        raise ValueError(f"found a tensor of {tensor.layout}, expected a dense one")
    hashed = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    hashed.update(bits_of(tensor))
    return hashed.digest()


def bits_of(tensor: torch.Tensor) -> memoryview:
    """The bits of a dense tensor's numbers, one after the other."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1)
    if numbers.stride() != (1,):  # a single number may have any stride
        numbers = numbers.clone(memory_format=torch.contiguous_format)
    return numbers.view(torch.uint8).numpy().data
