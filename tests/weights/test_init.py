"""Laws of beginning from weights: `model.init`, the sizes and licence it brings, and the commands."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from foreign_weights import HEADS, WIDTH, folder_of, from_weights, quiet, reference_file, timm_weights, tiny
from safetensors.torch import save_file
from tiny_world import MODEL, succeed

from classify.cli import export as mae_export
from classify.cli import finetune as mae_finetune
from classify.grid import expand_grid
from data.config import change_config
from data.errors import UserError
from mae import load_checkpoint
from mae.engine.checkpoint import load_weights
from mae.model import mae_from
from mae.pretrain import pretrain
from mae.weights import is_foreign, load_huggingface, resolve, starting_point
from mae.weights.source import IMAGENET


def test_a_config_with_init_gets_the_sizes_of_the_file(tmp_path):
    config = from_weights(tmp_path, folder_of(tiny(norm_eps=1e-9), tmp_path / "weights"))
    model = resolve(config).model
    assert {name: getattr(model, name) for name in MODEL} == MODEL
    assert (model.in_channels, model.pixel_mean, model.pixel_std, model.norm_eps) == (1, 0.0, 1.0, 1e-9)


def test_resolving_twice_changes_nothing(tmp_path):
    folder = folder_of(tiny(pixel_mean=IMAGENET[0], pixel_std=IMAGENET[1]), tmp_path / "weights")
    (folder / "preprocessor_config.json").unlink()
    for channels in (1, 3):
        config = from_weights(tmp_path, folder, {"model.in_channels": channels})
        once = resolve(config)
        assert resolve(once) == once
        first, second = starting_point(config, quiet), starting_point(once, quiet)
        assert first.weights.keys() == second.weights.keys()
        assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_what_a_file_lacks_is_drawn_by_the_configs_seed(tmp_path):
    save_file(timm_weights(), tmp_path / "vit.safetensors")
    heads = {"model.heads": HEADS, "model.decoder_width": 8, "model.decoder_depth": 1, "model.decoder_heads": 2}
    config = from_weights(tmp_path, tmp_path / "vit.safetensors", heads)
    first, second = starting_point(config, quiet).weights, starting_point(config, quiet).weights
    other = starting_point(change_config(config, {"seed": 1}), quiet).weights
    assert torch.equal(first["decoder.mask_token"], second["decoder.mask_token"])
    assert not torch.equal(first["decoder.mask_token"], other["decoder.mask_token"])
    assert torch.equal(first["encoder.class_token"], other["encoder.class_token"])


def test_a_decoder_of_other_sizes_starts_fresh(tmp_path):
    config = from_weights(tmp_path, folder_of(tiny(), tmp_path / "weights"), {"model.decoder_depth": 3})
    said = []
    start = starting_point(config, said.append)
    assert start.config.model.decoder_depth == 3
    assert "unexpected, not used: decoder.decoder_embed.bias" in said[0]
    assert "missing, left at fresh initialisation: decoder.mask_token" in said[0]


def test_a_run_made_from_weights_needs_them_no_more(runs):
    checkpoint = load_checkpoint(runs / "mae/last.pt")
    model = mae_from(checkpoint.config.model, checkpoint.config.data.image_size)
    load_weights(model, checkpoint)
    assert not Path(checkpoint.config.model.init).exists()
    assert model.encoder.positions.shape == (9, WIDTH)  # interpolated ones: not those a fresh model has
    assert not model.encoder.positions.equal(tiny(1).encoder.positions)


def test_the_licence_travels_into_every_later_checkpoint_and_folder(runs, tmp_path):
    for run in ("mae", "mae-full"):
        for name in ("last.pt", "best.pt"):
            assert load_checkpoint(runs / run / name).meta["license"] == "CC-BY-NC-4.0"
        succeed(mae_export, "--checkpoint", runs / run / "last.pt", "--out", tmp_path / run)
        assert json.loads((tmp_path / run / "config.json").read_text())["license"] == "CC-BY-NC-4.0"
        assert (tmp_path / run / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n")
    again = load_huggingface(tmp_path / "mae", quiet)
    assert again.report.license == "cc-by-nc-4.0"


def test_a_folders_licence_is_read_from_readme_then_license_file(tmp_path):
    folder = folder_of(tiny(), tmp_path, "mit")
    assert load_huggingface(folder, quiet).report.license == "mit"
    (folder / "README.md").unlink()
    assert load_huggingface(folder, quiet).report.license == "unknown"
    (folder / "LICENSE").write_text("\nAttribution-NonCommercial 4.0 International\n\nterms\n")
    assert load_huggingface(folder, quiet).report.license == "Attribution-NonCommercial 4.0 International"


def test_a_run_from_other_weights_is_refused_in_the_same_folder(tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights")
    config = from_weights(tmp_path, folder)
    pretrain(config)
    assert load_checkpoint(pretrain(config) / "last.pt").meta["license"] == "unknown"
    folder_of(tiny(seed=1), folder)
    with pytest.raises(UserError, match="found a run made with init = "):
        pretrain(config)


def test_a_checkpoint_of_ours_is_weights_to_begin_from_and_what_it_saw_is_kept(runs, tmp_path):
    config = from_weights(tmp_path, runs / "mae/last.pt", {"data.image_size": 20})
    start = starting_point(config, quiet)
    before = load_checkpoint(runs / "mae/last.pt")
    assert torch.equal(
        start.weights["encoder.blocks.1.mlp.up.weight"], before.weights["encoder.blocks.1.mlp.up.weight"]
    )
    assert start.weights["encoder.positions"].shape == (25, WIDTH)
    assert torch.equal(start.meta["seen"], before.meta["seen"])
    assert start.meta["license"] == "CC-BY-NC-4.0"


def test_a_grid_from_weights_has_their_sizes_where_a_vit_is_trained(tmp_path):
    config = from_weights(tmp_path, folder_of(tiny(), tmp_path / "weights"))
    rows = [
        {"name": "MAE", "pretraining": ["further"]},
        {"name": "ImageNet"},
        {"name": "Random", "set": {"model.init": None}},
        {"name": "ResNet-18", "set": {"finetune.model": "resnet18"}},
    ]
    config = change_config(config, {"compare.pretrainings": {"further": {}}, "compare.rows": rows})
    cells = {cell.name: cell for cell in expand_grid(config)}
    assert cells["MAE"].pretrain_config.model == cells["MAE"].config.model == cells["ImageNet"].config.model
    assert cells["ImageNet"].config.model.width == WIDTH
    assert cells["Random"].config.model.width is None
    assert cells["ResNet-18"].config.model.pixel_mean == 0.5


@pytest.mark.parametrize("way", ["--checkpoint", "model.init"])
def test_finetune_takes_foreign_weights_by_option_and_by_setting(way, world, tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights", "mit")
    words = [way, folder] if way == "--checkpoint" else [f"{way}={folder}"]
    said = succeed(mae_finetune, "--config", world.config, *words, f"run={tmp_path}/run")
    assert f"{folder}: " in said
    assert "licence mit" in said
    meta = load_checkpoint(tmp_path / "run-vit/best.pt").meta
    assert meta["license"] == "mit"
    assert meta["pretrained_from"] == str(folder)


def test_weights_are_told_from_checkpoints_by_content(world, tmp_path):
    torch.save(timm_weights(), tmp_path / "timm.pt")
    reference_file(tmp_path / "mae.pt", timm_weights(), args=argparse.Namespace(lr=1.0))
    save_file(timm_weights(), tmp_path / "weights.bin")
    (tmp_path / "text.pt").write_text("none")
    names = ("timm.pt", "mae.pt", "weights.bin", "text.pt", "missing.pt", ".")
    assert [is_foreign(tmp_path / name) for name in names] == [True, True, True, False, False, False]
    assert is_foreign(folder_of(tiny(), tmp_path / "folder"))
    assert not is_foreign(world.pretrained)
