"""Laws of the label policy."""

import numpy as np
import pandas as pd
import pytest

from data.errors import UserError
from data.labels import (
    FINDINGS,
    NO_FINDING,
    SUPPORT_DEVICES,
    agree,
    agreements,
    judge,
    rules,
    tally,
    with_no_finding,
)

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


def counts(findings: pd.DataFrame, uncertain: str, target: str | None = None) -> dict[str, int]:
    """How many rows each rule took, by the rule's name."""
    taken = tally(judge(findings, uncertain, target)[1])
    return {name: taken[text] for name, text in rules(uncertain, target).items()}


@pytest.mark.parametrize(
    ("uncertain", "expected"),
    [
        ("unknown", {"finding": 5, "uncertain": 4, "no finding": 3, "blank": 2}),
        ("positive", {"finding": 5, "uncertain": 4, "no finding": 3, "blank": 2}),
        ("negative", {"finding": 5, "no finding": 4, "blank": 5}),
    ],
)
def test_each_rule_takes_the_rows_counted_by_hand(uncertain, expected):
    assert counts(HAND_MADE, uncertain) == expected
    assert sum(expected.values()) == len(HAND_MADE) == 14


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
    expected, rule = judge(HAND_MADE.assign(**{SUPPORT_DEVICES: np.nan}), uncertain)
    found, same_rule = judge(HAND_MADE.assign(**{SUPPORT_DEVICES: mark}), uncertain)
    pd.testing.assert_series_equal(found, expected)
    pd.testing.assert_series_equal(same_rule, rule)


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name not in (NO_FINDING, SUPPORT_DEVICES)])
def test_every_finding_alone_is_abnormal(finding):
    assert judge(table([{finding: 1, NO_FINDING: 1}]), "unknown")[0].tolist() == [1.0]


def test_denied_findings_alone_are_no_proof_of_health():
    assert counts(table([dict.fromkeys(FINDINGS, 0)]), "unknown")["blank"] == 1


def test_agreement_keeps_only_what_both_labelers_say():
    first = pd.Series([1.0] * 5 + [0.0] * 3 + [1, 0, 1, np.nan, np.nan, 0], index=list("abcdefghijklmn"))
    second = pd.Series([1.0] * 5 + [0.0] * 3 + [0, 1, np.nan, 0, np.nan, np.nan], index=first.index)
    labels, case = agree(first, second)
    names = {text: name for name, text in agreements().items()}
    found = {names[text]: count for text, count in tally(case).items()}
    assert found == {"positive": 5, "negative": 3, "conflict": 2, "unknown": 4}
    assert labels[:8].tolist() == first[:8].tolist()
    assert labels[8:].isna().all()
    assert agreements()["conflict"] == "one normal, one abnormal → unknown"
    assert agreements("Edema")["conflict"] == "one negative, one positive → unknown"


# ---------------------------------------------------------------- a single finding


def test_target_rules_take_the_rows_counted_by_hand():
    """Pneumonia: 1 once, -1 once, 0 twice; of the 12 rows without it, one says nothing at all."""
    rows = pd.concat([HAND_MADE, table([{"Pneumonia": 0}, {"Pneumonia": 0, "Edema": 1}])], ignore_index=True)
    expected = {"finding": 1, "uncertain": 1, "denied": 2, "unsaid": 11, "blank": 1}
    assert counts(rows, "unknown", "Pneumonia") == expected
    assert sum(expected.values()) == len(rows)


@pytest.mark.parametrize(("uncertain", "label"), [("unknown", np.nan), ("positive", 1.0), ("negative", 0.0)])
def test_target_labels_follow_its_column(uncertain, label):
    rows = table([{"Edema": 1}, {"Edema": 0}, {"Edema": -1}, {"Fracture": 1}, {NO_FINDING: 1}, {}])
    labels, _ = judge(rows, uncertain, "Edema")
    np.testing.assert_array_equal(labels, [1.0, 0.0, label, 0.0, 0.0, np.nan])


@pytest.mark.parametrize("target", [NO_FINDING, SUPPORT_DEVICES])
def test_any_column_can_be_the_target(target):
    assert judge(table([{target: 1}, {target: 0, "Edema": 1}]), "unknown", target)[0].tolist() == [1.0, 0.0]


def test_unknown_target_lists_the_columns():
    with pytest.raises(UserError, match=r"data.target: found 'Pneumonie', expected one of Atelectasis, Cardiomegaly, "):
        judge(HAND_MADE, "unknown", "Pneumonie")


# ---------------------------------------------------------------- readings without No Finding


def test_readings_without_no_finding_get_it_where_nothing_was_found():
    rows = HAND_MADE.drop(columns=NO_FINDING)
    found = with_no_finding(rows)
    assert found[NO_FINDING].tolist() == [0] * 9 + [1] * 5
    assert with_no_finding(HAND_MADE) is HAND_MADE
    assert judge(found, "unknown")[0].tolist()[9:] == [0.0] * 5
