"""Model cards of exports: a folder for transformers or an ONNX file, with example code that runs unchanged."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from classify.decisions import Decisions, origin_of_threshold
from classify.metrics.operating_points import RATES
from classify.report.checklist_facts import KNOWN_SOURCES, epochs, network
from classify.report.model_card import INTENDED, Card, model_card
from classify.report.numbers import show_threshold
from classify.report.tables import FLATTERING, markdown, plain, task
from classify.start import config_of
from data.privacy import terms
from mae.engine.checkpoint import Checkpoint
from mae.model import MaskedAutoencoder
from mae.weights.licenses import spoken
from mae.weights.reading import FITTED, TONES, Reading, described, fitting

WRITTEN_BY = "Written by mae-export of mae-cxr."
TAGS = ["chest-x-ray", "radiograph"]
RATES_SHOWN = (0.8, 0.9, 0.95)  # of `RATES`

# docs/weights.md measures how ours differs
AS_READ = (
    "The code above reads JPEG and PNG of 8 bits. Give it the whole radiograph, upright, bones bright. mae-cxr itself "
    "decodes large JPEGs at a reduced size; its pixels differ by a fraction of a grey level on average."
)

# Pillow would clip the brightness of more bits at 255
OPENED = """    image = ImageOps.exif_transpose(Image.open(name))
    if image.mode.startswith(("I", "F")):
        sys.exit(f"{{name}}: more than 8 bits; scale it to 0…255 first")
