"""Laws of `compile` and `activation_checkpointing`: they change how a model computes, not what, nor its checkpoints."""

import os
import shutil
import sys
from functools import partialmethod

import pytest
import torch
import torch._inductor.config
from stage_runs import CPU, assert_same_runs
from tiny_mae import SIZES, noise_for
from tiny_world import tiny_config
from torch import Tensor, nn

from classify import build_classifier, build_resnet
from classify.cases import labelled_splits
from classify.finetune import finetune, finetune_stage
from data.errors import UserError
from mae import build_mae, load_checkpoint
from mae.engine.run import check_run, start_run, training_device
from mae.model import MaskedAutoencoder
from mae.pretrain import RESUMABLE, pretrain, pretrain_stage
from mae.transformer import Block, configure_blocks

DECODERS = pytest.mark.parametrize("decoder", ["self", "cross"])
COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def tiny(decoder: str = "self", **sizes) -> MaskedAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_mae("vit_tiny_patch16", (12, 20), decoder=decoder, **SIZES | {"patch_size": 4} | sizes)


def pixels(b: int = 7) -> Tensor:
    return torch.randn(b, 1, 12, 20, generator=torch.Generator().manual_seed(1))


def step(model: MaskedAutoencoder, bf16: bool = False, b: int = 7) -> Tensor:
    """The loss of a batch; its gradients are in the parameters."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(pixels(b), 0.75, noise_for(b), 0.25 if model.decoder.reads_depths else None).loss
    loss.backward()
    return loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def traced(monkeypatch):
    """Compile without a compiler: the blocks are traced into one graph each, or the test fails."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True))
    yield
    torch.compiler.reset()


# ---------------------------------------------------------------- activation checkpointing


@DECODERS
@pytest.mark.parametrize("bf16", [False, True])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(decoder, bf16):
    kept, recomputed = tiny(decoder), tiny(decoder)
    configure_blocks(recomputed, compiled=False, recompute=True)
    assert step(recomputed, bf16).equal(step(kept, bf16))
    found = gradients(recomputed)
    for name, gradient in gradients(kept).items():
        assert found[name].equal(gradient), name


def test_stochastic_depth_drops_the_same_branches_again():
    kept, recomputed = tiny().encoder.train(), tiny().encoder.train()
    configure_blocks(recomputed, compiled=False, recompute=True)
    noise = torch.rand(7, 6, generator=torch.Generator().manual_seed(6))
    for encoder in (kept, recomputed):
        encoder.drop_path = 0.5
        encoder(pixels(), noise=noise).square().mean().backward()
    for (name, one), other in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        assert one.grad.equal(other.grad), name


