"""Stage one: masked-autoencoder pretraining on radiographs. Only the optional probe uses labels."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from data.augment import DRAWS, augment
from data.cli import say_nothing
from data.config import expand
from data.draws import uniform
from data.errors import NotFinite, UserError
from data.loader import Batch, Data, Loader, image_names, open_data
from data.manifest import digest
from data.privacy import credentialed_sources, credentialed_unlabelled
from data.settings import FOUND_BY, Size
from data.unlabelled import has_unread, with_unlabelled
from data.writing import keep_private, restoring_umask
from mae.batch_size import with_batch_size
from mae.branch import as_begun, branch_of, check_branch
from mae.engine import distributed
from mae.engine.checkpoint import Checkpoint, load_checkpoint, load_weights
from mae.engine.checkpoint_file import stands_somewhere
from mae.engine.console import as_rows, batch_text, best_epoch, ended_text, start_facts
from mae.engine.loop import fit
from mae.engine.optim import adamw, autocast, parameter_groups, seeded
from mae.engine.prefetch import on_device
from mae.engine.run import Resumable, check_run, configure_torch, holding, is_finished, start_run, training_device
from mae.engine.schedule import schedule_of
from mae.engine.stage import Stage, Validation
from mae.mask_noise import mask_noise, predicted_at_random
from mae.model import MaskedAutoencoder, check_sizes, mae_from, normalize_patches
from mae.patches import patchify
from mae.pretrain_cost import pretraining_memory, step_of
from mae.probe import probe
from mae.product import configure_products, with_product
from mae.reconstruct import reconstruct
from mae.settings import MAEConfig, ModelSettings, Precision, PretrainSettings
from mae.transformer import configure_blocks
from mae.weights import starting_point, without_weights

BY_HEART_AT_ONCE = 64  # images
RESUMABLE = Resumable(
    sections=("seed", "precision", "data", "model", "pretrain"),
    free=frozenset(
        {
            *("data.store", "data.workers", "data.max_rejected", "data.share", "data.patients", *FOUND_BY),
            *("pretrain.panel_images", "pretrain.keep_epochs"),
        }
    ),
    epochs="pretrain.epochs",
)


@restoring_umask()
def pretrain(
    config: MAEConfig, data: Data | None = None, say: Callable[[str], None] = say_nothing, by_heart: bool = False
) -> Path:
    """Pretrain into `config.run`, resuming a run that is there; returns the run folder.

    say: is told, in one process, what the run begins from and what came of it.
    by_heart: stop when the loss says that these images are learnt by heart (--overfit).

    Raises UserError if the folder was made by another config, a split is empty or `model.init` does not fit.
    """
    configure_torch(config)
    device = training_device(config)
    start = starting_point(config)
    config = start.config if start else without_weights(config)
    folder = Path(expand(config.run, "run"))
    branch = branch_of(config, folder)
    if branch:
        config = as_begun(config, branch)
    check_run(folder, config, RESUMABLE)  # before anything is decoded
    keep_private(_credentialed(config, start), config.data.share)
    data = data or open_data(config.data)
    if not by_heart:
        data = with_unlabelled(data, config.data)

    check_probed(config, data)

    # what the run is made with
    images = len(data.split("train"))
    config = with_batch_size(
        config, "pretrain", images, folder, device, lambda part: pretraining_memory(config, part, device)
    )
    config = with_product(config, folder, device, lambda: step_of(config, config.pretrain.batch))

    # a run is resumed only with the config, the images and the initial weights that it began with
    facts = _facts(data, start)
    check_run(folder, config, RESUMABLE, facts)

    finished = is_finished(folder, config.pretrain.epochs, config.pretrain.keep_epochs)
    if not finished:
        stage = pretrain_stage(config, data, device, start)
        if branch:
            check_branch(config, branch, stage.meta["seen"], RESUMABLE)
            stage = replace(stage, branch_of=branch)
        if by_heart:
            stage = replace(stage, goal=learnt_loss(stage.model, data))
        if distributed.is_main():
            say(as_rows(_start(folder, config, data, stage, start)))
        with holding(folder):
            check_run(folder, config, RESUMABLE, facts)  # another process may have begun a run here meanwhile
            fit(stage, folder, begin=lambda: start_run(folder, config, facts))
    if distributed.is_main():
        say(ended_text(folder, finished))
        say(as_rows(_end(folder, config, data)))
    return folder


def check_settings(config: MAEConfig) -> None:
    """UserError if the run's folder was made with other settings; `config` has the sizes of its initial weights."""
    folder = Path(expand(config.run, "run"))
    if config.pretrain.continue_from is None or stands_somewhere(folder):  # else it gets settings of another run first
        check_run(folder, config, RESUMABLE)


