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


def step_of(config: ClassifyConfig, images: int) -> Callable[[], Tensor]:
    """The loss of a training step on images without values; augmentation multiplies no matrices."""
    model = build_model(config)
    configure_blocks(model, compiled=False, recompute=config.activation_checkpointing)
    model.train()
    pixels = torch.empty(images, config.model.in_channels, *height_and_width(config.data.image_size))

    def loss() -> Tensor:
        return model(pixels).sum()

    return loss


def finetuning_memory(config: ClassifyConfig, part: int, device: torch.device, held_out: int | None = None) -> int:
    """Bytes that a fine-tuning takes on the device in steps of `part` images at once, with all that stands around it.

    Counted are a training step, and validation in its own batches: whichever is more. held_out: images to validate.
    """
    shown = config.evaluate.batch_size if held_out is None else min(config.evaluate.batch_size, max(held_out, 1))
    counted = max(step_memory(lambda: _autocast(config, part)), forward_memory(lambda: _autocast(config, shown)))

    with torch.device("meta"):
        model = build_model(config)
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return process_memory(counted, trained * copies(config.finetune.optimizer), device)


def _autocast(config: ClassifyConfig, images: int) -> Callable[[], Tensor]:
    loss = step_of(config, images)

    def in_precision() -> Tensor:
        with autocast(CPU, config.precision):
            return loss()

    return in_precision