def saved_bytes(model: MaskedAutoencoder) -> int:
    """What the forward pass keeps for the backward pass, weights apart."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(pixels(), 0.5, noise_for()).loss
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@DECODERS
def test_recomputing_keeps_a_fraction_of_the_activations(decoder):
    model = tiny(decoder, depth=6, decoder_depth=4)
    plain = saved_bytes(model)
    configure_blocks(model, compiled=False, recompute=True)
    assert saved_bytes(model) < plain / 3
    with torch.no_grad():
        model(pixels())  # nothing to recompute


def test_a_frozen_encoder_trains_its_head_all_the_same():
    probe = build_classifier(tiny().encoder, probe=True)
    configure_blocks(probe, compiled=False, recompute=True)
    probe(pixels()).square().mean().backward()
    assert probe.head.weight.grad.any()
    assert all(p.grad is None for p in probe.encoder.parameters())


# ---------------------------------------------------------------- compiling


@DECODERS
def test_compiled_blocks_compute_the_same_in_one_graph_each(decoder, traced):
    plain, compiled = tiny(decoder), tiny(decoder)
    configure_blocks(compiled, compiled=True, recompute=False)
    torch.testing.assert_close(step(compiled), step(plain), rtol=1e-6, atol=0)
    expected = gradients(plain)
    for name, gradient in gradients(compiled).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6)
    with torch.no_grad():
        for b in (7, 3, 5):  # a last batch is smaller
            out = compiled.eval()(pixels(b), 0.75, noise_for(b))
            torch.testing.assert_close(out.pred, plain.eval()(pixels(b), 0.75, noise_for(b)).pred)


def test_compiled_blocks_drop_the_same_branches(traced):
    plain, compiled = tiny().encoder.train(), tiny().encoder.train()
    configure_blocks(compiled, compiled=True, recompute=False)
    noise = torch.rand(7, 6, generator=torch.Generator().manual_seed(6))
    plain.drop_path = compiled.drop_path = 0.5
    torch.testing.assert_close(compiled(pixels(), noise=noise), plain(pixels(), noise=noise))


@DECODERS
@pytest.mark.parametrize("bf16", [False, True])
def test_compiling_recomputing_and_autocast_go_together(decoder, bf16, traced):
    plain, both = tiny(decoder), tiny(decoder)
    configure_blocks(both, compiled=True, recompute=True)
    loss = step(both, bf16)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, step(plain, bf16), rtol=1e-4 if bf16 else 1e-6, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(both).values())


def test_names_of_weights_do_not_change():
    for build in (tiny, lambda: build_classifier(tiny().encoder), lambda: build_resnet("resnet18")):
        plain, compiled = build(), build()
        configure_blocks(compiled, compiled=True, recompute=True)
        assert list(compiled.state_dict()) == list(plain.state_dict())
        plain.load_state_dict(compiled.state_dict())
        assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_a_resnet_is_compiled_whole(traced):
    plain = build_resnet("resnet18", stem="small").eval()
    compiled = build_resnet("resnet18", stem="small").eval()
    compiled.load_state_dict(plain.state_dict())
    configure_blocks(compiled, compiled=True, recompute=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels(3)), plain(pixels(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"torch.compile needs a C++ compiler; {COMPILER} is missing")
def test_torch_compiles_a_block_on_this_machine(monkeypatch):
    # registers that every such processor has: torch would try the compiler on each kind, which takes ten seconds
    monkeypatch.setattr(torch._inductor.config.cpp, "simdlen", 256)
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, compiled = Block(8, 2), Block(8, 2)
    compiled.load_state_dict(plain.state_dict())
    configure_blocks(compiled, compiled=True, recompute=False)
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # gradients are traced above; their kernels would take as long again to compile
        torch.testing.assert_close(compiled(tokens), plain(tokens))
    torch.compiler.reset()


def test_a_missing_compiler_is_told_before_anything_is_read(place, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    training_device(tiny_config(place))
    with pytest.raises(UserError) as caught:
        pretrain(tiny_config(place, compile=True), data=None)
    assert str(caught.value).startswith("compile: found no C++ compiler 'no-such-compiler', expected one on the PATH")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="compile: found no C"):
        finetune(tiny_config(place, compile=True, finetune__model="resnet18"))


# ---------------------------------------------------------------- stages


def test_both_stages_read_the_settings(place, opened, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    config = tiny_config(place, compile=True, activation_checkpointing=True)
    stages = {"mae": pretrain_stage(config, opened, CPU)}
    for model in ("vit", "resnet18"):
        changed = tiny_config(place, compile=True, activation_checkpointing=True, finetune__model=model)
        stages[model] = finetune_stage(
            changed, opened, labelled_splits(opened, changed.finetune.sample, changed.data.split_seed), CPU, None
        )
    assert compiled == [*["Block"] * 3, *["Block"] * 2, "ResNet"]  # encoder and decoder, encoder, whole
    assert stages["mae"].model.encoder.recompute and stages["mae"].model.decoder.recompute
    assert stages["vit"].model.encoder.recompute
    assert not pretrain_stage(tiny_config(place), opened, CPU).model.encoder.recompute


@pytest.mark.parametrize(
    "later", [{"activation_checkpointing": True}, {"compile": True}, {"device": "auto", "threads": 2}], ids=str
)
def test_a_run_may_go_on_otherwise_computed(later, place, tmp_path):
    facts = {"store": "abc"}
    start_run(tmp_path, tiny_config(place), facts)
    check_run(tmp_path, tiny_config(place, **later), RESUMABLE, facts)


def test_a_run_with_recomputed_activations_equals_one_without(place, opened, tmp_path):
    for name, recompute in (("kept", False), ("recomputed", True)):
        changed = {"run": str(tmp_path / name), "pretrain__epochs": 2, "activation_checkpointing": recompute}
        pretrain(tiny_config(place, **changed), opened)
    assert_same_runs(tmp_path / "kept", tmp_path / "recomputed")


def test_a_compiled_run_goes_on_uncompiled_and_into_a_compiled_stage_two(place, opened, tmp_path, traced):
    for epochs, compiled in ((1, True), (2, False)):
        changed = {"run": str(tmp_path / "run"), "pretrain__epochs": epochs, "compile": compiled}
        folder = pretrain(tiny_config(place, **changed), opened)
        assert load_checkpoint(folder / "last.pt").progress["epoch"] == epochs
    changed = {"finetune__run": str(tmp_path / "full"), "finetune__epochs": 1, "compile": True}
    finetune(tiny_config(place, **changed), folder / "last.pt", opened)
    assert load_checkpoint(tmp_path / "full/best.pt").kind == "classifier"
