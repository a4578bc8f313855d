"""Groups of cases: which there are, what is computed for them, and gaps that are reported with care."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from classify.comparison import Line
from classify.metrics import auc_interval, group_difference, metric_intervals
from classify.metrics.intervals import ONE_PATIENT
from classify.subgroups import LEAST, VALUES, breakdown, check_columns, columns_of, values_of
from data.errors import UserError


def line(columns: dict, n: int = 210, seeds: int = 2, harder=None) -> Line:
    """Drawn cases, three of each patient; where `harder` the classes lie close together."""
    rng = np.random.default_rng(5)
    labels = np.arange(n) % 2
    apart = np.where(np.zeros(n, bool) if harder is None else harder, 0.3, 2.5)
    evaluations = []
    for _ in range(seeds):
        logits = rng.normal(0, 1, n) + apart * labels
        table = {"label": labels, "logit": logits, "score": 1 / (1 + np.exp(-logits))}
        table |= {"patient_id": np.arange(n) // 3} | columns
        config = SimpleNamespace(evaluate=SimpleNamespace(level=0.9))
        evaluations.append(SimpleNamespace(predictions=pd.DataFrame(table), threshold=0.6, config=config))
    return Line({"Model": "A"}, None, tuple(evaluations))


# ---------------------------------------------------------------- a difference between groups


@pytest.mark.parametrize("few", [7, 170])
def test_groups_of_other_patients_differ_by_the_reach_of_their_own_intervals(few):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    scores = labels * 0.7 + rng.normal(0, 1, 400)
    a = np.arange(400) < few
    found = group_difference(labels, scores, a, ~a)
    first, second = (auc_interval(labels[inside], scores[inside]) for inside in (a, ~a))
    down = np.hypot(first.estimate - first.interval[0], second.interval[1] - second.estimate)
    up = np.hypot(first.interval[1] - first.estimate, second.estimate - second.interval[0])
    assert found.estimate == pytest.approx(first.estimate - second.estimate)
    assert found.interval == pytest.approx((max(-1, found.estimate - down), min(1, found.estimate + up)))


def test_a_small_group_without_a_mistake_is_not_better_for_that():
    """Ten of each class are often told apart perfectly by chance; their variance says that this is certain."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0, 1, 0], [10, 10, 100, 100])
    scores = np.concatenate([labels[:20] + 2.0, rng.normal(0, 1, 200) + 2.66 * labels[20:]])
    a = np.arange(220) < 20
    found = group_difference(labels, scores, a, ~a)
    assert found.estimate > 0.01 and found.p_value > 0.2
    assert found.interval[0] < 0 and found.note


@pytest.mark.parametrize("area", [0.9, 0.97])
def test_groups_of_ten_of_each_class_seldom_differ_where_nothing_does(area):
    rng = np.random.default_rng(1)
    labels = np.repeat([1, 0, 1, 0], [LEAST, LEAST, 100, 100])
    a = np.arange(len(labels)) < 2 * LEAST
    apart = np.sqrt(2) * norm.ppf(area)
    rejected = 0
    for _ in range(150):
        scores = rng.normal(size=len(labels)) + apart * labels
        rejected += group_difference(labels, scores, a, ~a).p_value < 0.05
    assert rejected <= 15  # by the sum of both variances, 15 in 100 at .9 and 32 in 100 at .97


def test_a_group_of_one_patient_has_no_interval():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    a = np.arange(80) < 40
    found = group_difference(labels, labels + rng.normal(size=80), a, ~a, groups=np.where(a, 0, np.arange(80)))
    assert np.isfinite(found.estimate) and found.note == ONE_PATIENT
    assert np.isnan([found.p_value, *found.interval]).all()


def test_the_other_way_round_is_the_opposite():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 120), rng.normal(0, 1, (3, 120))
    a = np.arange(120) % 3 == 0
    patients = np.arange(120) // 2
    there = group_difference(labels, scores, a, ~a, groups=patients)
    back = group_difference(labels, scores, ~a, a, groups=patients)
    assert there.estimate == pytest.approx(-back.estimate)
    assert there.interval == pytest.approx(tuple(-end for end in reversed(back.interval)))
    assert there.p_value == pytest.approx(back.p_value)


