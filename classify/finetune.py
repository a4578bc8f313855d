"""Stage two: a classifier of normal against abnormal, by one loop for MAE encoder, random ViT and ResNet."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from classify.cases import LabelledSplits, check_unit, splits_of, undecided_studies
from classify.dashboard import show_scores
from classify.domain import remember_domain
from classify.finetune_cost import finetuning_memory, step_of
from classify.metrics import auc_interval, binary_metrics, choose_threshold, thresholds_by_rate
from classify.metrics.recalibration import fit_calibration
from classify.models.build import Model, build_model
from classify.models.classifier import Classifier, layer_scale
from classify.models.resnet import resnet_layer_scale
from classify.scores import in_units, predict_logits, with_scores
from classify.settings import ClassifyConfig, FinetuneSettings, ThresholdRule
from classify.start import beginning, check_fit, file_digest, run_folder
from data.augment import DRAWS, augment
from data.cli import say_nothing
from data.draws import uniform
from data.labels import words
from data.loader import Batch, Data, Loader, image_names, open_data
from data.manifest import digest
from data.settings import FOUND_BY
from data.writing import keep_private, restoring_umask
from mae.batch_size import with_batch_size
from mae.engine import distributed
from mae.engine.checkpoint import Checkpoint, load_checkpoint
from mae.engine.checkpoint_file import checkpoint_file
from mae.engine.console import as_rows, batch_text, best_epoch, ended_text, start_facts
from mae.engine.loop import fit
from mae.engine.optim import adamw, parameter_groups, seeded
from mae.engine.run import Resumable, check_run, configure_torch, holding, is_finished, start_run, training_device
from mae.engine.schedule import schedule_of
from mae.engine.stage import Stage, Validation
from mae.pretrain import credentialed_by
from mae.pretrain import hyperparameters as mae_hyperparameters
from mae.product import with_product
from mae.transformer import configure_blocks

BY_HEART = 0.05  # loss above the floor; a guess without looking is at ln 2 = 0.69
RESUMABLE = Resumable(
    sections=("seed", "precision", "data", "model", "finetune"),
    free=frozenset(
        {
            *("data.store", "data.workers", "data.max_rejected", "data.share", "data.patients", *FOUND_BY),
            "data.unlabelled",  # which stage two never reads
            "finetune.run",
        }
    ),
    epochs="finetune.epochs",
)


@restoring_umask()
def finetune(
    config: ClassifyConfig,
    checkpoint: str | Path | None = None,
    data: Data | None = None,
    say: Callable[[str], None] = say_nothing,
    by_heart: bool = False,
) -> Path:
    """Train a classifier, from a pretraining's checkpoint, weights of others or random ones; returns the run folder.

    say: is told, in one process, what the run begins from and what came of it.
    by_heart: end once the loss shows that these images are learnt by heart (--overfit).

    Raises UserError if checkpoint and config do not fit, a split is empty or holds one class only, or the run folder
    was made by another config.
    """
    # refuse what cannot work before anything is decoded
    if checkpoint:
        checkpoint = checkpoint_file(checkpoint)
    configure_torch(config)
    config, pretrained = beginning(config, checkpoint)
    check_fit(config, pretrained)
    device = training_device(config)
    folder = run_folder(config, checkpoint)
    keep_private(credentialed_by(config, pretrained), config.data.share)
    if data is None:
        check_run(folder, config, RESUMABLE)  # before anything is decoded
        data = open_data(config.data)
    splits = splits_of(data, config)
    check_unit(splits.validate, "validate", config, data.manifest)

    # what the run is made with
    config = with_batch_size(
        config, "finetune", len(splits.train), folder, device, lambda part: finetuning_memory(config, part, device)
    )
    config = with_product(config, folder, device, lambda: step_of(config, config.finetune.batch))

    # a finished run is left alone, an unfinished one resumed; one that was made with anything else is refused
    facts = {
        "store": data.store.fingerprint,
        "labels": splits.fingerprint(),
        "checkpoint": file_digest(checkpoint),
        "init": pretrained.meta.get("init") if pretrained else None,
    }
    check_run(folder, config, RESUMABLE, facts)
    finished = is_finished(folder, config.finetune.epochs)
    if not finished:
        stage = finetune_stage(config, data, splits, device, pretrained)
        if by_heart:
            stage = replace(stage, goal=learnt_loss(config.finetune.label_smoothing))
        if distributed.is_main():
            say(as_rows(_start(folder, config, data, splits, stage, pretrained)))
        with holding(folder):
            check_run(folder, config, RESUMABLE, facts)  # somebody may have begun another one just now
            fit(stage, folder, begin=lambda: start_run(folder, config, facts))

    # which images it knows depends on the best weights, so this waits for the end
    remember_domain(folder, data, device, checkpoint)

    if distributed.is_main():
        say(ended_text(folder, finished))
        say(as_rows(_end(folder, config, data)))
    return folder


def _start(
    folder: Path,
    config: ClassifyConfig,
    data: Data,
    splits: LabelledSplits,
    stage: Stage[Model],
    pretrained: Checkpoint | None,
) -> dict[str, str]:
    """What the run begins from, and its device, images and batch; for the time before it trains."""
    settings = config.finetune
    labelled = int(data.split("train")["label"].count())
    train = f"{_counted(splits.train, data)} to train on"
    if settings.sample is not None:
        train += f" (finetune.sample={settings.sample:,} of {labelled:,} labelled)"
    return start_facts(
        folder,
        begins=_beginning(config, pretrained),
        device=stage.device,
        config=config,
        images=f"{train}, {_counted(splits.validate, data)} to validate on",
        batch=batch_text(settings.batch, stage.batches.batch_size, len(stage.batches)),
    )


def _beginning(config: ClassifyConfig, pretrained: Checkpoint | None) -> str:
    """What is trained, and whose weights it begins from."""
    settings = config.finetune
    how = "all weights are trained" if settings.mode == "full" else "it stays frozen, and a linear probe is trained"
    if pretrained is not None:
        what = "weights of"
        if "init" not in pretrained.meta and pretrained.kind == "mae":
            what = "the pretrained encoder of"
        return f"{what} {pretrained.place}; {how}"
    if settings.model != "vit":
        return f"random weights of a {settings.model}; {how}"
    return f"a random encoder ({config.model.preset}), not a pretrained one: that takes --checkpoint RUN; {how}"


def _counted(table: pd.DataFrame, data: Data) -> str:
    """`516 (258 normal, 258 abnormal)`"""
    counts = [
        f"{int((table['label'] == label).sum()):,} {name}" for label, name in enumerate(words(data.manifest.target))
    ]
    return f"{len(table):,} ({', '.join(counts)})"


def _end(folder: Path, config: ClassifyConfig, data: Data) -> dict[str, str]:
    """What came of the run: the best AUC on the images that chose it, and the threshold."""
    best = load_checkpoint(folder / "best.pt", numbers=False)
    interval = best.meta.get("validate_auc_interval")
    shown = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    cases = best.meta.get("validate_cases", {})
    counts = ", ".join(f"{count:,} {name}" for name, count in cases.items())
    threshold = best.fact("threshold")["image"]
    return {
        "best": f"AUC {best.fact('validate_auc'):.3f}{shown} of {sum(cases.values()):,} validation images ({counts}), "
        f"{best_epoch(best, config.finetune.epochs)}; these images chose it",
        "threshold": f"{threshold:.3f}, chosen on them too ({config.finetune.threshold})",
    }


# ---------------------------------------------------------------- training


def finetune_stage(
    config: ClassifyConfig, data: Data, splits: LabelledSplits, device: torch.device, pretrained: Checkpoint | None
) -> Stage[Model]:
    """What the loop needs to train a classifier."""
    settings = config.finetune

    # only initial weights are drawn from torch's generator; all later draws come from data.draws
    with seeded(config.seed):
        model = build_model(config, pretrained).to(device)
    configure_blocks(model, config.compile, config.activation_checkpointing)
    choice = optimizer_choice(settings, pretrained is not None)

    # each rank reads its own share
    train = Loader(data, splits.train, settings.batch, config.seed, distributed.shard())
    held_out = Loader(data, splits.validate, config.evaluate.batch_size, share=distributed.shard())

    # what the loop calls, with what the loop does not know filled in
    def step(model: Model, batch: Batch, epoch: int) -> Tensor:
        return finetune_step(model, batch, epoch, settings, config.seed)

    def validate_held_out(model: Model, epoch: int) -> Validation:
        return validate(model, held_out, splits.validate, config, device, data.manifest.patients_known)

    def show(model: Model, validation: Validation, board: SummaryWriter, step: int) -> None:
        threshold = validation.meta["threshold"]["image"]
        may_show_images = data.manifest.may_show(config.report.images)
        show_scores(data, validation.details, threshold, board, step, may_show_images)

    return Stage(
        kind="classifier",
        config=config,
        device=device,
        model=model,
        optimizer=_optimizer(model, choice, settings.optimizer.betas),
        settings=settings.optimizer,
        schedule=schedule_of(settings.optimizer, choice.base_lr, train.batch_size, settings.epochs),
        batches=train,
        step=step,
        validate=validate_held_out,
        validate_every=settings.validate_every,
        name_images=lambda batch: image_names(splits.train, batch, data.manifest.may_show(config.report.images)),
        count=lambda batch: (~batch.labels.isnan()).sum(),
        meta=_meta(data, splits, pretrained) | {"credentialed": credentialed_by(config, pretrained)},
        show=show,
        hyperparameters=hyperparameters(config, pretrained, choice, len(splits.train)),
    )


def _meta(data: Data, splits: LabelledSplits, pretrained: Checkpoint | None) -> dict[str, Any]:
    """What the weights owe to a pretraining, and what they were trained on."""
    owed: dict[str, Any] = {"pretrained_from": None, "seen": [], "license": None}
    owed |= {"seen_unread": False, "seen_elsewhere": False}
    if pretrained:
        owed = {
            "pretrained_from": pretrained.place,
            "seen": pretrained.fact("seen"),
            "seen_unread": pretrained.meta.get("seen_unread", False),
            "seen_elsewhere": pretrained.meta.get("seen_elsewhere", False),
            "license": pretrained.meta.get("license"),
        }

    names = words(data.manifest.target)
    return {
        **owed,
        "trained_on": torch.from_numpy(data.trained_on(splits.train)),
        "validated_on": torch.from_numpy(data.trained_on(splits.validate)),
        "train_images": len(splits.train),
        "validate_cases": {name: int((splits.validate["label"] == label).sum()) for label, name in enumerate(names)},
        "images": digest(data.manifest.table, "image_id"),
        "domain": None,  # filled in for best.pt, when the training has ended
    }


@dataclass(frozen=True)
class OptimizerChoice:
    """The optimizer settings that may be null, each with a value."""

    base_lr: float
    weight_decay: float
    layer_decay: float


def optimizer_choice(settings: FinetuneSettings, pretrained: bool) -> OptimizerChoice:
    """The optimizer settings that are null, filled in by mode: an equal chance for every row."""
    if settings.mode == "linear":  # the frozen encoder's layers do not learn at all
        choice = OptimizerChoice(base_lr=1e-2, weight_decay=0.0, layer_decay=1.0)
    elif pretrained:
        choice = OptimizerChoice(base_lr=5e-4, weight_decay=0.05, layer_decay=0.75)
    else:
        choice = OptimizerChoice(base_lr=5e-4, weight_decay=0.05, layer_decay=1.0)

    given = settings.optimizer
    if given.base_lr is not None:
        choice = replace(choice, base_lr=given.base_lr)
    if given.weight_decay is not None:
        choice = replace(choice, weight_decay=given.weight_decay)
    if given.layer_decay is not None:
        choice = replace(choice, layer_decay=given.layer_decay)
    return choice


def _optimizer(model: Model, choice: OptimizerChoice, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; with layer decay, the further a layer is below the head, the smaller its learning rate."""
    scale = resnet_layer_scale(choice.layer_decay)
    if isinstance(model, Classifier):
        scale = layer_scale(choice.layer_decay, len(model.encoder.blocks))
    groups = parameter_groups(model.named_parameters(), choice.weight_decay, scale)
    return adamw(groups, betas)


