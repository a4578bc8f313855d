"""One optimizer update, all of it on the device: precision, accumulation, clipping, skipping, averaging."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mae.engine import distributed
from mae.engine.optim import autocast
from mae.engine.stage import AnyStage, Batch


class Update:
    """update(batch, epoch) → (3): loss, gradient norm, and 1 where the update was skipped.

    A loss or gradient that is not finite leaves weights, optimizer and batch statistics as they were. If the
    optimizer is fused, nothing here waits for the device: such an optimizer reads there whether to step.
    """

    def __init__(self, stage: AnyStage):
        self.stage = stage
        self.model = distributed.data_parallel(stage.model, stage.device)
        self.scaler = torch.amp.GradScaler(stage.device.type, enabled=stage.config.precision == "fp16")

        self.average: AveragedModel | None = None
        if stage.settings.ema:
            self.average = AveragedModel(stage.model, multi_avg_fn=get_ema_multi_avg_fn(stage.settings.ema))
        self.averaged = False  # whether the average has weights in it

        self.parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
        self.statistics = batch_statistics(stage.model)

    def __call__(self, batch: Batch, epoch: int) -> Tensor:
        optimizer = self.stage.optimizer
        optimizer.zero_grad(set_to_none=True)
        before = [statistic.clone() for statistic in self.statistics]
        loss = distributed.all_reduce_mean(self._backward(batch, epoch))

        # the norm is always needed; without clipping, gradients are not rewritten just to multiply them by 1
        self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.stage.settings.clip_grad:
            nn.utils.clip_grads_with_norm_(self.parameters, self.stage.settings.clip_grad, norm)

        # every rank comes to the same answer: loss and gradients are means over all ranks
        bad = ~(loss + norm).isfinite()
        self._step(bad)
        for statistic, old in zip(self.statistics, before, strict=True):
            statistic.copy_(torch.where(bad, old, statistic))
        if self.average is not None:
            self._update_average(self.average)
        return torch.stack([loss, norm, bad.to(loss.dtype)])

    def _backward(self, batch: Batch, epoch: int) -> Tensor:
        """Gradients of the batch's mean loss, part by part; returns that loss."""
        stage = self.stage
        count = stage.settings.accumulate
        parts = [batch] if count == 1 else batch.parts(count)
        total = torch.zeros((), device=stage.device)
        for number, (part, share) in enumerate(zip(parts, self._shares(parts), strict=True), start=1):
            with self._averaging(last=number == len(parts)):
                with autocast(stage.device, stage.config.precision):
                    loss = stage.step(self.model, part, epoch) * share
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def _shares(self, parts: Sequence[Batch]) -> list[float] | Tensor:
        """The weight of each part's mean in the whole batch's: its share of the counted images of all ranks."""
        count = self.stage.count
        if count is None:
            return [1 / len(parts)] * len(parts)

        counts = torch.stack([count(part) for part in parts])  # k
        mean_over_ranks = distributed.all_reduce_mean(counts.sum().double())
        return counts / torch.where(mean_over_ranks > 0, mean_over_ranks, 1.0)

    def _averaging(self, last: bool) -> AbstractContextManager[None]:
        """Ranks average their gradients once a batch, with its last part."""
        if isinstance(self.model, distributed.Replica) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _step(self, bad: Tensor) -> None:
        """Step unless the update is bad."""
        optimizer: Any = self.stage.optimizer  # torch declares the two attributes below in no class
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        elif skips_on_device(optimizer):
            # what GradScaler tells a fused optimizer, which then decides by itself
            optimizer.grad_scale = None
            optimizer.found_inf = bad.float()
            optimizer.step()
        elif not bad.item():  # waits for the device
            optimizer.step()

    @torch.no_grad()
    def _update_average(self, average: AveragedModel) -> None:
        """As `average.update_parameters(model)`, which would copy its count to the device each time, and so wait."""
        if not self.averaged:
            average.update_parameters(self.stage.model)
            self.averaged = True
            return

        assert average.multi_avg_fn is not None
        weights = list(self.stage.model.parameters())
        average.multi_avg_fn(list(average.parameters()), weights, average.n_averaged)
        for kept, new in zip(average.module.buffers(), self.stage.model.buffers(), strict=True):
            kept.copy_(new)
        average.n_averaged += 1

    @property
    def kept(self) -> nn.Module:
        """The model that is validated and handed on: the average where there is one."""
        return self.stage.model if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the kept weights and the optimizer."""
        state: dict[str, Any] = {}
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state["weights"] = self.stage.model.state_dict()
            state["averaged"] = self.average.n_averaged
        return state

    def load_state_dict(self, kept: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The inverse: `kept` weights are those of `self.kept`."""
        self.kept.load_state_dict(kept)
        if self.average is not None:
            self.stage.model.load_state_dict(state["weights"])
            self.average.n_averaged.copy_(state["averaged"])
            self.averaged = bool(self.average.n_averaged > 0)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer is a fused one that takes `found_inf`, which torch promises to GradScaler alone."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of the model's batch normalisations."""
    found: list[Tensor] = []
    for module in model.modules():
        if not isinstance(module, distributed.BATCH_NORMS):
            continue
        if module.running_mean is not None and module.running_var is not None:  # it has both or neither
            found += [module.running_mean, module.running_var]
    return found