def test_the_same_cases_in_both_groups_of_the_same_patients_differ_by_nothing():
    """A patient's two views have equal scores: what they share cancels, as it would not in independent groups."""
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(0, 2, 90), 2)
    scores = np.repeat(rng.normal(0, 1, 90), 2) + labels
    a = np.arange(180) % 2 == 0
    together = group_difference(labels, scores, a, ~a, groups=np.arange(180) // 2)
    apart = group_difference(labels, scores, a, ~a)
    assert together.estimate == apart.estimate == 0
    assert together.standard_error < apart.standard_error or together.note
    assert together.p_value == apart.p_value == 1


def test_it_covers_and_does_not_find_what_is_not_there():
    """500 draws of groups that are alike: at the 5 % level, hardly more than 5 % are found to differ."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(500):
        labels = np.repeat(rng.integers(0, 2, 70), 2)
        scores = 1.1 * labels + np.repeat(rng.normal(0, 0.7, 70), 2) + rng.normal(0, 0.7, 140)
        a = np.arange(140) % 2 == 0
        found.append(group_difference(labels, scores, a, ~a, groups=np.arange(140) // 2).p_value < 0.05)
    assert 0.02 <= np.mean(found) <= 0.08


def test_two_groups_without_a_mistake_have_a_width():
    labels = np.arange(40) % 2
    found = group_difference(labels, labels.astype(float), np.arange(40) < 20, np.arange(40) >= 20)
    assert found.estimate == 0
    assert found.interval[0] < 0 < found.interval[1]
    assert found.note


def test_groups_share_no_case():
    with pytest.raises(ValueError, match="no case may be in both"):
        group_difference([0, 1], [0.1, 0.2], [True, True], [False, True])


def test_one_positive_proves_no_difference_between_groups():
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = np.repeat([1, 0, 1, 0], [1, 30, 100, 100])
        a = np.arange(231) < 31
        rejected += group_difference(labels, labels + rng.normal(size=231), a, ~a).p_value < 0.05
    assert rejected <= 8  # with the variance of a single stratum, two of three would be


@pytest.mark.parametrize("name", ["auc", "accuracy", "brier", "ece"])
def test_a_group_without_cases_differs_by_nothing_known(name):
    none, everyone = np.zeros(4, bool), np.ones(4, bool)
    found = group_difference([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], none, everyone, name)
    assert np.isnan([found.estimate, found.p_value, *found.interval]).all() and found.note


# ---------------------------------------------------------------- which groups there are


def test_numbers_that_differ_are_groups_that_differ():
    """Ids become floats where one is missing, and dates written as numbers differ in their last digits."""
    sites = pd.Series([*np.repeat([10000032.0, 10000033.0], 20), np.nan], name="site")
    assert set(values_of(sites)) == {"10000032", "10000033", "unknown"}
    dates = values_of(pd.Series(np.arange(20180101, 20180201), name="StudyDate"))
    assert sorted(set(dates)) == [
        "20180126 to under 20180151", "20180151 to under 20180176", "20180176 and above", "under 20180126",
    ]  # fmt: skip
    assert values_of(pd.Series(1234560 + np.arange(200) / 50, name="serial")).value_counts().tolist() == [50] * 4


def test_ages_are_grouped_by_years():
    ages = pd.Series([0, 17.9, 18, 39.9, 40, 60, 79, 80, 101, np.nan], name="age")
    assert values_of(ages).tolist() == [
        *("under 18", "under 18", "18 to under 40", "18 to under 40", "40 to under 60"),
        *("60 to under 80", "60 to under 80", "80 and above", "80 and above", "unknown"),
    ]


def test_rare_values_stand_together_and_are_not_named():
    values = values_of(pd.Series(["F"] * 11 + ["M"] * 10 + ["Ann Example"] + [None] * 3 + [""], name="sex"))
    assert values.value_counts().to_dict() == {"F": 11, "M": 10, "unknown": 4, "values of fewer than 10 cases": 1}


def test_many_numbers_are_quarters_and_few_are_values():
    assert values_of(pd.Series(np.arange(80.0), name="bmi")).value_counts().tolist() == [20, 20, 20, 20]
    assert set(values_of(pd.Series([1.0, 0.0, -1.0] * 10, name="Edema"))) == {"1", "0", "-1"}
    assert set(values_of(pd.Series([np.nan] * 12, name="x"))) == {"unknown"}


@pytest.mark.parametrize("strange", ["² beds", "٣ beds", "--5", "-", ".", "1.2.3", "under ¹"])
def test_values_that_begin_like_numbers_are_text(strange):
    sites = np.repeat([strange, "-7 beds", "3. floor", "11 beds", "west"], 2 * LEAST)
    found = breakdown(line({"site": sites}, n=len(sites)), ["site"])
    names = [group.value for group in found.groups]
    assert set(names) == set(sites)
    assert names[0] == "-7 beds" and names[-2:] == ["3. floor", "11 beds"]


def test_the_usual_columns_are_looked_at_where_there_is_something_to_see():
    found = line({"view": ["AP", "PA"] * 105, "sex": ["F"] * 210, "race": ["a", "b"] * 105})
    assert columns_of(found, None) == ["view"]
    assert columns_of(found, ["race", "nothing"]) == ["race"]
    assert columns_of(found, []) == []


def test_a_column_that_is_not_there_is_one_line():
    check_columns(None, ["view"])
    check_columns(["sex"], ["view", "sex"])
    with pytest.raises(UserError, match=r"report.subgroups: found 'sexx', expected .*did you mean sex\?"):
        check_columns(["sexx"], ["view", "sex"])
    with pytest.raises(UserError, match="found 'patient_id'"):
        check_columns(["patient_id"], ["patient_id", "sex"])


# ---------------------------------------------------------------- what is computed


def test_groups_of_a_column_are_all_cases_once():
    found = breakdown(line({"view": np.repeat(["AP", "PA", "LL"], 70)}), ["view"])
    assert [group.value for group in found.groups] == ["AP", "LL", "PA"]
    assert sum(group.n for group in found.groups) == 210
    assert sum(group.positives for group in found.groups) == 105


def test_a_group_has_the_numbers_of_its_cases_alone():
    sex = np.where(np.arange(210) < 90, "F", "M")
    whole = line({"sex": sex})
    [women, _] = breakdown(whole, ["sex"]).groups
    inside = sex == "F"
    expected = metric_intervals(
        whole.labels[inside],
        whole.scores[:, inside],
        ("auc", "recall", "specificity"),
        thresholds=0.6,
        groups=whole.patients[inside],
        level=0.9,
    )
    for name, interval in women.intervals.items():
        assert interval.interval == pytest.approx(expected[name].interval)


def test_a_small_group_is_named_and_not_computed():
    few = 2 * LEAST - 2
    found = breakdown(line({"sex": np.where(np.arange(210) < few, "F", "M")}), ["sex"])
    women, men = found.groups
    assert (women.value, women.n, women.positives, dict(women.intervals)) == ("F", few, LEAST - 1, {})
    assert men.intervals
    assert found.gaps == ()


def test_the_largest_gap_is_the_higher_group_minus_the_lower():
    harder = np.arange(210) % 3 == 2
    view = np.array(["AP", "LL", "PA"])[np.arange(210) % 3]
    [gap] = breakdown(line({"view": view}, harder=harder), ["view"]).gaps
    assert gap.low == "PA"
    assert gap.difference.estimate > 0
    assert gap.difference.interval[0] > 0
    assert gap.difference.p_value <= gap.p_holm < 0.05


def test_gaps_are_adjusted_over_all_columns():
    columns = {
        "view": np.array(["AP", "LL", "PA"])[np.arange(210) % 3],
        "sex": np.array(["F", "M"])[np.arange(210) // 105],
    }
    alone = breakdown(line(columns), ["sex"]).gaps[0]
    both = breakdown(line(columns), ["view", "sex"]).gaps[1]
    assert alone.difference == both.difference
    assert alone.p_holm == alone.difference.p_value
    assert both.p_holm >= alone.p_holm


def test_what_is_unknown_takes_part_in_no_gap():
    sex = np.array(["F", None])[np.arange(210) % 2 * (np.arange(210) // 105)]
    found = breakdown(line({"sex": sex}), ["sex"])
    assert found.gaps == ()
    assert found.groups[-1].value == "unknown"


@pytest.mark.parametrize("sizes", [[11] * 20 + [12] * 20 + [13] * 5, [12] * 1000, [10] * 29 + [400]])
def test_of_many_values_the_most_frequent_are_groups(sizes):
    """A thousand hospitals would be half a million pairs to test, for each row."""
    sites = np.repeat([f"site {number}" for number in range(len(sizes))], sizes)
    groups = values_of(pd.Series(sites, name="site")).value_counts()
    [*rest] = [value for value in groups.index if value.startswith("values of fewer than")]
    kept = groups.drop(rest)
    assert len(kept) <= VALUES
    assert groups.sum() == sum(sizes)
    if rest:
        least = int(rest[0].split()[4])
        assert all(size >= least for size in kept)
        assert len(kept) == sum(size >= least for size in sizes)
    else:
        assert len(kept) == len(sizes)
