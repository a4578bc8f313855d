"""Laws of rows that are read from files: joined by id whatever the order, complete, and tuned on no test case."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_world import other_split, tiny_config

from classify.metrics import binary_metrics, choose_threshold
from classify.prediction_files import predictions_of
from classify.settings import ClassifyConfig, RowSettings
from data.config import change_config
from data.errors import UserError
from data.loader import Data


def rows(opened: Data, split: str = "test") -> pd.DataFrame:
    return opened.split(split)[["image_id", "patient_id", "study_id", "path", "label"]]


def probabilities(table: pd.DataFrame, seed: int = 0) -> pd.Series:
    return pd.Series(np.random.default_rng(seed).uniform(0, 1, len(table)), table.index).round(6)


def config(place: Path, **changes) -> ClassifyConfig:
    return change_config(
        tiny_config(place), {"compare.split": "test"} | {k.replace("__", "."): v for k, v in changes.items()}
    )


def read(table: pd.DataFrame, place: Path, opened: Data, tmp_path: Path, settings=None, **changes):
    """The predictions of a row with this file and these settings."""
    path = tmp_path / "reader.csv"
    table.to_csv(path, index=False)
    row = RowSettings(name="Reader A", predictions=str(path), **(settings or {}))
    [found] = predictions_of(row, config(place, **changes), opened)
    return found


def refused(table: pd.DataFrame, place: Path, opened: Data, tmp_path: Path, settings=None, **changes) -> str:
    with pytest.raises(UserError) as error:
        read(table, place, opened, tmp_path, settings, **changes)
    [line] = str(error.value).splitlines()
    assert str(tmp_path / "reader.csv") in line
    return line


# ---------------------------------------------------------------- joined


@pytest.mark.parametrize(
    "names",
    [
        {"image_id": "image_id"},
        {"image_id": "ID"},
        {"path": "path"},
        {"path": "Filename"},
        {"image_id": "image"},
    ],
)
def test_scores_are_joined_by_id_whatever_the_order_and_the_columns_name(place, opened, tmp_path, names):
    test = rows(opened)
    [(ours, theirs)] = names.items()
    scores = probabilities(test)
    table = pd.DataFrame({theirs: test[ours], "Probability": scores, "comment": "x"}).sample(frac=1, random_state=3)
    found = read(table, place, opened, tmp_path)
    by_id = dict(zip(test["image_id"], scores, strict=True))
    assert found.units["score"].tolist() == [by_id[image] for image in found.units["image_id"]]
    assert len(found.units) == len(test)


def test_names_without_folder_or_ending_are_enough_where_they_tell_images_apart(place, opened, tmp_path):
    test = rows(opened)
    for name in (test["path"].map(lambda p: Path(p).name), test["path"].map(lambda p: Path(p).stem)):
        found = read(pd.DataFrame({"file": name, "score": probabilities(test)}), place, opened, tmp_path)
        assert sorted(found.units["image_id"]) == sorted(test["image_id"])


def test_logits_order_cases_where_their_scores_round_to_one(place, opened, tmp_path):
    test = rows(opened)
    logits = np.linspace(40, 49, len(test))
    found = read(pd.DataFrame({"id": test["image_id"], "logit": logits}), place, opened, tmp_path)
    assert sorted(found.units["logit"]) == logits.tolist()
    assert found.threshold == 0.5


def test_zeros_and_ones_are_beyond_all_others_and_finite(place, opened, tmp_path):
    test = rows(opened)
    scores = np.array([0, 1, 1e-300, 1 - 1e-16, *probabilities(test)[4:]])
    found = read(pd.DataFrame({"id": test["image_id"], "score": scores}), place, opened, tmp_path)
    logits = dict(zip(found.units["score"], found.units["logit"], strict=True))
    assert logits[0.0] < logits[1e-300] < logits[1 - 1e-16] < logits[1.0]
    assert np.isfinite(list(logits.values())).all()


def test_a_readers_decisions_are_a_row(place, opened, tmp_path):
    test = rows(opened)
    decided = pd.DataFrame({"image_id": test["image_id"], "reading": (test["label"] + [0, 1] * 5) % 2})
    found = read(decided, place, opened, tmp_path)
    metrics = binary_metrics(found.units["label"], found.units["score"], found.threshold, found.units["logit"])
    assert metrics.accuracy == 0.5
    assert found.how.startswith("a probability of 0.5")


def test_ratings_keep_their_order_and_the_threshold_is_in_their_numbers(place, opened, tmp_path):
    test = rows(opened)
    ratings = pd.Series([1, 2, 3, 4, 5, 5, 4, 3, 2, 1], test.index)
    table = pd.DataFrame({"image_id": test["image_id"], "rating": ratings})
    found = read(table, place, opened, tmp_path, {"threshold": 3})
    by_id = dict(zip(test["image_id"], ratings, strict=True))
    own = np.array([by_id[image] for image in found.units["image_id"]])
    assert ((found.units["score"] >= found.threshold) == (own >= 3)).all()
    assert (np.argsort(found.units["logit"], kind="stable") == np.argsort(own, kind="stable")).all()
    assert refused(table, place, opened, tmp_path).endswith("a case is abnormal")


def test_several_readers_share_one_scale(place, opened, tmp_path):
    test = rows(opened)
    files = []
    for number, ratings in enumerate(([1, 2] * 5, [3, 5] * 5)):
        path = tmp_path / f"{number}.csv"
        pd.DataFrame({"image_id": test["image_id"], "rating": ratings}).to_csv(path, index=False)
        files.append(str(path))
    row = RowSettings(name="Readers", predictions=tuple(files), threshold=3)
    first, second = predictions_of(row, config(place), opened)
    assert first.threshold == second.threshold == 0.5
    assert (first.units["score"].max(), second.units["score"].min()) == (0.25, 0.5)


# ---------------------------------------------------------------- the threshold


def test_the_threshold_is_chosen_on_validation_cases_alone(place, opened, tmp_path):
    test, validation = rows(opened), rows(opened, "validate")
    both = pd.concat([test, validation])
    table = pd.DataFrame({"image_id": both["image_id"], "score": probabilities(both)})
    found = read(table, place, opened, tmp_path)
    by_id = table.set_index("image_id")["score"]
    expected = choose_threshold(validation["label"], validation["image_id"].map(by_id), "youden")
    assert found.threshold == expected
    assert found.how == "chosen on 10 validation images"

    # other scores of test cases change nothing of it
    other = table.assign(score=table["score"].where(table["image_id"].isin(validation["image_id"]), 0.123))
    assert read(other, place, opened, tmp_path).threshold == expected

    alone = table[table["image_id"].isin(test["image_id"])]
    assert read(alone, place, opened, tmp_path).threshold == 0.5
    assert read(table, place, opened, tmp_path, {"threshold": 0.7}).threshold == 0.7
    assert read(table, place, opened, tmp_path, finetune__threshold="half").threshold == 0.5


def test_on_validation_the_shown_cases_choose_as_in_any_row(place, opened, tmp_path):
    validation = rows(opened, "validate")
    table = pd.DataFrame({"image_id": validation["image_id"], "score": probabilities(validation)})
    found = read(table, place, opened, tmp_path, compare__split="validate")
    assert found.threshold == choose_threshold(found.units["label"], found.units["score"], "youden")


# ---------------------------------------------------------------- studies


def test_a_study_has_the_mean_of_its_images_or_its_own_number(place, opened, tmp_path):
    opened = in_pairs(opened)
    test = rows(opened)
    scores = probabilities(test)
    by_image = pd.DataFrame({"image_id": test["image_id"], "score": scores})
    found = read(by_image, place, opened, tmp_path, evaluate__unit="study")
    means = scores.groupby(test["study_id"]).mean()
    assert found.units.set_index("study_id")["score"].to_dict() == pytest.approx(means.to_dict())

    by_study = pd.DataFrame({"study_id": means.index, "score": means.to_numpy()})
    found = read(by_study, place, opened, tmp_path, evaluate__unit="study")
    assert found.units.set_index("study_id")["score"].to_dict() == means.to_dict()
    assert "give evaluate.unit=study" in refused(by_study, place, opened, tmp_path)
    line = refused(by_study[1:], place, opened, tmp_path, evaluate__unit="study")
    assert f"found no row for 1 of 5 labelled test studies, such as {means.index[0]}" in line


def test_equal_ratings_of_studies_stay_equal(place, opened, tmp_path):
    opened = in_pairs(opened)
    table = rows(opened)[["image_id"]].assign(rating=[0.1, 0.7] * 5)
    found = read(table, place, opened, tmp_path, {"threshold": 0.4}, evaluate__unit="study")
    assert found.units["score"].nunique() == found.units["logit"].nunique() == 1


@pytest.mark.parametrize("kind", ["rating", "probability"])
def test_a_study_whose_mean_is_the_threshold_reaches_it(place, opened, tmp_path, kind):
    opened = in_pairs(opened)
    images = rows(opened)[["image_id", "study_id"]]
    for threshold in np.arange(1, 20) / 20 if kind == "probability" else np.arange(1, 7):
        low, high = (0, 1) if kind == "probability" else (0, 7)
        numbers = [float(threshold)] * 6 + [low, low, high, high]
        settings = {"threshold": float(threshold)}
        ordered = images.sort_values("study_id")[["image_id"]].assign(**{kind: numbers})
        found = read(ordered, place, opened, tmp_path, settings, evaluate__unit="study")
        assert (found.units["score"] >= found.threshold).sum() == 4
        assert found.how == f"{threshold:g} as given"


def in_pairs(opened: Data) -> Data:
    """The same images, in studies of two images of one label."""
    table = opened.manifest.table.sort_values(["split", "label", "image_id"])
    numbers = table.groupby(["split", "label"]).cumcount() // 2
    study = [f"{s}-{label:g}-{n}" for s, label, n in zip(table["split"], table["label"], numbers, strict=True)]
    table = table.assign(study_id=study, patient_id=study).sort_index()
    return Data(replace(opened.manifest, table=table), opened.store)


# ---------------------------------------------------------------- what does not fit


@pytest.fixture
def table(opened) -> pd.DataFrame:
    test = rows(opened)
    return pd.DataFrame({"image_id": test["image_id"], "score": probabilities(test)}).reset_index(drop=True)


def test_what_does_not_fit_is_one_line_with_counts_and_an_example(place, opened, tmp_path, table):
    first = table["image_id"][0]
    scores = table["score"]
    truth = rows(opened)["label"].to_numpy()
    for changed, said in [
        (table[3:], f"found no row for 3 of 10 labelled test images, such as {first}, expected a number in column"),
        (
            table.assign(score=scores.where(table.index > 1)),
            "found no number for 2 of 10 labelled test images, such as",
        ),
        (table.assign(score=scores.astype(str).where(table.index > 0, "high")), "found no number for 1 of 10"),
        (pd.concat([table, table[:2]]), f"found 2 ids more than once, such as {first}, expected each once"),
        (pd.concat([table, table[:1].assign(image_id="who")]), "found 1 of 11 ids that the data do not have, such as"),
        (table.assign(score=scores * 100), "numbers outside 0..1 in column score, such as"),
        (table.assign(score=scores.where(table.index > 0, np.inf)), "found 1 of 10 numbers outside 0..1"),
        (table.assign(label=1 - truth), f"found 10 of 10 labels other than the data's, such as {first}"),
        (table.assign(label="pneumonia"), "found label 'pneumonia', expected one of"),
        (table.rename(columns={"score": "guess"}), "found columns image_id, guess, expected score, probability, logit"),
        (table.rename(columns={"image_id": "who"}), "found columns who, score, expected image_id, id or path"),
        (table.rename(columns={"score": "rating"}).assign(rating=3), "found one rating, 3, for all"),
    ]:
        assert said in refused(changed, place, opened, tmp_path)


def test_labels_that_agree_are_welcome_in_words_and_numbers(place, opened, tmp_path, table):
    labels = rows(opened)["label"].to_numpy()
    for words in (labels, labels.astype(int), np.where(labels == 1, "abnormal", "Normal")):
        read(table.assign(label=words), place, opened, tmp_path)


def test_ids_of_credentialed_data_are_not_said(place, opened, tmp_path, table):
    secret = Data(replace(opened.manifest, credentialed=True), opened.store)
    for changed in (table[3:], pd.concat([table, table[:1]]), pd.concat([table, table[:1].assign(image_id="who")])):
        line = refused(changed, place, secret, tmp_path)
        assert "such as" not in line
        assert table["image_id"][0] not in line
        assert "such as" in refused(changed, place, secret, tmp_path, report__images=True)


def test_a_file_of_another_split_is_told(place, opened, tmp_path):
    validation = other_split(opened.split("validate"))
    line = refused(validation[["image_id"]].assign(score=0.5), place, opened, tmp_path)
    assert "found no row for 10 of 10 labelled test images" in line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"predictions": "x.csv", "set": {"finetune.mode": "linear"}}, "found it beside pretraining, set or ensemble"),
        ({"predictions": "x.csv", "ensemble": True}, "found it beside pretraining, set or ensemble"),
        ({"threshold": 0.5}, "found it without predictions"),
        ({"predictions": ()}, "found no file"),
        ({"predictions": "x.csv", "threshold": float("nan")}, "finite number"),
    ],
)
def test_a_row_is_trained_or_read(settings, said):
    with pytest.raises(ValueError, match=said):
        RowSettings(name="A", **settings)


@pytest.mark.parametrize("between", [";", "\t"])
def test_other_separators_than_commas_are_read_and_decimal_commas_named(place, opened, tmp_path, between):
    test = rows(opened)
    row = RowSettings(name="Reader", predictions=str(tmp_path / "reader.csv"))
    table = pd.DataFrame({"path": test["path"], "score": probabilities(test)})
    table.to_csv(tmp_path / "reader.csv", index=False)
    [expected] = predictions_of(row, config(place), opened)
    table.to_csv(tmp_path / "reader.csv", sep=between, index=False)
    [found] = predictions_of(row, config(place), opened)
    assert found.units.equals(expected.units)

    table.to_csv(tmp_path / "reader.csv", sep=between, decimal=",", index=False)
    with pytest.raises(UserError, match=r"column score: found 0,\d+, expected decimal points"):
        predictions_of(row, config(place), opened)


# ---------------------------------------------------------------- what other programs and spreadsheets write


def test_uids_keep_the_dots_that_are_no_endings(place, opened, tmp_path):
    uids = [f"1.2.840.{number}" for number in range(len(opened.manifest.table))]
    table = opened.manifest.table.assign(path=[f"/scans/{uid}.dcm" for uid in uids])
    scans = Data(replace(opened.manifest, table=table), opened.store)
    test = rows(scans)
    names = test["path"].map(lambda path: Path(path).stem)
    for written in (names, names + ".dcm", names + ".png"):
        found = read(pd.DataFrame({"id": written, "score": probabilities(test)}), place, scans, tmp_path)
        assert len(found.units) == len(test)


@pytest.mark.parametrize("cell", ["TRUE", "63.7%", "1,234.5", "#REF!", "inf"])
def test_a_cell_that_is_no_number_is_shown_where_it_may_be(place, opened, tmp_path, table, cell):
    cells = table["score"].astype(str).where(table.index > 0, cell)
    damaged = table[["image_id"]].assign(logit=cells)
    assert f"such as {table['image_id'][0]} ({cell})" in refused(damaged, place, opened, tmp_path)
    secret = Data(replace(opened.manifest, credentialed=True), opened.store)
    assert cell not in refused(damaged, place, secret, tmp_path)


def test_a_number_just_outside_is_not_rounded_into_the_range(place, opened, tmp_path, table):
    line = refused(table.assign(score=table["score"].where(table.index > 0, 1.0000001)), place, opened, tmp_path)
    assert "outside 0..1 in column score, such as 1.0000001, expected" in line


@pytest.mark.parametrize("split", ["validate", "test"])
def test_studies_with_two_labels_are_told_before_the_file_is_joined(place, opened, tmp_path, split):
    pairs = in_pairs(opened)
    table = pairs.manifest.table.copy()
    first = table.index[table["split"] == split][0]
    table.loc[first, "label"] = 1 - table.loc[first, "label"]
    undecided = Data(replace(pairs.manifest, table=table), pairs.store)
    scores = pd.DataFrame({"image_id": table["image_id"], "score": probabilities(table)})
    scores.to_csv(tmp_path / "reader.csv", index=False)
    row = RowSettings(name="Reader A", predictions=str(tmp_path / "reader.csv"))
    with pytest.raises(UserError, match=f"found 1 studies in split '{split}' with normal and abnormal images"):
        predictions_of(row, config(place, evaluate__unit="study"), undecided)


@pytest.mark.parametrize("written", [None, "", "image_id"])
def test_studies_are_joined_where_patients_are_unknown(place, opened, tmp_path, written):
    pairs = in_pairs(opened)
    table = pairs.manifest.table
    unknown = Data(
        replace(pairs.manifest, table=table.assign(patient_id=table["image_id"]), patients_known=False), pairs.store
    )
    by_study = rows(unknown).drop_duplicates("study_id")
    by_study = by_study.assign(score=probabilities(by_study))
    if written is not None:
        by_study["patient_id"] = by_study[written] if written else ""
    columns = ["study_id", "score"] + (["patient_id"] if written is not None else [])
    found = read(by_study[columns], place, unknown, tmp_path, evaluate__unit="study")
    expected = by_study.set_index("study_id")["score"].to_dict()
    assert found.units.set_index("study_id")["score"].to_dict() == expected