def hyperparameters(
    config: ClassifyConfig, pretrained: Checkpoint | None, optimizer: OptimizerChoice, labelled: int
) -> dict[str, float | str]:
    """What tells fine-tunings apart in TensorBoard's HParams tab, with the pretraining's own where there was one."""
    settings = config.finetune
    model = config.model.preset if settings.model == "vit" else settings.model

    # the settings of stage one that this stage does not have
    earlier: dict[str, float | str] = {}
    if settings.init is not None:
        earlier = {"init": Path(settings.init).name}
    elif pretrained:
        of_pretraining = mae_hyperparameters(pretrained.config)
        earlier = {name: of_pretraining[name] for name in ("init", "mask_ratio", "decoder")}

    return {
        **earlier,
        "stage": "finetune",
        "model": model,
        "mode": settings.mode,
        "weights": "pretrained" if pretrained else "random",
        "labelled": labelled,
        "labels": config.data.uncertain,
        "base_lr": optimizer.base_lr,
        "weight_decay": optimizer.weight_decay,
        "layer_decay": optimizer.layer_decay,
        "drop_path": settings.drop_path,
        "drop_patches": settings.drop_patches,
        "label_smoothing": settings.label_smoothing,
        "batch_size": settings.batch,
        "epochs": settings.epochs,
        "augment": "on" if settings.augment.enabled else "off",
        "data": config.data.source,
        "image_size": str(config.data.image_size),
        "seed": config.seed,
    }


