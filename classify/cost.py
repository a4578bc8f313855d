"""What runs have cost: seconds and arithmetic of training, by what they logged."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from classify.finetune_cost import step_of
from classify.settings import ClassifyConfig
from data.config import make_config
from mae.cost import step_flops, without_values
from mae.engine.tracker import read_metrics
from mae.pretrain_cost import pretraining_flops

SPEED = "train/images_per_second"
MEMORY = "train/peak_memory_gb"
PAIR = 2  # images: one alone has no batch statistics

# the settings of a stage that a step's arithmetic depends on
ARITHMETIC = {
    "pretrain": ("mask_ratio", "predict_ratio", "visible_loss"),
    "finetune": ("model", "mode", "pool", "stem", "init", "drop_path", "drop_patches"),
}


@dataclass(frozen=True)
class Spent:
    """What a run has spent on training so far, without validation and without steps that a kill undid."""

    steps: int
    images: int  # seen, counted each time
    seconds: float
    memory: float  # GB at most

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.seconds if self.seconds else None


def spent(folder: Path, batch_size: int) -> Spent:
    """What a run has logged between its looks at the device; batch_size: images of a step."""
    steps = 0
    seconds = 0.0
    memory = 0.0
    for row in read_metrics(folder, warn=False):  # reading the run's curves warns already
        speed = row.get(SPEED)
        if not speed or row["step"] <= steps:
            continue
        seconds += (row["step"] - steps) * batch_size / speed
        steps = row["step"]
        memory = max(memory, row.get(MEMORY, 0.0))
    return Spent(steps, steps * batch_size, seconds, memory)


def finetuning_cost(folder: Path, config: ClassifyConfig, train_images: int) -> dict[str, Any]:
    """Seconds, FLOPs and speed of a fine-tuning; `train_images`: how many its label budget left to train on."""
    done = spent(folder, min(config.finetune.batch, train_images))
    return _as_json("train", done, finetuning_flops(config))


def pretraining_cost(folder: Path, config: ClassifyConfig, train_images: int) -> dict[str, Any]:
    """The same of a pretraining."""
    done = spent(folder, min(config.pretrain.batch, train_images))
    return _as_json("pretrain", done, pretraining_flops_of(config))


def _as_json(stage: str, done: Spent, flops: int) -> dict[str, Any]:
    speed = "images_per_second" if stage == "train" else f"{stage}_images_per_second"
    return {
        f"{stage}_seconds": done.seconds,
        f"{stage}_flops": flops * done.images,
        speed: done.images_per_second,
    }


# ---------------------------------------------------------------- arithmetic


def finetuning_flops(config: ClassifyConfig) -> int:
    """Operations of a training step for an image: the matrix products and convolutions, forward and backward."""
    return _finetuning_flops(_what_counts(config, "finetune"))


def pretraining_flops_of(config: ClassifyConfig) -> int:
    """The same of a pretraining."""
    return _pretraining_flops(_what_counts(config, "pretrain"))


def _what_counts(config: ClassifyConfig, stage: str) -> str:
    """The settings that a step's arithmetic may depend on, as a text that serves as the key of a cache."""
    plain = make_config({"data": {"source": "phantom"}}, "cost")
    assert isinstance(plain, ClassifyConfig)
    section = getattr(config, stage)
    counted = {
        "data": plain.data.model_copy(update={"image_size": config.data.image_size}),
        "model": config.model.model_copy(update={"init": None}),
        "activation_checkpointing": config.activation_checkpointing,
        stage: getattr(plain, stage).model_copy(update={name: getattr(section, name) for name in ARITHMETIC[stage]}),
    }
    return plain.model_copy(update=counted).model_dump_json()


@cache
def _finetuning_flops(settings: str) -> int:
    config = ClassifyConfig.model_validate_json(settings)
    with without_values():  # on a named device: part of a classifier asks which
        return step_flops(lambda: step_of(config, PAIR), "cpu") // PAIR


@cache
def _pretraining_flops(settings: str) -> int:
    return pretraining_flops(ClassifyConfig.model_validate_json(settings))
