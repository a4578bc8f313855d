"""Stage one: masked-autoencoder pretraining on radiographs. Labels serve the optional probe, and nothing else."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from data.augment import DRAWS, augment
from data.config import Root, UserError, expand
from data.draws import uniform
from data.loader import Batch, Data, Loader, image_names, open_data
from data.manifest import Manifest, digest, image_hashes
from mae.engine import distributed
from mae.engine.checkpoint import Checkpoint, load_weights
from mae.engine.loop import Stage, Validation, fit
from mae.engine.optim import adamw, autocast, parameter_groups, seeded
from mae.engine.run import check_run, is_finished, start_run, training_device
from mae.model import MaskedAutoencoder, check_sizes, mae_from
from mae.probe import probe
from mae.reconstruct import reconstruct
from mae.transformer import set_up
from mae.weights import starting_point

SECTIONS = ("seed", "precision", "data", "model", "pretrain")  # what a pretraining depends on


def pretrain(config: Root, data: Data | None = None) -> Path:
    """Pretrain into `config.run`, continuing what stands there; returns the run folder.

    Raises UserError if the folder was made by another config, a split is empty or `model.init` does not fit.
    """
    device, start = training_device(config), starting_point(config)
    config = start.config if start else config
    data = data or open_data(config)
    folder = Path(expand(config.run, "run"))
    facts = {
        "store": data.store.fingerprint,
        "images": digest(_seen(data), "image_id", "split"),
        "init": start.meta["init"] if start else None,
    }
    check_run(folder, config, SECTIONS, facts)
    if not is_finished(folder, config.pretrain.epochs):
        stage = pretrain_stage(config, data, device, start)
        start_run(folder, config, facts)
        fit(stage, folder)
    return folder


def check_model(config: Root) -> None:
    """UserError where the model's settings do not fit together or the data, before anything is read or built."""
    check_sizes(config.model, config.data.image_size)
    if config.pretrain.predict_ratio is not None and config.model.decoder == "self":
        raise UserError("pretrain.predict_ratio: found it with model.decoder = self, expected model.decoder=cross")


def _seen(data: Data) -> pd.DataFrame:
    """The images a pretraining learns from or is chosen by."""
    return pd.concat([data.split("train"), data.split("validate")])


def pretrain_stage(config: Root, data: Data, device: torch.device, start: Checkpoint | None = None) -> Stage:
    """What the loop needs to pretrain, from `start` or from random weights: every training image, labelled or not."""
    settings = config.pretrain
    with seeded(config.seed):  # all later draws come from data.draws
        model = mae_from(config.model, config.data.image_size)
    if start:
        load_weights(model, start)
    set_up(model.to(device), config.compile, config.activation_checkpointing)
    optimizer = settings.optimizer
    scale = settings.batch_size / 256  # linear scaling rule (Goyal et al. 2017), as in the paper
    train = data.split("train")
    held_out = Loader(data, data.split("validate"), settings.batch_size, share=distributed.shard())
    return Stage(
        kind="mae",
        config=config,
        device=device,
        model=model,
        optimizer=adamw(parameter_groups(model.named_parameters(), optimizer.weight_decay), optimizer.betas),
        batches=Loader(data, train, settings.batch_size, config.seed, distributed.shard()),
        step=lambda model, batch, epoch: pretrain_step(config, model, batch, epoch),
        validate=lambda model, epoch: with_probe(
            config, validate(config, model, held_out, device), epoch, lambda: run_probe(config, data, model, device)
        ),
        epochs=settings.epochs,
        warmup_epochs=optimizer.warmup_epochs,
        peak_lr=optimizer.base_lr * scale,
        min_lr=optimizer.min_lr * scale,
        clip_grad=optimizer.clip_grad,
        validate_every=settings.validate_every,
        accumulate=settings.accumulate,
        ema=settings.ema,
        name_images=lambda batch: image_names(train, batch),
        meta=_meta(data, start),
        show=lambda model, _, board, step: show_panel(config, model, held_out, data.manifest, board, step, device),
        hyperparameters=hyperparameters(config),
    )


def _meta(data: Data, start: Checkpoint | None) -> dict[str, Any]:
    """What the weights owe to others: the images they have seen and, where they were not random, their licence."""
    seen = torch.from_numpy(image_hashes(_seen(data)["image_id"]))
    if not start:
        return {"seen": seen}
    earlier = torch.as_tensor(start.meta["seen"], dtype=seen.dtype)
    return {"seen": torch.cat([seen, earlier]), "license": start.meta["license"]}