"""
ONNX_CODE = (
    """```python
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession({file}, providers=["CPUExecutionProvider"])
for name in sys.argv[1:]:
"""
    + OPENED
    + """    image = image.convert("L")
    image = {fitting}
    images = np.asarray(image)[None, None]  # 1 1 h w, uint8; several images may go at once
    probability, score = session.run(["probability", "score"], {{"images": images}})
    print(name, f"{{probability[0]:.6f}}"{decision})
```"""
)

TRANSFORMERS_CODE = (
    """```python
import sys

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = "."  # where this README lies
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder).eval()
for name in sys.argv[1:]:
"""
    + OPENED
    + """    image = image{converted}
{fit}    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits  # 1 2
    probability = logits.softmax(dim=1)[0, 1].item()
    print(name, f"{{probability:.6f}}"{decision})
```"""
)

ENCODER_CODE = (
    """```python
import sys

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, ViTModel

folder = "."  # where this README lies
processor = AutoImageProcessor.from_pretrained(folder)
model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
for name in sys.argv[1:]:
"""
    + OPENED
    + """    image = image{converted}
{fit}    with torch.no_grad():
        tokens = model(**processor(image, return_tensors="pt")).last_hidden_state  # 1 1+n d
    print(name, tuple(tokens.shape), f"{{tokens[0, 1:].mean():.6f}}")
```"""
)


@dataclass(frozen=True)
class Exported:
    """A checkpoint to be exported, with what its card and the console say of it."""

    name: str  # of the folder or file, without its ending
    checkpoint: Checkpoint
    reading: Reading
    digest: str  # of the checkpoint's file
    beside: str = ""  # the name of a file that an ONNX file needs beside it

    @property
    def owed(self) -> str:
        """The terms of credentialed data; empty where there is none."""
        return terms(self.checkpoint.credentialed) if self.checkpoint.credentialed else ""


# ---------------------------------------------------------------- a classifier


def classifier_card(exported: Exported, architecture: str | None) -> str:
    """README.md of a folder for `architecture` of transformers; without one, the text beside an ONNX file."""
    checkpoint = exported.checkpoint
    config = config_of(checkpoint)
    front: dict[str, object] = {
        "library_name": "transformers" if architecture else "onnx",
        "pipeline_tag": "image-classification",
        "tags": [*TAGS, *([] if architecture else ["onnx"]), "image-classification"],
    }

    card = Card(
        name=exported.name,
        task=task(config.data.target),
        license=checkpoint.meta.get("license"),
        source=config.data.source,
        split="validate",
        metrics={"auc": _validation_auc(checkpoint)},
        written_by=WRITTEN_BY,
        front=front,
        sections=(
            ("Intended use", (INTENDED,)),
            ("How to use it", tuple(_use(exported, architecture))),
            ("Images", tuple(_images(exported.reading))),
            ("Scores and decisions", tuple(_decisions(checkpoint, architecture))),
            ("Model", tuple(_model(exported, architecture))),
            ("Training", tuple(_training(checkpoint))),
            ("Validation", tuple(_validation(checkpoint))),
            ("Limitations", tuple(_limitations(checkpoint))),
            ("Licence", tuple(_licence(exported))),
        ),
    )
    return model_card(card)


def consumers_duties(exported: Exported, onnx: bool) -> list[str]:
    """A few lines for the console: what users of an exported classifier must do."""
    reading = exported.reading
    decisions = Decisions.of(exported.checkpoint)
    positive = decisions.classes[1]
    lines = [*_reading_lines(reading, inside=onnx)]
    if onnx:
        lines.append(f"outputs: probability (b) of {positive}, calibrated; score (b), the same before calibration")
    else:
        lines.append(f"output: the second number of the softmax, the calibrated probability of {positive}")
    threshold = decisions.probability_threshold
    if threshold is not None:
        score = _score(decisions.thresholds["image"])
        lines.append(
            f"{positive}: from a probability of {_score(threshold)} on, which is a score of {score} before calibration"
        )
    return lines


def _reading_lines(reading: Reading, inside: bool) -> Iterator[str]:
    size = f"{reading.width} × {reading.height} pixels (width × height), {FITTED[reading.resize]}, Lanczos"
    if inside:
        yield f"give: images, uint8 (b 1 h w), grey, 0 black, 255 white; {size}; standardised inside"
    else:
        yield f"give: {'grey' if reading.channels == 1 else 'grey as RGB'} images; {size}"
        yield "the folder's processor resizes and standardises"
    if reading.tone:
        yield f"DICOM: convert it to 8-bit grey first, by {TONES[reading.tone]}"


def _use(exported: Exported, architecture: str | None) -> Iterator[str]:
    decisions = Decisions.of(exported.checkpoint)
    if architecture is None:
        yield (
            f"Input `images`: uint8 (b 1 {exported.reading.height} {exported.reading.width}), any number of them. "
            "Outputs: `probability` (b), calibrated, and `score` (b), the same before calibration, both float32. "
            "The model standardises and calibrates by itself. You need only onnxruntime, numpy and Pillow:"
        )
        threshold = decisions.thresholds.get("image")
        yield ONNX_CODE.format(
            file=json.dumps(f"{exported.name}.onnx"),
            fitting=fitting(exported.reading),
            decision=_in_code("score[0]", threshold, decisions.classes),
        )
        if exported.beside:
            yield f"Its weights are too large for one file and lie in `{exported.beside}` beside it: move both."
        return

    yield (
        f"`{architecture}` of transformers, 4 or 5. The softmax of its two logits is the probability; the head "
        "includes the calibration."
    )
    yield TRANSFORMERS_CODE.format(
        converted=exported.reading.converted,
        fit=_fit_in_code(exported.reading),
        decision=_in_code("probability", decisions.probability_threshold, decisions.classes),
    )


def _in_code(number: str, threshold: float | None, classes: tuple[str, str]) -> str:
    """The last argument of the example's print: which class is called."""
    if threshold is None:
        return ""
    negative, positive = (json.dumps(name) for name in classes)
    return f", {positive} if {number} >= {threshold!r} else {negative}"


def _fit_in_code(reading: Reading) -> str:
    """Code for the fitting that a processor of transformers cannot do by itself."""
    if reading.resize == "squash":
        return ""
    return f"    image = {fitting(reading)}\n"


def _images(reading: Reading) -> Iterator[str]:
    yield f"{described(reading)} Lanczos, antialiased. 8-bit grey; colours are converted to luma (ITU-R BT.601)."
    if reading.tone:
        yield (
            f"DICOM was converted to 8-bit grey by {TONES[reading.tone]}. Do the same before the code above: a raw "
            f"array of 12 or 16 bits is a different picture. mae-cxr's reader does it: "
            f"`data.read_image(path, tone={reading.tone!r})`."
        )
    yield AS_READ


