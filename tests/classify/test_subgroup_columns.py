"""Predictions carry what the table says of each case besides its label, unchanged."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from evaluated_runs import FIRST
from tiny_world import edit_table, make_world, succeed

import classify.evaluate
from classify.cli import evaluate, finetune
from classify.scores import with_subgroups
from data.config import parse_overrides

NAN = np.nan
# the images of three studies of two patients, in mixed order; the last image is alone in its study
IMAGES = pd.DataFrame(
    {
        "image_id": ["u", "v", "w", "x", "y"],
        "patient_id": ["a", "b", "a", "a", "b"],
        "study_id": ["1", "1", "1", "1", "2"],
        "split": "test",
        "label": [1.0, 0.0, 1.0, 1.0, 0.0],
        "path": "p",
        "source": "table",
        "row": range(5),
        "sex": ["F", "M", "F", "F", None],
        "age": [40.0, 7.0, NAN, 43.0, NAN],
        "Edema": np.array([1, 0, 1, 1, -1], np.float32),
        "site": ["001", "", "001", "1", "=2+3"],
        "view": ["AP", "PA", "AP", NAN, "PA"],
        "seen": [1.0, 0.0, NAN, 1.0, NAN],
        "score": ["theirs"] * 5,
    }
)


def test_images_have_what_the_table_says():
    units = IMAGES[["patient_id", "study_id", "image_id"]].iloc[[4, 0, 1]].assign(score=[0.1, 0.2, 0.3])
    found = with_subgroups(units, IMAGES, "image")
    assert list(found) == ["patient_id", "study_id", "image_id", "score", "view", "sex", "age", "Edema", "site", "seen"]
    assert found["score"].tolist() == [0.1, 0.2, 0.3]
    assert found["view"].tolist() == ["PA", "AP", "PA"]
    assert found["site"].tolist()[:2] == ["=2+3", "001"] and found["site"].isna().tolist() == [False, False, True]
    assert found["Edema"].tolist() == [-1.0, 1.0, 0.0]


def test_studies_have_what_all_their_images_have():
    units = pd.DataFrame({"patient_id": ["b", "a", "b"], "study_id": ["2", "1", "1"], "image_id": ["y", "u", "v"]})
    found = with_subgroups(units, IMAGES, "study")
    nothing = found.isna()
    assert found["sex"].tolist()[1:] == ["F", "M"] and nothing["sex"].tolist() == [True, False, False]
    assert found["age"].tolist()[1:] == [41.5, 7.0] and nothing["age"].tolist() == [True, False, False]
    assert found["Edema"].tolist() == [-1.0, 1.0, 0.0]
    assert found["view"].tolist()[::2] == ["PA", "PA"] and nothing["view"].tolist() == [False, True, False]
    assert found["site"].tolist()[0] == "=2+3" and nothing["site"].tolist() == [False, True, True]
    assert nothing["seen"].tolist() == [True, True, False]


def test_a_study_is_found_by_whichever_of_its_images_could_be_read():
    units = pd.DataFrame({"patient_id": ["a"], "study_id": ["1"], "image_id": ["x"]})
    assert with_subgroups(units, IMAGES, "study")["sex"].tolist() == ["F"]


def test_the_source_tells_groups_apart_in_a_mix_alone():
    units = IMAGES[["image_id"]]
    assert "source" not in with_subgroups(units, IMAGES, "image")
    assert "source" in with_subgroups(units, IMAGES.assign(own_id=IMAGES["image_id"]), "image")


# ---------------------------------------------------------------- commands


ODD = ["=HYPERLINK(1)", "'=x", "NA", "007", "a,b", 'say "x"', "Müller", "two\nlines", None, "1e5"]


def grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let manifests have further columns from now on, as sources bring them."""
    real = classify.evaluate.open_data

    def instead(settings):
        data = real(settings)
        table = data.manifest.table
        odd = pd.Series(ODD * len(table), dtype=object).head(len(table)).set_axis(table.index)
        ages = pd.Series(np.arange(len(table)) / 3, table.index).where(np.arange(len(table)) % 4 > 0)
        table["age"], table["site"], table["=name"] = ages, odd, "x"
        return data

    monkeypatch.setattr(classify.evaluate, "open_data", instead)


