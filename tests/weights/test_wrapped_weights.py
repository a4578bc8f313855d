"""Laws of what stands around a state dict: however it is wrapped and prefixed, the weights are the same."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from foreign_weights import (
    HEADS,
    folder_of,
    from_weights,
    quiet,
    reference_file,
    same,
    timm_weights,
    tiny,
    with_decoder,
)
from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError
from mae.weights import is_foreign, load_facebook, load_huggingface, load_timm, starting_point

HEADS_OF_BOTH = {"heads": HEADS, "decoder_heads": 2}
PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "net.", "_fsdp_wrapped_module.")
WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "teacher", "checkpoint", "anything")
Change = Callable[[dict[str, Tensor]], dict]


def prefixed(*prefixes: str) -> Change:
    return lambda weights: {"".join(prefixes) + name: tensor for name, tensor in weights.items()}


def wrapped(*names: str) -> Change:
    """The outermost name comes first; each mapping holds something else too."""

    def change(weights: dict[str, Tensor]) -> dict:
        content: dict = weights
        for name in reversed(names):
            content = {"epoch": 3, name: content, "optimizer": {"state": {0: {"step": torch.ones(())}}}}
        return content

    return change


def held(holder: str, every: int) -> Change:
    """Put the name of a holder inside the names, as when single blocks are compiled or sharded."""

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {}
        for number, (name, tensor) in enumerate(weights.items()):
            stem, _, leaf = name.rpartition(".")
            names[f"{stem}.{holder}.{leaf}" if stem and number % every == 0 else name] = tensor
        return names

    return change


def ways() -> Iterator:
    """Every prefix and wrapper alone, then random orders of several."""
    for prefix in PREFIXES:
        yield pytest.param([prefixed(prefix)], id=prefix)
    for wrapper in WRAPPERS:
        yield pytest.param([wrapped(wrapper)], id=wrapper)
    for holder in ("module", "_orig_mod", "_checkpoint_wrapped_module"):
        yield pytest.param([held(holder, 1)], id=f"inside-{holder}")
    for seed in range(20):
        random = Random(seed)
        prefixes, wrappers = random.choices(PREFIXES, k=random.randint(1, 3)), random.choices(WRAPPERS, k=seed % 4)
        inside = held(random.choice(("module", "_orig_mod")), random.randint(1, 3))
        yield pytest.param([inside, prefixed(*prefixes), wrapped(*wrappers)], id=f"{'/'.join(wrappers)}:{prefixes}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, tuple[dict[str, Tensor], Callable]]:
    """For each program: the weights of a model, and the function that reads them."""
    root = tmp_path_factory.mktemp("plain")
    return {
        "timm": (with_decoder(timm_weights()), load_timm),
        "huggingface": (load_file(folder_of(tiny(), root) / "model.safetensors"), load_huggingface),
    }


@pytest.mark.parametrize("program", ["timm", "huggingface"])
@pytest.mark.parametrize("way", [*ways()])
def test_wrapped_and_prefixed_weights_are_the_same_weights(way, program, plain, tmp_path):
    weights, load = plain[program]
    expected = load(weights, quiet, **HEADS_OF_BOTH)
    changed = weights
    for change in way:
        changed = change(changed)
    assert changed is not weights

    path = tmp_path / "weights.pth"
    torch.save(changed, path)
    assert is_foreign(path)
    for source in (changed, path):
        model = load(source, quiet, **HEADS_OF_BOTH)
        assert same(expected, model)
        assert not model.report.missing
        assert len(model.report.loaded) + len(model.report.adapted) == len(weights)


@pytest.mark.parametrize("program", ["timm", "huggingface"])
def test_a_run_begins_from_them_as_from_plain_ones(program, plain, tmp_path):
    weights, _ = plain[program]
    changed = wrapped("teacher", "state_dict")(prefixed("_orig_mod.", "module.", "encoder.")(weights))
    for name, content in {"plain": weights, "changed": changed}.items():
        torch.save(content, tmp_path / f"{name}.pth")
    heads = {f"model.{name}": size for name, size in HEADS_OF_BOTH.items()}
    starts = [
        starting_point(from_weights(tmp_path, tmp_path / f"{name}.pth", heads), quiet) for name in ("plain", "changed")
    ]
    assert starts[0].meta["init"] == starts[1].meta["init"]
    assert all(torch.equal(tensor, starts[1].weights[name]) for name, tensor in starts[0].weights.items())


def test_a_folders_bin_may_be_wrapped_too(tmp_path):
    folder = folder_of(tiny(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wrapped("state_dict")(prefixed("module.")(weights)), folder / "pytorch_model.bin")
    assert same(tiny(), load_huggingface(folder, quiet))


def test_the_references_files_may_be_wrapped_once_more(tmp_path):
    arguments = argparse.Namespace(norm_pix_loss=True)
    content = wrapped("state_dict")(prefixed("module.")(with_decoder(timm_weights())))
    model = load_facebook(reference_file(tmp_path / "mae.pth", content, args=arguments), quiet, **HEADS_OF_BOTH)
    assert model.norm_pixel_loss
    assert not model.report.missing
    assert set(model.report.unexpected) == {"model.epoch", "model.optimizer"}


def test_of_several_models_the_usual_one_is_taken_and_the_others_are_accounted_for(tmp_path):
    """DINO's file: its authors evaluate the teacher. timm's: the averaged weights stand beside the others."""
    wanted, other = timm_weights(), timm_weights(seed=1)
    expected = load_timm(wanted, quiet, heads=HEADS)
    for names in (("teacher", "student"), ("state_dict", "state_dict_ema"), ("model", "model_ema")):
        for order in (names, names[::-1]):
            content = {name: prefixed("module.")(wanted if name == names[0] else other) for name in order}
            model = load_timm(content | {"epoch": 1}, quiet, heads=HEADS)
            assert same(expected.encoder, model.encoder)
            assert {names[1], "epoch"} <= set(model.report.unexpected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"first": timm_weights(), "second": timm_weights(seed=1)}, "found 2 models (first, second), expected"),
        (timm_weights() | {"module.norm.weight": torch.ones(12)}, "found norm.weight and module.norm.weight, expected"),
        ({"state_dict": {"model": {}}}, "found no state dict, expected names with tensors"),
        ({"state_dict": {"conv1.weight": torch.ones(2)}}, "found no patch_embed.proj.weight, expected"),
    ],
)
def test_what_is_not_one_model_is_refused(content, said):
    with pytest.raises(UserError) as error:
        load_timm(content, quiet, heads=HEADS)
    assert said in str(error.value)


def test_a_mapping_that_holds_itself_is_read_to_its_end():
    content = {"state_dict": {"model": timm_weights()}}
    content["state_dict"]["again"] = content
    assert load_timm(content, quiet, heads=HEADS).report.loaded
    endless: dict = {}
    endless["again"] = endless
    with pytest.raises(UserError, match="found no state dict"):
        load_timm(endless, quiet)


def test_the_last_norm_is_one_of_the_weights():
    weights = {name: tensor for name, tensor in timm_weights().items() if not name.startswith("norm.")}
    with pytest.raises(UserError, match=r"found no tensor for encoder\.norm\.bias"):
        load_timm(weights, quiet, heads=HEADS)


def test_names_of_a_path_are_kept(tmp_path: Path):
    """Entries beside the model are named by the path to them."""
    torch.save({"a": {"b": timm_weights(), "c": 1}, "d": 2}, tmp_path / "x.pth")
    assert {"a.c", "d"} <= set(load_timm(tmp_path / "x.pth", quiet, heads=HEADS).report.unexpected)
