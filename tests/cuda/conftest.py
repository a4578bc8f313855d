"""Tests here have one body for both devices: on a CPU they show that the law is well stated, on a GPU that it holds.

`pytest -m cuda tests/cuda` is what benchmarks/cuda.sh runs.
"""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products, asked for before CUDA begins

WITHOUT = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, WITHOUT])])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device; what a test sets for the whole process is restored."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # as configure_torch sets it in fp32
    yield torch.device(request.param)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
