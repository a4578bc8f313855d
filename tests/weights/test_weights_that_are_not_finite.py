"""Laws of NaN and infinity in weights: refused where weights are read for use or written, by tensor and file."""

import shutil
from pathlib import Path

import pytest
import torch
from foreign_weights import HEADS, folder_of, quiet, reference_file, timm_weights, tiny, with_decoder
from safetensors.torch import load_file, save_file
from tiny_world import World, mistake, succeed

from classify.cli import evaluate as mae_evaluate
from classify.cli import export as mae_export
from classify.cli import finetune as mae_finetune
from data.errors import UserError
from mae import load_checkpoint
from mae.cli import pretrain as mae_pretrain
from mae.cli import reconstruct as mae_reconstruct
from mae.engine.checkpoint import expect_finite
from mae.weights import load_facebook, load_huggingface, load_timm, save_encoder, save_huggingface

BAD = (float("nan"), float("inf"), -float("inf"))


def spoiled(tensors: dict, name: str, value: float) -> dict:
    """A copy with the last number of one tensor changed."""
    tensors = {each: tensor.clone() for each, tensor in tensors.items()}
    tensors[name].view(-1)[-1] = value
    return tensors


def spoil_checkpoint(path: Path, name: str, value: float = float("nan"), part: str = "weights") -> None:
    raw = torch.load(path, weights_only=True)
    raw[part] = spoiled(raw[part], name, value)
    torch.save(raw, path)


# ---------------------------------------------------------------- other programs' files


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["cls_token", "blocks.1.attn.qkv.bias", "norm.weight", "head.bias"])
def test_a_file_of_timm(name, value, tmp_path):
    weights = {f"module.{each}": tensor for each, tensor in timm_weights().items()}
    torch.save({"state_dict": spoiled(weights, f"module.{name}", value)}, tmp_path / "timm.pth")
    with pytest.raises(UserError) as error:
        load_timm(tmp_path / "timm.pth", quiet, heads=HEADS)
    expected = f"{tmp_path}/timm.pth: module.{name}: found NaN or infinity, expected finite numbers"
    assert str(error.value) == expected


