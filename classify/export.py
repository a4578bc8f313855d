"""Checkpoints exported: as folders that Hugging Face's transformers loads, and as ONNX files."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from classify.decisions import Decisions
from classify.metrics.recalibration import Calibration
from classify.models.build import Model
from classify.models.classifier import Classifier
from classify.models.resnet import OFFSET, SHAPES, ResNet
from classify.models.resnet_weights import name_in_transformers
from classify.report.checklist_facts import OF_DICOM
from classify.report.exported import (
    WRITTEN_BY,
    Exported,
    classifier_card,
    consumers_duties,
    mae_card,
    mae_duties,
)
from classify.settings import ClassifyConfig
from classify.start import config_of, file_digest
from classify.trained import model_of
from data.errors import UserError
from data.folders import written_by_one
from data.settings import Tone, height_and_width
from data.writing import keep_private, restoring_umask, write_text
from mae.engine.checkpoint import Checkpoint, load_checkpoint
from mae.engine.run import commit
from mae.reconstruct import model_of as autoencoder_of
from mae.weights import save_encoder, save_huggingface
from mae.weights.licenses import spoken
from mae.weights.reading import Reading
from mae.weights.save import write_folder

Format = Literal["huggingface", "onnx"]


@restoring_umask()
def export(
    checkpoint: str | Path, out: str | Path, format: Format | None = None, say: Callable[[str], None] = print
) -> None:
    """Write a masked autoencoder as ViTMAEForPreTraining, a classifier for transformers or as an ONNX file.

    format: null decides by the name of `out`: *.onnx is an ONNX file, anything else a folder for transformers. Raises
    UserError for a name that no such file can have, for a pretraining as ONNX, and for classifiers that transformers
    has no model for or would compute differently.
    """
    format = format or ("onnx" if Path(out).suffix.lower() == ".onnx" else "huggingface")
    if not Path(out).name:  # such as `.`
        raise UserError(f"{out}: found no name, expected that of a folder or file to write")
    if format == "onnx":
        expect_file(Path(out))
    loaded = load_checkpoint(checkpoint)
    keep_private(loaded.credentialed, loaded.config.data.share)
    exported = Exported(
        name=Path(out).absolute().name.removesuffix(".onnx"),
        checkpoint=loaded,
        reading=reading_of(loaded),
        digest=file_digest(loaded.place) or "",
    )
    if exported.owed:
        say(exported.owed)

    if loaded.kind == "classifier":
        if format == "onnx":
            _export_onnx(exported, Path(out), say)
        else:
            _export_classifier(exported, out, say)
    elif format == "onnx":
        raise UserError(
            f"{loaded.place}: found a pretraining, expected a classifier, of which ONNX files are made; train one with "
            f"mae-finetune --checkpoint {shlex.quote(loaded.place)}, or give a folder for transformers"
        )
    else:
        _export_mae(exported, out, say)


def reading_of(checkpoint: Checkpoint) -> Reading:
    """How images were read, by the checkpoint's settings."""
    config = checkpoint.config
    height, width = height_and_width(config.data.image_size)
    channels = config.model.in_channels
    return Reading(
        height=height,
        width=width,
        channels=channels,
        mean=_each(config.model.pixel_mean, channels),
        std=_each(config.model.pixel_std, channels),
        resize=config.data.resize,
        tone=_tone_of(checkpoint),
    )


