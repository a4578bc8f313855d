"""What a pretraining's step costs, counted from its config without computing anything."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.settings import height_and_width
from mae.cost import forward_memory, process_memory, step_flops, step_memory
from mae.engine.optim import autocast
from mae.engine.shapes import shapes_only
from mae.masking import random_masking
from mae.model import MaskedAutoencoder, mae_from
from mae.settings import MAEConfig, OptimizerSettings
from mae.transformer import configure_blocks

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """What follows from the settings alone."""

    encoder: int  # parameters
    decoder: int
    patches: int  # of an image, and so on
    kept: int
    predicted: int
    flops: int  # both passes of a training step
    weights: int  # bytes, and so on
    states: int  # of AdamW and, where there is one, the average of weights
    passing: int  # activations and gradients at their most

    @property
    def memory(self) -> int:
        return self.weights + self.states + self.passing


def pretraining_cost(config: MAEConfig) -> Cost:
    """Counted from the model that the config describes, on tensors without values; `compile` is left out."""
    settings = config.pretrain
    with shapes_only():
        model = _model(config)
        keep, masked = random_masking(torch.empty(1, model.patches), settings.mask_ratio)

    # all masked patches are predicted, or as many as are asked for
    predicted = masked.shape[1]
    if settings.predict_ratio is not None:
        predicted = min(max(int(model.patches * settings.predict_ratio), 1), predicted)

    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in model.parameters())

    part = max(settings.batch // settings.optimizer.accumulate, 1)  # images worked through at once
    return Cost(
        encoder=_size(model.encoder),
        decoder=_size(model.decoder),
        patches=model.patches,
        kept=keep.shape[1],
        predicted=predicted,
        flops=pretraining_flops(config),
        weights=weights,
        states=trained * copies(settings.optimizer),
        passing=step_memory(lambda: step_of(config, part)) - weights,
    )


def pretraining_flops(config: MAEConfig) -> int:
    """Operations of a training step for an image: `pretraining_cost` without memory, which takes longer to count."""
    return step_flops(lambda: step_of(config, 1))


def _model(config: MAEConfig) -> MaskedAutoencoder:
    model = mae_from(config.model, config.data.image_size)
    configure_blocks(model, compiled=False, recompute=config.activation_checkpointing)
    return model


def step_of(config: MAEConfig, images: int) -> Callable[[], Tensor]:
    """The loss of a training step. Augmentation is left out: it multiplies no matrices and keeps nothing."""
    settings = config.pretrain
    model = _model(config)
    pixels = torch.empty(images, config.model.in_channels, *height_and_width(config.data.image_size))

    def loss() -> Tensor:
        with autocast(CPU, config.precision):
            return model(
                pixels, settings.mask_ratio, None, settings.predict_ratio, visible_loss=settings.visible_loss
            ).loss

    return loss


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------- of a process


def pretraining_memory(config: MAEConfig, part: int, device: torch.device) -> int:
    """Bytes that a pretraining takes on the device in steps of `part` images at once, libraries and threads included.

    The largest counts: a training step, or a validation's or probe's pass without gradients.
    """
    counted = [step_memory(lambda: step_of(config, part)), forward_memory(lambda: step_of(config, part))]
    if config.pretrain.probe_every is not None:
        counted.append(forward_memory(lambda: _features(config, part)))

    with shapes_only():
        model = _model(config)
    trained = sum(parameter.nbytes for parameter in model.parameters())
    return process_memory(max(counted), trained * copies(config.pretrain.optimizer), device)


def copies(optimizer: OptimizerSettings) -> int:
    """Copies of each trained parameter: AdamW's two moments, and one more for an average of the weights."""
    return 3 if optimizer.ema else 2


def _features(config: MAEConfig, images: int) -> Callable[[], Tensor]:
    """What the probe computes: the encoder's tokens of all patches."""
    encoder = _model(config).encoder
    pixels = torch.empty(images, config.model.in_channels, *height_and_width(config.data.image_size))

    def tokens() -> Tensor:
        with autocast(CPU, config.precision):
            return encoder(pixels)

    return tokens
