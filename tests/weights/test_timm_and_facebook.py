"""Laws of weights of timm and facebookresearch/mae: they give the features that these programs give."""

import argparse
import json
import zipfile

import numpy as np
import pytest
import torch
from foreign_weights import (
    DEPTH,
    HEADS,
    WIDTH,
    from_weights,
    quiet,
    random,
    reference_file,
    same,
    timm_features,
    timm_weights,
    with_decoder,
)
from safetensors.torch import save_file

from data.errors import UserError
from mae.weights import load_facebook, load_timm, starting_point


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
def test_timm_weights_give_timms_features(prefix):
    weights = timm_weights()
    model = load_timm({prefix + name: tensor for name, tensor in weights.items()}, say=quiet, heads=HEADS).eval()
    images = random(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images), timm_features(weights, images), rtol=0, atol=1e-5)
    assert model.encoder.positions.equal(weights["pos_embed"][0, 1:])  # learned ones, untouched
    assert set(model.report.unexpected) == {f"{prefix}head.weight", f"{prefix}head.bias"}
    assert all(name.startswith("decoder.") for name in model.report.missing)
    assert model.encoder.norm.eps == 1e-6


def test_attention_without_biases_has_zeros():
    weights = {name: t for name, t in timm_weights().items() if not name.endswith("qkv.bias")}
    model, images = load_timm(weights, say=quiet, heads=HEADS).eval(), random(2, 3, 12, 12)
    zeros = {f"blocks.{block}.attn.qkv.bias": torch.zeros(3 * WIDTH) for block in range(DEPTH)}
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images), timm_features(weights | zeros, images), rtol=0, atol=1e-5)
    assert "has no biases" in model.report.adapted["blocks.0.attn.qkv.weight"]


def without_class_position(height: int, width: int) -> tuple[dict, dict]:
    """Weights as timm's no_embed_class makes them, and the same ones with zeros for the class token's position."""
    weights = timm_weights()
    positions = random(1, height * width, WIDTH)
    zeros = torch.zeros(1, 1, WIDTH)
    return weights | {"pos_embed": positions}, weights | {"pos_embed": torch.cat([zeros, positions], 1)}


@pytest.mark.parametrize("grid", [(3, 3), (2, 3), (1, 7)])
def test_a_class_token_without_a_position_is_one_with_zeros(grid):
    weights, twin = without_class_position(*grid)
    size = (4 * grid[0], 4 * grid[1])
    model = load_timm(weights, say=quiet, heads=HEADS, image_size=size).eval()
    images = random(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images), timm_features(twin, images), rtol=0, atol=1e-5)
    assert model.report.adapted["pos_embed"] == "has none for the class token: zeros, the same"


def test_positions_without_the_class_tokens_go_to_another_grid():
    weights, twin = without_class_position(3, 3)
    a, b = (load_timm(each, say=quiet, heads=HEADS, image_size=20) for each in (weights, twin))
    assert a.encoder.positions.equal(b.encoder.positions)


def test_positions_that_may_be_of_two_grids_are_refused_unless_the_folder_says(tmp_path):
    """Ten positions fit 2 x 5 patches, or 3 x 3 and the class token: the wrong reading would go unnoticed."""
    weights, twin = without_class_position(2, 5)
    wish = {"say": quiet, "heads": HEADS, "image_size": (8, 20)}
    with pytest.raises(UserError, match="found 10 positions, which a class token and 3 x 3 patches have, or 2 x 5 "):
        load_timm(weights, **wish)
    assert load_timm(weights, say=quiet, heads=HEADS, image_size=12).encoder.grid == (3, 3)
    assert load_timm(twin, **wish).encoder.grid == (2, 5)

    save_file(weights, tmp_path / "model.safetensors")
    images = random(2, 3, 8, 20)
    grids = {}
    for without in (True, False):
        settings = {"pretrained_cfg": {}, "model_args": {"no_embed_class": without}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        grids[without] = load_timm(tmp_path, **wish).eval()
    with torch.no_grad():
        torch.testing.assert_close(grids[True].encoder(images), timm_features(twin, images), rtol=0, atol=1e-5)
    assert "3×3 → 2×5 patches, bicubic" in grids[False].report.adapted["pos_embed"]


@pytest.mark.parametrize("count", [6, 8])
def test_positions_of_no_grid_are_counted_with_the_class_tokens(count):
    weights = timm_weights() | {"pos_embed": random(1, count, WIDTH)}
    with pytest.raises(UserError, match=rf"found {count - 1} positions of patches and the class token's, expected"):
        load_timm(weights, say=quiet, heads=HEADS)


def test_timm_files_of_every_kind(tmp_path):
    weights = timm_weights()
    save_file(weights, tmp_path / "vit.safetensors")
    torch.save(weights, tmp_path / "vit.bin")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "vit.pth")
    models = [load_timm(tmp_path / name, quiet, heads=HEADS) for name in ("vit.safetensors", "vit.bin", "vit.pth")]
    assert all(same(models[0].encoder, model.encoder) for model in models)
    assert "epoch" in models[2].report.unexpected