def test_a_file_of_the_reference_and_a_folder(world: World, tmp_path):
    file = reference_file(tmp_path / "mae.pth", spoiled(with_decoder(timm_weights()), "mask_token", BAD[0]))
    folder = folder_of(tiny(), tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    save_file(spoiled(weights, "decoder.decoder_pred.bias", BAD[1]), folder / "model.safetensors")
    with pytest.raises(UserError, match=r"mae\.pth: mask_token: found NaN or infinity"):
        load_facebook(file, quiet, heads=HEADS, decoder_heads=2)
    with pytest.raises(UserError, match=r"folder: decoder\.decoder_pred\.bias: found NaN or infinity"):
        load_huggingface(folder, quiet)
    for path in (file, folder):
        for main in (mae_pretrain, mae_finetune):
            words = [
                "--config",
                world.config,
                f"model.init={path}",
                f"run={tmp_path}/run",
                f"finetune.run={tmp_path}/b",
            ]
            assert "found NaN or infinity" in mistake(main, *words, keep=tmp_path)
    assert not (tmp_path / "run").exists() and not (tmp_path / "b").exists()


def test_a_number_too_large_for_float32_is_infinite_there():
    weights = {name: tensor.double() for name, tensor in timm_weights().items()}
    with pytest.raises(UserError, match=r"encoder\.blocks\.0\.norm1\.bias: found NaN or infinity"):
        load_timm(spoiled(weights, "blocks.0.norm1.bias", 1e300), quiet, heads=HEADS)


def test_what_is_not_of_the_model_may_be_infinite():
    """For example the best value of a metric, before there is one."""
    weights = {f"model.{name}": tensor for name, tensor in timm_weights().items()}
    assert load_timm(weights | {"best.min_value": torch.tensor(float("inf"))}, quiet, heads=HEADS).report.loaded


# ---------------------------------------------------------------- our own checkpoints


@pytest.fixture
def runs(world: World, tmp_path) -> Path:
    """Copies of the world's runs, to be spoiled."""
    for name in ("mae", "mae-full"):
        shutil.copytree(world.root / "runs" / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("value", BAD)
def test_a_pretraining_is_not_begun_from_shown_exported_or_gone_on_from(value, world: World, runs: Path):
    name = "encoder.blocks.0.mlp.up.weight"
    for each in ("best.pt", "last.pt"):
        spoil_checkpoint(runs / "mae" / each, name, value)
    last = runs / "mae/last.pt"
    image = world.images / "0000.png"
    config = ("--config", world.config)
    for main, *words in (
        (mae_finetune, "--checkpoint", last),
        (mae_finetune, *config, f"model.init={last}", f"finetune.run={runs}/new"),
        (mae_pretrain, *config, f"model.init={last}", f"run={runs}/new"),
        (mae_pretrain, *config, f"run={runs}/mae", "pretrain.epochs=2"),
        (mae_export, "--checkpoint", last, "--out", runs / "out"),
        (mae_reconstruct, "--checkpoint", last, "--out", runs / "out", image),
    ):
        line = mistake(main, *words, keep=runs)
        assert line == f"error: {last}: {name}: found NaN or infinity, expected finite numbers"
    assert not (runs / "out").exists() and not (runs / "new").exists()


def test_a_classifier_is_not_evaluated_exported_or_gone_on_from(world: World, runs: Path):
    for each in ("best.pt", "last.pt"):
        spoil_checkpoint(runs / "mae-full" / each, "head.weight")
    shutil.rmtree(runs / "mae-full/predictions", ignore_errors=True)
    said = "head.weight: found NaN or infinity"
    assert said in mistake(mae_evaluate, runs / "mae-full", keep=runs)
    assert said in mistake(mae_export, "--checkpoint", runs / "mae-full/best.pt", "--out", runs / "out", keep=runs)
    words = ("--checkpoint", runs / "mae/last.pt", f"finetune.run={runs}/mae-full", "finetune.epochs=2", *world.data)
    assert said in mistake(mae_finetune, *words, keep=runs)
    assert not (runs / "mae-full/predictions").exists()


def test_a_run_goes_on_from_the_checkpoint_before(world: World, runs: Path):
    shutil.copy(runs / "mae/last.pt", runs / "mae/previous.pt")
    spoil_checkpoint(runs / "mae/last.pt", "decoder.mask_token")
    succeed(mae_pretrain, "--config", world.config, f"run={runs}/mae", "pretrain.epochs=2")
    assert load_checkpoint(runs / "mae/last.pt").progress["epoch"] == 2


def test_the_optimizers_numbers_count_too(runs: Path):
    raw = torch.load(runs / "mae/last.pt", weights_only=True)
    raw["optimizer"]["state"][3]["exp_avg"].view(-1)[0] = float("nan")
    torch.save(raw, runs / "mae/last.pt")
    with pytest.raises(UserError, match=r"last\.pt: optimizer\.state\.3\.exp_avg: found NaN or infinity"):
        load_checkpoint(runs / "mae/last.pt")


@pytest.mark.parametrize("change", ["weights", "state", "settings", "extra", "missing", "sparse"])
def test_a_checkpoint_that_lacks_a_part_is_one_line(change, runs: Path):
    path = runs / "mae/last.pt"
    raw = torch.load(path, weights_only=True)
    if change == "extra":
        raw["more"] = 1
    elif change == "missing":
        del raw["weights"]
    elif change == "sparse":
        raw["weights"]["encoder.norm.weight"] = raw["weights"]["encoder.norm.weight"].to_sparse()
    else:
        raw[change] = 3
    torch.save(raw, path)
    with pytest.raises(UserError, match=r"last\.pt: found "):
        load_checkpoint(path)


# ---------------------------------------------------------------- writing


def test_nothing_is_written_of_a_model_that_is_not_finite(tmp_path):
    model = tiny()
    model.encoder.norm.bias.data[3] = float("nan")
    for write in (
        lambda: save_huggingface(model, tmp_path / "mae", say=quiet),
        lambda: save_encoder(model.encoder, tmp_path / "vit", "ViTModel", say=quiet),
    ):
        with pytest.raises(UserError, match=r"layernorm\.bias: found NaN or infinity, expected finite numbers"):
            write()
    assert not list(tmp_path.iterdir())


def test_names_are_shown_without_what_moves_the_cursor():
    with pytest.raises(UserError) as error:
        expect_finite({"a\x1b[2J\nb": torch.tensor(float("nan"))}, "file")
    assert str(error.value) == "file: a\\x1b[2J\\nb: found NaN or infinity, expected finite numbers"
