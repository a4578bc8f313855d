"""transformers 4 and 5, of which a process can import only one."""

import pytest
from checkout import ROOT

FOUR = ROOT / ".venv/transformers4"  # where `make test` puts a transformers 4, if it installs


def with_transformers(version: str, program: str) -> str:
    """The program with this major version before others in its path; the test is skipped where it is not installed."""
    path = []
    if version == "4":
        if not (FOUR / "transformers").is_dir():
            pytest.skip("transformers 4 is not installed in .venv/transformers4")
        path = [str(FOUR)]
    else:
        pytest.importorskip("transformers", minversion="5")
    return f"import sys; sys.path[:0] = {path!r}" + program
