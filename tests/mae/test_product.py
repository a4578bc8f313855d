"""The matrix product with which a CPU computes linear layers: the faster one, which a run then keeps."""

from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config

import mae.product
from classify.finetune_cost import step_of
from classify.start import resolved
from data.config import change_config
from mae import build_mae, load_checkpoint
from mae.linear import Linear
from mae.pretrain import pretrain
from mae.product import Shape, configure_products, faster_product, linear_shapes, seconds_of_products

SIZES = {"patch_size": 3, "width": 20, "depth": 3, "heads": 5, "decoder_width": 12, "decoder_depth": 2}
CPU = torch.device("cpu")


def tiny_step(decoder: str = "self"):
    model = build_mae("vit_tiny_patch16", (15, 21), 2, decoder, decoder_heads=3, **SIZES)
    images = torch.zeros(7, 2, 15, 21)
    return lambda: model(images, 0.75).loss


def test_shapes_are_those_of_all_linear_layers_with_their_rows():
    shapes = linear_shapes(tiny_step)
    seen, everywhere, masked = 7 * 9, 7 * 36, 7 * 27  # tokens: of 35 patches 8 are kept
    assert shapes[Shape(seen, 20, 60)] == shapes[Shape(seen, 20, 20)] == 3
    assert shapes[Shape(seen, 20, 80)] == shapes[Shape(seen, 80, 20)] == 3
    assert shapes[Shape(everywhere, 12, 36)] == 2
    assert shapes[Shape(masked, 12, 18)] == 1  # what is predicted
    assert shapes[Shape(7 * 8, 18, 20)] == 1  # what is embedded


def test_no_hook_stays_after_shapes_were_looked_at():
    linear_shapes(tiny_step)
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_shapes_of_a_fine_tuning_are_seen_too(mode, tmp_path):
    config = resolved(tiny_config(tmp_path, finetune__mode=mode))
    shapes = linear_shapes(lambda: step_of(config, 7))
    assert shapes[Shape(7 * 10, 12, 48)] == 2  # a class token and 9 patches


@pytest.mark.parametrize("faster", ["onednn", "blas"])
@pytest.mark.parametrize("factor", [0.5, 0.9, 0.97])
def test_the_faster_product_is_taken_and_onednn_where_they_tie(faster, factor, monkeypatch, tmp_path):
    slower = {"onednn": "blas", "blas": "onednn"}[faster]
    monkeypatch.setattr(mae.product, "_measured", lambda shape: {faster: factor * shape.rows, slower: shape.rows})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert faster_product({Shape(3, 5, 7): 2, Shape(1000, 7, 5): 11}) == faster

    near = {Shape(5, 3, 7): 1}
    monkeypatch.setattr(mae.product, "_measured", lambda shape: {faster: 0.98, slower: 1.0})
    assert faster_product(near) == "onednn"


