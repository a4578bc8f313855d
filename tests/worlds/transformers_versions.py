"""Programs that import transformers 4 or 5, of which a process can import only one."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

FOUR = ROOT / ".venv/transformers4"  # where `make test` puts transformers 4, if it can be installed


def printed_with(version: str, program: str, *words: object) -> str:
    """What the program prints with this major version; the test is skipped where it is not installed."""
    if version == "5":
        pytest.importorskip("transformers", minversion="5")
        return printed_by(program, *words)
    if not (FOUR / "transformers").is_dir():
        pytest.skip("transformers 4 is not installed in .venv/transformers4")
    code = f"import sys; sys.path[:0] = [{str(FOUR)!r}]" + program
    answer = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def printed_by(program: str, *words: object, folder: Path | None = None) -> str:
    """What a program prints in this working folder, run in this process, which has already imported transformers.

    The program may not import any package of ours, though they are imported here.
    """
    assert not re.search(r"^\s*(?:import|from)\s+(?:mae|classify|data)\b", program, re.M)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder or Path.cwd())
        patch.setattr(sys, "argv", ["program.py", *map(str, words)])
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
    return printed.getvalue()