def check_begun(config: MAEConfig, data: Data) -> None:
    """UserError if the config's run could not begin or resume, because of what it would begin from.

    The reasons: its folder was made with other images or initial weights, weights that it kept are gone,
    `pretrain.continue_from` names nothing that it can continue, or the probe that chooses has no labels. Nothing is
    trained here.
    """
    check_probed(config, data)
    folder = Path(expand(config.run, "run"))
    if stands_somewhere(folder):
        check_run(folder, config, RESUMABLE, _facts(with_unlabelled(data, config.data), starting_point(config)))
        is_finished(folder, config.pretrain.epochs, config.pretrain.keep_epochs)
        return
    branch = branch_of(config, folder)
    if branch:
        seen = _meta(with_unlabelled(data, config.data), starting_point(config))["seen"]
        check_branch(as_begun(config, branch), branch, seen, RESUMABLE)


def _facts(data: Data, start: Checkpoint | None) -> dict[str, Any]:
    """What a run is made with, besides its settings: the images of both stages' splits, and initial weights."""
    return {
        "store": data.store.fingerprint,
        "images": digest(_seen(data), "image_id", "split"),
        "init": start.meta["init"] if start else None,
    }


def _start(
    folder: Path, config: MAEConfig, data: Data, stage: Stage[MaskedAutoencoder], start: Checkpoint | None
) -> dict[str, str]:
    """The facts to print before training: initial weights, device, images and batch."""
    train = len(data.split("train"))
    validate = len(data.split("validate"))
    return start_facts(
        folder,
        begins=f"weights of {start.place}" if start else f"random weights of {config.model.preset}, seed {config.seed}",
        device=stage.device,
        config=config,
        images=f"{train:,} to train on and {validate:,} to validate on, labelled or not",
        batch=batch_text(config.pretrain.batch, stage.batches.batch_size, len(stage.batches)),
    )


def _end(folder: Path, config: MAEConfig, data: Data) -> dict[str, str]:
    """The facts to print after training: the best epoch and its scores."""
    best = load_checkpoint(folder / "best.pt", numbers=False)
    found = [f"reconstruction loss {best.fact('validate_loss'):.4f}"]
    for name, score in best.meta.get("probe", {}).items():
        found.append(f"{name.replace('/', ' ').replace('_', ' ')} {score:.3f}")
    on = f"{len(data.split('validate')):,} validation images"
    return {"best": f"{', '.join(found)} on {on}, {best_epoch(best, config.pretrain.epochs)}"}


def credentialed_by(config: MAEConfig, start: Checkpoint | None) -> list[str]:
    """The credentialed data sets that a run of this config, or its initial weights, learned from."""
    earlier = start.credentialed if start else ()
    return sorted({*credentialed_sources(config.data), *earlier})


def _credentialed(config: MAEConfig, start: Checkpoint | None) -> list[str]:
    """The same for a pretraining, which also learns from the images of `data.unlabelled`."""
    return sorted({*credentialed_by(config, start), *credentialed_unlabelled(config.data)})


def check_model(model: ModelSettings, pretrain: PretrainSettings, image_size: Size) -> None:
    """UserError if the model's settings do not fit each other or the data, before anything is read or built."""
    check_sizes(model, image_size)
    if pretrain.predict_ratio is not None and model.decoder == "self":
        raise UserError("pretrain.predict_ratio: found it with model.decoder = self, expected model.decoder=cross")
    if pretrain.visible_loss and model.decoder == "cross":
        raise UserError("pretrain.visible_loss: found it with model.decoder = cross, expected model.decoder=self")


def check_probed(config: MAEConfig, data: Data) -> None:
    """UserError if the probe is to choose best.pt and can never be made: it takes both classes in both splits."""
    if config.pretrain.select != "probe":
        return
    for split in ("train", "validate"):
        classes = data.split(split)["label"].nunique()
        if classes < 2:
            raise UserError(
                f"pretrain.select: found probe and labels of {classes} classes among the {split} images, expected 2; "
                "give pretrain.select=reconstruction"
            )


def _seen(data: Data) -> pd.DataFrame:
    """The images that a pretraining is trained on or selected by."""
    return pd.concat([data.split("train"), data.split("validate")])


# ---------------------------------------------------------------- training


