"""Stage two: a classifier of normal against abnormal, by one loop for MAE encoder, random ViT and ResNet."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from classify.classifier import Classifier, build_classifier, layer_scale
from classify.metrics import binary_metrics, choose_threshold
from classify.resnet import build_resnet
from data.augment import DRAWS, augment
from data.config import Root, UserError, change_config, expand
from data.draws import uniform
from data.labels import words
from data.loader import Batch, Data, Loader, image_names, open_data
from data.manifest import digest, sample_patients
from data.settings import height_and_width
from mae.engine import distributed
from mae.engine.checkpoint import Checkpoint, load_checkpoint, load_weights
from mae.engine.loop import Stage, Validation, fit
from mae.engine.optim import adamw, autocast, parameter_groups, seeded
from mae.engine.run import check_run, is_finished, start_run, training_device
from mae.model import check_sizes, mae_from
from mae.pretrain import hyperparameters as mae_hyperparameters
from mae.transformer import set_up
from mae.weights import resolve, starting_point

PREPROCESSING = ("image_size", "resize", "tone")  # of the data section: travels with the weights
UNITS = ("image", "study")
SECTIONS = ("seed", "precision", "data", "model", "finetune")  # what a fine-tuning depends on


def finetune(config: Root, checkpoint: str | Path | None = None, data: Data | None = None) -> Path:
    """Train a classifier, from a pretraining's checkpoint, `model.init` or random weights; returns the run folder.

    Raises UserError if checkpoint and config do not fit, a split is empty or holds one class only, or
    the run folder was made by another config.
    """
    config, pretrained = beginning(config, checkpoint)
    device = check_fit(config, pretrained)
    data = data or open_data(config)
    splits = labelled_splits(config, data)
    folder = run_folder(config, checkpoint)
    facts = {
        "store": data.store.fingerprint,
        "labels": splits.fingerprint(),
        "checkpoint": file_digest(checkpoint),
        "init": pretrained.meta.get("init") if pretrained else None,
    }
    check_run(folder, config, SECTIONS, facts)
    if not is_finished(folder, config.finetune.epochs):
        stage = finetune_stage(config, data, splits, device, pretrained)
        start_run(folder, config, facts)
        fit(stage, folder)
    return folder


def beginning(config: Root, checkpoint: str | Path | None) -> tuple[Root, Checkpoint | None]:
    """What a fine-tuning begins from, and the config with its sizes: the checkpoint, else what `model.init` names."""
    if checkpoint:
        return config, load_checkpoint(checkpoint, kind="mae")
    start = starting_point(config) if config.finetune.model == "vit" else None
    return (start.config, start) if start else (config, None)


def resolved(config: Root) -> Root:
    """The config with the sizes that `model.init` brings, where a ViT is to begin from it."""
    return resolve(config) if config.finetune.model == "vit" else config


def run_folder(config: Root, checkpoint: str | Path | None) -> Path:
    """Where a fine-tuning writes."""
    return Path(expand(config.finetune.run or default_folder(config, checkpoint), "finetune.run"))


def default_folder(config: Root, checkpoint: str | Path | None) -> str:
    """`<pretraining's folder>-<mode>`, or `<run>-<model>` (and `-linear`) without a checkpoint."""
    mode = config.finetune.mode
    if checkpoint:
        folder = Path(checkpoint).parent
        return f"{folder if folder.name not in ('', '..') else folder.resolve()}-{mode}"
    return f"{config.run}-{config.finetune.model}" + ("-linear" if mode == "linear" else "")


def config_for(checkpoint: Checkpoint, config: Root | None, overrides: dict) -> Root:
    """The config of a fine-tuning: the checkpoint's, or the given one with the checkpoint's stage one."""
    made = checkpoint.config
    wanted = config or change_config(made, overrides)
    if config is None and wanted.pretrain != made.pretrain:
        raise UserError(f"command line: found pretrain settings changed, expected those of {checkpoint.place}")
    for name in wanted.model.model_fields_set:
        then, now = getattr(made.model, name), getattr(wanted.model, name)
        if then != now:
            raise UserError(
                f"{checkpoint.place}: found model.{name} = {then}, expected {now} by the config; "
                f"leave model.{name} out, or pretrain that size"
            )
    return wanted.model_copy(update={"model": made.model, "pretrain": made.pretrain})


def check_fit(config: Root, pretrained: Checkpoint | None) -> torch.device:
    """The device to train on; UserError if config, checkpoint and machine do not fit, before any data is read."""
    settings = config.finetune
    if pretrained and settings.model != "vit":
        raise UserError(f"finetune.model: found {settings.model}, expected vit with a --checkpoint")
    if settings.mode == "linear" and settings.model != "vit":
        raise UserError(f"finetune.mode: found linear, expected full for {settings.model} from random weights")
    if settings.batch_size == 1 and (settings.mode == "linear" or settings.model != "vit"):
        raise UserError("finetune.batch_size: found 1, expected at least 2 for batch normalisation")
    if pretrained:
        check_preprocessing(pretrained, config)
    if settings.model == "vit":
        check_sizes(config.model, config.data.image_size)
    return training_device(config)


def check_preprocessing(checkpoint: Checkpoint, config: Root) -> None:
    """UserError unless the config reads images as the checkpoint's were: preprocessing travels with the weights."""
    then, now = (one.data.model_dump(mode="json") for one in (checkpoint.config, config))
    for name in PREPROCESSING:
        if then[name] != now[name]:
            raise UserError(
                f"{checkpoint.place}: found data.{name} = {then[name]}, expected {now[name]} by the config; "
                f"give data.{name}={str(then[name]).replace(' ', '')}"
            )


