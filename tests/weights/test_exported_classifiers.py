"""Laws of classifiers for transformers: either version gives our calibrated probability, or the export is refused."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_weights import folder_of, grey, quiet, tiny
from PIL import Image
from saved_classifiers import META, SHALLOW, save_classifier
from tiny_world import mistake, succeed, tiny_config
from transformers_versions import printed_by, printed_with

from classify.cli import export as mae_export
from classify.decisions import Decisions
from classify.export import export
from classify.metrics.recalibration import Calibration
from classify.models.resnet import SHAPES, build_resnet
from classify.models.resnet_weights import name_in_transformers, read_resnet
from classify.report.exported import _operating_points as operating_points_of
from classify.report.exported import _training as training_of
from classify.settings import FinetuneSettings
from data.settings import height_and_width
from mae.engine.checkpoint import Checkpoint, save_checkpoint

KINDS = {
    "cls-probe": ("ViTForImageClassification", {"finetune__pool": "cls", "finetune__mode": "linear"}),
    "mean": (
        "Dinov2ForImageClassification",
        {"model__in_channels": 3, "model__depth": 3, "data__target": "Pneumonia"},
    ),
    "mean-probe": ("Dinov2ForImageClassification", {"finetune__mode": "linear"}),
    "cls-wide": ("ViTForImageClassification", {"finetune__pool": "cls", "data__image_size": (8, 20)}),
    "resnet18-probe": (
        "ResNetForImageClassification",
        {"finetune__model": "resnet18", "finetune__mode": "linear", "finetune__stem": "imagenet"},
    ),
    "resnet50": (
        "ResNetForImageClassification",
        {"finetune__model": "resnet50", "model__in_channels": 3, "data__image_size": (40, 56)},
    ),
}
CALIBRATION = Calibration(**META["calibration"]["image"])
READ_BY_TRANSFORMERS = """
import json, sys, torch, transformers
said = {"version": transformers.__version__}
for folder, images in torch.load(sys.argv[1]).items():
    model, found = transformers.AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        probabilities = model.eval()(images).logits.softmax(1)[:, 1].tolist()
    wrong = sum(len(found[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    said[folder] = {"class": type(model).__name__, "probabilities": probabilities, "wrong": wrong}
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Exported:
    folder: Path
    images: torch.Tensor  # as the folder's model reads them
    probabilities: np.ndarray  # ours
    scores: np.ndarray

    @property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Exported]:
    root = tmp_path_factory.mktemp("exported")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, (block, _) in SHAPES.items():
            patch.setitem(SHAPES, name, (block, SHALLOW))
        for name, (_, settings) in KINDS.items():
            path, config, model = save_classifier(root, name, **settings)
            succeed(mae_export, "--checkpoint", path, "--out", root / "folders" / name)
            images = model.standardize(grey(5, height_and_width(config.data.image_size)))
            with torch.no_grad():
                logits = model(images).double().numpy()
            images = images.expand(-1, config.model.in_channels, -1, -1).contiguous()
            found[name] = Exported(
                root / "folders" / name, images, CALIBRATION.probabilities(logits), Calibration().probabilities(logits)
            )
    return found


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("version", ["4", "5"])
def test_either_transformers_gives_our_calibrated_probability(version, exported, tmp_path):
    torch.save({str(each.folder): each.images for each in exported.values()}, tmp_path / "given.pt")
    said = json.loads(printed_with(version, READ_BY_TRANSFORMERS, tmp_path / "given.pt").splitlines()[-1])
    assert said["version"].split(".")[0] == version
    for name, each in exported.items():
        found = said[str(each.folder)]
        assert (found["class"], found["wrong"]) == (KINDS[name][0], 0)
        np.testing.assert_allclose(found["probabilities"], each.probabilities, rtol=0, atol=1e-5, err_msg=name)
        assert np.ptp(each.probabilities) > 1e-4, name  # it looks at the images


@pytest.mark.parametrize("name", KINDS)
def test_both_thresholds_call_the_same_images(name, exported):
    each = exported[name]
    calibrated, raw = each.config["threshold"]["image"], each.config["score_threshold"]["image"]
    assert raw == META["threshold"]["image"] != calibrated
    assert each.config["score_threshold"]["study"] == META["threshold"]["study"]
    assert each.config["calibration"] == META["calibration"]
    scores = np.concatenate([each.scores, np.linspace(0.001, 0.999, 97), raw + np.array([-1e-9, 1e-9])])
    probabilities = CALIBRATION.probabilities(np.log(scores / (1 - scores)))
    assert ((probabilities >= calibrated) == (scores >= raw)).all()


def test_what_was_not_calibrated_keeps_its_threshold(tmp_path):
    _, config, model = save_classifier(tmp_path, "old", finetune__pool="cls")
    weights = model.state_dict()
    meta = {"threshold": {"image": 0.3}}
    save_checkpoint(Checkpoint("classifier", config.model_dump(mode="json"), weights, meta), tmp_path / "old.pt")
    succeed(mae_export, "--checkpoint", tmp_path / "old.pt", "--out", tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["threshold"]["image"] == pytest.approx(0.3, abs=1e-15)
    assert said["calibration"] is None
    assert "The classifier was not calibrated" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_a_resnets_names_are_those_that_we_read(network, tmp_path):
    """There and back: every tensor has a name of its own, and `finetune.init` finds the trunk in an exported folder."""
    model = build_resnet(network)
    names = [name_in_transformers(name) for name in model.state_dict()]
    assert len(set(names)) == len(names)
    path, _, model = save_classifier(tmp_path, "r", finetune__model=network, finetune__stem="imagenet")
    export(path, tmp_path / "folder", say=quiet)
    back = read_resnet(tmp_path / "folder", FinetuneSettings(model=network)).tensors
    weights = model.state_dict()
    assert back and all(torch.equal(back[name], weights[name]) for name in back)
    assert {name for name in weights if name not in back} == {"fc.weight", "fc.bias"}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"finetune__model": "resnet18"}, "found a ResNet with a stem of 3x3"),
        ({"data__image_size": (8, 20)}, "found finetune.pool mean and images of 8x20"),
        (
            {"finetune__model": "resnet18", "finetune__stem": "imagenet", "finetune__init": "x.pth"},
            "found a ResNet from weights made for images standardised otherwise",
        ),
    ],
)
def test_what_transformers_cannot_say_is_refused_with_another_way(settings, why, tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "resnet18", (SHAPES["resnet18"][0], SHALLOW))
    path, *_ = save_classifier(tmp_path, "x", **settings)
    line = mistake(mae_export, "--checkpoint", path, "--out", tmp_path / "out", keep=tmp_path)
    assert why in line
    assert "give --out FILE.onnx" in line
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the README


