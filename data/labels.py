"""Findings → normal / abnormal / unknown, under a named policy; 0.0 / 1.0 / NaN."""

from typing import Literal

import numpy as np
import pandas as pd

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"
FINDINGS = (  # of the CheXpert labeler, which MIMIC-CXR-JPG's NegBio table shares
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    NO_FINDING,
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    SUPPORT_DEVICES,
)
LABEL_WORDS = {"normal": 0.0, "abnormal": 1.0, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
RULES = {  # in the order in which they apply
    "finding": "a finding is 1 → abnormal",
    "uncertain": "a finding is -1 → {uncertain}",
    "no finding": "No Finding is 1 → normal",
    "blank": "nothing decides → unknown",
}
AGREEMENTS = {
    "abnormal": "both labelers abnormal",
    "normal": "both labelers normal",
    "conflict": "one normal, one abnormal → unknown",
    "unknown": "unknown to a labeler → unknown",
}


def judge(
    findings: pd.DataFrame, uncertain: Literal["unknown", "positive", "negative"]
) -> tuple[pd.Series, dict[str, int]]:
    """Finding columns (1, 0, -1 or NaN) → label per row, and how many rows each of `RULES` took.

    `Support Devices` and `No Finding` are no findings; `uncertain` says what -1 counts as.
    """
    marks = findings.drop(columns=[NO_FINDING, SUPPORT_DEVICES], errors="ignore").to_numpy()
    present = (marks == 1).any(axis=1)
    doubtful = (marks == -1).any(axis=1) & (uncertain != "negative")
    healthy = (findings[NO_FINDING] == 1).to_numpy()
    rule = np.select([present, doubtful, healthy], [0, 1, 2], 3)
    meaning = np.array([1.0, 1.0 if uncertain == "positive" else np.nan, 0.0, np.nan])
    return pd.Series(meaning[rule], index=findings.index, name="label"), _count(rule, RULES)


def agree(first: pd.Series, second: pd.Series) -> tuple[pd.Series, dict[str, int]]:
    """Two labelers' labels, same index → the label where both agree, else NaN; and `AGREEMENTS`' counts."""
    same = first == second
    known = first.notna() & second.notna()
    case = np.select([same & (first == 1), same & (first == 0), known], [0, 1, 2], 3)
    return first.where(same).rename("label"), _count(case, AGREEMENTS)


def _count(case: np.ndarray, names: dict[str, str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(case, minlength=len(names)).tolist(), strict=True))