def file_digest(path: str | Path | None) -> str | None:
    """What a checkpoint file holds, in 16 hexadecimal digits."""
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ---------------------------------------------------------------- model and data


def build_model(config: Root, pretrained: Checkpoint | None = None) -> nn.Module:
    """The classifier a config describes, with the pretraining's encoder where one is given."""
    settings, model, size = config.finetune, config.model, config.data.image_size
    if settings.model != "vit":
        small = settings.stem == "small" or (settings.stem == "auto" and min(height_and_width(size)) <= 32)
        stem = "small" if small else "imagenet"
        return build_resnet(settings.model, model.in_channels, 1, stem, model.pixel_mean, model.pixel_std)
    mae = mae_from(model, size)
    if pretrained:
        load_weights(mae, pretrained)
    return build_classifier(mae.encoder, settings.pool, settings.mode == "linear", settings.drop_path)


@dataclass(frozen=True)
class LabelledSplits:
    train: pd.DataFrame
    validate: pd.DataFrame

    def fingerprint(self) -> str:
        """16 hexadecimal digits of what is trained on, and chosen by."""
        return digest(pd.concat([self.train, self.validate]), "image_id", "split", "label")


def labelled_splits(config: Root, data: Data) -> LabelledSplits:
    """The images with a label, the training ones cut to `finetune.sample`; both classes are needed."""
    train = data.split("train")
    if config.finetune.sample:
        train = sample_patients(train, config.finetune.sample, config.data.split_seed, "finetune.sample")
    target = config.data.target
    return LabelledSplits(known(train, "train", target), known(data.split("validate"), "validate", target))


def known(table: pd.DataFrame, split: str, target: str | None) -> pd.DataFrame:
    """The rows with a label; UserError unless both classes are there."""
    labelled = table[table["label"].notna()]
    if labelled.empty:
        raise UserError(f"data: found no labelled image among {len(table)} in split {split!r}, expected some")
    if labelled["label"].nunique() < 2:
        names = words(target)
        what = names[int(labelled["label"].iloc[0])]
        raise UserError(
            f"data: found only {what} images ({len(labelled):,}) in split {split!r}, expected {' and '.join(names)}"
        )
    return labelled


