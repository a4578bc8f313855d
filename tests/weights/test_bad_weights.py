"""Laws of weights that cannot be used: no file runs code, and each is refused in one line."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from code_carrier import Code
from foreign_weights import HEADS, edit_json, folder_of, quiet, reference_file, timm_weights, tiny
from safetensors.torch import load_file, save_file
from tiny_world import call

from classify.cli import finetune as mae_finetune
from data.errors import UserError
from mae.cli import pretrain as mae_pretrain
from mae.weights import load_facebook, load_huggingface, load_timm


def test_a_pickle_that_carries_code_is_refused_and_not_run(world, tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights")
    (folder / "model.safetensors").unlink()
    carrier = timm_weights() | {"x": Code(tmp_path / "ran")}
    torch.save(carrier, tmp_path / "timm.pth")
    torch.save(carrier, folder / "pytorch_model.bin")
    reference_file(tmp_path / "mae.pth", timm_weights(), args=Code(tmp_path / "ran"))
    for load, path in ((load_timm, "timm.pth"), (load_facebook, "mae.pth"), (load_huggingface, "weights")):
        with pytest.raises(UserError, match=r"found a pickle that carries code \(\w+.mkdir\), expected tensors"):
            load(tmp_path / path, say=quiet)
    for path in ("timm.pth", "mae.pth", "weights"):
        outcome = call(mae_pretrain, "--config", world.config, f"model.init={tmp_path / path}", f"run={tmp_path}/run")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "carries code" in outcome.err
    assert not (tmp_path / "ran").exists()


def test_a_namespace_is_read_from_the_references_files_alone(tmp_path):
    torch.save(timm_weights() | {"args": argparse.Namespace(lr=1.0)}, tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"carries code \(argparse.Namespace\)"):
        load_timm(tmp_path / "timm.pth", say=quiet)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def break_folder(folder: Path, what: str) -> None:
    """Spoil a good folder."""
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "torn config":
        (folder / "config.json").write_text('{"hidden_size": 1')
    elif what == "lost shard":
        index = {"weight_map": {"vit.layernorm.weight": "model-1.safetensors"}}
        weights.rename(folder / "weights")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "lost tensor":
        save_file(
            {n: t for n, t in load_file(weights).items() if n != "vit.encoder.layer.1.output.dense.bias"}, weights
        )
    elif what == "other program":
        save_file({"conv1.weight": torch.ones(2)}, weights)
    else:
        edit_json(folder / "config.json", **{what.split("=")[0]: json.loads(what.split("=")[1])})


@pytest.mark.parametrize(
    ("what", "said"),
    {
        "no weights": "found no weights, expected model.safetensors or pytorch_model.bin",
        "truncated": "found a truncated or damaged file, expected safetensors",
        "no config": "found no config.json, expected a folder of Hugging Face's layout",
        "torn config": "found no valid JSON, expected settings",
        "lost shard": "found no model-1.safetensors beside it",
        "lost tensor": "found no tensor for encoder.blocks.1.mlp.down.bias",
        "other program": "found no embeddings.patch_embeddings.projection.weight",
        "hidden_size=null": "found no hidden_size, expected the config.json of a ViTMAE or ViT",
        "hidden_size=16": "found hidden_size 16 in config.json, expected 12 by weights",
        "patch_size=8": "found patch_size 8 in config.json, expected 4 by weights",
        "image_size=16": "found 9 positions of patches and the class token's, expected those of 16 pixels in",
        "num_channels=1": "found num_channels 1 in config.json, expected 3 by weights",
        'hidden_act="relu"': "found hidden_act relu, expected gelu",
        'num_attention_heads="three"': 'found num_attention_heads "three", expected a number above 0',
        "num_attention_heads=5": "found 5, expected a divisor of width 12",
    }.items(),
)
def test_a_bad_folder_is_one_clear_line(what, said, tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights")
    break_folder(folder, what)
    (tmp_path / "empty.yaml").write_text("{}")
    words = [
        f"model.init={folder}",
        "data.source=folder",
        f"data.root={tmp_path}",
        "data.image_size=16",
        f"run={tmp_path}/run",
    ]
    outcome = call(mae_pretrain, "--config", tmp_path / "empty.yaml", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    {
        "model.patch_size=8": "found patch_size 4, expected 8 by model.patch_size",
        "model.width=24": "found width 12, expected 24 by model.width",
        "model.preset=vit_tiny_patch4": "found width 12, expected 192 by model.preset = vit_tiny_patch4",
        "model.norm_eps=1e-5": "found norm_eps 1e-06, expected 1e-05 by model.norm_eps",
        "data.image_size=14": "model.patch_size: found 4, expected a divisor of the image size",
        "model.init=facebook/vit-mae-base": "nothing is downloaded here: hf download facebook/vit-mae-base",
        "model.init=${NO_SUCH_PLACE}": "${NO_SUCH_PLACE} is not set",
    }.items(),
)
def test_weights_that_do_not_fit_the_config_are_one_clear_line(change, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tiny(), tmp_path / "weights")
    for main in (mae_pretrain, mae_finetune):
        words = [f"model.init={folder}", "data.source=folder", f"data.root={tmp_path}", f"run={tmp_path}/run", change]
        (tmp_path / "empty.yaml").write_text("{}")
        outcome = call(main, "--config", tmp_path / "empty.yaml", "data.image_size=12", *words)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert said in outcome.err


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "blocks.0.ls1.gamma": "found blocks.0.ls1.gamma, expected a plain Vision Transformer",
        "reg_token": "found reg_token, expected a plain Vision Transformer",
        "momentum.patch_embed.proj.weight": "found 2 models (, momentum.), expected the state dict of one",
    }.items(),
)
def test_what_is_no_plain_vit_is_refused(name, said):
    with pytest.raises(UserError) as error:
        load_timm(timm_weights() | {name: torch.ones(1)}, say=quiet, heads=HEADS)
    assert said in str(error.value)


def test_foreign_weights_need_a_config_for_the_data(tmp_path):
    folder = folder_of(tiny(), tmp_path)
    outcome = call(mae_finetune, "--checkpoint", folder)
    assert outcome.err == f"error: {folder}: found weights of another program, expected --config for the data\n"
