"""A study is a patient's: its images are averaged, counted and judged together, never with those of another patient."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from tiny_world import ONE_EPOCH, SETTINGS, mistake, places, succeed, write_config, write_table

from classify.cases import study_numbers, undecided_studies
from classify.cli import compare, evaluate, finetune
from classify.scores import in_units
from mae import load_checkpoint

# two patients, each with a study 1 and a study 2; images of a study are not adjacent
CASES = pd.DataFrame(
    [
        ("u", "a", "1", 1.0),
        ("v", "b", "1", 0.0),
        ("w", "a", "2", 0.0),
        ("x", "a", "1", 1.0),
        ("y", "b", "2", 1.0),
        ("z", "b", "1", 0.0),
    ],
    columns=["image_id", "patient_id", "study_id", "label"],
)
SCORES = np.array([0.9, 0.2, 0.3, 0.5, 0.8, 0.1])
SCORED = CASES.assign(score=SCORES, logit=logit(SCORES))


def test_equal_study_numbers_of_two_patients_are_two_studies():
    studies = in_units(SCORED, "study").set_index(["patient_id", "study_id"])
    expected = {("a", "1"): 0.7, ("b", "1"): 0.15, ("a", "2"): 0.3, ("b", "2"): 0.8}
    assert studies["score"].to_dict() == pytest.approx(expected)
    assert studies["label"].to_dict() == {("a", "1"): 1, ("b", "1"): 0, ("a", "2"): 0, ("b", "2"): 1}


def test_a_study_of_an_unknown_patient_is_known_by_its_own_id():
    nobody = CASES.assign(patient_id=CASES["image_id"])
    assert study_numbers(nobody, patients_known=False).tolist() == [0, 0, 1, 0, 1, 0]
    assert study_numbers(nobody, patients_known=True).tolist() == [0, 1, 2, 3, 4, 5]


def test_studies_of_two_labels_are_found():
    other = CASES.assign(label=[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert undecided_studies(CASES, patients_known=True).empty
    assert undecided_studies(other, patients_known=True).to_numpy().tolist() == [["b", "1"]]


# ---------------------------------------------------------------- commands


def numbered(root: Path, **columns: object) -> Path:
    """The tiny images with three images a patient, whose studies are numbered from 1 on; returns their config."""
    table = write_table(root / "images")
    number = np.arange(len(table))
    patient = number // 3
    labels = (patient % 2).astype(int)
    split = np.array(["train", "train", "validate", "test"])[patient // 2 % 4]
    table = table.assign(patient_id=patient, study_id=1 + (number % 3 == 2), label=labels, split=split)
    table.assign(**columns).to_csv(root / "images/manifest.csv", index=False)
    settings = SETTINGS | ONE_EPOCH | places(root, "run") | {"data.credentialed": False, "model.depth": 1}
    return write_config(root / "config.yaml", settings)


def conflicting(root: Path) -> Path:
    """The same, where both patients' first studies have images of two labels in every split."""
    number = np.arange(60)
    return numbered(root, label=(number // 3 + (number % 3 == 1)) % 2)


def test_evaluation_counts_the_studies_of_each_patient(tmp_path):
    config = numbered(tmp_path)
    succeed(finetune, "--config", config)
    run = tmp_path / "run-vit"

    succeed(evaluate, run)
    images = pd.read_csv(run / "predictions/test.csv")
    said = succeed(evaluate, run, "evaluate.unit=study")
    studies = pd.read_csv(run / "predictions/test.csv")

    means = images.groupby(["patient_id", "study_id"])["score"].mean()
    assert len(means) == len(studies)
    assert len(means) > images["study_id"].nunique()
    found = studies.set_index(["patient_id", "study_id"])["score"].sort_index()
    np.testing.assert_allclose(found, means.sort_index(), rtol=1e-14)
    assert f"n = {len(means)} studies of {images['patient_id'].nunique()} patients" in said


def test_predictions_are_made_anew_where_studies_are_named_otherwise(tmp_path):
    config = numbered(tmp_path)
    succeed(finetune, "--config", config)
    run = tmp_path / "run-vit"
    succeed(evaluate, run, "evaluate.unit=study")
    before = json.loads((run / "predictions/test.json").read_text())["n"]

    table = pd.read_csv(tmp_path / "images/manifest.csv")
    table.assign(study_id=range(len(table))).to_csv(tmp_path / "images/manifest.csv", index=False)
    succeed(evaluate, run, "evaluate.unit=study")
    assert json.loads((run / "predictions/test.json").read_text())["n"] == (table["split"] == "test").sum() > before


def test_studies_of_two_labels_stop_nothing_that_counts_images(tmp_path):
    config = conflicting(tmp_path)
    succeed(finetune, "--config", config)
    run = tmp_path / "run-vit"
    assert list(load_checkpoint(run / "best.pt").meta["threshold"]) == ["image"]
    succeed(evaluate, run)

    line = mistake(evaluate, run, "evaluate.unit=study", keep=tmp_path)
    assert "found 4 studies in split 'test' with normal and abnormal images, such as study 1 of patient 6, " in line


def test_studies_of_two_labels_are_refused_before_anything_is_trained(tmp_path):
    config = conflicting(tmp_path)
    line = mistake(finetune, "--config", config, "evaluate.unit=study", keep=tmp_path)
    assert line.startswith("error: evaluate.unit: found 4 studies in split 'validate' with normal and abnormal images")
    assert not (tmp_path / "run-vit").exists()

    rows = "compare.rows=[{name: ViT}]"
    line = mistake(compare, "--config", config, "evaluate.unit=study", rows, keep=tmp_path)
    assert line.startswith("error: evaluate.unit: found 4 studies in split 'validate'")
    assert not (tmp_path / "run").exists()


def test_credentialed_studies_are_counted_and_not_named(tmp_path):
    config = conflicting(tmp_path)
    line = mistake(finetune, "--config", config, "evaluate.unit=study", "data.credentialed=true", keep=tmp_path)
    assert "normal and abnormal images, expected one label for all images of a study" in line


def test_a_threshold_that_was_never_chosen_is_named(tmp_path):
    number = np.arange(60)
    only_validation = np.where(number // 6 % 4 == 2, (number // 3 + (number % 3 == 1)) % 2, number // 3 % 2)
    succeed(finetune, "--config", numbered(tmp_path, label=only_validation))
    line = mistake(evaluate, tmp_path / "run-vit", "evaluate.unit=study", keep=tmp_path)
    assert "best.pt: found no threshold for studies, as images of one validation study had different labels" in line
