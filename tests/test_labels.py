"""Laws of the label policy."""

import numpy as np
import pandas as pd
import pytest

from data.labels import FINDINGS, NO_FINDING, SUPPORT_DEVICES, agree, judge

PRESENT = [
    {"Pneumonia": 1},
    {"Fracture": 1, SUPPORT_DEVICES: 1},
    {"Edema": 1, "Cardiomegaly": -1},
    {"Pneumothorax": 1, NO_FINDING: 1},
    {"Lung Lesion": 1, "Pleural Effusion": 0},
]
UNCERTAIN = [
    {"Pneumonia": -1},
    {"Atelectasis": -1, "Edema": 0},
    {"Consolidation": -1, NO_FINDING: 1},
    {"Pleural Other": -1, SUPPORT_DEVICES: 1},
]
HEALTHY = [{NO_FINDING: 1}, {NO_FINDING: 1, SUPPORT_DEVICES: 1}, {NO_FINDING: 1, SUPPORT_DEVICES: -1}]
BLANK = [{}, {SUPPORT_DEVICES: 1}]


def table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(FINDINGS), dtype=np.float32)


HAND_MADE = table(PRESENT + UNCERTAIN + HEALTHY + BLANK)


@pytest.mark.parametrize(
    ("uncertain", "expected"),
    [
        ("unknown", {"finding": 5, "uncertain": 4, "no finding": 3, "blank": 2}),
        ("positive", {"finding": 5, "uncertain": 4, "no finding": 3, "blank": 2}),
        ("negative", {"finding": 5, "uncertain": 0, "no finding": 4, "blank": 5}),
    ],
)
def test_each_rule_takes_the_rows_counted_by_hand(uncertain, expected):
    labels, counts = judge(HAND_MADE, uncertain)
    assert counts == expected
    assert sum(counts.values()) == len(labels) == 14


@pytest.mark.parametrize(
    ("uncertain", "abnormal", "normal", "unknown"),
    [("unknown", 5, 3, 6), ("positive", 9, 3, 2), ("negative", 5, 4, 5)],
)
def test_uncertain_findings_count_as_the_policy_says(uncertain, abnormal, normal, unknown):
    labels, _ = judge(HAND_MADE, uncertain)
    assert ((labels == 1).sum(), (labels == 0).sum(), labels.isna().sum()) == (abnormal, normal, unknown)


def test_uncertainty_outranks_no_finding_and_yields_to_a_finding():
    rows = table([{"Edema": -1, NO_FINDING: 1}, {"Edema": -1, "Fracture": 1}])
    labels, _ = judge(rows, "unknown")
    assert np.isnan(labels[0])
    assert labels[1] == 1


@pytest.mark.parametrize("uncertain", ["unknown", "positive", "negative"])
@pytest.mark.parametrize("mark", [1, 0, -1, np.nan])
def test_support_devices_never_change_a_label(uncertain, mark):
    expected, counts = judge(HAND_MADE.assign(**{SUPPORT_DEVICES: np.nan}), uncertain)
    found, same_counts = judge(HAND_MADE.assign(**{SUPPORT_DEVICES: mark}), uncertain)
    pd.testing.assert_series_equal(found, expected)
    assert counts == same_counts


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name not in (NO_FINDING, SUPPORT_DEVICES)])
def test_every_finding_alone_is_abnormal(finding):
    assert judge(table([{finding: 1, NO_FINDING: 1}]), "unknown")[0].tolist() == [1.0]


def test_denied_findings_alone_are_no_proof_of_health():
    assert judge(table([dict.fromkeys(FINDINGS, 0)]), "unknown")[1]["blank"] == 1


def test_agreement_keeps_only_what_both_labelers_say():
    first = pd.Series([1.0] * 5 + [0.0] * 3 + [1, 0, 1, np.nan, np.nan, 0], index=list("abcdefghijklmn"))
    second = pd.Series([1.0] * 5 + [0.0] * 3 + [0, 1, np.nan, 0, np.nan, np.nan], index=first.index)
    labels, counts = agree(first, second)
    assert counts == {"abnormal": 5, "normal": 3, "conflict": 2, "unknown": 4}
    assert labels[:8].tolist() == first[:8].tolist()
    assert labels[8:].isna().all()