@pytest.mark.parametrize("first", ["onednn", "blas"])
def test_the_first_answer_on_a_machine_stands(first, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = {"onednn": "blas", "blas": "onednn"}[first]
    monkeypatch.setattr(mae.product, "_measured", lambda shape: {first: 1.0, other: 2.0})
    assert faster_product({Shape(3, 5, 7): 2}) == first
    monkeypatch.setattr(mae.product, "_measured", lambda shape: {first: 2.0, other: 1.0})
    assert faster_product({Shape(3, 5, 7): 2}) == first
    assert faster_product({Shape(3, 5, 7): 1}) == other

    # also the answer of another process that was slightly earlier
    place = mae.product._answer_place({Shape(1, 2, 3): 1})
    real = mae.product._keep_answer
    monkeypatch.setattr(mae.product, "_keep_answer", lambda place, answer: (real(place, first), real(place, answer)))
    assert faster_product({Shape(1, 2, 3): 1}) == first == place.read_text()
    assert len(list(place.parent.iterdir())) == 3


def test_without_a_place_for_the_answer_it_is_measured(monkeypatch, tmp_path):
    (tmp_path / "mae-cxr").write_text("a file where a folder belongs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mae.product, "_measured", lambda shape: {"onednn": 2.0, "blas": 1.0})
    assert faster_product({Shape(3, 5, 7): 2}) == "blas"
    assert [path.name for path in tmp_path.iterdir()] == ["mae-cxr"]


def test_without_a_home_it_is_measured_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(mae.product.os.path, "expanduser", lambda path: path)  # as for a user without a home
    monkeypatch.setattr(mae.product, "_measured", lambda shape: {"onednn": 2.0, "blas": 1.0})
    assert faster_product({Shape(3, 5, 7): 2}) == "blas"
    assert not list(tmp_path.iterdir())


def test_without_onednn_there_is_nothing_to_choose(monkeypatch):
    monkeypatch.setattr(mae.product, "onednn_product", lambda: None)
    assert faster_product({Shape(1, 2, 3): 1}) == "blas"


def test_measuring_leaves_the_number_of_threads_and_counts_layers_and_rows():
    threads = torch.get_num_threads()
    one = seconds_of_products({Shape(256, 64, 64): 1})
    assert torch.get_num_threads() == threads
    assert one.keys() == {"onednn", "blas"} and min(one.values()) > 0


def test_every_linear_layer_of_ours_follows_and_auto_leaves_them(monkeypatch):
    model = build_mae("vit_tiny_patch16", (15, 21), 2, decoder_heads=3, **SIZES)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    configure_products(model, "blas")
    assert {layer.product for layer in layers} == {"blas"}
    configure_products(model, "auto")
    assert {layer.product for layer in layers} == {"blas"}

    # and the layer then does not call oneDNN
    monkeypatch.setattr(mae.linear, "ONEDNN", None)
    model(torch.zeros(1, 2, 15, 21), 0.75).loss.backward()


def test_both_products_give_one_result_but_for_rounding():
    images = torch.randn(3, 2, 15, 21, generator=torch.Generator().manual_seed(1))
    model = build_mae("vit_tiny_patch16", (15, 21), 2, decoder_heads=3, **SIZES)
    noise = torch.rand(3, 35, generator=torch.Generator().manual_seed(2))
    losses = []
    for product in ("onednn", "blas"):
        configure_products(model, product)
        losses.append(model(images, 0.75, noise).loss)
    torch.testing.assert_close(*losses)


# ---------------------------------------------------------------- in runs


@pytest.fixture
def choices(monkeypatch) -> list[str]:
    """The answers of the measurement, one after the other."""
    answers = ["blas", "onednn"]
    monkeypatch.setattr(mae.product, "faster_product", lambda shapes: answers.pop(0))
    return answers


def test_a_run_keeps_the_product_it_began_with(place, tmp_path, choices):
    config = tiny_config(place, product="auto")
    config = change_config(config, {"run": str(tmp_path / "run"), "pretrain.epochs": 1})
    folder = pretrain(config)
    assert load_checkpoint(folder / "last.pt").config.product == "blas"
    assert "product: blas" in (folder / "config.yaml").read_text()
    assert '"product": "blas"' in (folder / "environment.json").read_text()

    pretrain(change_config(config, {"pretrain.epochs": 2}))
    assert load_checkpoint(folder / "last.pt").config.product == "blas"
    assert choices == ["onednn"]  # it was not measured again


def test_a_run_of_an_earlier_version_goes_on_as_it_began(place, tmp_path, choices):
    config = tiny_config(place, product="auto")
    (tmp_path / "config.yaml").write_text("run: runs/old\n")
    assert mae.product.with_product(config, tmp_path, CPU, tiny_step).product == "onednn"
    assert len(choices) == 2


def test_a_product_that_is_given_is_not_measured(place, tmp_path, choices):
    config = tiny_config(place, product="auto")
    pretrain(change_config(config, {"run": str(tmp_path / "run"), "pretrain.epochs": 1, "product": "onednn"}))
    assert len(choices) == 2


@pytest.mark.parametrize("given", [{"precision": "bf16"}, {"compile": True}])
def test_where_linear_layers_choose_otherwise_it_stays_auto(given, place, choices):
    config = change_config(tiny_config(place, product="auto"), given)
    assert mae.product.with_product(config, Path("nowhere"), CPU, tiny_step).product == "auto"
