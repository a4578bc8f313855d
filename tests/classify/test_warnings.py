"""What stands above the numbers: every kind of trouble is said, the worst first, and nothing where there is none."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny_world import tiny_config

from classify.cases import FEW
from classify.comparison import Comparison, FailedRow, Line
from classify.provenance import Facts
from classify.report.sections import opening_rows
from classify.report.warnings import warnings

COPIES = "warning: 6 of 12 test images stand in train too (same file 6)"
ELSEWHERE = "warning: 2 of 9 validate images stand in train too (same pixels 2)"
SERVED = "warning: 5 of the 12 images predicted served pretraining, and 1 more are copies of such"


def line(name: str, n: int = 2 * FEW, checkpoint: str = "c0", failed=(), **summary) -> Line:
    table = pd.DataFrame({"label": np.arange(n) % 2, "patient_id": np.arange(n)})
    facts = {"pretrained_on": 0, "origin": {"checkpoint": checkpoint}} | summary
    run = Path(name.lower())
    return Line({"Model": name}, None, (SimpleNamespace(predictions=table, run=run, summary=facts),), failed)


def compared(place, *lines: Line, failed_rows=(), split="test", **facts) -> Comparison:
    known = Facts("m", "s", classes={"validate": (FEW, FEW)})
    config = tiny_config(place, compare__split=split)
    return Comparison(config, place, replace(known, **facts), lines, tuple(failed_rows))


def opening(checkpoint: str, run: str = "vit") -> dict:
    return {"time": "2026-01-01T00:00:00+00:00", "run": run, "checkpoint": checkpoint, "n": 12}


def test_nothing_is_said_where_nothing_is_wrong(place):
    clean = {"a": ("leak audit of 60 images: no patient in two splits, no image or near copy of one in two",)}
    assert warnings(compared(place, line("A"), audits=clean)) == ()


def test_trainings_that_share_a_pretraining_are_said_and_no_others(place):
    def said(row: dict, **grid) -> tuple[str, ...]:
        settings = {f"compare__{name}": value for name, value in grid.items()}
        config = tiny_config(place, compare__rows=[row], compare__pretrainings={"p": {}}, **settings)
        clean = {"a": ("leak audit of 60 images: no patient in two splits, no image or near copy of one in two",)}
        return warnings(replace(compared(place, line("A"), audits=clean), config=config))

    row = {"name": "A", "pretraining": ["p"]}
    assert said(row, seeds=[0, 1, 2]) == said(row, seeds=[0, 1], pretraining_seeds=[5, 7]) == ()
    assert said({"name": "A"}, seeds=[0, 1, 2], pretraining_seeds=[5]) == ()
    [one] = said(row, seeds=[0, 1, 2], pretraining_seeds=[5])
    assert one.startswith("1 pretraining serves the 3 trainings of each pretrained row: ")
    [two] = said(row, seeds=[0, 1, 2], pretraining_seeds=[5, 0])
    assert two.startswith("2 pretrainings serve the 3 trainings ")


def test_the_tested_split_comes_before_others_and_leaks_before_the_rest(place):
    audits = {"a": (ELSEWHERE, COPIES, SERVED), "b": (ELSEWHERE, COPIES)}
    gone = FailedRow({"Model": "C"}, None, ("c-seed0: diverged",))
    found = warnings(
        compared(place, line("A", n=20), line("B", n=20), audits=audits, failed_rows=[gone], patients_known=False)
    )
    assert [text.split(":")[0] for text in found] == [
        *("Leak", "Leak", "Leak", "Failed", "Few cases", "Patients are not all known")
    ]
    assert found[0] == "Leak: 6 of 12 test images stand in train too (same file 6)."
    assert found[1].startswith("Leak: 2 of 9 validate images")
    assert found[2] == f"Leak: {SERVED.removeprefix('warning: ')} (rows: A)."


def test_contamination_is_said_without_an_audit_too(place):
    [said] = warnings(compared(place, line("A", pretrained_on=7)))
    assert said == "Leak: 7 images that A is tested on served its pretraining."


def test_on_validation_what_chose_the_pretraining_is_no_leak(place):
    for told in ({"audits": {"a": (SERVED,)}}, {}):
        [said] = warnings(compared(place, line("A", pretrained_on=5), split="validate", **told))
        assert said.startswith("Seen before: 5 ") and "without labels" in said
    copies = warnings(compared(place, line("A"), split="validate", audits={"a": (ELSEWHERE,)}))
    assert copies[0].startswith("Leak: ")


def test_foreign_weights_may_have_seen_anything(place):
    [said] = warnings(compared(place, line("A", seen_elsewhere=True), line("B")))
    assert said.startswith("Weights of another program had seen unknown images")
    assert said.endswith(": A.")


def test_images_that_were_not_compared_are_said(place):
    audits = {"a": ("images were not compared, which needs a store (data.store=stores)",)}
    [said] = warnings(compared(place, line("A"), audits=audits))
    assert said.startswith("Not checked: whether images are in two splits")


def test_test_opened_by_others_or_again_is_said(place):
    once = compared(place, line("A"), openings=(opening("c0"),))
    assert warnings(once) == ()
    others = compared(place, line("A"), openings=(opening("c0"), opening("old"), opening("older"), opening("old")))
    [said] = warnings(others)
    assert said.startswith("Test was opened 3 times by 2 checkpoints not in this table")
    again = compared(place, line("A"), openings=(opening("c0"),) * 5)
    [said] = warnings(again)
    assert said == "Test was opened more than once by 1 checkpoint of this table (5 times at most)."
    assert warnings(compared(place, line("A"), split="validate", openings=(opening("old"),))) == ()
    assert [row["In this table"] for row in opening_rows(others)] == ["yes", "no", "no", "no"]


def test_few_cases_of_a_class_are_said_of_each_split(place):
    facts = {"classes": {"validate": (FEW - 1, FEW)}}
    said = warnings(compared(place, line("A", n=2 * FEW - 1), **facts))
    assert said[0].startswith(f"Few cases: {FEW - 1} normal in split validate (fewer than {FEW})")
    assert said[1].startswith(f"Few cases: {FEW - 1} abnormal in split test")


@pytest.mark.parametrize("split", ["test", "validate"])
def test_few_cases_that_a_label_budget_left_to_choose_on_are_said(place, split):
    def chosen_on(name: str, *counts: int) -> Line:
        cases = dict(zip(("normal", "abnormal"), counts, strict=True))
        return line(name, checkpoint="c0", meta={"validate_cases": cases})

    lines = [chosen_on("A", 7, FEW), chosen_on("B", 5, FEW), chosen_on("C", FEW, FEW), line("File", meta={})]
    [said] = warnings(compared(place, *lines, split=split))
    assert said.startswith("Few cases: 5 normal in split validate as the smallest label budget leaves it (fewer than")
    assert warnings(compared(place, *lines[2:], split=split)) == ()
    whole = {"classes": {"validate": (5, FEW)}}  # no label budget has cut it
    assert len(warnings(compared(place, lines[1], split=split, **whole))) == (split == "test")


def test_failed_trainings_are_named(place):
    gone = FailedRow({"Model": "C"}, None, ("c-seed0: diverged", "c-seed1: diverged"))
    found = warnings(compared(place, line("A", failed=("a-seed1: out of memory",)), failed_rows=[gone]))
    assert found == (
        "Failed: 1 of 2 trainings of A (a-seed1: out of memory).",
        "Failed: all trainings of C (c-seed0: diverged; c-seed1: diverged).",
    )


def test_failed_trainings_are_named_with_their_labels_where_budgets_differ(place):
    gone = [FailedRow({"Model": "C"}, labelled, ("diverged",)) for labelled in (None, 1200)]
    some = replace(line("A", failed=("out of memory",)), labelled=35)
    assert warnings(compared(place, some, failed_rows=gone)) == (
        "Failed: 1 of 2 trainings of A with 35 labels (out of memory).",
        "Failed: all trainings of C with all labels (diverged).",
        "Failed: all trainings of C with 1,200 labels (diverged).",
    )