def finetune_step(model: Model, batch: Batch, epoch: int, settings: FinetuneSettings, seed: int) -> Tensor:
    """The loss of a training batch; what is random in it depends on (seed, epoch, image)."""
    draws = uniform(seed, "augment", epoch, batch.numbers, DRAWS)
    images = model.standardize(augment(batch.images, settings.augment, draws))

    noise = None
    if model.depth_draws:
        noise = uniform(seed, "drop path", epoch, batch.numbers, model.depth_draws)
    patch_noise = None
    if model.patch_draws:
        patch_noise = uniform(seed, "drop patches", epoch, batch.numbers, model.patch_draws)

    return classification_loss(model(images, noise, patch_noise), batch.labels, settings.label_smoothing)


def learnt_loss(smoothing: float) -> float:
    """The loss at which a training has learnt its few images by heart: near its floor, which is 0 without smoothing."""
    floor = sum(-part * math.log(part) for part in (smoothing / 2, 1 - smoothing / 2) if part > 0)
    return floor + BY_HEART


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of logits (b) with labels (b); unknown labels (NaN) carry no gradient."""
    known = ~labels.isnan()
    targets = labels.nan_to_num() * (1 - smoothing) + smoothing / 2

    # unknown labels count as 0: selecting the known ones would mean asking the GPU how many there are
    losses = F.binary_cross_entropy_with_logits(logits.to(targets.dtype), targets, reduction="none")  # b
    loss = losses.masked_fill(~known, 0.0).sum()
    return loss / known.sum().clamp(min=1)


# ---------------------------------------------------------------- validation


def validate(
    model: Model,
    held_out: Loader,
    table: pd.DataFrame,
    config: ClassifyConfig,
    device: torch.device,
    patients_known: bool,
) -> Validation:
    """Validation AUC, loss and accuracy, and the decision thresholds and calibrations, which go into the checkpoint.

    There is one of each for images, and if studies have labels, one for them too: their mean scores are less spread.
    """
    settings = config.finetune

    # each rank predicts its share, and all of them know all predictions
    predicted = distributed.all_gather_rows(predict_logits(model, held_out, device))
    scored = with_scores(table, predicted, config.data.target, "validation")

    # the units that can be counted
    units = {"image": in_units(scored, "image")}
    if undecided_studies(scored, patients_known).empty:
        units["study"] = in_units(scored, "study", patients_known)

    # chosen here, and kept with the weights: other splits have no say in it
    thresholds = {}
    calibrations = {}
    operating = {}
    for unit, cases in units.items():
        thresholds[unit] = decision_threshold(cases, settings.threshold)
        operating[unit] = thresholds_by_rate(cases["label"], cases["score"])
        calibrations[unit] = fit_calibration(cases["label"], cases["logit"]).as_dict()

    logits = torch.tensor(scored["logit"].to_numpy())
    labels = torch.tensor(scored["label"].to_numpy(np.float64))
    loss = classification_loss(logits, labels).item()
    metrics = binary_metrics(labels, scored["score"], thresholds["image"], logits)
    patients = scored["patient_id"] if patients_known else None
    interval = auc_interval(scored["label"], scored["logit"], patients).interval  # scores near 1 are ties
    return Validation(
        metrics={"validate/loss": loss, "validate/auc": metrics.auc, "validate/accuracy": metrics.accuracy},
        score=metrics.auc if settings.select == "auc" else -loss,
        meta={
            "threshold": thresholds,
            "operating": operating,
            "calibration": calibrations,
            "validate_auc": metrics.auc,
            "validate_auc_interval": list(interval) if all(map(math.isfinite, interval)) else None,
            "validate_loss": loss,
        },
        details=scored,
    )


def decision_threshold(units: pd.DataFrame, rule: ThresholdRule) -> float:
    """The threshold that a rule chooses on validation units."""
    if rule == "half":
        return 0.5
    return choose_threshold(units["label"], units["score"], rule)
