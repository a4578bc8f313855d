"""Laws of the TensorBoard dashboard, read back from the event files."""

import time
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import logit
from sklearn.metrics import roc_auc_score
from stage_runs import Stop
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny_world import tiny_config, write_table

import classify.dashboard
import classify.finetune
from classify.dashboard import DRAWINGS, MISTAKES, worst_mistakes
from classify.finetune import finetune
from classify.settings import ClassifyConfig
from data.config import print_config
from data.loader import open_data
from mae.engine.hparams import HYPERPARAMETERS
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain

SIZES = {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}  # all of them
START, END = "_hparams_/session_start_info", "_hparams_/session_end_info"


@pytest.fixture(scope="module")
def pretrained(place, opened) -> Path:
    return pretrain(tiny_config(place, pretrain__epochs=2, pretrain__panel_images=3), opened)


def config_of(place: Path, folder: Path, **changed) -> ClassifyConfig:
    return tiny_config(place, finetune__run=str(folder), **{"finetune__epochs": 2, **changed})


class Shown(NamedTuple):
    """What TensorBoard receives of a validation."""

    scored: pd.DataFrame
    threshold: float


@pytest.fixture(scope="module")
def validations() -> list[Shown]:
    """Those of `classifier`, in order."""
    return []


@pytest.fixture(scope="module")
def classifier(place, opened, pretrained, validations) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        show = classify.finetune.show_scores

        def remembered(data, scored, threshold, *rest):
            validations.append(Shown(scored, threshold))
            show(data, scored, threshold, *rest)

        patch.setattr(classify.finetune, "show_scores", remembered)
        return finetune(config_of(place, place / "classifier"), pretrained / "last.pt", opened)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), SIZES).Reload()


def text(folder: Path, name: str) -> list[tuple[int, str]]:
    shown = plugin_event_accumulator.EventAccumulator(str(folder), SIZES).Reload().Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in shown]


def hyperparameters(folder: Path) -> dict[str, float | str]:
    content = events(folder).SummaryMetadata(START).plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("events.*")))


# ---------------------------------------------------------------- tabs


def test_a_pretraining_fills_its_tabs(pretrained):
    tags = events(pretrained).Tags()
    losses = {"train/reconstruction_loss", "epoch/train_reconstruction_loss", "validate/reconstruction_loss"}
    assert losses | {"best/validate/reconstruction_loss"} <= set(tags["scalars"])
    assert tags["images"] == ["reconstruction"]
    assert set(tags["tensors"]) == {"config/text_summary", "environment/text_summary"}
    assert events(pretrained).SummaryMetadata(END).plugin_data.plugin_name == "hparams"


def test_a_classifier_fills_its_tabs(classifier):
    tags = events(classifier).Tags()
    assert {"train/classification_loss", "validate/auc", "best/validate/auc"} <= set(tags["scalars"])
    mistakes = {name for name in tags["images"] if name.startswith("worst_mistakes/")}
    assert set(tags["images"]) - mistakes == {"validate/roc", "validate/confusion", "validate/scores"}
    assert 1 <= len(mistakes) <= MISTAKES
    assert set(tags["histograms"]) == {"validate/score_normal", "validate/score_abnormal"}
    assert "validate/precision_recall" in tags["tensors"]


def test_no_loss_of_one_stage_shares_a_curve_with_the_other(pretrained, classifier):
    losses = []
    for run in (pretrained, classifier):
        losses.append({tag for tag in events(run).Tags()["scalars"] if "loss" in tag})
    assert len(losses[0]) == len(losses[1]) == 4
    assert not losses[0] & losses[1]


def test_every_curve_says_what_it_is(pretrained, classifier):
    for run in (pretrained, classifier):
        read = events(run)
        for tag in read.Tags()["scalars"]:
            about = read.SummaryMetadata(tag).summary_description
            assert len(about) > 5, tag


def test_rows_of_metrics_keep_their_names(pretrained, classifier):
    """The report, and whoever else reads these names, knows whose run it is."""
    for run in (pretrained, classifier):
        names = {name for row in read_metrics(run) for name in row}
        assert {"train/loss", "epoch/train_loss", "validate/loss"} <= names
        assert not [name for name in names if "reconstruction" in name or "classification" in name]


def test_the_text_tab_shows_the_resolved_config_and_the_environment(place, classifier):
    [(step, shown)] = text(classifier, "config")
    assert step == 1
    begun = config_of(place, classifier)
    assert shown == f"```\n{print_config(begun).strip()}\n```"
    [(_, environment)] = text(classifier, "environment")
    assert '"torch"' in environment