def test_what_is_written_is_read_back(world, tmp_path, monkeypatch):
    grow(monkeypatch)
    run = shutil.copytree(world.classifier, tmp_path / "run")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    overrides = parse_overrides(world.data)
    first = classify.evaluate.evaluate(run, overrides)
    assert list(first.predictions)[:8] == FIRST
    assert list(first.predictions)[8:] == ["view", "age", "site", "=name"]
    assert first.summary["subgroups"] == {"view": "text", "age": "number", "site": "text", "=name": "text"}
    assert set(first.predictions["site"].dropna()) == set(ODD) - {None}
    assert first.predictions["site"].isna().sum() == 1

    # no cell of the file is a formula
    with (run / "predictions/test.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {"'=HYPERLINK(1)", "''=x", "'=name"} <= set(cells)

    before = (run / "predictions/test.csv").stat().st_mtime_ns
    again = classify.evaluate.evaluate(run, overrides)
    pd.testing.assert_frame_equal(again.predictions, first.predictions)
    assert (run / "predictions/test.csv").stat().st_mtime_ns == before


def test_of_a_credentialed_table_unknown_columns_go_on_where_they_are_named(world, tmp_path, monkeypatch):
    grow(monkeypatch)
    run = shutil.copytree(world.classifier, tmp_path / "run")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    overrides = parse_overrides(world.data) | {"data.credentialed": True}
    for wished, kept in ((None, []), (["site"], ["site"]), ([], [])):
        found = classify.evaluate.evaluate(run, overrides | {"report.subgroups": wished})
        assert list(found.predictions)[8:] == ["view", "age", *kept]
        assert ("=name" in (run / "predictions/test.csv").read_text()) is False


def test_columns_of_today_join_predictions_of_yesterday(world, tmp_path, monkeypatch):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    succeed(evaluate, run, *world.data)
    before = pd.read_csv(run / "predictions/test.csv")
    assert "site" not in before

    grow(monkeypatch)
    monkeypatch.setattr(classify.evaluate, "score_images", None)  # nothing is predicted anew
    after = classify.evaluate.evaluate(run, parse_overrides(world.data)).predictions
    assert "site" in after
    assert sorted(after["logit"]) == sorted(before["logit"])


def test_predictions_of_an_earlier_version_are_read(world, tmp_path, monkeypatch):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    overrides = parse_overrides(world.data)
    first = classify.evaluate.evaluate(run, overrides)

    # as in that version: seven columns, and a summary that tells less
    table = pd.read_csv(run / "predictions/test.csv")[[name for name in FIRST if name != "calibrated"]]
    table.to_csv(run / "predictions/test.csv", index=False)
    summary = json.loads((run / "predictions/test.json").read_text())
    for name in ("calibration", "calibrated", "subgroups", "few", "conflicting_studies", "split_fingerprint", "digest"):
        del summary[name]
    digest = classify.evaluate.evaluation_digest(summary, (run / "predictions/test.csv").read_bytes())
    (run / "predictions/test.json").write_text(json.dumps(summary | {"digest": digest}))

    monkeypatch.setattr(classify.evaluate, "score_images", None)
    again = classify.evaluate.evaluate(run, overrides)
    pd.testing.assert_frame_equal(again.predictions, first.predictions)


def test_a_changed_subgroup_is_a_change(world, tmp_path, monkeypatch):
    grow(monkeypatch)
    run = shutil.copytree(world.classifier, tmp_path / "run")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    overrides = parse_overrides(world.data)
    first = classify.evaluate.evaluate(run, overrides)
    path = run / "predictions/test.csv"
    path.write_text(path.read_text().replace("007", "008"))
    again = classify.evaluate.evaluate(run, overrides)
    pd.testing.assert_frame_equal(again.predictions, first.predictions)


def test_studies_of_a_run_have_columns_too(tmp_path):
    world = make_world(tmp_path)
    number = np.arange(60)
    study = {"study_id": number // 2, "label": (number // 12 + number // 2) % 2}
    override = edit_table(world, "studies", lambda table: table.assign(**study, view=np.where(number % 3, "AP", "PA")))
    succeed(finetune, "--config", world.config, override, f"finetune.run={tmp_path}/run")
    said = succeed(evaluate, tmp_path / "run", "evaluate.unit=study")
    table = pd.read_csv(tmp_path / "run/predictions/test.csv")
    assert len(table) == 5 and "view" in table
    assert "studies" in said
