"""Laws of ONNX files: onnxruntime gives our probabilities, and the card beside a file is all that a consumer needs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from foreign_weights import grey, tiny
from PIL import Image
from saved_classifiers import META, SHALLOW, save_classifier
from tiny_world import call, mistake, succeed

import classify.onnx_file
from classify.cli import export as mae_export
from classify.export import reading_of
from classify.metrics.recalibration import Calibration
from classify.models.build import Model
from classify.models.resnet import SHAPES
from classify.report.exported import Exported, classifier_card
from data.images import read_fitted
from data.settings import height_and_width
from mae import load_checkpoint
from mae.engine.checkpoint import Checkpoint, save_checkpoint

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

KINDS = {
    "probe-mean": {"data__image_size": (8, 20), "finetune__mode": "linear", "data__resize": "squash"},
    "private-cls": {
        "finetune__pool": "cls",
        "model__in_channels": 3,
        "model__patch_size": 6,
        "model__depth": 1,
        "data__credentialed": True,
    },
    "resnet18-probe": {"finetune__model": "resnet18", "finetune__mode": "linear", "finetune__init": "weights.pth"},
    "resnet50": {
        "finetune__model": "resnet50",
        "finetune__stem": "imagenet",
        "model__in_channels": 3,
        "data__image_size": (40, 24),
    },
}
CALIBRATION = Calibration(**META["calibration"]["image"])


class Made(NamedTuple):
    file: Path
    checkpoint: Path
    model: Model
    size: tuple[int, int]
    said: str


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def made(root) -> Iterator[dict[str, Made]]:
    """One file of each kind of classifier: torch takes some seconds for each."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, (block, _) in SHAPES.items():
            patch.setitem(SHAPES, name, (block, SHALLOW))
        for name, settings in KINDS.items():
            path, config, model = save_classifier(root, name, **settings)
            file = root / "files" / f"{name}.onnx"
            said = succeed(mae_export, "--checkpoint", path, "--out", file)
            found[name] = Made(file, path, model, height_and_width(config.data.image_size), said)
        yield found