def pretrain_stage(
    config: MAEConfig, data: Data, device: torch.device, start: Checkpoint | None = None
) -> Stage[MaskedAutoencoder]:
    """What the loop needs to pretrain from `start` or random weights, on every training image, labelled or not."""
    settings = config.pretrain
    optimizer = settings.optimizer

    # the initial weights; a resumed run gets its weights from the loop
    with seeded(config.seed):  # all later draws come from data.draws
        model = mae_from(config.model, config.data.image_size)
    if start:
        load_weights(model, start)
    configure_blocks(model.to(device), config.compile, config.activation_checkpointing)
    configure_products(model, config.product)

    # each rank reads its share of the images; without gradients, too, it takes as many at once as in a step
    train = data.split("train")
    batches = Loader(data, train, settings.batch, config.seed, distributed.shard())
    at_once = max(settings.batch // (distributed.world_size() * optimizer.accumulate), 1)
    held_out = Loader(data, data.split("validate"), at_once, share=distributed.shard())
    pictured = Loader(data, data.split("validate"), settings.panel_images, share=distributed.shard())

    # what the loop asks for
    def step(model: MaskedAutoencoder, batch: Batch, epoch: int) -> Tensor:
        return pretrain_step(model, batch, epoch, settings, config.seed)

    def validate_and_probe(model: MaskedAutoencoder, epoch: int) -> Validation:
        def probe_scores() -> dict[str, float]:
            return run_probe(model, data, at_once, device, config.precision)

        validation = validate(model, held_out, settings.mask_ratio, device, config.precision)
        return with_probe(settings, validation, epoch, probe_scores)

    def show(model: MaskedAutoencoder, validation: Validation, board: SummaryWriter, step: int) -> None:
        if settings.panel_images and data.manifest.may_show(config.report.images):
            show_panel(model, pictured, settings, board, step, device)

    return Stage(
        kind="mae",
        config=config,
        device=device,
        model=model,
        optimizer=adamw(parameter_groups(model.named_parameters(), optimizer.weight_decay), optimizer.betas),
        settings=optimizer,
        schedule=schedule_of(optimizer, optimizer.base_lr, batches.batch_size, settings.epochs),
        batches=batches,
        step=step,
        validate=validate_and_probe,
        validate_every=settings.validate_every,
        probe_every=settings.probe_every,
        keep_epochs=settings.keep_epochs,
        name_images=lambda batch: image_names(train, batch, data.manifest.may_show(config.report.images)),
        meta=_meta(data, start) | {"credentialed": _credentialed(config, start)},
        show=show,
        hyperparameters=hyperparameters(config),
    )


def _meta(data: Data, start: Checkpoint | None) -> dict[str, Any]:
    """What the weights owe to others: the images they have seen and, if they did not begin random, their licence.

    seen_unread: some images cannot be recognised again, as their files had not been read (`data.store: false`).
    seen_elsewhere: the weights began as another program's, and it is unknown which images those had seen.
    """
    seen = torch.from_numpy(np.unique(data.identities(_seen(data))))
    unread = has_unread(data)
    if not start:
        return {"seen": seen, "seen_unread": unread, "seen_elsewhere": False}
    earlier = torch.as_tensor(start.meta["seen"], dtype=seen.dtype)
    return {
        "seen": torch.cat([seen, earlier]),
        "seen_unread": unread or start.meta["seen_unread"],
        "seen_elsewhere": start.meta["seen_elsewhere"],
        "license": start.meta["license"],
    }


def hyperparameters(config: MAEConfig) -> dict[str, float | str]:
    """What tells pretrainings apart in TensorBoard's HParams tab."""
    model = config.model
    settings = config.pretrain

    # values are numbers or words: the tab would show True as 1.0000
    return {
        "stage": "pretrain",
        "model": model.preset,
        "init": Path(model.init).name if model.init else "random",
        "mask_ratio": settings.mask_ratio,
        "decoder": model.decoder,
        "target": "normalised" if model.norm_pixel_loss else "grey levels",
        "base_lr": settings.optimizer.base_lr,
        "weight_decay": settings.optimizer.weight_decay,
        "batch_size": settings.batch,
        "epochs": settings.epochs,
        "augment": "on" if settings.augment.enabled else "off",
        "data": config.data.source,
        "image_size": str(config.data.image_size),
        "seed": config.seed,
    }


def learnt_loss(model: MaskedAutoencoder, data: Data) -> float:
    """The loss at which a training has learnt its few images by heart: half the loss of the best blind guess.

    A model that sees no patch does best to predict each patch's mean over the images, and its loss is the variance
    around it. For a lower loss, a model must tell from the visible patches which of the images it sees.
    """
    device = next(model.parameters()).device
    patches = []
    for batch in Loader(data, data.split("train"), BY_HEART_AT_ONCE).epoch():
        images = model.encoder.standardize(batch.images.to(device))
        patches.append(patchify(images, model.encoder.patch_size).cpu())
    target = torch.cat(patches)  # b n p·p·c
    if model.norm_pixel_loss:
        target = normalize_patches(target)
    blind = target.var(0, correction=0).mean().item()
    alike = 0.02 * target.square().mean().item()  # identical images have no variance
    return max(blind / 2, alike)


def pretrain_step(model: MaskedAutoencoder, batch: Batch, epoch: int, settings: PretrainSettings, seed: int) -> Tensor:
    """The loss of a training batch; crops and masks depend on (seed, epoch, image)."""
    encoder = model.encoder
    draws = uniform(seed, "augment", epoch, batch.numbers, DRAWS)
    images = encoder.standardize(augment(batch.images, settings.augment, draws))  # b c h w
    patches = patchify(images, encoder.patch_size)  # b n p·p·c

    def draw(purpose: str, count: int) -> Tensor:
        return uniform(seed, purpose, epoch, batch.numbers, count)

    noise = mask_noise(settings.masking, seed, draw, patches, encoder.grid)  # b n
    if settings.predict_ratio is not None and settings.masking != "random":  # else the plainest would be predicted
        noise = predicted_at_random(noise, settings.mask_ratio, draw("predicted", noise.shape[1]))
    return model(images, settings.mask_ratio, noise, settings.predict_ratio, settings.visible_loss).loss


# ---------------------------------------------------------------- validation


def validate(
    model: MaskedAutoencoder, held_out: Loader, mask_ratio: float, device: torch.device, precision: Precision
) -> Validation:
    """Reconstruction loss on the validation images, under the same masks every time."""
    total = torch.zeros((), device=device)
    count = torch.zeros((), device=device)
    for _, batch in on_device(held_out.epoch(), device):
        noise = uniform(0, "validate", 0, batch.numbers, model.patches)  # b n
        with autocast(device, precision):
            loss = model(model.encoder.standardize(batch.images), mask_ratio, noise).loss
        total += loss * len(noise)
        count += len(noise)

    # every rank has seen its share
    mean = (distributed.all_reduce_sum(total) / distributed.all_reduce_sum(count)).item()
    if not math.isfinite(mean):
        raise NotFinite(f"validation: found a loss of {mean}, expected a number")
    return Validation({"validate/loss": mean}, score=-mean, meta={"validate_loss": mean})


def with_probe(
    settings: PretrainSettings, validation: Validation, epoch: int, probe_scores: Callable[[], dict[str, float]]
) -> Validation:
    """The validation with the probe's scores, in epochs that have one; `pretrain.select`: which score picks best.pt."""
    every = settings.probe_every
    scores: dict[str, float] = {}
    if every is not None and (epoch % every == 0 or epoch == settings.epochs):
        scores = probe_scores()

    # the highest score is kept; if the probe decides, an epoch without a probe cannot win
    score = validation.score
    if settings.select == "probe":
        score = scores.get("probe/logistic_auc", -math.inf)
    return Validation(validation.metrics | scores, score, validation.meta | {"probe": scores})


def run_probe(
    model: MaskedAutoencoder, data: Data, batch_size: int, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Probe scores of the encoder: labelled training images → validation images."""
    loaders: list[Loader] = []
    for split in ("train", "validate"):
        table = data.split(split)
        labelled = table[table["label"].notna()]
        loaders.append(Loader(data, labelled, batch_size, share=distributed.shard()))
    train, held_out = loaders
    return probe(model.encoder, train, held_out, device, precision)


def show_panel(
    model: MaskedAutoencoder,
    held_out: Loader,
    settings: PretrainSettings,
    board: SummaryWriter,
    step: int,
    device: torch.device,
) -> None:
    """TensorBoard's reconstruction panel of the first validation images."""
    batch = next(held_out.epoch()).to(device)
    first = Batch(*(column[: settings.panel_images] for column in batch))
    board.add_image("reconstruction", panel(model, first, settings.mask_ratio), step)


def panel(model: MaskedAutoencoder, batch: Batch, mask_ratio: float) -> Tensor:
    """Original | masked | reconstruction | mix, an image a row: grey levels in 0..1 (1 h w)."""
    noise = uniform(0, "validate", 0, batch.numbers, model.patches)  # b n
    pictures = reconstruct(model, batch.images, mask_ratio, noise)
    return rearrange(list(pictures), "four b 1 h w -> 1 (b h) (four w)")