def _each(value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (value,) * channels if isinstance(value, float) else tuple(value)


def _tone_of(checkpoint: Checkpoint) -> Tone | None:
    """How DICOMs were made grey; None where no DICOM can have been among the images."""
    data = checkpoint.config.data
    if any(part.source in OF_DICOM for part in data.each_source().values()):
        return data.tone
    return None


# ---------------------------------------------------------------- for transformers


def _export_mae(exported: Exported, folder: str | Path, say: Callable[[str], None]) -> None:
    loaded = exported.checkpoint
    config = loaded.config
    model = autoencoder_of(loaded)
    save_huggingface(
        model,
        folder,
        license=loaded.meta.get("license"),
        say=say,
        resize=config.data.resize,
        card=lambda architecture: mae_card(exported, architecture, model),
    )
    _say_duties(mae_duties(exported), Path(folder) / "README.md", say)


def _export_classifier(exported: Exported, folder: str | Path, say: Callable[[str], None]) -> None:
    loaded = exported.checkpoint
    config = config_of(loaded)
    model = model_of(loaded, torch.device("cpu"))
    architecture = architecture_for(model, config, loaded.place)

    # what config.json says of classes and decisions: calibration is in the head
    decisions = Decisions.of(loaded)
    names = {str(number): label for number, label in enumerate(decisions.classes)}
    threshold = decisions.probability_threshold
    described = {
        "id2label": names,
        "label2id": {label: int(number) for number, label in names.items()},
        "threshold": None if threshold is None else {"image": threshold},
        "score_threshold": decisions.thresholds or None,  # of probabilities before calibration; a study's mean
        "calibration": decisions.calibrations or None,
    }

    def card(architecture: str) -> str:
        return classifier_card(exported, architecture)

    heads = heads_of(model, decisions.calibration)
    license = loaded.meta.get("license")
    if isinstance(model, Classifier):
        save_encoder(
            model.encoder,
            folder,
            architecture=architecture,
            heads=heads,
            config=described,
            license=license,
            say=say,
            resize=config.data.resize,
            card=card,
        )
    else:
        trunk = {name_in_transformers(name): tensor for name, tensor in model.state_dict().items() if _in_trunk(name)}
        settings = resnet_config(config) | described
        write_folder(folder, trunk | heads, settings, exported.reading, license, say, card)
    _say_duties(consumers_duties(exported, onnx=False), Path(folder) / "README.md", say)


def architecture_for(model: Model, config: ClassifyConfig, place: str) -> str:
    """The class of transformers that computes the same; UserError where there is none."""
    otherwise = "give --out FILE.onnx for an ONNX file, which holds every classifier"
    if isinstance(model, ResNet):
        if model.conv1.kernel_size != (7, 7):
            raise UserError(
                f"{place}: found a ResNet with a stem of 3x3, expected 7x7: transformers has no other; {otherwise}"
            )
        if model.state_dict().get(OFFSET, torch.zeros(1)).any():
            raise UserError(
                f"{place}: found a ResNet from weights made for images standardised otherwise, expected one whose "
                f"first layer adds nothing: transformers has no other; {otherwise}"
            )
        return "ResNetForImageClassification"

    # transformers' ViT reads the class token; its DINOv2, the same network by other names, reads the patches' mean too
    if config.finetune.pool == "cls":
        return "ViTForImageClassification"
    height, width = height_and_width(config.data.image_size)
    if height != width:
        raise UserError(
            f"{place}: found finetune.pool mean and images of {height}x{width}, expected square ones or pool cls: "
            f"transformers reads no others; {otherwise}"
        )
    return "Dinov2ForImageClassification"


def _in_trunk(name: str) -> bool:
    return not name.startswith(("fc.", "norm.")) and name != OFFSET


def resnet_config(config: ClassifyConfig) -> dict[str, object]:
    """What transformers' config.json says of a ResNet."""
    block, depths = SHAPES[config.finetune.model]
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": config.model.in_channels,
        "embedding_size": 64,
        "hidden_sizes": [block.expansion * width for width in (64, 128, 256, 512)],
        "depths": list(depths),
        "layer_type": "basic" if block.expansion == 1 else "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


@torch.no_grad()
def heads_of(model: Model, calibration: Calibration) -> dict[str, Tensor]:
    """The classifier's tensors by transformers' names: it has a logit for each class, ours is second minus first.

    Its softmax is the calibrated probability: temperature and intercept are linear too, and are folded in.
    """
    weight, bias = linear_head(model)
    weight = weight / calibration.temperature
    bias = bias / calibration.temperature + calibration.intercept

    name = "classifier"
    if isinstance(model, ResNet):
        name = "classifier.1"  # after the layer that flattens
    elif model.pool != "cls":  # it reads class token and mean, concatenated
        weight = torch.cat([torch.zeros_like(weight), weight])
    return {
        f"{name}.weight": torch.stack([torch.zeros_like(weight), weight]).float(),
        f"{name}.bias": torch.stack([torch.zeros_like(bias), bias]).float(),
    }


@torch.no_grad()
def linear_head(model: Model) -> tuple[Tensor, Tensor]:
    """Weight (d) and bias () of the logit as a linear function of pooled features, 64 bits; includes a probe's norm."""
    head = model.fc if isinstance(model, ResNet) else model.head
    weight = head.weight[0].double()
    bias = head.bias[0].double()

    # w · (x - mean) / deviation + b = (w / deviation) · x + (b - (w / deviation) · mean)
    if isinstance(model.norm, nn.BatchNorm1d):
        mean, variance = model.norm.running_mean, model.norm.running_var
        assert mean is not None and variance is not None
        weight = weight / (variance.double() + model.norm.eps).sqrt()
        bias = bias - weight @ mean.double()
    return weight, bias


# ---------------------------------------------------------------- as ONNX


def _export_onnx(exported: Exported, path: Path, say: Callable[[str], None]) -> None:
    from classify.onnx_file import data_file, expect_onnx, write_onnx

    expect_onnx()
    card = path.with_suffix(".md")
    _expect_card(card)
    model = model_of(exported.checkpoint, torch.device("cpu"))
    reading = exported.reading
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_by_one(path):
        difference = write_onnx(
            model,
            calibration=Decisions.of(exported.checkpoint).calibration,
            size=(reading.height, reading.width),
            path=path,
            metadata=metadata_of(exported),
        )
        if data_file(path).exists():
            exported = replace(exported, beside=data_file(path).name)
            say(f"{path}: its weights are in {exported.beside} beside it: move both")
        write_text(card, classifier_card(exported, architecture=None))
    licence = spoken(exported.checkpoint.meta.get("license"))
    say(f"{path}: written; probabilities within {difference:.1g} of ours on random images; licence {licence}")
    _say_duties(consumers_duties(exported, onnx=True), card, say)


def expect_file(path: Path) -> None:
    """UserError if no ONNX file can be written there, or if its name would not show that it is one."""
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected the name of a file to write, such as {path / 'model.onnx'}")
    if path.suffix != ".onnx":
        raise UserError(f"{path}: found no name with .onnx, expected one such as {path.with_suffix('.onnx')}")


def _expect_card(path: Path) -> None:
    """UserError if a text that mae-export did not write has the card's name."""
    if path.is_file() and WRITTEN_BY not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{path}: found a text of somebody's, expected none, or one that mae-export wrote; rename it")


def metadata_of(exported: Exported) -> dict[str, str]:
    """What an ONNX file says of itself, each as JSON: thresholds, classes, how images are read, where it is from."""
    decisions = Decisions.of(exported.checkpoint)
    reading = exported.reading
    facts = {
        "task": "image-classification",
        "classes": decisions.classes,
        "score_threshold": decisions.thresholds,
        "probability_threshold": decisions.probability_threshold,
        "calibration": decisions.calibrations,
        "image_size": [reading.height, reading.width],
        "resize": reading.resize,
        "resampling": "lanczos",
        "tone": reading.tone,
        "pixels": "uint8, grey, 0 black",
        "pixel_mean": reading.mean,
        "pixel_std": reading.std,
        "license": exported.checkpoint.meta.get("license"),
        "terms": exported.owed or None,
        "checkpoint": exported.digest,
        "commit": commit(),
        "intended_use": "research; not a medical device",
    }
    return {name: json.dumps(fact) for name, fact in facts.items()}


def _say_duties(lines: list[str], readme: Path, say: Callable[[str], None]) -> None:
    for line in lines:
        say(f"  {line}")
    say(f"  code that does all this: {readme}")