def code_of(folder: Path) -> str:
    [code] = re.findall(r"```python\n(import sys.*?)```", (folder / "README.md").read_text(), re.S)
    return code


def expect_refused(folder: Path, place: Path) -> None:
    """The code in the README does not take a 16-bit picture for an 8-bit one."""
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(place / "deep.png")
    with pytest.raises(SystemExit, match=r"deep.png: more than 8 bits"):
        printed_by(code_of(folder), place / "deep.png", folder=folder)


@pytest.mark.parametrize("name", ["mean", "resnet18-probe"])
def test_a_readmes_code_gives_our_answer(name, exported, tmp_path):
    """For images of the model's size; test_exported_preprocessing tests how others are resized."""
    pytest.importorskip("transformers")
    each = exported[name]
    size = tuple(each.images.shape[2:])
    for number, image in enumerate(grey(5, size).numpy()):
        Image.fromarray(image[0]).save(tmp_path / f"{number}.png")
    pictures = [tmp_path / f"{number}.png" for number in range(5)]
    printed = printed_by(code_of(each.folder), *pictures, folder=each.folder)
    words = list(each.config["id2label"].values())
    rows = [line.split() for line in printed.splitlines() if line.startswith(str(tmp_path))]
    assert [float(row[1]) for row in rows] == pytest.approx(each.probabilities, abs=1e-4)
    expect_refused(each.folder, tmp_path)
    assert [row[2] for row in rows] == [words[int(score >= META["threshold"]["image"])] for score in each.scores]