# ---------------------------------------------------------------- a validation's scores


def test_precision_and_recall_are_those_of_the_validation_scores(classifier, validations):
    drawn = events(classifier).Tensors("validate/precision_recall")
    assert len(drawn) == len(validations) == 2
    for event, validation in zip(drawn, validations, strict=True):
        table = torch.tensor(event.tensor_proto.float_val).view(6, -1)  # TP FP TN FN precision recall, by threshold
        labels, scores = (validation.scored[name].to_numpy(float) for name in ("label", "score"))
        assert set(validation.scored["split"]) == {"validate"}
        # TensorBoard's own thresholds: a score counts as called at the k-th if it is at least k / 126
        bins = np.floor(scores * (table.shape[1] - 1))
        for number in (0, 40, 63, 64, 126):
            called = bins >= number
            found = (called & (labels == 1)).sum(), (called & (labels == 0)).sum()
            assert tuple(table[:2, number].tolist()) == found
            if found[0]:
                assert table[4, number].item() == pytest.approx(found[0] / sum(found))
            assert table[5, number].item() == pytest.approx(found[0] / labels.sum())


def test_the_histograms_hold_each_validation_image_once(classifier, validations):
    read = events(classifier)
    for label, name in enumerate(("normal", "abnormal")):
        for event, validation in zip(read.Histograms(f"validate/score_{name}"), validations, strict=True):
            scores = validation.scored["score"][validation.scored["label"] == label]
            assert (event.histogram_value.num, event.histogram_value.max) == (len(scores), pytest.approx(scores.max()))


def test_the_drawn_roc_and_counts_are_those_of_the_scores():
    labels = np.array([0, 0, 1, 1, 0, 1, 1])
    scores = np.array([0.1, 0.7, 0.7, 0.9, 0.4, 0.2, 0.8])
    scored = pd.DataFrame({"label": labels, "score": scores, "logit": logit(scores)})
    roc, confusion, histogram = Figure().subplots(1, 3)
    for name, axes in (("roc", roc), ("confusion", confusion), ("scores", histogram)):
        DRAWINGS[name](axes, scored, 0.5, ("negative", "positive"))
    _, curve, point = roc.lines
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(roc_auc_score(labels, scores))
    assert f"{roc_auc_score(labels, scores):.3f}" in roc.get_title()
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (pytest.approx(1 / 3), 0.75)
    assert [shown.get_text() for shown in confusion.texts] == ["2\n67%", "1\n33%", "1\n25%", "3\n75%"]
    assert sum(bar.get_height() for bar in histogram.patches) == 7
    ticks = [*confusion.get_xticklabels(), *confusion.get_yticklabels()]
    assert [shown.get_text() for shown in ticks] == 2 * ["negative", "positive"]
    assert [shown.get_text() for shown in histogram.get_legend().get_texts()] == ["negative", "positive"]


def test_worst_mistakes_are_wrong_and_the_furthest_first(validations, classifier):
    scored = validations[0].scored.assign(score=np.linspace(0.05, 0.95, 10), label=[1, 1, 0, 1, 0, 0, 0, 1, 0, 1])
    assert worst_mistakes(scored, 0.5)["score"].tolist() == pytest.approx([0.05, 0.15, 0.85, 0.35, 0.65, 0.55])
    many = worst_mistakes(scored.assign(label=1 - (scored["score"] > 0.5)), 0.5)
    assert len(many) == MISTAKES
    assert worst_mistakes(scored.assign(label=1 * (scored["score"] >= 0.5)), 0.5).empty


@pytest.mark.parametrize(("target", "names"), [(None, {"normal", "abnormal"}), ("Pneumonia", {"negative", "positive"})])
def test_tags_and_captions_have_the_words_of_the_target(target, names, tmp_path, monkeypatch):
    table, captions = write_table(tmp_path / "images"), []
    table.rename(columns={"label": target or "label"}).to_csv(tmp_path / "images/manifest.csv", index=False)
    sheet = classify.dashboard.sheet
    monkeypatch.setattr(
        classify.dashboard, "sheet", lambda image, ids, notes: captions.extend(notes) or sheet(image, ids, notes)
    )
    folder = finetune(config_of(tmp_path, tmp_path / "run", finetune__epochs=1, data__target=target))
    assert set(events(folder).Tags()["histograms"]) == {f"validate/score_{name}" for name in names}
    assert captions and {caption.split(",")[0] for caption in captions} <= names


