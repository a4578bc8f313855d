"""FILE → BATCH: radiographs and labels, and nothing of models."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "load_config": "data.config",
    "read_image": "data.images",
    "open_manifest": "data.manifest",
    "ImageStore": "data.store",
    "prepare": "data.preparation",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:  # PEP 562: importing the package stays instant
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:  # what completion in a notebook offers
    return [*globals(), *__all__]