def _decisions(checkpoint: Checkpoint, architecture: str | None) -> Iterator[str]:
    decisions = Decisions.of(checkpoint)
    positive = decisions.classes[1]
    if "image" in decisions.calibrations:
        numbers = decisions.calibration
        yield (
            f"Calibration, fitted on validation: the logit of the score is divided by {numbers.temperature:.4f} and "
            f"{numbers.intercept:+.4f} is added. The order of scores does not change."
        )
        if architecture:  # its model gives only the probability
            yield (
                f"The score of a probability p is sigmoid({numbers.temperature:.4f} · (logit(p) - "
                f"({numbers.intercept:.4f}))); config.json has these numbers in full."
            )
    else:
        yield (
            "The classifier was not calibrated: probability and score are the same number, which need not be a "
            "probability."
        )

    threshold = decisions.probability_threshold
    if threshold is not None:
        origin = origin_of_threshold(config_of(checkpoint).finetune.threshold)
        yield (
            f"An image is called {positive} at a score of {_score(decisions.thresholds['image'])} or more, which is a "
            f"probability of {_score(threshold)}. This threshold was {origin}."
        )
    if "study" in decisions.thresholds:
        study = f"A study is called {positive} if the mean **score** of its images is at least "
        at = _score(decisions.thresholds["study"])
        yield f"{study}{at}. Take the mean of scores, not of calibrated probabilities."

    rows = _operating_points(checkpoint, decisions)
    if rows:
        yield "Other operating points of single images, chosen on validation:"
        yield markdown(rows)


def _operating_points(checkpoint: Checkpoint, decisions: Decisions) -> list[dict[str, str]]:
    found = (checkpoint.meta.get("operating") or {}).get("image") or {}
    rows = []
    for rate in ("sensitivity", "specificity"):
        thresholds = found.get(rate, ())
        if len(thresholds) != len(RATES):
            continue
        for share in RATES_SHOWN:
            score = thresholds[RATES.index(share)]
            rows.append(
                {
                    "On validation at least": f"{rate} {100 * share:g} %",
                    "Score from": _score(score),
                    "Probability from": _score(decisions.probability_of(score)),
                }
            )
    return rows


def _model(exported: Exported, architecture: str | None) -> Iterator[str]:
    yield plain(f"{network(config_of(exported.checkpoint))}.")
    if architecture == "Dinov2ForImageClassification":
        yield (
            "The network is a plain ViT, not a DINOv2. This class of transformers is used because its head reads the "
            "mean of the patch tokens. Its layer scales are 1, and the head's weights for the class token are 0."
        )
    yield _which_weights(exported)


def _which_weights(exported: Exported) -> str:
    epoch = exported.checkpoint.progress.get("epoch")
    after = f"epoch {epoch}; " if isinstance(epoch, int) else ""
    return f"Weights: {after}checkpoint {exported.digest}."


def _training(checkpoint: Checkpoint) -> Iterator[str]:
    config = config_of(checkpoint)
    settings = config.finetune
    how = "All weights were trained" if settings.mode == "full" else "A linear probe was trained on frozen features"
    augmented = "with augmentation" if settings.augment.enabled else "without augmentation"
    images = checkpoint.meta.get("train_images")
    labelled = f" on {images:,} labelled images" if images else ""
    yield plain(f"{how}, {epochs(settings.epochs)}{labelled}, {augmented}. Data: {_sources(checkpoint)}.")

    if settings.init:
        yield "Training began from another program's weights; which images they have seen is not known here."
    elif checkpoint.meta.get("seen_elsewhere"):
        yield (
            "Training began from another program's weights, or from a pretraining that did; which images those have "
            "seen is not known here."
        )
    elif checkpoint.meta.get("pretrained_from"):
        yield "Training began from the weights of a pretraining."
    else:
        yield "Training began from random weights."


def _sources(checkpoint: Checkpoint) -> str:
    """The data sets by the names of their layouts; folders stay private."""
    kinds = [settings.source for settings in checkpoint.config.data.each_source().values()]
    return "; ".join(dict.fromkeys(KNOWN_SOURCES.get(kind, f"own images (source {kind})") for kind in kinds))


