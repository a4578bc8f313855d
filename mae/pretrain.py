"""Stage one: masked-autoencoder pretraining on radiographs. Labels are never read here."""

from pathlib import Path

import pandas as pd
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from data.augment import DRAWS, augment
from data.config import Root, UserError, expand
from data.draws import uniform
from data.loader import Batch, Data, Loader, open_data
from data.manifest import Manifest, digest, image_hashes
from mae.engine.loop import Stage, Validation, fit
from mae.engine.optim import adamw, autocast, parameter_groups, seeded
from mae.engine.run import check_run, device_of, is_finished, start_run
from mae.model import MaskedAutoencoder, check_sizes, mae_from
from mae.reconstruct import reconstruct

SECTIONS = ("seed", "precision", "data", "model", "pretrain")  # what a pretraining depends on


def pretrain(config: Root, data: Data | None = None) -> Path:
    """Pretrain into `config.run`, continuing what stands there; returns the run folder.

    Raises UserError if the folder was made by another config, or a split is empty.
    """
    device = device_of(config)
    data = data or open_data(config)
    folder = Path(expand(config.run, "run"))
    facts = {"store": data.store.fingerprint, "images": digest(_seen(data), "image_id", "split")}
    check_run(folder, config, SECTIONS, facts)
    if not is_finished(folder, config.pretrain.epochs):
        stage = pretrain_stage(config, data, device)
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


def pretrain_stage(config: Root, data: Data, device: torch.device) -> Stage:
    """What the loop needs to pretrain: every training image, labelled or not."""
    settings = config.pretrain
    with seeded(config.seed):  # all later draws come from data.draws
        model = mae_from(config.model, config.data.image_size).to(device)
    optimizer = settings.optimizer
    scale = settings.batch_size / 256  # linear scaling rule (Goyal et al. 2017), as in the paper
    held_out = Loader(data, data.split("validate"), settings.batch_size)
    return Stage(
        kind="mae",
        config=config,
        device=device,
        model=model,
        optimizer=adamw(parameter_groups(model.named_parameters(), optimizer.weight_decay), optimizer.betas),
        batches=Loader(data, data.split("train"), settings.batch_size, config.seed),
        step=lambda model, batch, epoch: pretrain_step(config, model, batch, epoch),
        validate=lambda model: validate(config, model, held_out, device),
        epochs=settings.epochs,
        warmup_epochs=optimizer.warmup_epochs,
        peak_lr=optimizer.base_lr * scale,
        min_lr=optimizer.min_lr * scale,
        clip_grad=optimizer.clip_grad,
        validate_every=settings.validate_every,
        save_minutes=settings.save_minutes,
        meta={"seen": torch.from_numpy(image_hashes(_seen(data)["image_id"]))},
        show=lambda model, board, step: show_panel(config, model, held_out, data.manifest, board, step, device),
    )


def pretrain_step(config: Root, model: MaskedAutoencoder, batch: Batch, epoch: int) -> Tensor:
    """The loss of a training batch; crops and masks depend on (seed, epoch, image)."""
    draws = uniform(config.seed, "augment", epoch, batch.numbers, DRAWS)
    images = model.encoder.standardize(augment(batch.images, config.pretrain.augment, draws))
    noise = uniform(config.seed, "mask", epoch, batch.numbers, model.patches)
    return model(images, config.pretrain.mask_ratio, noise, config.pretrain.predict_ratio).loss


def validate(config: Root, model: MaskedAutoencoder, held_out: Loader, device: torch.device) -> Validation:
    """Reconstruction loss on the validation images, under the same masks every time."""
    total = torch.zeros((), device=device)
    for batch in held_out.epoch():
        batch = batch.to(device)
        noise = uniform(0, "validate", 0, batch.numbers, model.patches)
        with autocast(device, config.precision):
            loss = model(model.encoder.standardize(batch.images), config.pretrain.mask_ratio, noise).loss
        total += loss * len(noise)
    loss = (total / len(held_out.rows)).item()
    return Validation({"validate/loss": loss}, -loss, {"validate_loss": loss})


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
    """Original | masked | reconstruction, an image a row: grey levels in 0..1 (c h w)."""
    noise = uniform(0, "validate", 0, batch.numbers, model.patches)
    pictures = reconstruct(model, batch.images, config.pretrain.mask_ratio, noise)
    return rearrange(list(pictures), "three b c h w -> c (b h) (three w)")


def may_show_images(config: Root, manifest: Manifest) -> bool:
    """Radiographs of credentialed sources are not shown unless the config says so."""
    return config.report.images if config.report.images is not None else not manifest.credentialed
