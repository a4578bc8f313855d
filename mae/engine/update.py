"""One optimizer update, all of it on the device: precision, accumulation, clipping, skipping, averaging."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mae.engine import distributed
from mae.engine.optim import autocast


class Update:
    """update(batch, epoch) → (3): loss, gradient norm, and 1 where the update was skipped.

    A loss or gradient that is not finite leaves weights, optimizer and batch statistics as they were. Nothing
    here waits for the device: fused optimizers read on it whether to step.
    """

    def __init__(self, stage: Any):
        self.stage = stage
        self.model = distributed.replicate(stage.model, stage.device)
        self.scaler = torch.amp.GradScaler(stage.device.type, enabled=stage.config.precision == "fp16")
        self.average = None
        if stage.ema:
            self.average = AveragedModel(stage.model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema))
        self.parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
        norms = [module for module in stage.model.modules() if isinstance(module, _BatchNorm)]
        self.statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]

    def __call__(self, batch: Any, epoch: int) -> Tensor:
        optimizer = self.stage.optimizer
        optimizer.zero_grad(set_to_none=True)
        before = [statistic.clone() for statistic in self.statistics]
        loss = distributed.mean(self._backward(batch, epoch))
        self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.stage.clip_grad:  # without it, all gradients would be read and written again, to multiply them by 1
            nn.utils.clip_grads_with_norm_(self.parameters, self.stage.clip_grad, norm)
        bad = ~(loss + norm).isfinite()
        self._step(bad)
        for statistic, old in zip(self.statistics, before, strict=True):
            statistic.copy_(torch.where(bad, old, statistic))
        if self.average is not None:
            self.average.update_parameters(self.stage.model)
        return torch.stack([loss, norm, bad.to(loss.dtype)])

    def _backward(self, batch: Any, epoch: int) -> Tensor:
        """Gradients of the batch's mean loss, part by part; returns that loss."""
        stage, total = self.stage, 0.0
        parts = [batch] if stage.accumulate == 1 else batch.parts(stage.accumulate)
        for number, part in enumerate(parts, start=1):
            alone = distributed.ranks() > 1 and number < len(parts)  # ranks meet once a batch
            with self.model.no_sync() if alone else nullcontext():
                with autocast(stage.device, stage.config.precision):
                    loss = stage.step(self.model, part, epoch) / len(parts)
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def _step(self, bad: Tensor) -> None:
        optimizer = self.stage.optimizer
        if not self.scaler.is_enabled():
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # as GradScaler tells a fused optimizer
        self.scaler.step(optimizer)
        self.scaler.update()

    @property
    def kept(self) -> nn.Module:
        """The model that is validated and handed on: the average where there is one."""
        return self.stage.model if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the kept weights and the optimizer."""
        state: dict[str, Any] = {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        if self.average is not None:
            state |= {"weights": self.stage.model.state_dict(), "averaged": self.average.n_averaged}
        return state

    def load_state_dict(self, kept: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The inverse: `kept` weights are those of `self.kept`."""
        self.kept.load_state_dict(kept)
        if self.average is not None:
            self.stage.model.load_state_dict(state["weights"])
            self.average.n_averaged.copy_(state["averaged"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