def _validation(checkpoint: Checkpoint) -> Iterator[str]:
    auc = _validation_auc(checkpoint)
    if math.isnan(auc):
        return
    cases = checkpoint.meta.get("validate_cases") or {}
    counted = ", ".join(f"{count:,} {name}" for name, count in cases.items())
    yield plain(f"AUC {auc:.3f} on validation images{f' ({counted})' if counted else ''}.")
    yield FLATTERING


def _validation_auc(checkpoint: Checkpoint) -> float:
    """NaN where the checkpoint does not say."""
    auc = checkpoint.meta.get("validate_auc")
    return auc if isinstance(auc, float) else math.nan


def _limitations(checkpoint: Checkpoint) -> Iterator[str]:
    if checkpoint.config.data.source == "phantom":
        yield "The radiographs were synthetic: the numbers say nothing about patients."
    yield (
        "The model was not tested on other hospitals, devices or populations than those of its data. An image of "
        "another kind, such as a hand or a lateral view, gets a number too."
    )


def _licence(exported: Exported) -> Iterator[str]:
    yield plain(f"Licence of the weights that training began from: {spoken(exported.checkpoint.meta.get('license'))}.")
    if exported.owed:
        yield plain(exported.owed)


# ---------------------------------------------------------------- a masked autoencoder


def mae_card(exported: Exported, architecture: str, model: MaskedAutoencoder) -> str:
    """README.md of a pretraining's folder for `architecture` of transformers."""
    front: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": [*TAGS, "masked-autoencoder"],
    }

    card = Card(
        name=exported.name,
        task="",
        license=exported.checkpoint.meta.get("license"),
        written_by=WRITTEN_BY,
        front=front,
        sections=(
            ("Intended use", ("Features of radiographs, and a starting point for classifiers.", INTENDED)),
            ("How to use it", tuple(_use_of_mae(exported, architecture))),
            ("Images", tuple(_images(exported.reading))),
            ("Model", tuple(_model_of_mae(exported, model))),
            ("Training", tuple(_pretraining(exported.checkpoint))),
            ("Limitations", ("It classifies nothing until a classifier is trained on it.",)),
            ("Licence", tuple(_licence(exported))),
        ),
    )
    return model_card(card)


def mae_duties(exported: Exported) -> list[str]:
    """As `consumers_duties`, of a pretraining."""
    output = "output: tokens (b 1+n d), the class token first; our classifiers read the mean of the others"
    return [*_reading_lines(exported.reading, inside=False), output]


def _use_of_mae(exported: Exported, architecture: str) -> Iterator[str]:
    also = ""
    if architecture != "ViTModel":
        also = " `ViTModel` reads its encoder, `ViTForImageClassification.from_pretrained` begins from it."
    yield f"`{architecture}` of transformers, 4 or 5.{also} Features:"
    yield ENCODER_CODE.format(converted=exported.reading.converted, fit=_fit_in_code(exported.reading))


def _model_of_mae(exported: Exported, model: MaskedAutoencoder) -> Iterator[str]:
    encoder = model.encoder
    parameters = sum(weight.numel() for weight in model.parameters())
    yield (
        f"Masked autoencoder: a Vision Transformer of {len(encoder.blocks)} blocks, width {encoder.width}, patches of "
        f"{encoder.patch_size} pixels, and a decoder; {parameters:,} parameters."
    )
    yield _which_weights(exported)


def _pretraining(checkpoint: Checkpoint) -> Iterator[str]:
    settings = checkpoint.config.pretrain
    seen = len(checkpoint.meta.get("seen", ()))
    images = f" on {seen:,} images" if seen else ""
    yield plain(
        f"{epochs(settings.epochs)}{images}, {100 * settings.mask_ratio:g} % masked. Data: {_sources(checkpoint)}."
    )
    if checkpoint.meta.get("seen_elsewhere"):
        yield "Training began from another program's weights; which images they have seen is not known here."


def _score(threshold: float) -> str:
    """With the four decimals that users of an export compare with."""
    return show_threshold(threshold, least=4)