@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_what_a_trainer_kept_as_numpys_is_no_hindrance(core, tmp_path):
    state = np.random.RandomState(0).get_state()  # as trainers keep it, to resume
    others = {"best": np.float64(0.5), "epoch": np.int64(3), "classes": np.array([1, 2, 3]), "random": state}
    path = reference_file(tmp_path / "a.pth", timm_weights(), **others)
    if core == "numpy.core":  # what numpy 1 wrote
        renamed = tmp_path / "b.pth"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b"numpy._core", b"numpy.core"))
        path = renamed

    plain = load_timm(timm_weights(), quiet, heads=HEADS)
    for load in (load_facebook, load_timm):
        model = load(path, quiet, heads=HEADS)
        assert same(model.encoder, plain.encoder)
        assert {"best", "epoch", "classes", "random"} <= set(model.report.unexpected)


def test_a_timm_folder_brings_its_statistics_and_licence(tmp_path):
    save_file(timm_weights(), tmp_path / "model.safetensors")
    trained = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base", "pretrained_cfg": trained}))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = from_weights(tmp_path / "runs", tmp_path, {"model.heads": HEADS, "model.in_channels": 3})
    start = starting_point(config, quiet)
    assert start.config.model.pixel_mean == (0.5, 0.4, 0.3)
    assert start.config.model.pixel_std == (0.2, 0.2, 0.1)
    assert start.meta["license"] == "apache-2.0"


def test_a_timm_folder_says_what_no_tensor_shows(tmp_path):
    def load(**arguments):
        settings = {"architecture": "vit", "pretrained_cfg": {}, "model_args": arguments}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return load_timm(tmp_path, say=quiet)

    save_file(timm_weights(grid=4), tmp_path / "model.safetensors")
    model = load(num_heads=4, img_size=[8, 32], act_layer=None)
    assert (model.encoder.blocks[0].attention.heads, model.encoder.grid) == (4, (2, 8))
    for arguments, said in (
        ({"num_heads": 4, "act_layer": "quick_gelu"}, "found act_layer quick_gelu, expected gelu"),
        ({"num_heads": "four"}, 'found num_heads "four", expected a number above 0'),
    ):
        with pytest.raises(UserError, match=said):
            load(**arguments)


@pytest.mark.parametrize("positions", ["zero", "own"])
def test_a_pretraining_file_of_the_reference_loads_with_its_decoder(positions, tmp_path):
    weights = with_decoder(timm_weights())
    if positions == "zero":  # as sine-cosine positions have it
        weights["decoder_pos_embed"][:, 0] = 0
    arguments = argparse.Namespace(norm_pix_loss=True, lr=1e-3, model="mae_vit_base_patch16")
    others = {"optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": arguments}
    file = reference_file(tmp_path / "mae.pth", weights, **others)
    model = load_facebook(file, quiet, heads=HEADS, decoder_heads=2)
    assert not model.report.missing
    assert set(model.report.unexpected) == {"optimizer", "epoch", "scaler"}
    assert model.report.license == "CC-BY-NC-4.0"
    assert model.norm_pixel_loss
    assert model.encoder.norm.eps == 1e-6
    moved = {"decoder_embed.bias", "mask_token", "decoder_pos_embed"}
    assert moved.isdisjoint(model.report.adapted) == (positions == "zero")
    token = weights["mask_token"][0, 0] + weights["decoder_pos_embed"][0, 1:]  # what enters the decoder is the same
    torch.testing.assert_close(model.decoder.mask_token[0, 0] + model.decoder.positions, token)
    first = weights["decoder_embed.bias"] + weights["decoder_pos_embed"][0, 0]
    torch.testing.assert_close(model.decoder.embed.bias.data, first)


def test_a_fine_tuned_file_of_the_reference_loads_without_its_head(tmp_path):
    weights = timm_weights()
    pooled = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in weights.items()}
    model = load_facebook(reference_file(tmp_path / "tuned.pth", pooled), quiet, heads=HEADS).eval()
    images = random(2, 3, 12, 12)
    with torch.no_grad():
        expected = timm_features(pooled, images, "fc_norm")
        torch.testing.assert_close(model.encoder(images), expected, rtol=0, atol=1e-5)
    assert set(model.report.unexpected) == {"head.weight", "head.bias"}
    assert "fc_norm.weight" in model.report.adapted


def test_heads_of_published_widths_are_known():
    weights = timm_weights()
    with pytest.raises(UserError, match=r"state dict: found width 12 and no number of heads, expected heads=…"):
        load_timm(weights, say=quiet)
    from mae.weights.source import _usual_heads

    assert [_usual_heads(width, "") for width in (192, 384, 512, 768, 1024, 1280)] == [3, 6, 8, 12, 16, 16]
