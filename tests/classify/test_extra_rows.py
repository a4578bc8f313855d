"""Laws of rows that nothing is trained for: an ensemble is the mean of its seeds, and does not depend on test cases."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from tiny_world import tiny_config

from classify.comparison import Line, describe
from classify.evaluate import Evaluation, evaluate
from classify.extra_rows import check_extra_rows, extra_names, with_extra_rows
from classify.finetune import finetune
from classify.grid import expand_grid
from classify.ledger import openings
from classify.metrics import choose_threshold
from classify.report.tables import given_thresholds
from data.config import change_config
from data.errors import UserError

SEEDS = (0, 3)


@pytest.fixture(scope="module")
def config(place, opened, tmp_path_factory):
    """A row with an ensemble, one of a file, and one without, at two budgets."""
    test = opened.split("test")
    file = tmp_path_factory.mktemp("readers") / "reader.csv"
    scores = np.random.default_rng(0).uniform(0, 1, len(test))
    pd.DataFrame({"image_id": test["image_id"], "score": scores}).to_csv(file, index=False)
    rows = [
        {"name": "ViT", "ensemble": True},
        {"name": "Reader", "predictions": str(file), "threshold": 0.3},
        {"name": "ViT, plain", "set": {"finetune.augment.enabled": False}},
    ]
    grid = {"compare.rows": rows, "compare.seeds": SEEDS, "compare.labelled": [None, 30], "compare.split": "test"}
    settings = {"finetune.epochs": 1, "run": f"{place}/grid"}
    return change_config(tiny_config(place), settings | grid)


@pytest.fixture(scope="module")
def lines(config, opened):
    found: dict[int, list[Evaluation]] = {}
    cells = list(expand_grid(config))
    for cell in cells:
        run = finetune(cell.config, None, opened)
        found.setdefault(cell.row, []).append(evaluate(run, {"evaluate.split": "test"}, opened))
    made = []
    for row, evaluations in found.items():
        cell = next(cell for cell in cells if cell.row == row)
        described = describe(cell.config, False) | {"Model": cell.name}
        made.append(Line(described, cell.labelled, tuple(evaluations)))
    return tuple(made)


@pytest.fixture(scope="module")
def all_lines(config, opened, lines):
    return with_extra_rows(config, lambda settings: opened, lines)


def test_extra_rows_stand_where_the_config_has_them_in_every_table(all_lines, lines):
    order = ["ViT", "ViT, ensemble of 2", "Reader", "ViT, plain"]
    assert [line.described["Model"] for line in all_lines] == 2 * order
    assert [line.labelled for line in all_lines] == [None] * 4 + [30] * 4
    assert [line for line in all_lines if line in lines] == list(lines)


def test_contrasts_can_know_their_names_before_anything_is_trained(config):
    budgets = frozenset({None, 30})
    assert extra_names(config, list(expand_grid(config))) == {"ViT, ensemble of 2": budgets, "Reader": budgets}


def test_an_ensembles_score_is_the_mean_of_its_seeds_probabilities(all_lines):
    seeds, ensemble = all_lines[0], all_lines[1]
    [mean] = ensemble.scores
    each = [expit(e.calibration.logits(e.predictions["logit"])) for e in seeds.evaluations]
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-12)
    np.testing.assert_allclose(expit(ensemble.logits[0]), mean, rtol=1e-12)
    assert (ensemble.labels == seeds.labels).all()
    assert (ensemble.patients == seeds.patients).all()


def test_a_calibration_moves_what_is_averaged(all_lines):
    member = all_lines[0].evaluations[0]
    moved = replace(member, summary=member.summary | {"calibration": {"temperature": 2.0, "intercept": -0.7}})
    units = member.predictions
    np.testing.assert_allclose(moved.calibration.logits(units["logit"]), units["logit"] / 2 - 0.7)


def test_an_ensembles_threshold_is_its_own_and_of_validation_cases(config, opened, all_lines):
    seeds, [ensemble] = all_lines[0], all_lines[1].evaluations
    validation = []
    for member in seeds.evaluations:
        checked = evaluate(member.run, {"evaluate.split": "validate"}, opened)
        validation.append(expit(member.calibration.logits(checked.predictions["logit"])))
        labels = checked.predictions["label"]
    expected = choose_threshold(labels, expit(logit(np.mean(validation, axis=0))), "youden")
    assert ensemble.threshold == pytest.approx(expected, rel=1e-9)


def test_members_of_an_earlier_version_make_the_same_ensemble(config, opened, lines, all_lines):
    """It entered settings into an origin that predictions no longer depend on."""

    def earlier(evaluation: Evaluation) -> Evaluation:
        origin = evaluation.summary["origin"]
        older = origin | {"evaluate": origin["evaluate"] | {"replicates": 2000}}
        return replace(evaluation, summary=evaluation.summary | {"origin": older})

    older_lines = tuple(replace(line, evaluations=tuple(map(earlier, line.evaluations))) for line in lines)
    found = with_extra_rows(config, lambda settings: opened, older_lines)
    assert [line.evaluations[0].digest for line in found[1::4]] == [
        line.evaluations[0].digest for line in all_lines[1::4]
    ]


def test_an_ensemble_says_what_it_is_made_of(all_lines):
    members, [ensemble] = all_lines[4].evaluations, all_lines[5].evaluations
    assert ensemble.summary["ensemble"] == [member.run.name for member in members]
    assert ensemble.run.name == "vit-n30-ensemble"
    assert ensemble.summary["meta"]["train_images"] >= members[0].summary["meta"]["train_images"]
    assert ensemble.path.is_file()


def test_a_files_row_is_written_and_needs_its_file_no_more(all_lines, config):
    [reader] = all_lines[2].evaluations
    assert reader.threshold == 0.3
    said = reader.summary["file"]
    assert (said["name"], said["column"], said["kind"]) == ("reader.csv", "score", "probability")
    assert said["threshold"] == "0.3 as given"
    assert reader.run.name == "reader-file0"
    assert reader.summary["seen_elsewhere"] is True
    written = pd.read_csv(reader.path, dtype={"image_id": str})
    assert sorted(written["score"]) == sorted(reader.predictions["score"])
    assert str(config.run) in str(reader.path)


def test_a_threshold_that_validation_has_not_chosen_is_named(all_lines):
    assert given_thresholds(list(all_lines[:4])) == ["Reader (0.3 as given)"]
    [single, _] = all_lines[0].evaluations
    half = replace(single, config=change_config(single.config, {"finetune.threshold": "half"}))
    assert given_thresholds([replace(all_lines[0], evaluations=(half,))]) == ["ViT (0.5 by finetune.threshold)"]


def test_looks_at_test_labels_are_recorded_for_them_too(all_lines, config):
    for line in (all_lines[1], all_lines[2]):
        [evaluation] = line.evaluations
        [opening] = openings(evaluation.run)
        assert opening["checkpoint"] == evaluation.summary["origin"]["checkpoint"]
        assert opening["n"] == 10


def test_their_predictions_have_the_columns_of_all_predictions(all_lines):
    columns = {tuple(evaluation.predictions) for line in all_lines for evaluation in line.evaluations}
    assert len(columns) == 1


def test_rows_that_cannot_be_are_told_before_anything_is_trained(config, opened):
    file = config.compare.rows[1].predictions
    reader = {"name": "Reader", "predictions": file}
    for rows, seeds, said in [
        ([reader], SEEDS, "compare.rows: found predictions in files alone, expected a row that is trained here"),
        ([{"name": "A"}, reader, {"name": "reader", "predictions": file}], SEEDS, "found 'Reader' and 'reader'"),
        ([{"name": "A", "ensemble": True}], (0,), "compare.rows: A: found an ensemble of 1 seed, expected 2 or more"),
        ([{"name": "A"}, {"name": "B", "predictions": "none.csv"}], SEEDS, "none.csv: found no such file"),
        ([{"name": "A"}, {**reader, "predictions": [file, file]}], SEEDS, "Reader: predictions: found .* twice"),
        ([{"name": "A"}, {**reader, "threshold": 7}], SEEDS, "Reader: threshold: found 7, expected it in 0..1"),
        (
            [{"name": "A", "ensemble": True}, {"name": "A, ensemble of 2", "set": {"finetune.epochs": 2}}],
            SEEDS,
            "found a row named 'A, ensemble of 2', expected another name: it is an ensemble's",
        ),
    ]:
        changed = change_config(config, {"compare.rows": rows, "compare.seeds": seeds})
        with pytest.raises(UserError, match=said):
            extra_names(changed, list(expand_grid(changed)))
            check_extra_rows(changed, opened)