def hyperparameters(config: Root) -> dict[str, float | str]:
    """What tells pretrainings apart in TensorBoard's HParams tab."""
    model, settings = config.model, config.pretrain
    return {
        "stage": "pretrain",
        "model": model.preset,
        "init": Path(model.init).name if model.init else "random",
        "mask_ratio": settings.mask_ratio,
        "decoder": model.decoder,
        "target": "normalised" if model.norm_pixel_loss else "grey levels",
        "base_lr": settings.optimizer.base_lr,
        "weight_decay": settings.optimizer.weight_decay,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "augment": "on" if settings.augment.enabled else "off",  # words: the tab shows truth as 1.0000
        "data": config.data.source,
        "image_size": str(config.data.image_size),
        "seed": config.seed,
    }


def pretrain_step(config: Root, model: MaskedAutoencoder, batch: Batch, epoch: int) -> Tensor:
    """The loss of a training batch; crops and masks depend on (seed, epoch, image)."""
    draws = uniform(config.seed, "augment", epoch, batch.numbers, DRAWS)
    images = model.encoder.standardize(augment(batch.images, config.pretrain.augment, draws))
    noise = uniform(config.seed, "mask", epoch, batch.numbers, model.patches)
    return model(images, config.pretrain.mask_ratio, noise, config.pretrain.predict_ratio).loss


def validate(config: Root, model: MaskedAutoencoder, held_out: Loader, device: torch.device) -> Validation:
    """Reconstruction loss on the validation images, under the same masks every time."""
    total, count = torch.zeros((), device=device), torch.zeros((), device=device)
    for batch in held_out.epoch():
        batch = batch.to(device)
        noise = uniform(0, "validate", 0, batch.numbers, model.patches)
        with autocast(device, config.precision):
            loss = model(model.encoder.standardize(batch.images), config.pretrain.mask_ratio, noise).loss
        total += loss * len(noise)
        count += len(noise)
    loss = (distributed.add(total) / distributed.add(count)).item()
    return Validation({"validate/loss": loss}, -loss, {"validate_loss": loss})


def with_probe(
    config: Root, validation: Validation, epoch: int, scores_of: Callable[[], dict[str, float]]
) -> Validation:
    """The validation with the probe's scores, in epochs that have one; `pretrain.select` says which picks best.pt."""
    settings = config.pretrain
    due = settings.probe_every and (epoch % settings.probe_every == 0 or epoch == settings.epochs)
    scores = scores_of() if due else {}
    by_probe = settings.select == "probe"
    score = scores.get("probe/logistic_auc", -math.inf) if by_probe else validation.score
    return Validation(validation.metrics | scores, score, validation.meta | {"probe": scores})


def run_probe(config: Root, data: Data, model: MaskedAutoencoder, device: torch.device) -> dict[str, float]:
    """Probe scores of the encoder: labelled training images → validation images."""
    tables = (table[table["label"].notna()] for table in (data.split("train"), data.split("validate")))
    loaders = [Loader(data, table, config.pretrain.batch_size, share=distributed.shard()) for table in tables]
    return probe(model.encoder, *loaders, device, config.precision)


def show_panel(
    config: Root,
    model: MaskedAutoencoder,
    held_out: Loader,
    manifest: Manifest,
    board: SummaryWriter,
    step: int,
    device: torch.device,
) -> None:
    """TensorBoard's reconstruction panel of the first validation images, where images may be shown."""
    count = config.pretrain.panel_images
    if not count or not may_show_images(config, manifest):
        return
    images = next(held_out.epoch()).to(device)
    board.add_image("reconstruction", panel(config, model, Batch(*(part[:count] for part in images))), step)


def panel(config: Root, model: MaskedAutoencoder, batch: Batch) -> Tensor:
    """Original | masked | reconstruction | mix, an image a row: grey levels in 0..1 (1 h w)."""
    noise = uniform(0, "validate", 0, batch.numbers, model.patches)
    pictures = reconstruct(model, batch.images, config.pretrain.mask_ratio, noise)
    return rearrange(list(pictures), "four b 1 h w -> 1 (b h) (four w)")


def may_show_images(config: Root, manifest: Manifest) -> bool:
    """Radiographs of credentialed sources are not shown unless the config says so."""
    return config.report.images if config.report.images is not None else not manifest.credentialed
