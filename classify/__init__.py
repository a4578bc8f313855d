"""CHECKPOINT → REPORT: classifiers of normal against abnormal, and how they compare."""

from importlib import import_module
from typing import Any

from mae import check_packages  # from the package, so that Python names the file if it is another's

check_packages()

_PUBLIC = {
    "build_classifier": "classify.models.classifier",
    "build_resnet": "classify.models.resnet",
    "Predictor": "classify.predict",
}
__all__ = [*_PUBLIC, "metrics"]


def __getattr__(name: str) -> Any:  # PEP 562: importing the package stays instant
    if name == "metrics":
        return import_module("classify.metrics")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:  # what completion in a notebook offers
    return [*globals(), *__all__]
