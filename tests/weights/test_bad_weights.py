"""Laws of weights that cannot be used: no file runs code, and each is refused in one line."""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from code_carrier import Code
from foreign_weights import (
    HEADS,
    WIDTH,
    edit_json,
    folder_of,
    quiet,
    reference_file,
    same,
    timm_weights,
    tiny,
    with_decoder,
)
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
        "model.init=hf-hub:timm/vit.mae": "nothing is downloaded here: hf download timm/vit.mae --local-dir vit.mae",
        "model.init=https://huggingface.co/a/b": "nothing is downloaded here: hf download a/b --local-dir b",
        "model.init=https://dl.fbaipublicfiles.com/mae/m.pth": "nothing is downloaded here: download it, then give",
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


@pytest.mark.parametrize(
    "name",
    [
        *("register_tokens", "storage_tokens", "prompt_embeddings", "cls_pos_embed", "view_embed"),
        *("patch_embed.norm.weight", "ln_pre.weight", "rope.freqs", "rel_pos_bias.relative_position_bias_table"),
    ],
)
def test_what_changes_the_tokens_is_refused_whatever_its_name(name, tmp_path):
    with pytest.raises(UserError, match=f"found {re.escape(name)}, expected a plain Vision Transformer"):
        load_timm(timm_weights() | {name: torch.ones(1, 4, WIDTH)}, say=quiet, heads=HEADS)


@pytest.mark.parametrize("name", ["embeddings.text_embeddings.weight", "embeddings.detection_tokens"])
def test_what_a_vits_embeddings_add_is_refused(name, tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights")
    save_file(load_file(folder / "model.safetensors") | {f"vit.{name}": torch.ones(4, WIDTH)}, folder / "more")
    (folder / "more").rename(folder / "model.safetensors")
    with pytest.raises(UserError, match=f"found vit.{name}, expected a plain Vision Transformer"):
        load_huggingface(folder, say=quiet)


def test_heads_queues_and_mask_tokens_of_other_trainings_are_no_hindrance():
    others = {"masked_embed": (1, WIDTH), "queue": (WIDTH, 64), "pre_logits.fc.weight": (4, WIDTH), "logit_scale": ()}
    weights = timm_weights() | {name: torch.ones(shape) for name, shape in others.items()}
    report = load_timm(weights, say=quiet, heads=HEADS).report
    assert {*others} < {*report.unexpected}


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("decoder_blocks.0.ls1.gamma", (8,), r"found decoder.blocks.0.ls1.gamma \(8,\), expected none"),
        ("decoder_blocks.0.cross_attn.q.weight", (8, 8), "found decoder.blocks.0.cross_attn.q.weight"),
        # MRM's decoder predicts images of twice the side
        ("decoder_pred.weight", (4 * 48, 8), r"found decoder.predict.weight \(192, 8\), expected \(48, 8\)"),
    ],
)
def test_a_decoder_of_another_kind_is_refused_and_its_encoder_alone_can_be_used(name, shape, said, tmp_path):
    weights = with_decoder(timm_weights())
    path = reference_file(tmp_path / "mae.pth", weights | {name: torch.ones(shape)})
    wishes = {"say": quiet, "heads": HEADS, "decoder_heads": 2}
    with pytest.raises(UserError, match=said + ".*another model.decoder_depth than its 1"):
        load_facebook(path, **wishes)

    encoder = load_facebook(path, decoder_depth=2, **wishes).encoder
    plain = load_facebook(reference_file(tmp_path / "plain.pth", weights), **wishes).encoder
    assert same(encoder, plain)


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 447000000\n": "a git-lfs pointer",
        "<!DOCTYPE html><html>Sign in</html>": "an HTML page",
    }.items(),
)
@pytest.mark.parametrize("name", ["mae.pth", "mae.safetensors"])
def test_what_lies_in_the_place_of_weights_is_named(name, content, said, world, tmp_path):
    (tmp_path / name).write_text(content)
    for words in (["--checkpoint", tmp_path / name], [f"model.init={tmp_path / name}"]):
        outcome = call(mae_finetune, "--config", world.config, *words, f"run={tmp_path}/run")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert f"{name}: found {said}" in outcome.err


@pytest.mark.parametrize(
    ("change", "content", "said"),
    [
        ([], {"conv_proj.weight": torch.ones(2)}, "found no patch_embed.proj.weight"),
        ([], [timm_weights()], "found no state dict"),
        ([], {"state_dict": timm_weights(), "place": Path("runs")}, "carries code (pathlib."),
        (["finetune.model=resnet18"], timm_weights(), "found no layer1.0.conv1.weight"),
    ],
)
def test_a_given_checkpoint_is_read_or_its_own_fault_is_said(change, content, said, world, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    words = ["--checkpoint", tmp_path / "weights.pt", *change, f"run={tmp_path}/run"]
    outcome = call(mae_finetune, "--config", world.config, *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert said in outcome.err


def test_foreign_weights_need_a_config_for_the_data(tmp_path):
    folder = folder_of(tiny(), tmp_path)
    outcome = call(mae_finetune, "--checkpoint", folder)
    assert outcome.err == f"error: {folder}: found weights of another program, expected --config for the data\n"
