"""Training steps on a device: they compute what float64 computes on a CPU, and never make the host wait."""

from contextlib import nullcontext

import pytest
import torch
from device_waits import Waited, no_waits
from trained_steps import KINDS, batch_of, config_of, model_of, result_of, spoilt, stage_of, step_of

from data.augment import DRAWS, augment
from data.draws import uniform
from data.settings import AugmentSettings
from mae.engine.run import configure_torch
from mae.engine.update import Update, skips_on_device
from mae.transformer import configure_blocks

CPU = torch.device("cpu")
STILL = {"pretrain__augment__enabled": False, "finetune__augment__enabled": False}  # greys are rounded to 8 bits
MAES = pytest.mark.parametrize("kind", ["mae", "cross"])


def assert_near(found, expected, tolerance: float) -> None:
    """Loss, and gradients as one vector: a part that is mere rounding, such as a key's bias, has no size of its own."""
    assert found.gradients.keys() == expected.gradients.keys()
    assert abs(found.loss - expected.loss) < tolerance * max(abs(expected.loss), 1)
    one, two = (torch.cat([g.flatten() for g in result.gradients.values()]) for result in (found, expected))
    assert two.norm() > 0
    assert (one - two).norm() < tolerance * two.norm()


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64(kind, device, place):
    config = config_of(place, **STILL)
    assert_near(result_of(kind, config, device), result_of(kind, config, CPU, torch.float64), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_are_near(kind, precision, device, place):
    expected = result_of(kind, config_of(place, **STILL), CPU, torch.float64)
    found = result_of(kind, config_of(place, precision=precision, **STILL), device)
    tolerance = 0.2 if precision == "bf16" else 0.05
    if kind == "resnet":  # statistics of eight images, layer after layer, make rounding larger
        tolerance *= 3
    assert_near(found, expected, tolerance)
    assert found.loss != expected.loss


@pytest.mark.parametrize("kind", ["mae", "resnet"])
def test_tf32_is_near_and_fp32_after_it_is_exact_again(kind, device, place):
    expected = result_of(kind, config_of(place, **STILL), CPU, torch.float64)
    for precision, tolerance in (("tf32", 0.2), ("fp32", 1e-4)):
        config = config_of(place, precision=precision, **STILL)
        configure_torch(config)
        assert_near(result_of(kind, config, device), expected, tolerance)


def test_augmented_greys_differ_by_rounding_alone(device):
    images = batch_of(7).images
    settings = AugmentSettings(flip=0.5, erase=0.5)
    numbers = torch.arange(7)
    expected = augment(images, settings, uniform(3, "augment", 2, numbers, DRAWS))
    draws = uniform(3, "augment", 2, numbers.to(device), DRAWS)
    assert draws.cpu().equal(uniform(3, "augment", 2, numbers, DRAWS))  # draws are integer arithmetic
    found = augment(images.to(device), settings, draws).cpu()
    differ = (found.int() - expected.int()).abs()
    assert differ.max() <= 1 and (differ > 0).float().mean() < 0.02
    assert (expected != images).float().mean() > 0.5


@MAES
def test_recomputed_activations_give_the_same_gradients(kind, device, place):
    config = config_of(place)
    expected = result_of(kind, config, device)
    found = result_of(kind, config, device, change=lambda model: configure_blocks(model, False, recompute=True))
    assert_near(found, expected, 1e-5)


@MAES
def test_compiled_blocks_agree(kind, device, place, monkeypatch):
    if device.type == "cpu":  # a backend without a compiler; a break in a block's graph is an error
        compile_module = torch.nn.Module.compile
        monkeypatch.setattr(
            torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager", fullgraph=True)
        )
    config = config_of(place)
    expected = result_of(kind, config, device)
    found = result_of(kind, config, device, change=lambda model: configure_blocks(model, True, recompute=False))
    torch.compiler.reset()
    assert_near(found, expected, 1e-4)


# ---------------------------------------------------------------- whole updates


SORTS = {
    "plain": {},
    "clipped": {"clip_grad": 0.1},
    "averaged": {"ema": 0.9},
    "in parts": {"accumulate": 2},
}


def update_of(kind: str, config, device: torch.device, **settings) -> Update:
    return Update(stage_of(kind, config, device, **settings))


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_waits_for_nothing(kind, sort, device, place):
    update = update_of(kind, config_of(place), device, **SORTS[sort])
    batch = batch_of(8).to(device)
    update(batch, 0)  # the first creates the optimizer's states
    with no_waits(device):
        numbers = [update(batch, epoch) for epoch in (1, 2, 3)]
    assert torch.stack(numbers).isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_an_update_in_other_precisions_waits_for_nothing(precision, place):
    device = torch.device("cuda")
    update = update_of("mae", config_of(place, precision=precision), device)
    batch = batch_of(8).to(device)
    update(batch, 0)
    with no_waits(device):
        update(batch, 1)


def test_whoever_waits_is_found(device):
    values = torch.arange(5.0).to(device)
    for wait in (lambda: values.sum().item(), lambda: values[values > 2], lambda: bool(values.any())):
        with pytest.raises(Waited), no_waits(device):
            wait()
    with no_waits(device):
        (values * 2).sum()


@pytest.mark.parametrize("kind", ["mae", "resnet"])
def test_an_update_that_is_not_finite_is_skipped_on_the_device(kind, device, place):
    stage = spoilt(stage_of(kind, config_of(place), device), wanted=2)
    assert skips_on_device(stage.optimizer)
    update = Update(stage)
    batch = batch_of(8).to(device)
    assert update(batch, 0)[2] == 0

    def state() -> dict[str, torch.Tensor]:
        weights = {name: value.clone() for name, value in stage.model.state_dict().items()}
        moments = stage.optimizer.state_dict()["state"]
        return weights | {f"{n}.{name}": part.clone() for n, parts in moments.items() for name, part in parts.items()}

    before = state()
    with no_waits(device):
        numbers = update(batch, 1)
    assert numbers[2] == 1 and not numbers[0].isfinite()
    for name, value in state().items():
        assert value.equal(before[name]) or name.endswith("num_batches_tracked"), name

    assert update(batch, 2)[2] == 0
    assert any(not value.equal(before[name]) for name, value in state().items())


def test_fp16_halves_its_scale_where_a_gradient_overflows(device, place):
    stage = stage_of("mae", config_of(place, precision="fp16"), device)
    step = stage.step
    calls: list[int] = []

    def overflowing(model, batch, epoch):
        calls.append(epoch)
        return step(model, batch, epoch) * (1e35 if len(calls) == 2 else 1.0)

    update = Update(stage_of("mae", config_of(place, precision="fp16"), device, step=overflowing))
    batch = batch_of(8).to(device)
    update(batch, 0)
    scale = update.scaler.get_scale()
    before = {name: value.clone() for name, value in update.stage.model.state_dict().items()}
    assert update(batch, 1)[2] == 1
    assert update.scaler.get_scale() == scale / 2
    assert all(value.equal(before[name]) for name, value in update.stage.model.state_dict().items())


def test_sixteen_bit_training_keeps_weights_of_32(device, place):
    update = update_of("mae", config_of(place, precision="bf16"), device)
    numbers = [update(batch_of(8).to(device), epoch) for epoch in range(3)]
    assert torch.stack(numbers).dtype == torch.float32
    assert {p.dtype for p in update.stage.model.parameters()} == {torch.float32}
    assert all(group["fused"] for group in update.stage.optimizer.param_groups)


# ---------------------------------------------------------------- a device beside the CPU, without one


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_copies_nothing_to_its_device(kind, place, monkeypatch):
    """Everything is made there: torch.tensor(list, device=…) would be a copy that waits. Meta stands in for a GPU."""
    config = config_of(place)
    beside = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has no autocast
    model = model_of(kind).train().to(beside)
    batch = batch_of(8).to(beside)
    with no_waits(beside):
        step_of(kind, config)(model, batch, 1).backward()

    for copy in (lambda: torch.tensor([1, 2], device=beside), lambda: torch.ones(2).to(beside)):
        with pytest.raises(Waited, match=r"copies|crosses"), no_waits(beside):
            copy()


def test_patterns_of_masks_are_copied_to_the_device_once(place, monkeypatch):
    config = config_of(place, pretrain__masking="green")
    beside = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has no autocast
    model = model_of("mae").train().to(beside)
    batch = batch_of(8).to(beside)
    step_of("mae", config)(model, batch, 1)
    with no_waits(beside):
        step_of("mae", config)(model, batch, 2)
