"""Reads files in a child process of limited memory and time: a crash or a hang becomes a failure, not a wait."""

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from checkout import in_checkout
from radiograph_files import PATIENT

MEMORY = 2 * 2**30  # of the child; address space, most of which the libraries take
SECONDS = 60  # of the child, for every 1000 files; a single file has 10


def read_all(folder: str) -> None:
    """The child: one JSON line for each file, [name, why it is refused or none]."""
    import signal

    from data.images import read_fitted, read_image
    from data.refusal import UnreadableImage

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for path in sorted(Path(folder).iterdir()):
        signal.alarm(10)
        rng, reason = random.Random(path.name), None
        try:
            grey = read_image(path, tone=rng.choice(("window", "mimic_jpg")), at_least=rng.choice((None, 8, 64)))
            assert grey.dtype == np.uint8 and grey.ndim == 2 and grey.size
            assert read_fitted(path, (16, 24), rng.choice(("pad", "squash", "crop"))).shape == (16, 24)
        except UnreadableImage as refusal:
            reason = str(refusal)
        print(json.dumps([path.name, reason]), flush=True)


def outcomes(folder: Path) -> dict[str, str | None]:
    """Name → why it was refused, None if it was read."""
    code = f"import limited_reader; limited_reader.read_all({str(folder)!r})"
    environment = in_checkout(OMP_NUM_THREADS="1", PYTHONWARNINGS="error")
    names = sorted(path.name for path in folder.iterdir())
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS * (1 + len(names) // 1000),
        env=environment,
    )
    found = dict(json.loads(line) for line in child.stdout.splitlines())
    assert child.returncode == 0 and list(found) == names, f"after {list(found)[-1:]}: {child.stderr[-2000:]}"
    assert not child.stderr
    for name, reason in found.items():
        if reason is not None:
            assert reason.startswith(f"{folder / name}: found ") and ", expected " in reason
            assert reason.isprintable() and len(reason) < 700
            assert PATIENT[:8] not in reason and "MemoryError" not in reason and "AssertionError" not in reason
    return found