def test_images_are_predicted_once_a_validation(place, opened, tmp_path, monkeypatch):
    predict, calls = classify.finetune.predict_logits, []
    monkeypatch.setattr(classify.finetune, "predict_logits", lambda *rest: calls.append(None) or predict(*rest))
    finetune(config_of(place, tmp_path / "run"), None, opened)
    assert len(calls) == 2


# ---------------------------------------------------------------- private data


@pytest.mark.parametrize("asked", [None, True])
def test_a_credentialed_run_shows_radiographs_only_where_asked(asked, place, tmp_path):
    private = {"data__credentialed": True, "report__images": asked}
    data = open_data(tiny_config(place, **private).data)
    assert data.manifest.credentialed
    panel = {"run": str(tmp_path / "mae"), "pretrain__epochs": 1, "pretrain__panel_images": 3}
    stage_one = pretrain(tiny_config(place, **private, **panel), data)
    stage_two = finetune(config_of(place, tmp_path / "run", finetune__epochs=1, **private), None, data)
    radiographs = {"reconstruction", "worst_mistakes/1"}
    shown = {tag for folder in (stage_one, stage_two) for tag in events(folder).Tags()["images"]} & radiographs
    assert shown == (radiographs if asked else set())
    names = data.manifest.table["image_id"].tolist() + data.manifest.table["path"].tolist()
    if not asked:
        assert not [tag for tag in events(stage_two).Tags()["images"] if not tag.startswith("validate/")]
        assert not [name for name in names if name.encode() in everything(stage_one) + everything(stage_two)]


def test_worst_mistakes_show_the_stored_images(classifier, opened, validations):
    last = validations[-1]
    worst = worst_mistakes(last.scored, last.threshold)
    encoded = events(classifier).Images("worst_mistakes/1")[-1].encoded_image_string
    pixels = np.asarray(Image.open(BytesIO(encoded)).convert("L"))
    first = opened.store.images[worst["row"].iloc[0]]  # h w
    scale = round(256 / max(first.shape))
    large = first.repeat(scale, 0).repeat(scale, 1)
    tops, gap = range(pixels.shape[0] - len(large)), 7
    assert any(np.array_equal(pixels[top : top + len(large), gap : gap + large.shape[1]], large) for top in tops)


# ---------------------------------------------------------------- hyperparameters


def test_runs_are_told_apart_by_their_hyperparameters(pretrained, classifier):
    one, two = hyperparameters(pretrained), hyperparameters(classifier)
    assert (one["stage"], one["mask_ratio"], one["epochs"], one["augment"]) == ("pretrain", 0.75, 2, "on")
    assert (two["stage"], two["weights"], two["mask_ratio"], two["labelled"]) == ("finetune", "pretrained", 0.75, 40)
    assert not [path for folder in (pretrained, classifier) for path in folder.iterdir() if path.is_dir()]


def test_the_best_metrics_are_those_of_the_best_epoch(classifier):
    rows = [row for row in read_metrics(classifier) if "epoch" in row]
    best = max(rows, key=lambda row: row["validate/auc"])
    shown = events(classifier).Scalars("best/validate/auc")[-1]
    assert (shown.step, shown.value) == (best["step"], pytest.approx(best["validate/auc"]))


@pytest.mark.parametrize("stop_at", [2, 8])  # before the first checkpoint, and after it
def test_nothing_stands_twice_after_a_resume(stop_at, place, opened, tmp_path, monkeypatch):
    config, step, calls = config_of(place, tmp_path / "run", engine__log_every=1), classify.finetune.finetune_step, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == stop_at:
            raise Stop
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(classify.finetune, "finetune_step", interrupted)
        with pytest.raises(Stop):
            finetune(config, None, opened)
    time.sleep(1)  # files that a process writes within one second are sorted by their numbers as text: 10 before 9
    finetune(config, None, opened)
    read, folder = events(tmp_path / "run"), tmp_path / "run"
    assert everything(folder).count(START.encode()) == everything(folder).count(END.encode()) == 1
    assert [event.step for event in read.Scalars("train/classification_loss")] == list(range(1, 11))
    assert [event.step for event in read.Tensors("validate/precision_recall")] == [5, 10]
    assert [event.step for event in read.Images("validate/scores")] == [5, 10]
    assert [at for at, _ in text(folder, "config")] == ([1] if stop_at == 2 else [1, 6])


def test_raised_epochs_replace_the_hyperparameters(place, opened, tmp_path):
    for epochs in (1, 2):
        folder = finetune(config_of(place, tmp_path / "run", finetune__epochs=epochs), None, opened)
        assert hyperparameters(folder)["epochs"] == epochs
    assert len(list(folder.glob(HYPERPARAMETERS))) == 1
