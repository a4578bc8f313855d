"""Checkpoints as folders that Hugging Face's transformers loads."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from classify.models.build import build_model
from classify.models.classifier import Classifier
from classify.start import config_of
from data.errors import UserError
from data.labels import words
from data.privacy import terms
from data.writing import keep_private, restoring_umask
from mae.engine.checkpoint import Checkpoint, expect_fit, load_checkpoint, load_weights
from mae.model import mae_from
from mae.weights import save_encoder, save_huggingface


@restoring_umask()
def export(checkpoint: str | Path, folder: str | Path, say: Callable[[str], None] = print) -> None:
    """Write a masked autoencoder as ViTMAEForPreTraining, a classifier as ViTForImageClassification.

    Raises UserError for classifiers that transformers has no model for.
    """
    loaded = load_checkpoint(checkpoint)
    keep_private(loaded.credentialed, loaded.config.data.share)
    owed = terms(loaded.credentialed) if loaded.credentialed else ""
    if owed:
        say(owed)
    if loaded.kind == "classifier":
        _export_classifier(loaded, folder, say, owed)
        return

    config = loaded.config
    expect_fit(lambda: mae_from(config.model, config.data.image_size), loaded)
    model = mae_from(config.model, config.data.image_size)
    load_weights(model, loaded)
    save_huggingface(model, folder, loaded.meta.get("license"), say, config.data.resize, owed)


def _export_classifier(loaded: Checkpoint, folder: str | Path, say: Callable[[str], None], owed: str) -> None:
    # transformers' classifier is a linear head on the class token of a ViT
    config = config_of(loaded)
    if config.finetune.model != "vit":
        raise UserError(f"{loaded.place}: found {config.finetune.model}, expected a ViT: export writes no other")
    if config.finetune.pool != "cls":
        raise UserError(
            f"{loaded.place}: found finetune.pool = {config.finetune.pool}, expected cls: "
            "ViTForImageClassification reads the class token"
        )
    expect_fit(lambda: build_model(config), loaded)
    model = build_model(config)
    assert isinstance(model, Classifier)
    load_weights(model, loaded)

    # it has a logit for each class; ours is the second minus the first
    weight, bias = linear_head(model)
    heads = {
        "classifier.weight": torch.stack([0 * weight, weight]),
        "classifier.bias": torch.stack([0 * bias, bias]),
    }

    # what config.json says of the classes
    names = {str(number): label for number, label in enumerate(words(config.data.target))}
    described = {
        "id2label": names,
        "label2id": {label: int(number) for number, label in names.items()},
        "threshold": loaded.meta.get("threshold"),  # chosen on validation, for an image and for a study's mean
    }
    save_encoder(
        model.encoder,
        folder,
        architecture="ViTForImageClassification",
        heads=heads,
        config=described,
        license=loaded.meta.get("license"),
        say=say,
        resize=config.data.resize,
        owed=owed,
    )


@torch.no_grad()
def linear_head(model: Classifier) -> tuple[Tensor, Tensor]:
    """Weight (d) and bias () of the logit as a linear function of pooled features: a probe's norm is folded in."""
    weight = model.head.weight[0].double()
    bias = model.head.bias[0].double()

    # w · (x - mean) / deviation + b = (w / deviation) · x + (b - (w / deviation) · mean)
    if isinstance(model.norm, nn.BatchNorm1d):
        mean, variance = model.norm.running_mean, model.norm.running_var
        assert mean is not None and variance is not None
        weight = weight / (variance.double() + model.norm.eps).sqrt()
        bias = bias - weight @ mean.double()
    return weight.float(), bias.float()
