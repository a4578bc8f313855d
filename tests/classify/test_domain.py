"""Training images define which images are known, validation sets the limits; labels and the test split have no say."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from stage_runs import Stop, assert_same
from tiny_world import World, radiograph, tiny_config, write_table

import classify.domain
import classify.finetune
from classify.domain import FEWEST, Domain, Spread, directions, grey_levels, learn_domain, limit, why_unknown
from classify.finetune import finetune
from classify.trained import load_trained
from data.errors import UserError
from data.loader import Data, Loader, open_data
from mae import load_checkpoint
from mae.engine.checkpoint import NotSaved, save_checkpoint
from mae.pretrain import pretrain

CPU = torch.device("cpu")
RUNS = {
    "full": {"finetune__mode": "full"},
    "linear": {"finetune__mode": "linear", "finetune__pool": "cls"},
    "resnet": {"finetune__model": "resnet18", "finetune__epochs": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for limits: 104 to train, 26 to validate."""
    root = tmp_path_factory.mktemp("known")
    write_table(root / "images", 156)
    return root


@pytest.fixture(scope="module")
def pretrained(place: Path, opened: Data) -> Path:
    return pretrain(tiny_config(place, pretrain__epochs=2), opened) / "best.pt"


@pytest.fixture(scope="module")
def runs(place: Path, opened: Data, pretrained: Path) -> dict[str, Path]:
    folders = {}
    for name, changed in RUNS.items():
        start = None if name == "resnet" else pretrained
        folders[name] = finetune(tiny_config(place, finetune__run=f"{place}/{name}", **changed), start, opened)
    return folders


def images_of(data: Data, split: str) -> np.ndarray:
    return np.concatenate([batch.images.numpy() for batch in Loader(data, data.split(split), 7).epoch()])


def scores_of(run: Path, images: np.ndarray, looks: bool = True) -> np.ndarray:
    trained = load_trained(run, "cpu")
    domain = Domain.of(trained.checkpoint)
    return domain.scores(trained.features(images), images if looks else None)


# ---------------------------------------------------------------- limits and distances


@pytest.mark.parametrize("n", [19, 20, 39, 41, 57, 100, 101, 263])
@pytest.mark.parametrize("levels", [None, 3])
def test_at_most_one_in_twenty_is_beyond_the_limit(n, levels):
    scores = np.random.default_rng(n).normal(size=n)
    if levels:
        scores = scores.round() % levels
    assert (scores > limit(scores)).mean() <= 0.05


@pytest.mark.parametrize("n", [20, 21, 47, 101])
def test_of_images_like_them_at_most_one_in_twenty_is_beyond_the_limit_on_average(n):
    # each in turn is the new one, and the others choose
    scores = np.random.default_rng(n).normal(size=n)
    beyond = [scores[new] > limit(np.delete(scores, new)) for new in range(n)]
    assert np.mean(beyond) <= 0.05


def test_few_scores_have_no_limit():
    with pytest.raises(ValueError, match="expected at least 19"):
        limit(np.arange(18.0))
    assert limit(np.arange(19.0)) == 18
    assert FEWEST >= 19


@pytest.mark.parametrize("n", [2, 3, 7, 50])
@pytest.mark.parametrize("kept", [2, 256])
def test_distances_are_mahalanobis_of_the_shrunk_covariance_whatever_is_more_images_or_features(monkeypatch, n, kept):
    monkeypatch.setattr(classify.domain, "DIRECTIONS", kept)
    rng = np.random.default_rng(n)
    rows, asked = rng.normal(size=(n, 5)) * (1, 2, 3, 5, 7), rng.normal(size=(3, 5)) * 10
    found = Spread.of(rows).distances(asked)

    covariance, shrinkage = ledoit_wolf(rows)
    if shrinkage < 1 / n:
        covariance = np.cov(rows.T, bias=True)
        covariance = (1 - 1 / n) * covariance + np.eye(5) * np.trace(covariance) / 5 / n
    variances, axes = np.linalg.eigh(covariance)
    if kept < 5:
        variances[: 5 - kept] = variances[: 5 - kept].mean()
    inverse = np.linalg.inv(axes * variances @ axes.T)
    expected = [mahalanobis(each, rows.mean(0), inverse) for each in asked]
    assert np.allclose(found, expected, rtol=1e-4)


