"""Milliseconds the engine adds to a training step, logs and TensorBoard included: a table, and JSON with --json FILE.

    make bench                                           # or: python benchmarks/engine.py --steps 100 --rounds 5
    python benchmarks/engine.py --json out.json

The engine's `fit` and a bare loop (forward, backward, optimizer; nothing else) train twin models in turn, a step each,
so that a machine whose speed drifts treats them alike: `fit` asks for its next batch, and gets it after the bare step.
The extra time of `fit` is the engine's: the gradient norm for clipping, the check for non-finite values, the schedule,
and every `engine.log_every` steps a look at the device with metrics.jsonl and TensorBoard. Shown is the median of the
means from look to look, by wall time and by processor time, which other programs do not disturb. A round is an epoch;
its end, with validation and two checkpoints, is shown apart.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from results import report
from torch import Tensor, nn

from data.config import make_config
from data.loader import Batch
from mae.engine.loop import fit
from mae.engine.memory import keep_freed_memory
from mae.engine.optim import adamw, parameter_groups
from mae.engine.run import device_of
from mae.engine.schedule import Schedule
from mae.engine.stage import Stage, Validation
from mae.model import build_mae
from mae.pretrain import pretrain_step
from mae.settings import MAEConfig, OptimizerSettings

TARGET = 5.0  # milliseconds a step
Step = Callable[[nn.Module, Batch, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--preset", default="vit_tiny_patch16", help="of the model that is not trivial")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    config = make_config({}, "benchmark", {"data.source": "phantom", "device": arguments.device})
    assert isinstance(config, MAEConfig)
    device = device_of(config.device)

    def mae_step(model: nn.Module, batch: Batch, epoch: int) -> Tensor:
        return pretrain_step(model, batch, epoch, config.pretrain, config.seed)

    rows = {
        "one linear layer": measure(arguments, config, device, _linear, _linear_step),
        arguments.preset: measure(arguments, config, device, _mae, mae_step),
    }

    print(f"{'milliseconds a step':20s} {'fit':>9s} {'bare':>9s} {'engine':>9s} {'of CPU':>9s} {'end of epoch':>13s}")
    for name, row in rows.items():
        print(
            f"{name:20s} {row['fit_ms']:9.2f} {row['bare_ms']:9.2f} {row['engine_ms']:9.2f} "
            f"{row['engine_cpu_ms']:9.2f} {row['end_of_epoch_ms']:13.1f}"
        )
    for clock, key in (("the wall", "engine_ms"), ("the CPU", "engine_cpu_ms")):
        held = max(row[key] for row in rows.values()) <= TARGET
        print(f"at most {TARGET:g} ms by the clock of {clock}: {'yes' if held else 'no'}")
    report(arguments.json, arguments, {"target_ms": TARGET, "models": rows})


# ---------------------------------------------------------------- models


def _linear(arguments: argparse.Namespace) -> nn.Module:
    return nn.Linear(arguments.size, 1)


def _linear_step(model: nn.Module, batch: Batch, epoch: int) -> Tensor:
    return model(batch.images[:, 0, 0] / 255).square().mean()


def _mae(arguments: argparse.Namespace) -> nn.Module:
    return build_mae(arguments.preset, arguments.size, patch_size=arguments.patch)


# ---------------------------------------------------------------- timing


def measure(
    arguments: argparse.Namespace,
    config: MAEConfig,
    device: torch.device,
    make: Callable[[argparse.Namespace], nn.Module],
    step: Step,
) -> dict[str, float]:
    """Milliseconds of a step of `fit`, of the bare loop and of their difference, and of an epoch's end."""
    keep_freed_memory()  # fit does so too, for the whole process
    torch.manual_seed(0)
    model = make(arguments).to(device)
    twin = make(arguments).to(device)
    turns = Turns(arguments, device, _bare_step(twin, step))
    stage = Stage(
        kind="benchmark",
        config=config,
        device=device,
        model=model,
        optimizer=_optimizer(model),
        settings=OptimizerSettings(),
        schedule=Schedule(epochs=arguments.rounds + 1, warmup_epochs=0, peak=1e-4, floor=0.0),
        batches=turns,
        step=step,
        validate=lambda model, epoch: Validation({"validate/loss": -epoch}, epoch, {}),  # every epoch is the best
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(stage, Path(folder))
    turns.close_round()

    fits, bares = turns.looks(config.engine.log_every)
    wall, cpu = np.median(fits - bares, axis=0).tolist()
    return {
        "fit_ms": np.median(fits[:, 0]).item(),
        "bare_ms": np.median(bares[:, 0]).item(),
        "engine_ms": wall,
        "engine_cpu_ms": cpu,
        "end_of_epoch_ms": statistics.median(turns.ends[1:]),
    }


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(parameter_groups(model.named_parameters(), 0.05), (0.9, 0.95))


def _bare_step(model: nn.Module, step: Step) -> Callable[[Batch], None]:
    optimizer = _optimizer(model)

    def one(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        step(model, batch, 0).backward()
        optimizer.step()

    return one


@dataclass
class Turns:
    """Batches for `fit`; between them it makes the bare loop's steps, and it times both."""

    arguments: argparse.Namespace
    device: torch.device
    bare_step: Callable[[Batch], None]
    rounds: list[np.ndarray] = field(default_factory=list)  # each (steps, bare | fit, wall | CPU), milliseconds
    ends: list[float] = field(default_factory=list)  # of the rounds, milliseconds
    ended: np.ndarray | None = None

    def __post_init__(self) -> None:
        count, side = self.arguments.batch, self.arguments.size
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)
        self.batch_size = count
        self.batch = Batch(images, torch.zeros(count), torch.arange(count)).to(self.device)

    def __len__(self) -> int:
        return self.arguments.steps

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        self.close_round()

        times = []
        for _ in range(start, len(self)):
            begin = self._now()
            self.bare_step(self.batch)
            between = self._now()
            yield self.batch
            times.append([between - begin, self._now() - between])
        self.rounds.append(np.array(times))
        self.ended = self._now()

    def close_round(self) -> None:
        """Note how long the end of the previous round took."""
        if self.ended is not None:
            self.ends.append((self._now() - self.ended)[0].item())
        self.ended = None

    def looks(self, every: int) -> tuple[np.ndarray, np.ndarray]:
        """What a step of `fit` and of the bare loop took between looks (n, wall | CPU); the first round warms up."""
        means = []
        for times in self.rounds[1:]:
            for part in np.split(times, range(every, len(times), every)):
                means.append(part.mean(0))

        bare, fit = np.stack(means, axis=1)
        return fit, bare

    def _now(self) -> np.ndarray:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
