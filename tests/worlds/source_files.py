"""What the tests of every source do: read one, or change a file of it and see the refusal."""

from pathlib import Path

import pandas as pd
import pytest

from data.errors import UserError
from data.settings import DataSettings
from data.sources import read_source

SICK = [True, False, False, None, True, True, False] * 6  # of 42 images, in 21 patients


def read(root: Path, source: str, **settings):
    return read_source(DataSettings(source=source, root=str(root), **settings), Path(root))


def refusal(root: Path, source: str, **settings) -> str:
    """The one line that answers bad input."""
    with pytest.raises(UserError) as caught:
        read(root, source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, change) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
