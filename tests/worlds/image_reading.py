"""How the tests of the reader see a refusal and a difference, and which shared files they need."""

from pathlib import Path

import numpy as np
import pytest
from checkout import SHARED
from radiograph_files import PATIENT

from data.images import read_image
from data.refusal import UnreadableImage

needs_dicoms = pytest.mark.skipif(not (SHARED / "dicom").exists(), reason="shared DICOM samples are missing")
needs_originals = pytest.mark.skipif(
    not (SHARED / "kermany_originals").exists(), reason="shared Kermany originals are missing"
)


def refusal(path: Path, **options) -> str:
    """The one line with which `path` is refused."""
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: found ") and ", expected " in message
    assert len(message.splitlines()) == 1 and PATIENT[:8] not in message
    return message


def differ(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(float) - b).max()
