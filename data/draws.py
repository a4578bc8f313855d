"""Random numbers as a function of (seed, purpose, epoch, image): no state, so nothing to save.

Augmentation, masks and stochastic depth draw here. A draw depends on which image it is for, never on
batch, worker or rank, and a resumed run draws what the uninterrupted one would have.
"""

import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit: torch has no unsigned arithmetic
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def uniform(seed: int, purpose: str, epoch: int, images: Tensor, count: int) -> Tensor:
    """Uniform draws in [0, 1), float32 (b count), for the image numbers (b) int64."""
    state = _mix(images * _GOLDEN + _stream(seed, purpose, epoch))[:, None]  # b 1
    draws = _mix(state + torch.arange(1, count + 1, device=images.device) * _GOLDEN)  # b count
    return ((draws >> 40) & 0xFFFFFF).float() / (1 << 24)


def _stream(seed: int, purpose: str, epoch: int) -> int:
    """What all images' draws start from. A plain number: a tensor would have to be copied to the device."""
    state = 0
    for part in (seed, zlib.crc32(purpose.encode()), epoch):
        state = _mix_number(state + part + _GOLDEN)
    return state - (1 << 64) if state >> 63 else state


def _mix_number(z: int) -> int:
    """`_mix` of a plain number, as unsigned 64-bit."""
    z %= 1 << 64
    z = (z ^ z >> 30) * _MIX_1 % (1 << 64)
    z = (z ^ z >> 27) * _MIX_2 % (1 << 64)
    return z ^ z >> 31


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014); int64 arithmetic wraps as it needs to."""
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic
