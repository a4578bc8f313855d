"""Small steps of each kind of training, on any device: a model, a batch, and the loss of the real step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tiny_mae import tiny
from tiny_world import tiny_config
from torch import Tensor, nn

from classify import build_classifier, build_resnet
from classify.finetune import finetune_step
from classify.settings import ClassifyConfig
from data.loader import Batch
from mae.engine.optim import adamw, autocast, parameter_groups
from mae.engine.schedule import Schedule
from mae.engine.stage import Stage, Validation
from mae.pretrain import pretrain_step

KINDS = ("mae", "cross", "vit", "probe", "resnet")
LR = 1e-3


class OneBatch:
    batch_size = 8

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int, start: int):
        yield batch_of(self.batch_size)


def batch_of(count: int, unknown: bool = False) -> Batch:
    """8-bit images of 6 × 10 pixels; unknown: some labels are unknown."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 1, 6, 10), dtype=torch.uint8, generator=generator)
    labels = (torch.arange(count) % 3 == 1).float()
    if unknown:
        labels[::3] = torch.nan
    return Batch(images, labels, torch.arange(count) * 7 + 5)


def model_of(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind in ("mae", "cross"):
            return tiny(decoder="cross" if kind == "cross" else "self")
        if kind == "resnet":
            return build_resnet("resnet18", stem="small")
        return build_classifier(tiny().encoder, probe=kind == "probe", drop_path=0.3 if kind == "vit" else 0.0)


def step_of(kind: str, config: ClassifyConfig) -> Callable[[nn.Module, Batch, int], Tensor]:
    if kind in ("mae", "cross"):
        return lambda model, batch, epoch: pretrain_step(model, batch, epoch, config.pretrain, config.seed)
    return lambda model, batch, epoch: finetune_step(model, batch, epoch, config.finetune, config.seed)


@dataclass(frozen=True)
class Result:
    loss: Tensor
    gradients: dict[str, Tensor]


def result_of(kind: str, config: ClassifyConfig, device: torch.device, dtype=torch.float32, change=None) -> Result:
    """Loss and gradients of a training step, moved to the CPU and float64; change: applied to the model first."""
    model = model_of(kind).train().to(device, dtype)
    if change:
        change(model)
    with autocast(device, config.precision):
        loss = step_of(kind, config)(model, batch_of(8, unknown=kind == "vit").to(device), 1)
    loss.backward()
    found = {name: p.grad.cpu().double() for name, p in model.named_parameters() if p.grad is not None}
    return Result(loss.detach().cpu().double(), found)


def stage_of(kind: str, config: ClassifyConfig, device: torch.device, step=None, **settings) -> Stage:
    """A stage for `Update`: the same model and step, with an optimizer."""
    model = model_of(kind).train().to(device)
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), (0.9, 0.95))
    for group in optimizer.param_groups:
        group["lr"] = LR
    return Stage(
        kind=kind,
        config=config,
        device=device,
        model=model,
        optimizer=optimizer,
        settings=config.pretrain.optimizer.model_copy(update=settings),
        schedule=Schedule(epochs=1, warmup_epochs=0, peak=LR, floor=0.0),
        batches=OneBatch(),
        step=step or step_of(kind, config),
        validate=lambda model, epoch: Validation({}, 0.0, {}),
        count=None if kind in ("mae", "cross") else lambda batch: (~batch.labels.isnan()).sum(),
    )


def spoilt(stage: Stage, wanted: int) -> Stage:
    """The stage with a NaN loss in one call, counted from 1."""
    calls: list[int] = []

    def step(model: nn.Module, batch: Batch, epoch: int) -> Tensor:
        calls.append(epoch)
        return stage.step(model, batch, epoch) * (float("nan") if len(calls) == wanted else 1.0)

    return replace(stage, step=step)


def config_of(place, **changed) -> ClassifyConfig:
    return tiny_config(place, finetune__label_smoothing=0.1, **changed)
