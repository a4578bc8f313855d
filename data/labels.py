"""Findings → normal / abnormal / unknown, or one finding → present / absent / unknown, under a named policy.

Labels are 1.0, 0.0 and NaN. Each row also gets the words of the rule that decided it, so that rules can be counted.
"""

from typing import Literal

import numpy as np
import pandas as pd

from data.errors import UserError, did_you_mean

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
NIH_FINDINGS = (  # of ChestX-ray14, spelt as its CSV does
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    NO_FINDING,
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
ALL_FINDINGS = tuple(sorted({*FINDINGS, *NIH_FINDINGS}))
LABEL_WORDS = {
    **{"normal": 0.0, "abnormal": 1.0, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0},
    **{"negative": 0.0, "positive": 1.0, "no": 0.0, "yes": 1.0, "false": 0.0, "true": 1.0},
}
RULES = {  # in the order in which they apply
    "finding": "a finding is 1 → abnormal",
    "uncertain": "a finding is -1 → {uncertain}",
    "no finding": "No Finding is 1 → normal",
    "blank": "nothing decides → unknown",
}
TARGET_RULES = {  # of a single finding; they exclude each other
    "finding": "{target} is 1 → positive",
    "uncertain": "{target} is -1 → {uncertain}",
    "denied": "{target} is 0 → negative",
    "unsaid": "{target} is blank, another column is not → negative",
    "blank": "every column is blank → unknown",
}
MEANINGS = {"finding": 1.0, "no finding": 0.0, "denied": 0.0, "unsaid": 0.0, "blank": np.nan}
AGREEMENTS = {
    "positive": "both labelers {positive}",
    "negative": "both labelers {negative}",
    "conflict": "one {negative}, one {positive} → unknown",
    "unknown": "unknown to a labeler → unknown",
}
NO_ROW = "no row of labels → unknown"

Uncertain = Literal["unknown", "positive", "negative"]


class NoSuchFinding(UserError):
    """`data.target` is no finding of this data set."""


def judge(findings: pd.DataFrame, uncertain: Uncertain, target: str | None = None) -> tuple[pd.Series, pd.Series]:
    """Finding columns (1, 0, -1 or NaN) → label of each row, and the words of the rule that decided it (a category).

    Without a `target`: abnormal or normal, where `Support Devices` and `No Finding` do not count as
    findings. With one: is that column's finding there? `uncertain` says what -1 counts as. Raises NoSuchFinding.
    """
    if target not in {None, *findings}:
        known = [str(name) for name in findings]
        hint = did_you_mean(str(target), known)
        raise NoSuchFinding(f"data.target: found {target!r}, expected one of {', '.join(known)}{hint}")
    if target is None:
        cases = _abnormal_cases(findings, uncertain)
    else:
        cases = _target_cases(findings, target)

    # the first rule that applies to a row decides; where none does, the row is blank
    case = np.select(list(cases.values()), range(len(cases)), len(cases))
    meaning = MEANINGS | {"uncertain": {"unknown": np.nan, "positive": 1.0, "negative": 0.0}[uncertain]}
    label = np.array([meaning[rule] for rule in (*cases, "blank")])[case]
    return pd.Series(label, index=findings.index, name="label"), _named(case, rules(uncertain, target), findings.index)


def _abnormal_cases(findings: pd.DataFrame, uncertain: Uncertain) -> dict[str, np.ndarray]:
    marks = findings.drop(columns=[NO_FINDING, SUPPORT_DEVICES], errors="ignore").to_numpy()
    cases = {"finding": (marks == 1).any(axis=1)}
    if uncertain != "negative":
        cases["uncertain"] = (marks == -1).any(axis=1)
    cases["no finding"] = (findings[NO_FINDING] == 1).to_numpy()
    return cases


def _target_cases(findings: pd.DataFrame, target: str) -> dict[str, np.ndarray]:
    """A report that speaks of other things but not of the target denies it, as is usual with these tables."""
    mark = findings[target].to_numpy()
    speaks = findings.notna().any(axis=1).to_numpy()
    return {"finding": mark == 1, "uncertain": mark == -1, "denied": mark == 0, "unsaid": speaks}


def agree(first: pd.Series, second: pd.Series, target: str | None = None) -> tuple[pd.Series, pd.Series]:
    """Two labelers' labels, same index → the label where both agree, else NaN; and each row's case in words."""
    same = first == second
    known = first.notna() & second.notna()
    case = np.select([same & (first == 1), same & (first == 0), known], [0, 1, 2], 3)
    return first.where(same).rename("label"), _named(case, agreements(target), first.index)


def rules(uncertain: Uncertain, target: str | None = None) -> dict[str, str]:
    """The words of each rule. If -1 counts as 0, no rule of `RULES` is about it."""
    negative, positive = words(target)
    meaning = {"unknown": "unknown", "positive": positive, "negative": negative}[uncertain]
    if target is not None:
        return {rule: text.format(uncertain=meaning, target=target) for rule, text in TARGET_RULES.items()}
    used = {rule: text for rule, text in RULES.items() if rule != "uncertain" or uncertain != "negative"}
    return {rule: text.format(uncertain=meaning) for rule, text in used.items()}


def agreements(target: str | None = None) -> dict[str, str]:
    """The words of each case in which two labelers agree or do not."""
    negative, positive = words(target)
    return {case: text.format(negative=negative, positive=positive) for case, text in AGREEMENTS.items()}


def words(target: str | None) -> tuple[str, str]:
    """What the labels 0 and 1 are called."""
    return ("normal", "abnormal") if target is None else ("negative", "positive")


def tally(named: pd.Series) -> dict[str, int]:
    """Words → how many rows they took, rules without any row included."""
    return {str(text): int(count) for text, count in named.value_counts(sort=False).items()}


def with_no_finding(findings: pd.DataFrame) -> pd.DataFrame:
    """Readings by radiologists that lack `No Finding` get it: 1 where no finding is 1 or -1, devices aside."""
    if NO_FINDING in findings:
        return findings
    marks = findings.drop(columns=SUPPORT_DEVICES, errors="ignore")
    return findings.assign(**{NO_FINDING: (~marks.isin([1, -1]).any(axis=1)).astype(np.float32)})


def _named(case: np.ndarray, texts: dict[str, str], index: pd.Index) -> pd.Series:
    named = pd.Categorical.from_codes(case.tolist(), categories=pd.Index(list(texts.values())))
    return pd.Series(named, index=index, name="rule")
