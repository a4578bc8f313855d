"""A trained classifier says of a user's images what evaluation says of the same images in a store."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from radiograph_files import dicom, save, scene
from scipy.special import expit, logit
from tiny_world import World, edit_table, succeed, tiny_config, write_table

from classify import Predictor
from classify.answers import COLUMNS, Operating, load_members
from classify.cli import finetune
from classify.domain import Domain
from classify.evaluate import evaluate
from classify.explain import heatmaps as explained
from classify.finetune import finetune as train
from classify.predict import predict
from classify.trained import load_trained
from data.errors import UserError
from data.inputs import find_inputs, read_inputs
from data.labels import words
from data.loader import open_data


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory) -> Path:
    """A second classifier for the same question that reads images in its own way."""
    folder = tmp_path_factory.mktemp("other") / "resnet"
    changed = ["finetune.model=resnet18", "data.image_size=[16,24]", "data.resize=squash", f"finetune.run={folder}"]
    succeed(finetune, "--config", world.config, *changed)
    return folder


def manifest(world: World) -> Path:
    return world.images / "manifest.csv"


def silently(text: str) -> None:
    """Other tests look at what is said."""


# ---------------------------------------------------------------- as in training, as in evaluation


def test_the_network_sees_the_pixels_of_the_store(world: World):
    settings = load_trained(world.classifier, "cpu").config.data
    store = open_data(settings).store
    inputs = find_inputs([manifest(world)])
    seen = np.concatenate([part.images for part in read_inputs(inputs, settings)])
    assert np.array_equal(seen[:, 0], store.images[store.rows([one.shown for one in inputs])])


@pytest.mark.parametrize("unit", ["image", "study"])
def test_probabilities_are_those_of_evaluation(world: World, tmp_path, unit):
    studies = edit_table(world, "studies", lambda table: table.assign(study_id="s" + table["label"].astype(str)))
    run = shutil.copytree(world.classifier, tmp_path / "run")
    made = evaluate(run, dict(word.split("=") for word in [*world.data, studies, f"evaluate.unit={unit}"])).predictions
    found = predict([run], [f"{world.images}/studies.csv"], tmp_path / "out.csv", unit=unit, say=silently)

    found = found.set_index("path")
    made = made.set_index("image_id")
    assert len(made) >= 5
    for name, same in {"score": "score", "probability": "calibrated"}.items():
        assert np.abs(found.loc[made.index, name] - made[same]).max() < 1e-6
    called = np.array(words(None))[made["predicted"]]
    assert (found.loc[made.index, "decision"] == called).all()
    if unit == "study":
        assert found["images"].sum() == 60 and found["images"].max() == 2


def test_a_row_an_input_in_its_order_and_as_often_as_it_is_named(world: World, tmp_path):
    words_given = [str(world.images / name) for name in ("0003.png", "0001.png", "0003.png")]
    found = predict([world.classifier], words_given, tmp_path / "deep/out.csv", say=silently)
    assert list(found) == list(COLUMNS) and found["path"].tolist() == words_given
    assert found.loc[0, "score"] == pytest.approx(found.loc[2, "score"], abs=1e-6)
    written = pd.read_csv(tmp_path / "deep/out.csv", keep_default_na=False)
    assert list(written) == list(COLUMNS)
    assert np.allclose(written["score"].astype(float), found["score"], atol=1e-12)


def test_a_bad_file_costs_no_other(world: World, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>login</html>")
    good = world.images / "0002.png"
    found = predict([world.classifier], [str(bad), str(good)], tmp_path / "out.csv", say=silently)
    assert found["reason"].tolist() == [
        "found an HTML page (a download that failed, or needs a login), expected JPEG, PNG or DICOM",
        "",
    ]
    assert found["score"].isna().tolist() == [True, False] and found["decision"].iloc[0] == ""
    alone = predict([world.classifier], [str(good)], tmp_path / "alone.csv", say=silently)
    assert found["score"].iloc[1] == pytest.approx(alone["score"].iloc[0], abs=1e-6)


def test_where_nothing_can_be_read_the_table_says_why(world: World, tmp_path):
    bad = tmp_path / "bad.png"
    bad.touch()
    with pytest.raises(UserError, match="found none of 1 inputs readable") as caught:
        predict([world.classifier], [str(bad)], tmp_path / "out.csv", say=silently)
    assert str(caught.value).startswith(str(tmp_path / "out.csv"))
    assert pd.read_csv(tmp_path / "out.csv")["reason"].tolist() == ["found an empty file, expected JPEG, PNG or DICOM"]


# ---------------------------------------------------------------- studies


def test_dicoms_of_one_study_share_a_hash_that_tells_nothing(world: World, tmp_path):
    for number, study in enumerate(["1.2.33333.4", "1.2.33333.5", "1.2.33333.4", None]):
        image = dicom(scene(3000).astype(np.uint16) + number)
        if study:
            image.StudyInstanceUID = study
        save(image, tmp_path / f"{number}.dcm")
    found = Predictor(world.classifier, "cpu")(tmp_path)
    one, other, same, none = found["study_id"]
    assert one == same != other and none == ""
    assert "33333" not in "".join(found["study_id"])

    by_study = Predictor(world.classifier, "cpu", unit="study")(tmp_path)
    assert by_study["images"].tolist() == [2, 1, 1]
    assert by_study["path"].tolist() == [str(tmp_path / f"{number}.dcm") for number in (0, 1, 3)]
    mean = found["score"].iloc[[0, 2]].mean()
    assert by_study["score"].iloc[0] == pytest.approx(mean, abs=1e-9)


def test_a_study_is_a_patients_and_says_which_images_it_lacks(world: World, tmp_path):
    rows = {
        "path": ["0000.png", "none.png", "0001.png", "0002.png"],
        "study": ["1", "1", "1", "1"],
        "patient": ["a", "a", "b", "b"],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    for name in ("0000.png", "0001.png", "0002.png"):
        shutil.copy(world.images / name, tmp_path)
    found = Predictor(world.classifier, "cpu", unit="study")(tmp_path / "list.csv")
    assert found["path"].tolist() == ["0000.png", "0001.png"] and found["images"].tolist() == [1, 2]
    assert found["reason"].tolist()[0].startswith("1 of 2 images left out: found no such file")
    assert "patient" not in " ".join(found)


# ---------------------------------------------------------------- thresholds


def test_the_line_is_drawn_where_it_is_asked_for(world: World):
    stored = load_trained(world.classifier, "cpu")
    folder = world.images
    scores = Predictor(world.classifier, "cpu")(folder)["score"]
    for given, threshold in {
        (): stored.threshold,
        (("sensitivity", 0.95),): stored.checkpoint.meta["operating"]["image"]["sensitivity"][94],
        (("specificity", 0.07),): stored.checkpoint.meta["operating"]["image"]["specificity"][6],
        (("threshold", 0.5),): 0.5,
    }.items():
        found = Predictor(world.classifier, "cpu", **dict(given))(folder)
        assert (found["decision"] == np.where(scores >= threshold, "abnormal", "normal")).all()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"sensitivity": 0.955}, "sensitivity: found 0.955, expected a whole per cent"),
        ({"specificity": 95}, "specificity: found 95, expected a whole per cent"),
        ({"threshold": float("nan")}, "threshold: found nan, expected a score from 0 to 1"),
        ({"threshold": 0.3, "sensitivity": 0.9}, "found threshold and sensitivity, expected one of them"),
    ],
)
def test_rates_that_nobody_keeps_are_refused(given, line):
    with pytest.raises(UserError, match=line):
        Operating(**given)


def test_a_checkpoint_without_rates_says_what_it_knows(world: World, tmp_path):
    trained = load_trained(world.classifier, "cpu")
    del trained.checkpoint.meta["operating"]
    with pytest.raises(UserError, match=f"it has one threshold, {trained.threshold:.4g}: leave --sensitivity out"):
        Operating(sensitivity=0.9).of([trained], "image")


# ---------------------------------------------------------------- several


def test_an_ensemble_is_the_mean_of_calibrated_probabilities_each_read_its_own_way(world: World, other: Path):
    runs = [world.classifier, other]
    alone = [Predictor(run, "cpu")(world.images) for run in runs]
    both = Predictor(runs, "cpu")(world.images)
    probabilities = np.stack([table["probability"] for table in alone])
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-3
    assert np.allclose(both["probability"], probabilities.mean(axis=0), atol=1e-6)
    assert np.allclose(both["spread"], probabilities.std(axis=0, ddof=0), atol=1e-6)
    assert np.array_equal(both["score"], both["probability"])

    members = load_members(runs, "cpu")
    line = np.mean([expit(each.calibration.logits(logit(each.threshold))) for each in members])
    assert Operating().of(members, "image") == pytest.approx(line)
    assert (both["decision"] == np.where(both["probability"] >= line, "abnormal", "normal")).all()


def test_members_answer_one_question_and_are_different(world: World, tmp_path):
    copied = shutil.copytree(world.classifier, tmp_path / "copy")
    with pytest.raises(UserError, match="found the same checkpoint as"):
        Predictor([world.classifier, copied], "cpu")

    content = torch.load(world.classifier / "best.pt", weights_only=True)
    content["settings"]["data"]["target"] = "Edema"
    torch.save(content | {"digests": None}, tmp_path / "edema.pt")
    with pytest.raises(UserError, match=r"found data.target = Edema, expected None"):
        Predictor([world.classifier, tmp_path / "edema.pt"], "cpu")


# ---------------------------------------------------------------- arrays and pictures


def test_what_is_in_memory_reads_as_its_file(world: World, tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (23, 31), dtype=np.uint8)
    wide = (grey.astype(np.uint16) * 7) + 300
    colours = rng.integers(0, 255, (23, 31, 4), dtype=np.uint8)
    arrays = [grey, wide, colours]
    paths = []
    for number, pixels in enumerate(arrays):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1], dpi=(100, 200) if number == 0 else None)

    predictor = Predictor(world.classifier, "cpu")
    from_files = predictor(paths)["score"]
    assert from_files.nunique() == 3
    pictures = [Image.open(path) for path in paths]
    assert np.allclose(predictor(pictures)["score"], from_files, atol=1e-6)
    assert np.allclose(predictor(arrays)["score"].iloc[1:], from_files.iloc[1:], atol=1e-6)  # arrays have no dpi
    assert predictor(grey)["score"].iloc[0] == predictor([grey])["score"].iloc[0]
    assert len(predictor(np.stack([grey, grey + 1]))) == 2
    assert predictor([grey, str(paths[1])])["path"].tolist() == ["image 0", str(paths[1])]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.linspace(0, 1, 35).reshape(5, 7), "found float64 numbers, expected uint8"),
        (np.arange(35).reshape(5, 7), "found int64 numbers, expected uint8"),
        (np.zeros((5, 7), np.uint8), "found one grey in every pixel"),
        (np.zeros((5, 7, 2), np.uint8), "found an array of shape"),
        (np.zeros((0, 7), np.uint8), "found an array without pixels"),
        (Image.fromarray(np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)), "found a picture of fractional"),
    ],
)
def test_what_does_not_say_which_number_is_white_is_refused(world: World, pixels, reason):
    good = np.arange(35, dtype=np.uint8).reshape(5, 7)
    found = Predictor(world.classifier, "cpu")([pixels, good])
    assert found["reason"].iloc[0].startswith(reason)
    assert np.isnan(found["score"].iloc[0]) and np.isfinite(found["score"].iloc[1])


@pytest.mark.parametrize("nothing", [7, [7], [], None])
def test_what_is_no_image_at_all_is_a_line(world: World, nothing):
    with pytest.raises(UserError, match=r"^inputs: found "):
        Predictor(world.classifier, "cpu")(nothing)


# ---------------------------------------------------------------- of another kind, and why


@pytest.fixture(scope="module")
def knowing(tmp_path_factory) -> Path:
    """A classifier of enough images to know which it knows."""
    place = tmp_path_factory.mktemp("knowing")
    write_table(place / "images", 156)
    short = {"finetune__epochs": 1, "finetune__optimizer__warmup_epochs": 0, "finetune__run": f"{place}/run"}
    return train(tiny_config(place, **short))


def test_images_of_another_kind_are_flagged_and_not_refused(knowing: Path):
    trained = load_trained(knowing, "cpu")
    domain = Domain.of(trained.checkpoint)
    assert domain is not None
    stripes = np.zeros((40, 40), np.uint8)
    stripes[:20] = 255
    paths = [f"{trained.config.data.root}/{number:04}.png" for number in range(12)]
    found = Predictor(knowing, "cpu")([*paths, stripes])
    [part] = read_inputs(find_inputs(paths), trained.config.data)
    expected = domain.scores(trained.features(part.images), part.images)
    assert list(found) == [*COLUMNS, "domain_score"]
    assert np.allclose(found["domain_score"].iloc[:-1], expected, rtol=1e-4)
    assert (found["domain"] == np.where(found["domain_score"] > 1, "out", "in")).all()
    assert found["domain"].nunique() == 2
    assert found["domain"].iloc[-1] == "out" and np.isfinite(found["probability"].iloc[-1])

    by_study = Predictor(knowing, "cpu", unit="study")([*paths, stripes])
    assert by_study["domain_score"].tolist() == found["domain_score"].tolist()


def test_without_a_memory_of_training_images_the_column_is_empty_and_the_console_says_so(world: World, tmp_path):
    content = torch.load(world.classifier / "best.pt", weights_only=True)
    del content["meta"]["domain"]
    torch.save(content | {"digests": None}, tmp_path / "old.pt")
    said: list[str] = []
    image = str(world.images / "0000.png")
    found = predict([tmp_path / "old.pt"], [image], tmp_path / "out.csv", say=said.append)
    assert list(found) == list(COLUMNS) and found["domain"].tolist() == [""]
    assert [line for line in said if "no domain" in line]


def test_heatmaps_speak_for_what_an_image_is_called(world: World, tmp_path):
    bad = tmp_path / "bad.png"
    bad.touch()
    trained = load_trained(world.classifier, "cpu")
    paths = [world.images / "0000.png", bad, world.images / "0003.png"]
    [part] = read_inputs(find_inputs(paths), trained.config.data)
    pixels = torch.from_numpy(part.images)
    for threshold in (0.0, 1.0):
        heat = Predictor(world.classifier, "cpu", threshold=threshold).heatmaps(paths)
        assert heat.shape == (3, 12, 12) and heat.dtype == np.float32
        assert np.isnan(heat[1]).all()
        expected = explained(trained.model, pixels[[0, 2]], abnormal=torch.tensor([threshold == 0.0] * 2))
        assert np.allclose(heat[[0, 2]], expected, atol=1e-5)