def of_onnxruntime(file: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability (b) and score (b)."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    probability, score = session.run(["probability", "score"], {"images": images})
    return probability, score


def ours(model: Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        logits = model(model.standardize(torch.from_numpy(images))).double().numpy()
    return CALIBRATION.probabilities(logits), Calibration().probabilities(logits)


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("name", KINDS)
def test_onnxruntime_gives_our_probabilities_for_any_number_of_images(name, count, made):
    images = grey(count, made[name].size).numpy()
    found = of_onnxruntime(made[name].file, images)
    for theirs, wanted in zip(found, ours(made[name].model, images), strict=True):
        assert theirs.shape == (count,) and theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, wanted, rtol=0, atol=1e-5)
    if count == 7:
        assert len(np.unique(found[0])) == 7  # it looks at the images


@pytest.mark.parametrize("name", KINDS)
def test_a_file_takes_bytes_and_names_its_axes(name, made):
    model = onnx.load(made[name].file)
    onnx.checker.check_model(model, full_check=True)
    [images] = model.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    height, width = made[name].size
    dims = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert dims == ["batch", 1, height, width]
    assert [output.name for output in model.graph.output] == ["probability", "score"]


def test_old_runtimes_read_a_file(made):
    """Opset 18 and IR 8 are of onnx 1.13; onnxruntime refuses newer ones than it knows."""
    for each in made.values():
        model = onnx.load(each.file)
        [opset] = model.opset_import
        assert (opset.domain, opset.version, model.ir_version) == ("", 18, 8)


def test_a_file_says_how_it_is_used(made):
    model = onnx.load(made["probe-mean"].file)
    said = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert said["score_threshold"] == META["threshold"]
    assert said["probability_threshold"] == pytest.approx(
        float(CALIBRATION.probabilities(np.log(0.47 / 0.53))), abs=1e-12
    )
    assert said["calibration"] == META["calibration"]
    assert said["classes"] == ["normal", "abnormal"]
    assert (said["image_size"], said["resize"], said["tone"]) == ([8, 20], "squash", "window")
    assert said["checkpoint"] and "medical device" in said["intended_use"]


def test_a_file_is_the_same_twice_and_holds_no_path_of_this_machine(made, tmp_path):
    first = made["private-cls"]
    succeed(mae_export, "--checkpoint", first.checkpoint, "--out", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first.file.read_bytes()
    content = first.file.read_bytes()
    for path in (sys.prefix, str(first.file.parent), str(Path(classify.onnx_file.__file__).parent), "site-packages"):
        assert path.encode() not in content


def test_weights_too_large_for_a_file_lie_beside_it(made, tmp_path, monkeypatch):
    """Protobuf is limited to 2 GiB, and a ViT-H is larger."""
    file = tmp_path / "large.onnx"
    first = made["private-cls"]
    with monkeypatch.context() as patch:
        patch.setattr(classify.onnx_file, "LARGEST", 1000)
        succeed(mae_export, "--checkpoint", first.checkpoint, "--out", file)
    assert {path.name for path in tmp_path.iterdir()} == {"large.onnx", "large.onnx.data", "large.md"}
    assert "large.onnx.data" in (tmp_path / "large.md").read_text()
    images = grey(3, first.size).numpy()
    found = of_onnxruntime(file, images)[0]
    np.testing.assert_allclose(found, ours(first.model, images)[0], rtol=0, atol=1e-5)

    # a later file there that needs none removes it
    (tmp_path / "new").mkdir()
    (tmp_path / "new/large.onnx").write_bytes(first.file.read_bytes())
    classify.onnx_file.take_place(tmp_path / "new/large.onnx", file)
    (tmp_path / "new").rmdir()
    assert {path.name for path in tmp_path.iterdir()} == {"large.onnx", "large.md"}
    assert file.read_bytes() == first.file.read_bytes()


# ---------------------------------------------------------------- the card beside it


def code_of(card: str) -> str:
    [code] = re.findall(r"```python\n(.*?)```", card, re.S)
    return code


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_the_cards_code_gives_our_answers_without_this_package(resize, made, tmp_path):
    """Only onnxruntime, numpy and Pillow, in a process of its own, on files of shapes that are not the model's."""
    first = made["probe-mean"]
    loaded = load_checkpoint(first.checkpoint)
    reading = replace(reading_of(loaded), resize=resize)  # the file does not depend on it
    code = code_of(classifier_card(Exported(first.file.stem, loaded, reading, digest=""), architecture=None))
    (tmp_path / "use.py").write_text(code + "\nassert not {'torch', 'mae', 'data', 'classify'} & sys.modules.keys()\n")
    (tmp_path / first.file.name).write_bytes(first.file.read_bytes())

    y, x = np.mgrid[:97, :203]
    pictures = {
        "wide.png": (128 + 90 * np.sin(x / 23 + 1) * np.cos(y / 31)).astype(np.uint8),
        "tall.jpg": (128 + 90 * np.sin(y.T / 19) * np.cos(x.T / 41)).astype(np.uint8),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / name)

    answer = subprocess.run(
        [sys.executable, "-I", "use.py", *pictures], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert answer.returncode == 0, answer.stderr
    for name, line in zip(pictures, answer.stdout.splitlines(), strict=True):
        image = read_fitted(tmp_path / name, first.size, resize)
        probability, score = ours(first.model, image[None, None])
        shown, number, called = line.split()
        # Pillow rounds the beginning of pad and crop differently, and a JPEG is decoded at another scale
        tolerance = 1e-6 if resize == "squash" and name == "wide.png" else 2e-3
        assert shown == name
        assert float(number) == pytest.approx(probability[0], abs=tolerance)
        assert called == ("abnormal" if score[0] >= META["threshold"]["image"] else "normal")


def test_pixels_of_16_bits_are_not_taken_for_bytes(made, tmp_path):
    card = made["probe-mean"].file.with_suffix(".md").read_text()
    (tmp_path / "use.py").write_text(code_of(card))
    (tmp_path / "probe-mean.onnx").write_bytes(made["probe-mean"].file.read_bytes())
    Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40) * 80).save(tmp_path / "deep.png")
    answer = subprocess.run(
        [sys.executable, "-I", "use.py", "deep.png"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert answer.returncode == 1
    assert "deep.png: more than 8 bits" in answer.stderr


def test_the_console_says_what_a_consumer_must_do(made):
    said = made["probe-mean"].said
    for part in ("uint8 (b 1 h w)", "20 × 8 pixels", "stretched", "Lanczos", "probability (b)", "a score of 0.4700"):
        assert part in said
    assert "probe-mean.md" in said


def test_a_card_holds_the_facts(made):
    card = made["resnet50"].file.with_suffix(".md").read_text()
    for part in ("ResNet-50", "AUC 0.812", "7 normal, 5 abnormal", "23 labelled images", "Not a medical device"):
        assert part in card
    assert "sensitivity 95 %" in card and "mean **score**" in card
    assert "library_name: onnx" in card


# ---------------------------------------------------------------- what is refused


def test_where_the_extra_is_missing_one_line_names_it(root, made, monkeypatch, tmp_path):
    monkeypatch.setattr(classify.onnx_file, "find_spec", lambda name: None if name == "onnxscript" else True)
    line = mistake(
        mae_export, "--checkpoint", made["private-cls"].checkpoint, "--out", tmp_path / "x.onnx", keep=tmp_path
    )
    assert line == (
        "error: this Python: found no onnxscript, expected the extra for ONNX; pip install 'mae-cxr[onnx]', or leave "
        "out --format onnx"
    )
    assert not list(tmp_path.iterdir())


def test_another_network_is_not_written(made, monkeypatch, tmp_path):
    """If onnxruntime's scores differ, for whatever reason, the file is not put in its place."""
    monkeypatch.setattr(classify.onnx_file, "run_onnx", lambda path, images: [np.zeros(5), np.zeros(5)])
    monkeypatch.setattr(classify.onnx_file, "_program_of", lambda *_: None)
    monkeypatch.setattr(classify.onnx_file, "_save", lambda program, path, metadata: path.write_bytes(b"x"))
    monkeypatch.setattr(classify.onnx_file, "_check", lambda path: None)
    line = mistake(
        mae_export, "--checkpoint", made["private-cls"].checkpoint, "--out", tmp_path / "x.onnx", keep=tmp_path
    )
    assert "x.onnx: found scores" in line and "nothing was written" in line
    assert not list(tmp_path.iterdir())


def test_what_is_no_place_for_a_file_is_refused_at_once(made, tmp_path):
    checkpoint = made["private-cls"].checkpoint
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "notes.md").write_text("mine")
    for words, said in (
        (["--out", tmp_path / "folder.onnx"], "found a folder, expected the name of a file"),
        (["--out", tmp_path / "model", "--format", "onnx"], "found no name with .onnx, expected one such as"),
        (["--out", "."], ".: found no name, expected that of a folder or file"),
        (["--out", tmp_path / "notes.onnx"], "notes.md: found a text of somebody's"),
    ):
        assert said in mistake(mae_export, "--checkpoint", checkpoint, *words, keep=tmp_path)


def test_a_pretraining_is_no_classifier(made, tmp_path):
    config = load_checkpoint(made["private-cls"].checkpoint).config
    weights = tiny(3, patch_size=6, depth=1).state_dict()
    save_checkpoint(Checkpoint("mae", config.model_dump(mode="json"), weights), tmp_path / "mae.pt")
    outcome = call(mae_export, "--checkpoint", tmp_path / "mae.pt", "--out", tmp_path / "x.onnx")
    assert outcome.code == 2
    assert "found a pretraining, expected a classifier" in outcome.err and "mae-finetune" in outcome.err


def test_credentialed_weights_carry_their_terms_and_are_for_their_owner(made):
    first = made["private-cls"]
    terms = "Made from credentialed data (table): check the data use agreement"
    assert terms in first.said
    assert terms in first.file.with_suffix(".md").read_text()
    for path in (first.file, first.file.with_suffix(".md")):
        assert path.stat().st_mode & 0o777 == 0o600
    said = {each.key: each.value for each in onnx.load(first.file).metadata_props}
    assert terms in said["terms"]
    assert made["probe-mean"].file.stat().st_mode & 0o777 != 0o600
