"""Each test computes with one thread: sizes are tiny, and a second thread would only cost waiting."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

# without bytecode, some hundred processes would each compile everything anew; git ignores __pycache__
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

os.fsync = lambda handle: None  # no test cuts the power, and waiting for the disk takes some ms each time

# keep the tests' secrets and measurements out of this machine's own folders
OWN_HOME = tempfile.mkdtemp(prefix="mae-tests-")
atexit.register(shutil.rmtree, OWN_HOME, ignore_errors=True)
os.environ["XDG_DATA_HOME"] = os.environ["XDG_CACHE_HOME"] = OWN_HOME

# a run of the suite writes some GB in small files: into memory, where there is plenty
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 8 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

FIXTURES = ("tiny_world", "stage_runs")  # shared by tests of several folders; they import torch
pytest.register_assert_rewrite(*FIXTURES)


def pytest_configure(config: pytest.Config) -> None:
    """A process that only hands out tests to others (`-n 2`) needs no fixtures. The others start once it is ready."""
    if getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        import forked

        forked.serve_all_below()
        return
    for name in FIXTURES:
        config.pluginmanager.import_plugin(name)


# name prefixes of the modules with the slowest tests: one that began last would be waited for alone
LONGEST = ("test_readme", "test_tutorial", "test_grid_runs", "test_interruptions", "test_distributed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """What is in memory by now stays: the collections that tests ask for need not traverse all of torch."""
    gc.collect()
    gc.freeze()


# name prefixes of the modules that need a ResNet as wide as published weights
REAL_RESNETS = ("test_init", "test_classifier", "test_cost_of", "test_exported", "test_cookbook")


@pytest.fixture(scope="module", autouse=True)
def narrow_resnets(request: pytest.FixtureRequest) -> Iterator[None]:
    """ResNets have an eighth of their width: a checkpoint takes 3 MB instead of 130. Real processes use full width.

    ResNet-18 has half of its blocks too, and so half of the tensors that a test saves and reads, but where the weights
    of others are read.
    """
    if request.path.name.startswith(REAL_RESNETS) or "torch" not in sys.modules:
        yield
        return

    from classify.models import resnet

    block, _ = resnet.SHAPES["resnet18"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "WIDTH", 8)
        if request.path.parent.name != "weights":
            patch.setitem(resnet.SHAPES, "resnet18", (block, (1, 1, 1, 1)))
        yield


@pytest.fixture(scope="session", autouse=True)
def forked_readers() -> Iterator[None]:
    """Processes that read images are forked from one that can already read them. Commands start theirs as usual."""
    import data.workers

    context = get_context("forkserver")
    context.set_forkserver_preload(["data.inputs", "data.image_files", "data.preparation"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.workers, "get_context", lambda _: context)
        yield


# name prefixes of the modules that need real pictures
REAL_PICTURES = ("test_dashboard", "test_prediction_docs", "test_explain")


@pytest.fixture(scope="module", autouse=True)
def blank_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Trainings and reports show blank pictures: matplotlib would take four times as long as all else they do.

    Real processes draw them, and so do tests of how they look. Heatmaps have 3 cells a side instead of 8.
    """
    if request.path.name.startswith(REAL_PICTURES) or "torch" not in sys.modules:  # without torch nothing is trained
        yield
        return

    import numpy as np
    from markupsafe import Markup, escape

    import classify.dashboard
    import classify.explain
    import classify.jobs
    import classify.report.pictures
    import classify.report.training

    def blank(label: str, *_: object) -> Markup:
        return Markup(f'<svg role="img" aria-label="{escape(label)}"></svg>')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify.explain, "CELLS", 3)
        patch.setattr(classify.dashboard, "raster", lambda *_: np.zeros((2, 3, 3), np.uint8))
        patch.setattr(classify.report.pictures, "svg", blank)
        patch.setattr(classify.report.training, "svg", blank)
        patch.setattr(classify.jobs, "gc", SimpleNamespace(collect=lambda: 0))  # it would traverse all that tests hold
        yield
