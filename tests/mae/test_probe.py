"""Laws of the probes: what tells images apart is found, what does not is not, and training is not touched."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny_world import tiny_config

from data.errors import UserError
from mae import load_checkpoint
from mae.engine.tracker import read_metrics
from mae.pretrain import check_begun, pretrain
from mae.probe import area, knn_scores, logistic_scores, probe

CPU = torch.device("cpu")


def clusters(classes: int, n: int = 90, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features (n 7) around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % classes
    centres = torch.randn(classes, 7, generator=torch.Generator().manual_seed(99)) * 3
    return centres[targets] + torch.randn(n, 7, generator=generator), targets.numpy() * 5 + 1


@pytest.mark.parametrize("scores_of", [knn_scores, logistic_scores])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_that_lie_apart_are_told_apart(scores_of, classes):
    (known, targets), (asked, truth) = clusters(classes), clusters(classes, 50, seed=1)
    scores = scores_of(known, targets, asked)
    assert scores.shape == (50, classes)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    assert area(truth, scores) > 0.97


@pytest.mark.parametrize("scores_of", [knn_scores, logistic_scores])
def test_noise_tells_nothing(scores_of):
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(400, 7, generator=generator), torch.randn(400, 7, generator=generator)
    targets, truth = np.arange(400) % 2, np.arange(400) // 2 % 2
    assert area(truth, scores_of(known, targets, asked)) == pytest.approx(0.5, abs=0.08)


def test_neighbours_are_those_of_scikit_learn():
    (known, targets), (asked, _) = clusters(3), clusters(3, 50, seed=1)
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda d: np.exp((d.min(1, keepdims=True) - d) / 0.07)
    )
    np.testing.assert_allclose(
        knn_scores(known, targets, asked), reference.fit(known, targets).predict_proba(asked), atol=1e-4
    )


def test_few_images_have_few_neighbours():
    scores = knn_scores(torch.eye(3), np.array([0, 1, 1]), torch.eye(3)[:2])
    assert scores.argmax(1).tolist() == [0, 1]


# ---------------------------------------------------------------- in pretraining


def test_the_probe_reports_and_changes_nothing(place, opened):
    runs = {}
    for name, changed in {"without": {}, "with": {"pretrain__probe_every": 3}}.items():
        runs[name] = pretrain(tiny_config(place, run=str(place / name), **changed), opened)
    plain, probed = (load_checkpoint(run / "last.pt") for run in runs.values())
    for key, value in plain.weights.items():
        assert value.equal(probed.weights[key]), key
    rows = [row for row in read_metrics(runs["with"]) if "epoch" in row]
    assert [row["epoch"] for row in rows if "probe/knn_auc" in row] == [3, 4]
    assert all(0 <= row["probe/logistic_auc"] <= 1 for row in rows if "probe/logistic_auc" in row)
    assert load_checkpoint(runs["with"] / "best.pt").progress["best"] == plain.progress["best"]


def test_an_epoch_with_a_probe_is_validated_whenever_others_are(place, opened):
    changed = {"pretrain__probe_every": 2, "pretrain__validate_every": 3, "pretrain__epochs": 7}
    run = pretrain(tiny_config(place, run=str(place / "often"), **changed), opened)
    rows = [row for row in read_metrics(run) if "epoch" in row]
    assert [row["epoch"] for row in rows if "validate/loss" in row] == [2, 3, 4, 6, 7]
    assert [row["epoch"] for row in rows if "probe/knn_auc" in row] == [2, 4, 6, 7]


def test_best_may_follow_the_probe(place, opened):
    changed = {"pretrain__probe_every": 2, "pretrain__select": "probe"}
    run = pretrain(tiny_config(place, run=str(place / "by-probe"), **changed), opened)
    rows = [row for row in read_metrics(run) if "probe/logistic_auc" in row]
    best = max(rows, key=lambda row: row["probe/logistic_auc"])  # the first of equals
    kept = load_checkpoint(run / "best.pt")
    assert kept.progress["epoch"] == best["epoch"]
    assert kept.meta["probe"]["probe/logistic_auc"] == best["probe/logistic_auc"] == kept.progress["best"]
    assert math.isfinite(kept.progress["best"])


def test_unknown_labels_are_left_out_and_one_class_has_no_probe(place, opened):
    from data.loader import Loader
    from mae.model import mae_from

    encoder = mae_from(tiny_config(place).model, 12).encoder.eval()
    train, held_out = opened.split("train"), opened.split("validate")
    unknown = train.assign(label=np.where(np.arange(len(train)) < 20, np.nan, train["label"]))
    with torch.no_grad():
        part = probe(encoder, Loader(opened, train[20:], 7), Loader(opened, held_out, 7), CPU, "fp32")
        whole = probe(encoder, Loader(opened, unknown, 7), Loader(opened, held_out, 7), CPU, "fp32")
        alone = probe(encoder, Loader(opened, train[train["label"] == 1], 7), Loader(opened, held_out, 7), CPU, "fp32")
    assert part == whole
    assert alone == {}


@pytest.mark.parametrize("split", ["train", "validate"])
@pytest.mark.parametrize(("label", "classes"), [(np.nan, 0), (1.0, 1)])
def test_following_a_probe_without_both_classes_is_one_line_before_training(label, classes, split, place, opened):
    table = opened.manifest.table
    table = table.assign(label=table["label"].where(table["split"] != split, label))
    data = replace(opened, manifest=replace(opened.manifest, table=table))
    config = tiny_config(place, run=str(place / "one"), pretrain__probe_every=1, pretrain__select="probe")
    for ask in (pretrain, check_begun):
        with pytest.raises(UserError, match=f"^pretrain.select: found probe and labels of {classes} classes.* {split}"):
            ask(config, data)
    assert not (place / "one").exists()


def test_following_a_probe_that_is_never_made_is_one_line(place):
    with pytest.raises(UserError, match=r"pretrain.select: found probe without probe_every"):
        tiny_config(place, pretrain__select="probe")