# ---------------------------------------------------------------- training


def finetune_stage(
    config: Root, data: Data, splits: LabelledSplits, device: torch.device, pretrained: Checkpoint | None
) -> Stage:
    """What the loop needs to train a classifier."""
    settings = config.finetune
    with seeded(config.seed):  # all later draws come from data.draws
        model = build_model(config, pretrained).to(device)
    set_up(model, config.compile, config.activation_checkpointing)
    optimizer = optimizer_settings(config, pretrained is not None)
    layers = len(model.encoder.blocks) if isinstance(model, Classifier) else 0
    scale = layer_scale(optimizer.layer_decay, layers)
    groups = parameter_groups(model.named_parameters(), optimizer.weight_decay, scale)
    held_out = Loader(data, splits.validate, config.evaluate.batch_size, share=distributed.shard())
    meta = {
        "pretrained_from": pretrained.place if pretrained else None,
        "seen": pretrained.meta["seen"] if pretrained else [],
        "license": pretrained.meta.get("license") if pretrained else None,
        "train_images": len(splits.train),
        "images": digest(data.manifest.table, "image_id"),
    }
    return Stage(
        kind="classifier",
        config=config,
        device=device,
        model=model,
        optimizer=adamw(groups, settings.betas),
        batches=Loader(data, splits.train, settings.batch_size, config.seed, distributed.shard()),
        step=lambda model, batch, epoch: finetune_step(config, model, batch, epoch),
        validate=lambda model, epoch: validate(config, model, held_out, splits.validate, device),
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        peak_lr=optimizer.base_lr * settings.batch_size / 256,
        min_lr=settings.min_lr * settings.batch_size / 256,
        clip_grad=settings.clip_grad,
        accumulate=settings.accumulate,
        ema=settings.ema,
        name_images=lambda batch: image_names(splits.train, batch),
        meta=meta,
        show=lambda _, validation, board, step: show_scores(config, data, validation, board, step),
        hyperparameters=hyperparameters(config, pretrained, optimizer, len(splits.train)),
    )


@dataclass(frozen=True)
class OptimizerChoice:
    base_lr: float
    weight_decay: float
    layer_decay: float


def optimizer_settings(config: Root, pretrained: bool) -> OptimizerChoice:
    """The config's optimizer settings, what is null filled in by mode: an equal chance for every row."""
    settings = config.finetune
    linear = settings.mode == "linear"

    def either(given: float | None, default: float) -> float:
        return default if given is None else given

    return OptimizerChoice(
        base_lr=either(settings.base_lr, 1e-2 if linear else 5e-4),
        weight_decay=either(settings.weight_decay, 0.0 if linear else 0.05),
        layer_decay=either(settings.layer_decay, 0.75 if pretrained and not linear else 1.0),
    )


def hyperparameters(
    config: Root, pretrained: Checkpoint | None, optimizer: OptimizerChoice, labelled: int
) -> dict[str, float | str]:
    """What tells fine-tunings apart in TensorBoard's HParams tab, with the pretraining's own where there was one."""
    settings, earlier = config.finetune, {}
    if pretrained:
        earlier = {name: mae_hyperparameters(pretrained.config)[name] for name in ("init", "mask_ratio", "decoder")}
    return {
        **earlier,
        "stage": "finetune",
        "model": config.model.preset if settings.model == "vit" else settings.model,
        "mode": settings.mode,
        "weights": "pretrained" if pretrained else "random",
        "labelled": labelled,
        "labels": config.data.uncertain,
        "base_lr": optimizer.base_lr,
        "weight_decay": optimizer.weight_decay,
        "layer_decay": optimizer.layer_decay,
        "drop_path": settings.drop_path,
        "label_smoothing": settings.label_smoothing,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "augment": "on" if settings.augment.enabled else "off",
        "data": config.data.source,
        "image_size": str(config.data.image_size),
        "seed": config.seed,
    }


