"""Initial weights by seed, AdamW with parameter groups, and the learning rate as a function of the step."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from data.errors import UserError
from mae.engine.checkpoint import Checkpoint, is_dense, load_weights
from mae.settings import Precision

Network = TypeVar("Network", bound=nn.Module)

Group = dict[str, Any]  # of parameters, as torch.optim takes it


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise weights from this seed; torch's global generator is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not CUDA's, which fork_rng would not restore
        yield


def with_weights_of(checkpoint: Checkpoint, build: Callable[[], Network]) -> Network:
    """The network that `build` makes, with a checkpoint's weights; torch's global generator is left as found."""
    with seeded(0):  # initial weights are drawn, then replaced
        model = build()
    load_weights(model, checkpoint)
    return model


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of forward passes: 16-bit matrix products where the precision is bf16 or fp16, else none."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision in ("bf16", "fp16"))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Keep the tensors' own precision, also inside `autocast`; tensors without values (meta) have no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
) -> list[Group]:
    """Group named parameters by decay and learning-rate scale.

    Biases, norms and tokens are not decayed, as in the paper's code; `lr_scale` gives each
    parameter's factor (layer-wise decay, Clark et al. 2020).
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}  # by learning-rate scale and decay
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and not name.endswith("token")
        key = (lr_scale(name), weight_decay if decayed else 0.0)
        members.setdefault(key, []).append(parameter)

    groups: list[Group] = []
    for scale, decay in sorted(members):  # the same order in every run: a checkpoint numbers its parameters
        groups.append({"params": members[scale, decay], "lr_scale": scale, "weight_decay": decay})
    return groups


def adamw(groups: list[Group], betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in one fused pass over all parameters, where this torch has one for their device."""
    try:
        return torch.optim.AdamW([dict(group) for group in groups], lr=0.0, betas=betas, fused=True)
    except RuntimeError:
        return torch.optim.AdamW([dict(group) for group in groups], lr=0.0, betas=betas)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any] | None, place: str) -> None:
    """Restore the optimizer's saved moments; UserError if they do not belong to its parameters.

    Rates, decays and the like come from the config, not from the file. So does the choice of torch's code that computes
    updates: the rest of this optimizer would not know of another one (pytorch 104767, 103256).
    """
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = saved.get("state") if saved else None
    if not isinstance(moments, dict):
        raise UserError(f"{place}: found no state of the optimizer, expected one to go on from")
    for number, parts in moments.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(parts, dict):
            raise UserError(f"{place}: found a state of other parameters, expected the optimizer's")
        shapes = {"step": torch.Size(), "exp_avg": parameters[number].shape, "exp_avg_sq": parameters[number].shape}
        found = {name: part.shape if is_dense(part) else None for name, part in parts.items()}
        if found != shapes:
            raise UserError(f"{place}: found a state of other shapes, expected the optimizer's (AdamW)")
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
