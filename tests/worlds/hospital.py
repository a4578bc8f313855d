"""A table of made-up patients, and its manifest."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import UserError
from data.manifest import Manifest, open_manifest
from data.settings import DataSettings

PATIENTS = 211


def hospital(seed: int = 0) -> pd.DataFrame:
    """A table of patients with one to four images; a third is abnormal, some labels are unknown."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, PATIENTS)
    patient = np.repeat(np.arange(PATIENTS), images)
    words = np.where(patient % 3 == 0, "abnormal", "normal")
    words[rng.random(len(words)) < 0.1] = ""
    names = [f"{number:04}.png" for number in range(len(patient))]
    return pd.DataFrame({"path": names, "label": words, "patient_id": [f"p{number}" for number in patient]})


def opened(root: Path, table: pd.DataFrame, **settings) -> Manifest:
    table.to_csv(root / "manifest.csv", index=False)
    return open_manifest(DataSettings(**{"source": "table", "root": str(root)} | settings))


def refusal(root: Path, table: pd.DataFrame, **settings) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, table, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def splits(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.table["image_id"], manifest.table["split"], strict=True))
