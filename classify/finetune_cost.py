"""What a fine-tuning's step costs in memory, counted from its config without computing anything."""

from collections.abc import Callable

import torch
from torch import Tensor

from classify.models.build import build_model
from classify.settings import ClassifyConfig
from data.settings import height_and_width
from mae.cost import forward_memory, process_memory, step_memory
from mae.engine.optim import autocast
from mae.pretrain_cost import copies
from mae.transformer import configure_blocks

CPU = torch.device("cpu")


def step_of(config: ClassifyConfig, images: int, drops: bool = True) -> Callable[[], Tensor]:
    """The loss of a training step on images without values, and without augmentation: it multiplies no matrices.

    drops: with stochastic depth, and without the patches that training leaves out. Stochastic depth multiplies no
    matrices either, but keeps what it has multiplied.
    """
    model = build_model(config)
    configure_blocks(model, compiled=False, recompute=config.activation_checkpointing)
    model.train()
    pixels = torch.empty(images, config.model.in_channels, *height_and_width(config.data.image_size))
    noise = torch.empty(images, model.depth_draws) if drops and model.depth_draws else None
    patch_noise = torch.empty(images, model.patch_draws) if drops and model.patch_draws else None

    def loss() -> Tensor:
        return model(pixels, noise, patch_noise).sum()

    return loss


def finetuning_memory(config: ClassifyConfig, part: int, device: torch.device) -> int:
    """Bytes that a fine-tuning takes on the device in steps of `part` images, with all that the process needs besides.

    A training step and validation in its own batches, which computes in 32 bits, are counted; the larger one decides.
    """
    training = step_memory(lambda: _in_precision(config, part))
    looking = forward_memory(lambda: step_of(config, config.evaluate.batch_size, drops=False))

    with torch.device("meta"):
        model = build_model(config)
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    states = trained * copies(config.finetune.optimizer)
    convolved = 0
    if config.finetune.model != "vit":  # all of a step but weights and gradients
        convolved = max(training, looking) - sum(parameter.nbytes for parameter in model.parameters()) - trained
    return process_memory(max(training, looking), states, device, max(convolved, 0))


def _in_precision(config: ClassifyConfig, images: int) -> Callable[[], Tensor]:
    loss = step_of(config, images)

    def in_precision() -> Tensor:
        with autocast(CPU, config.precision):
            return loss()

    return in_precision
