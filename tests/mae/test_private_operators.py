"""Private parts of torch and TensorBoard are looked for before use; without them, the public way does the same."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny_world import tiny_config
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from toy_stage import ToyBatch, spoiling, toy_stage

import mae.cost
import mae.linear
from mae import build_mae, load_checkpoint
from mae.cost import step_flops, step_memory
from mae.engine.hparams import HYPERPARAMETERS, end_session, write_hyperparameters
from mae.engine.loop import fit
from mae.engine.optim import adamw, parameter_groups
from mae.engine.stage import Stage
from mae.engine.update import Update, skips_on_device
from mae.linear import Linear
from mae.transformer import configure_blocks

# ---------------------------------------------------------------- oneDNN's matrix product


def outputs_and_gradients(layer: nn.Linear) -> list[torch.Tensor]:
    """Of a batch of tokens (2 5 7), with the gradients of tokens, weight and bias."""
    tokens = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs = layer(tokens)
    outputs.square().sum().backward()
    return [outputs, tokens.grad, layer.weight.grad, layer.bias.grad]


def test_without_onednn_a_linear_layer_is_torchs_own(monkeypatch):
    ours = Linear(7, 3)
    torchs = nn.Linear(7, 3)
    torchs.load_state_dict(ours.state_dict())

    monkeypatch.setattr(mae.linear, "ONEDNN", None)
    for found, expected in zip(outputs_and_gradients(ours), outputs_and_gradients(torchs), strict=True):
        assert found.equal(expected)


@pytest.mark.skipif(mae.linear.ONEDNN is None, reason="this torch has no such operator")
def test_with_onednn_a_linear_layer_computes_the_same(monkeypatch):
    ours = Linear(7, 3)
    torchs = nn.Linear(7, 3)
    torchs.load_state_dict(ours.state_dict())

    calls = []
    product = mae.linear.ONEDNN
    monkeypatch.setattr(mae.linear, "ONEDNN", lambda *inputs: calls.append(inputs) or product(*inputs))
    for found, expected in zip(outputs_and_gradients(ours), outputs_and_gradients(torchs), strict=True):
        torch.testing.assert_close(found, expected)
    assert len(calls) == 3  # forward, and the gradients of tokens and weight


# ---------------------------------------------------------------- fused optimizers


def unfused(stage: Stage) -> Stage:
    """The stage with an optimizer that does not look at `found_inf`."""
    groups = parameter_groups(stage.model.named_parameters(), 0.0)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=False)
    assert not skips_on_device(optimizer)
    return replace(stage, optimizer=optimizer)


def weights_and_statistics(stage: Stage) -> dict[str, torch.Tensor]:
    state = stage.model.state_dict()
    return {name: value.clone() for name, value in state.items() if name != "norm.num_batches_tracked"}


@pytest.fixture(scope="module")
def config(place):
    return tiny_config(place)


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_an_unfused_optimizer_skips_what_is_not_finite_and_changes_nothing(spoil, config):
    stage = unfused(toy_stage(config, step=spoiling(spoil, {2})))
    for group in stage.optimizer.param_groups:
        group["lr"] = 0.1
    update = Update(stage)
    stage.model.train()

    states = [weights_and_statistics(stage)]
    skipped = []
    for number in range(3):
        skipped.append(update(ToyBatch(number), 0)[2].item())
        states.append(weights_and_statistics(stage))
    assert skipped == [0, 1, 0]
    for name, value in states[1].items():
        assert value.equal(states[2][name]), name
    for before, after in ((0, 1), (2, 3)):
        assert not states[before]["head.weight"].equal(states[after]["head.weight"])
    assert {state["step"].item() for state in stage.optimizer.state.values()} == {2.0}


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_run_is_the_same_with_a_fused_optimizer_and_without(spoil, config, tmp_path):
    fused = toy_stage(config, step=spoiling(spoil, {3}), schedule={"epochs": 2})
    assert skips_on_device(fused.optimizer)
    fit(fused, tmp_path / "fused")
    fit(unfused(toy_stage(config, step=spoiling(spoil, {3}), schedule={"epochs": 2})), tmp_path / "unfused")

    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("fused", "unfused"))
    assert one.progress["skipped"] == other.progress["skipped"] == 1
    torch.testing.assert_close(one.weights, other.weights)


def test_adamw_is_unfused_where_torch_has_no_fused_one(monkeypatch):
    real = torch.optim.AdamW

    def without_fused(*arguments, fused=None, **settings):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        return real(*arguments, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", without_fused)
    model = nn.Linear(2, 3)
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), (0.9, 0.95))
    assert not skips_on_device(optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


# ---------------------------------------------------------------- counters of operations and memory


def step(batch: int, decoder: str, recompute: bool = False):
    """A training step of 5 × 7 patches of 3 × 3 pixels and 2 channels; no two sizes are alike."""

    def build():
        model = build_mae(
            preset="vit_tiny_patch16",
            image_size=(15, 21),
            in_channels=2,
            decoder=decoder,
            patch_size=3,
            width=20,
            depth=3,
            heads=5,
            decoder_width=12,
            decoder_depth=2,
            decoder_heads=3,
        )
        configure_blocks(model, compiled=False, recompute=recompute)
        images = torch.zeros(batch, 2, 15, 21)
        return lambda: model(images).loss

    return build


def by_torch_and_by_hooks(monkeypatch, count) -> tuple[int, int]:
    if not mae.cost.PRIVATE:
        pytest.skip("this torch has no such counters")
    private = count()
    monkeypatch.setattr(mae.cost, "PRIVATE", False)
    return private, count()


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("recompute", [False, True])
def test_hooks_count_the_operations_that_torch_counts(recompute, device, decoder, monkeypatch):
    private, public = by_torch_and_by_hooks(monkeypatch, lambda: step_flops(step(4, decoder, recompute), device))
    tolerance = 0.1 if recompute else 0.01  # on a CPU, torch also recomputes a block's last product
    assert public == pytest.approx(private, rel=tolerance)


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch", [1, 40])
def test_hooks_see_most_of_the_memory_that_torch_sees(batch, recompute, decoder, monkeypatch):
    private, public = by_torch_and_by_hooks(monkeypatch, lambda: step_memory(step(batch, decoder, recompute)))
    assert 0.4 * private < public < 1.1 * private


# ---------------------------------------------------------------- TensorBoard's messages

KNOWN_BY = {"stage": "toy", "rate": 0.5}
PARTS = ["tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer"]


def shown_hyperparameters(folder: Path) -> dict[str, float | str]:
    """What the HParams tab shows of a run folder."""
    content = EventAccumulator(str(folder)).Reload().SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


@pytest.mark.parametrize("part", PARTS)
def test_without_tensorboards_messages_a_run_shows_its_hyperparameters(part, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, part, None)
        fit(toy_stage(config, schedule={"epochs": 1, "warmup_epochs": 0}, hyperparameters=KNOWN_BY), tmp_path)
    assert not (tmp_path / HYPERPARAMETERS).exists()
    assert shown_hyperparameters(tmp_path) == KNOWN_BY
    assert "validate/score" in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]


@pytest.mark.parametrize("part", PARTS)
def test_without_tensorboards_messages_the_end_of_a_session_is_left_out(part, tmp_path, monkeypatch):
    with SummaryWriter(tmp_path) as board, monkeypatch.context() as patch:
        patch.setitem(sys.modules, part, None)
        end_session(board)
    assert "_hparams_/session_end_info" not in EventAccumulator(str(tmp_path)).Reload().summary_metadata


def test_with_tensorboards_messages_there_is_one_file_whatever_the_number_of_starts(tmp_path):
    for rate in (0.25, 0.5):
        write_hyperparameters(tmp_path, KNOWN_BY | {"rate": rate})
    assert [path.name for path in tmp_path.iterdir()] == [HYPERPARAMETERS]
    assert shown_hyperparameters(tmp_path) == KNOWN_BY
