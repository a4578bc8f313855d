"""BATCH → CHECKPOINT: masked autoencoders, with no knowledge of diagnoses."""

from importlib import import_module
from typing import Any

from mae.commands import check_packages

check_packages()  # names a user's file, such as data.py, that hides our package, before anything fails because of it

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


def __dir__() -> list[str]:  # what completion in a notebook offers
    return [*globals(), *__all__]