def finetune_step(config: Root, model: nn.Module, batch: Batch, epoch: int) -> Tensor:
    """The loss of a training batch; augmentation and stochastic depth depend on (seed, epoch, image)."""
    draws = uniform(config.seed, "augment", epoch, batch.numbers, DRAWS)
    images = model.standardize(augment(batch.images, config.finetune.augment, draws))
    noise = None
    if hasattr(model, "encoder"):  # a Classifier, alone or among ranks
        noise = uniform(config.seed, "drop path", epoch, batch.numbers, 2 * len(model.encoder.blocks))
    return classification_loss(model(images, noise), batch.labels, config.finetune.label_smoothing)


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of logits (b) with labels (b); unknown labels (NaN) carry no gradient."""
    known = ~labels.isnan()
    targets = labels[known] * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits[known].to(targets.dtype), targets, reduction="sum")
    return loss / known.sum().clamp(min=1)


def validate(config: Root, model: nn.Module, held_out: Loader, table: pd.DataFrame, device: torch.device) -> Validation:
    """Validation AUC, loss and accuracy, and the decision thresholds, which go into the checkpoint.

    There is a threshold for images and one for studies, whose mean scores are less spread.
    """
    predicted = distributed.interleave(predict_logits(model, held_out, device, config.precision))
    table, logits = readable(table, predicted, config.data.target)
    labels, scores = table["label"].to_numpy(np.float32), torch.sigmoid(logits).numpy()
    loss = classification_loss(logits, torch.from_numpy(labels)).item()
    thresholds = {unit: _threshold(in_units(table, scores, unit), config.finetune.threshold) for unit in UNITS}
    metrics = binary_metrics(labels, scores, thresholds["image"])
    score = metrics.auc if config.finetune.select == "auc" else -loss
    return Validation(
        {"validate/loss": loss, "validate/auc": metrics.auc, "validate/accuracy": metrics.accuracy},
        score,
        {"threshold": thresholds, "validate_auc": metrics.auc, "validate_loss": loss},
        details=table.assign(score=scores),
    )


def show_scores(config: Root, data: Data, validation: Validation, board: SummaryWriter, step: int) -> None:
    """TensorBoard's curves and pictures of a validation."""
    from classify.dashboard import show  # its colours are the report's, which itself builds on this module

    show(config, data, validation.details, validation.meta["threshold"]["image"], board, step)


def _threshold(units: pd.DataFrame, rule: str) -> float:
    return 0.5 if rule == "half" else choose_threshold(units["label"], units["score"], rule)


def in_units(table: pd.DataFrame, scores: np.ndarray, unit: str) -> pd.DataFrame:
    """Scores (n) of the table's images: a row per image, or per study with the mean of its images' scores."""
    columns = ["image_id", "patient_id", "study_id", "label"]
    scored = table[columns].assign(score=scores)
    if unit == "image":
        return scored
    means = {"image_id": "first", "patient_id": "first", "label": "first", "score": "mean"}
    return scored.groupby("study_id", as_index=False, sort=False).agg(means)[[*columns, "score"]]


def predict_logits(model: nn.Module, loader: Loader, device: torch.device, precision: str) -> Tensor:
    """Logits and labels (n 2) on the CPU of the loader's images in order; the model is in evaluation mode already.

    A label is NaN where the image could not be read.
    """
    parts = [torch.empty(0, 2)]
    with autocast(device, precision):
        for batch in loader.epoch():
            logits = model(model.standardize(batch.to(device).images)).float().cpu()
            parts.append(torch.stack([logits, batch.labels], dim=1))
    return torch.cat(parts)


def readable(table: pd.DataFrame, predicted: Tensor, target: str | None) -> tuple[pd.DataFrame, Tensor]:
    """The table's rows whose images could be read, and their logits (n), of what `predict_logits` says of all."""
    there = ~predicted[:, 1].isnan()
    return known(table[there.numpy()], table["split"].iloc[0], target), predicted[there, 0]
