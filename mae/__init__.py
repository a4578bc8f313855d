"""BATCH → CHECKPOINT: masked autoencoders, and nothing of diagnoses."""

from importlib import import_module
from typing import Any

from mae.commands import check_packages

check_packages()  # a user's file named data.py is told by name, before anything fails for it

_PUBLIC = {
    "build_mae": "mae.model",
    "MaskedAutoencoder": "mae.model",
    "Encoder": "mae.encoder",
    "Decoder": "mae.decoder",
    "load_checkpoint": "mae.engine.checkpoint",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:  # PEP 562: importing the package stays instant
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