def test_further_away_is_a_greater_distance_in_every_direction():
    rng = np.random.default_rng(0)
    spread = Spread.of(rng.normal(size=(5, 7)))
    steps = np.linspace(0, 3, 5)[:, None]
    for away in np.concatenate([np.eye(7), -np.eye(7), rng.normal(size=(5, 7))]):
        distances = spread.distances(spread.mean.double().numpy() + steps * away)
        assert (np.diff(distances) > 0).all()


def test_images_that_are_all_the_same_have_a_spread_and_others_are_far():
    spread = Spread.of(np.ones((3, 5)))
    assert spread.distances(np.ones((1, 5)))[0] == pytest.approx(0, abs=1e-3)
    assert np.isfinite(spread.distances(np.zeros((1, 5)))).all() and spread.distances(np.zeros((1, 5)))[0] > 100


def test_directions_forget_lengths_and_stand_features_of_none():
    features = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert np.allclose(directions(features), [[0.6, 0.8], [0.6, 0.8], [0, 0]])


@pytest.mark.parametrize("size", [(12, 12), (5, 7), (1, 2), (24, 16)])
def test_grey_levels_are_the_same_whatever_the_image_measures_and_tell_the_sides_apart(size):
    image = np.zeros((1, 1, *size), np.uint8)
    image[..., size[1] // 2 :] = 200
    levels = grey_levels(np.concatenate([image, image[..., ::-1]]))
    assert levels.shape == (2, 128) and np.isfinite(levels).all()
    assert not np.allclose(levels[0], levels[1])


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("looks", [True, False])
def test_at_most_one_in_twenty_validation_images_is_unknown(runs, opened, name, looks):
    held_out = images_of(opened, "validate")
    assert len(held_out) == 26
    scores = scores_of(runs[name], held_out, looks)
    assert (scores > 1).mean() <= 0.05
    assert scores.max() > 0.8  # the limit is close to the scores, not anywhere beyond


@pytest.mark.parametrize("name", RUNS)
def test_what_no_radiograph_looks_like_is_unknown(runs, name):
    side = 12
    rows, columns = np.mgrid[0:side, 0:side]
    strange = [rows * 20, (rows // 2 + columns // 2) % 2 * 255, np.full((side, side), 255) - (rows == 3)]
    scores = scores_of(runs[name], np.stack(strange).astype(np.uint8)[:, None])
    assert (scores > 1).all()


@pytest.mark.parametrize("name", RUNS)
def test_other_images_of_the_same_kind_are_mostly_known(runs, name):
    # fresh images of the same kind, which chose no limit
    rng = np.random.default_rng(99)
    fresh = [Image.fromarray(radiograph(number % 5 < 2, rng)).resize((12, 12), 1) for number in range(60)]
    assert (scores_of(runs[name], np.stack([np.asarray(each) for each in fresh])[:, None]) > 1).mean() < 0.3


@pytest.mark.parametrize("name", RUNS)
def test_scores_do_not_depend_on_the_others_in_a_batch(runs, opened, name):
    images = images_of(opened, "validate")
    together = scores_of(runs[name], images)
    order = np.random.default_rng(0).permutation(len(images))
    assert np.allclose(scores_of(runs[name], images[order]), together[order], rtol=1e-4)
    assert np.allclose(scores_of(runs[name], images[3:4]), together[3:4], rtol=1e-4)


def test_labels_and_the_test_split_play_no_part(runs, place, pretrained, tmp_path):
    table = pd.read_csv(place / "images/manifest.csv")
    shutil.copytree(place / "images", tmp_path / "images")
    for number, row in table[table["split"] == "test"].iterrows():
        Image.fromarray(np.full((40, 40), number, np.uint8) + np.eye(40, dtype=np.uint8)).save(
            tmp_path / "images" / row["path"]
        )
    table.assign(label=1 - table["label"]).to_csv(tmp_path / "images/manifest.csv", index=False)

    checkpoint = load_checkpoint(runs["full"] / "best.pt")
    meta, state = learn_domain(checkpoint, open_data(tiny_config(tmp_path).data), CPU, pretrained)
    assert_same(meta, checkpoint.meta["domain"])
    assert_same(state, checkpoint.state["domain"])


@pytest.mark.parametrize("split", ["train", "validate"])
def test_training_and_validation_images_do(runs, place, pretrained, tmp_path, split):
    table = pd.read_csv(place / "images/manifest.csv")
    shutil.copytree(place / "images", tmp_path / "images")
    for path in table.loc[table["split"] == split, "path"]:
        image = np.asarray(Image.open(tmp_path / "images" / path))
        Image.fromarray(255 - image).save(tmp_path / "images" / path)

    checkpoint = load_checkpoint(runs["full"] / "best.pt")
    meta, _ = learn_domain(checkpoint, open_data(tiny_config(tmp_path).data), CPU, pretrained)
    assert meta["limits"] != checkpoint.meta["domain"]["limits"]


# ---------------------------------------------------------------- the pretraining


def test_the_pretraining_is_used_where_it_is_and_where_it_was_moved_together(runs, place, tmp_path):
    assert Domain.of(load_checkpoint(runs["full"] / "best.pt")).pretraining is not None
    assert Domain.of(load_checkpoint(runs["resnet"] / "best.pt")).pretraining is None

    for folder in ("mae", "full"):
        shutil.copytree(place / folder, tmp_path / folder)
    shutil.move(place / "mae", place / "elsewhere")
    try:
        moved = Domain.of(load_checkpoint(tmp_path / "full/best.pt"))
        alone = Domain.of(load_checkpoint(runs["full"] / "best.pt"))
    finally:
        shutil.move(place / "elsewhere", place / "mae")
    assert moved.pretraining is not None and moved.note == ""
    assert alone.pretraining is None and "best.pt: not there" in alone.note and "\n" not in alone.note


def test_without_the_pretraining_validation_images_are_as_rarely_unknown(runs, opened):
    trained = load_trained(runs["full"], "cpu")
    held_out = images_of(opened, "validate")
    domain = replace(Domain.of(trained.checkpoint), pretraining=None)
    scores = domain.scores(trained.features(held_out), held_out)
    assert (scores > 1).mean() <= 0.05 and scores.max() > 0.8


def test_another_pretraining_in_its_place_is_not_used(runs, place, tmp_path):
    for folder in ("mae", "full"):
        shutil.copytree(place / folder, tmp_path / folder)
    checkpoint = load_checkpoint(tmp_path / "full/best.pt")
    checkpoint.meta["domain"]["pretraining"]["file"] = str(tmp_path / "mae/best.pt")
    assert Domain.of(checkpoint).pretraining is not None

    other = load_checkpoint(tmp_path / "mae/best.pt")
    save_checkpoint(replace(other, meta={**other.meta, "license": "another"}), tmp_path / "mae/best.pt")
    assert Domain.of(checkpoint).pretraining is None


# ---------------------------------------------------------------- what is kept, and what is not


def raising(error: Exception) -> Callable:
    def raises(*given):
        raise error

    return raises


def test_a_run_stopped_before_it_remembers_is_finished_by_the_same_command(
    runs, place, opened, pretrained, monkeypatch
):
    config = tiny_config(place, finetune__run=f"{place}/stopped", **RUNS["full"])
    with monkeypatch.context() as stopping:
        stopping.setattr(classify.domain, "learn_domain", raising(Stop()))
        with pytest.raises(Stop):
            finetune(config, pretrained, opened)
    best = place / "stopped/best.pt"
    assert Domain.of(load_checkpoint(best)) is None and "has ended" in why_unknown(load_checkpoint(best))

    finetune(config, pretrained, opened)
    whole, found = load_checkpoint(runs["full"] / "best.pt"), load_checkpoint(best)
    for part in ("weights", "meta", "progress", "state"):
        assert_same(getattr(found, part), getattr(whole, part), part)

    before = best.stat().st_mtime_ns
    finetune(config, pretrained, opened)
    assert best.stat().st_mtime_ns == before


def test_a_full_disk_is_one_line_and_the_same_command_ends_the_run(place, opened, pretrained, monkeypatch):
    config = tiny_config(place, finetune__run=f"{place}/full-disk", finetune__epochs=1)
    with monkeypatch.context() as full:
        full.setattr(classify.domain, "save_checkpoint", raising(NotSaved("best.pt: full")))
        with pytest.raises(UserError, match="the same command again") as refused:
            finetune(config, pretrained, opened)
    assert "\n" not in str(refused.value)
    assert Domain.of(load_checkpoint(finetune(config, pretrained, opened) / "best.pt")) is not None


def test_one_that_is_trained_longer_remembers_by_its_best_weights(runs, place, opened, pretrained):
    first = tiny_config(place, finetune__run=f"{place}/longer", finetune__epochs=2, **RUNS["linear"])
    longer = tiny_config(place, finetune__run=f"{place}/longer", finetune__epochs=4, **RUNS["linear"])
    finetune(first, pretrained, opened)
    finetune(longer, pretrained, opened)
    checkpoint = load_checkpoint(place / "longer/best.pt")
    meta, state = learn_domain(checkpoint, opened, CPU, pretrained)
    assert_same(checkpoint.meta["domain"], meta)
    assert_same(checkpoint.state["domain"], state)


def test_checkpoints_of_earlier_versions_cannot_tell_and_stay_as_they_are(place, opened, pretrained, monkeypatch):
    config = tiny_config(place, finetune__run=f"{place}/earlier", finetune__epochs=2)
    with monkeypatch.context() as earlier:
        earlier.setattr(classify.finetune, "remember_domain", lambda *given: None)
        finetune(config, pretrained, opened)
    best = place / "earlier/best.pt"
    checkpoint = load_checkpoint(best)
    del checkpoint.meta["domain"]
    save_checkpoint(checkpoint, best)

    before = best.read_bytes()
    finetune(config, pretrained, opened)
    assert best.read_bytes() == before
    checkpoint = load_checkpoint(best)
    assert Domain.of(checkpoint) is None and "earlier version" in why_unknown(checkpoint)


def test_last_and_few_validation_images_cannot_tell_and_say_why(runs, world: World):
    last = load_checkpoint(runs["full"] / "last.pt")
    assert Domain.of(last) is None and "best.pt" in why_unknown(last)
    few = load_checkpoint(world.classifier / "best.pt")
    assert Domain.of(few) is None and "found 40 training and 10 validation images" in why_unknown(few)


@pytest.mark.parametrize("part", ["meta", "state"])
def test_what_was_edited_afterwards_is_refused(runs, tmp_path, part):
    raw = torch.load(runs["full"] / "best.pt", weights_only=True)
    if part == "meta":
        raw["meta"]["domain"]["limits"][0] *= 2
    else:
        raw["state"]["domain"]["features"]["mean"][0] += 1
    torch.save(raw, tmp_path / "best.pt")
    with pytest.raises(UserError, match="changed since they were written"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize(
    "odd",
    [
        {"meta": {"limits": [1.0, "2", 1.0]}},
        {"meta": {"limits": [1.0]}},
        {"meta": {"together": [1.0, -1.0, 1.0]}},
        {"meta": {"pretraining": {"file": "x"}}},
        {"state": {}},
        {"state": {"features": {}}},
        {"state": {"features": 3, "grey_levels": 4}},
        {"axes": torch.zeros(3, 7)},
        {"variances": -torch.ones(12)},
        {"rest": "much"},
    ],
)
def test_what_cannot_be_a_memory_is_refused_in_a_line(runs, odd):
    checkpoint = load_checkpoint(runs["full"] / "best.pt")
    meta = {**checkpoint.meta["domain"], **odd.get("meta", {})}
    state = odd.get("state", checkpoint.state["domain"])
    if not {"meta", "state"} & set(odd):
        state = {**state, "features": {**state["features"], **odd}}
    checkpoint = replace(checkpoint, meta={**checkpoint.meta, "domain": meta}, state={"domain": state})
    with pytest.raises(UserError, match=r"meta\.domain: found") as refused:
        Domain.of(checkpoint)
    assert "\n" not in str(refused.value)
