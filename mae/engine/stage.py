"""What a stage gives the loop: model, step and validation, typed. The loop knows no task beyond this."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mae.engine.checkpoint import Checkpoint
from mae.engine.overfit import looked_at
from mae.engine.schedule import Schedule
from mae.settings import MAEConfig, OptimizerSettings

Network = TypeVar("Network", bound=nn.Module)


class Batch(Protocol):
    """Some images of a training step, with whatever the stage's own step reads of them."""

    def to(self, device: torch.device) -> Self: ...

    def pin_memory(self) -> Self:
        """In memory from which a GPU copies while it computes."""
        ...

    def without_images(self) -> Self:
        """What names the images, without the memory that they take."""
        ...

    def parts(self, count: int) -> list[Self]:
        """The batch in `count` equal parts."""
        ...


class Batches(Protocol):
    """The batches of every epoch, in an order that can start anywhere."""

    batch_size: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int) -> Iterator[Any]: ...


class Validation(NamedTuple):
    metrics: dict[str, float]
    score: float  # the higher, the better: picks best.pt
    meta: dict[str, Any]  # what the checkpoint should know of it, such as a threshold
    details: Any = None  # what the stage's own `show` draws


def _shows_nothing(model: nn.Module, validation: Validation, board: SummaryWriter, step: int) -> None:
    pass


def _names_nobody(batch: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Stage(Generic[Network]):
    """One training, of a pretraining's or a fine-tuning's network."""

    kind: str  # of its checkpoints
    config: MAEConfig
    device: torch.device
    model: Network  # on the device
    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings  # its clipping, accumulation and averaging
    schedule: Schedule
    batches: Batches
    step: Callable[[Network, Any, int], Tensor]  # (model, batch, epoch) → loss
    validate: Callable[[Network, int], Validation]  # (model, epochs done)
    validate_every: int = 1
    probe_every: int | None = None  # epochs between further validations, in which more is looked at
    keep_epochs: Collection[int] = ()  # after which the weights are kept for good
    branch_of: Checkpoint | None = None  # the state of another run, from which this one continues
    goal: float | None = None  # of --overfit: the loss at which the training ends
    meta: dict[str, Any] = field(default_factory=dict)
    name_images: Callable[[Any], list[str]] = _names_nobody  # ids of a batch's images
    count: Callable[[Any], Tensor] | None = None  # over how many of a batch's images the loss is the mean; None: all
    show: Callable[[Network, Validation, SummaryWriter, int], None] = _shows_nothing  # pictures for the board
    hyperparameters: dict[str, float | str] = field(default_factory=dict)  # what tells its runs apart

    @property
    def epochs(self) -> int:
        return self.schedule.epochs

    def validates_after(self, epoch: int) -> bool:
        """Whether an epoch (the first is 1) ends with a validation; the last one always does."""
        if epoch == self.epochs or epoch in self.keep_epochs:
            return True
        if self.goal is not None:
            return looked_at(epoch)
        return epoch % self.validate_every == 0 or (self.probe_every is not None and epoch % self.probe_every == 0)

    def learning_rate(self, step: int) -> float:
        return self.schedule.at(step, len(self.batches))


AnyStage = Stage[Any]  # the loop treats all networks alike