def test_a_pretrainings_readme_has_code_that_runs(tmp_path):
    pytest.importorskip("transformers")
    path, config, _ = save_classifier(tmp_path, "x")
    model = tiny(1)
    meta = {"seen": list(range(11)), "validate_loss": 0.5}
    content = Checkpoint("mae", config.model_dump(mode="json"), model.state_dict(), meta, progress={"epoch": 2})
    save_checkpoint(content, path)
    said = succeed(mae_export, "--checkpoint", path, "--out", tmp_path / "mae")
    assert "tokens (b 1+n d)" in said and "12 × 12 pixels" in said
    readme = (tmp_path / "mae/README.md").read_text()
    assert "on 11 images, 75 % masked" in readme
    assert "pipeline_tag: image-feature-extraction" in readme

    image = grey(1)
    Image.fromarray(image[0, 0].numpy()).save(tmp_path / "x.png")
    printed = printed_by(code_of(tmp_path / "mae"), "../x.png", folder=tmp_path / "mae")
    with torch.no_grad():
        tokens = model.encoder(model.encoder.standardize(image))
    expect_refused(tmp_path / "mae", tmp_path)
    assert printed.splitlines()[-1].endswith(f"(1, 10, 12) {tokens[0, 1:].mean():.6f}")


def test_a_readmes_code_reads_colours_as_grey(exported):
    for name, channels in (("mean", 3), ("resnet18-probe", 1)):
        more = '.convert("RGB")' if channels == 3 else ""
        assert re.findall(r"image = image(\.convert.*)", code_of(exported[name].folder)) == [f'.convert("L"){more}']


@pytest.mark.parametrize(
    ("settings", "meta", "said"),
    [
        ({}, {}, "random weights"),
        ({}, {"pretrained_from": "runs/mae/best.pt"}, "the weights of a pretraining"),
        ({"model__init": "x.pth"}, {"pretrained_from": "x.pth", "seen_elsewhere": True}, "another program's weights"),
        ({}, {"pretrained_from": "runs/mae/best.pt", "seen_elsewhere": True}, "another program's weights"),
        ({"finetune__model": "resnet18", "finetune__init": "x.pth"}, {"pretrained_from": "x.pth"}, "another program's"),
    ],
)
def test_a_readme_takes_no_foreign_weights_for_a_pretraining_here(settings, meta, said, tmp_path):
    config = tiny_config(tmp_path, **settings)
    [_, sentence] = training_of(Checkpoint("classifier", config.model_dump(mode="json"), {}, META | meta))
    assert sentence.startswith(f"Training began from {said}")
    assert ("is not known here" in sentence) == said.startswith("another")


def test_a_readme_rounds_no_threshold_to_one_that_calls_all_or_none(tmp_path):
    ends = [0.5] * 79 + [0.99999] * 11 + [0.00002] * 9  # from 80, from 91 per cent on
    meta = META | {"operating": {"image": {"specificity": ends, "sensitivity": [0.3] * 99}}}
    config = tiny_config(tmp_path)
    checkpoint = Checkpoint("classifier", config.model_dump(mode="json"), {}, meta)
    rows = operating_points_of(checkpoint, Decisions.of(checkpoint))
    assert [row["Score from"] for row in rows[:3]] == ["0.3000"] * 3
    assert [row["Score from"] for row in rows[3:]] == ["0.99999", "0.99999", "0.00002"]
    assert all(0 < float(row["Probability from"]) < 1 for row in rows)


def test_weights_alone_have_a_readme_too(tmp_path):
    assert "Licence of the weights: mit" in (folder_of(tiny(), tmp_path, "mit") / "README.md").read_text()
