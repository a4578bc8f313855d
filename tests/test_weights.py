"""Laws of exchanging weights: nothing is lost in silence, what is called exact is exact, and no file runs code."""

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import SETTINGS, tiny_config
from tiny_world import MODEL, SIZE, call, succeed
from torch import Tensor
from torch.nn import functional as F

from classify.classifier import build_classifier
from classify.cli import export as mae_export
from classify.cli import finetune as mae_finetune
from classify.export import linear_head
from classify.finetune import build_model, finetune
from classify.grid import expand_grid
from data.config import Root, UserError, change_config
from mae import build_mae, load_checkpoint
from mae.cli import pretrain as mae_pretrain
from mae.engine.checkpoint import Checkpoint, load_weights, save_checkpoint
from mae.model import MaskedAutoencoder, mae_from
from mae.pretrain import pretrain
from mae.weights import (
    is_foreign,
    load_facebook,
    load_huggingface,
    load_timm,
    resolve,
    save_huggingface,
    starting_point,
)
from mae.weights.source import IMAGENET

TINY = {name: SETTINGS[f"model.{name}"] for name in MODEL}  # the geometry of tests/tiny_runs, image 12, patches of 4
WIDTH, DEPTH, HEADS, PATCH = TINY["width"], TINY["depth"], TINY["heads"], TINY["patch_size"]


def quiet(text: str) -> None:
    pass


def tiny(channels: int = 3, seed: int = 0, image_size=12, **wishes) -> MaskedAutoencoder:
    """A masked autoencoder with no weight at zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_mae(image_size=image_size, in_channels=channels, **TINY | wishes)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def grey(b: int = 2, size: tuple[int, int] = (12, 12)) -> Tensor:
    return torch.randint(0, 256, (b, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def folder_of(model: MaskedAutoencoder, folder: Path, license: str | None = None) -> Path:
    save_huggingface(model, folder, license, say=quiet)
    return folder


def edit_json(path: Path, **changes) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def timm_weights(grid: int = 3, channels: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A timm ViT's state dict, learned positions and head included."""
    names = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid * grid, WIDTH),
        "patch_embed.proj.weight": (WIDTH, channels, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "head.weight": (5, WIDTH),
        "head.bias": (5,),
    }
    shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    shapes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH), "norm1": (WIDTH,), "norm2": (WIDTH,)}
    for block in range(DEPTH):
        for name, shape in shapes.items():
            names |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in names.items()}


def timm_features(weights: dict[str, Tensor], images: Tensor, norm: str = "norm") -> Tensor:
    """What a timm ViT makes of standardised images (b c h w): tokens (b 1+n d)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], PATCH)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + weights["pos_embed"]
    for block in range(DEPTH):
        name = f"blocks.{block}"
        q, k, v = linear(f"{name}.attn.qkv", layer_norm(f"{name}.norm1", x)).unflatten(2, (3, HEADS, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(f"{name}.attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", layer_norm(f"{name}.norm2", x))))
    return layer_norm(norm, x)


def with_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names facebookresearch/mae adds in pretraining; the head goes."""
    width, found = TINY["decoder_width"], {n: t for n, t in weights.items() if not n.startswith("head.")}
    shapes = {"decoder_embed": (width, WIDTH), "decoder_norm": (width,), "decoder_pred": (3 * PATCH * PATCH, width)}
    blocks = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm1": (width,), "norm2": (width,)}
    blocks |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes |= {f"decoder_blocks.0.{name}": shape for name, shape in blocks.items()}
    for name, shape in shapes.items():
        found |= {f"{name}.weight": random(*shape), f"{name}.bias": random(*shape[:1])}
    return found | {
        "mask_token": random(1, 1, width),
        "decoder_pos_embed": random(1, weights["pos_embed"].shape[1], width),
    }


def reference_file(path: Path, weights: dict[str, Tensor], **others) -> Path:
    torch.save({"model": weights} | others, path)
    return path


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("channels", [1, 3])
def test_ours_there_and_back_is_the_same_bit_for_bit(channels, tmp_path):
    model = tiny(channels, norm_eps=1e-7, pixel_mean=0.4, pixel_std=0.3, norm_pixel_loss=False)
    back = load_huggingface(folder_of(model, tmp_path), say=quiet)
    assert same(model, back)
    assert back.encoder.norm.eps == back.decoder.blocks[0].norm2.eps == 1e-7
    assert not back.norm_pixel_loss
    assert [block.attention.heads for block in (*back.encoder.blocks, *back.decoder.blocks)] == [3, 3, 2]


def test_theirs_there_and_back_is_the_same_bit_for_bit(tmp_path):
    folder_of(tiny(), tmp_path / "there", "apache-2.0")
    folder_of(load_huggingface(tmp_path / "there", say=quiet), tmp_path / "back")
    there, back = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "back"))
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    for name in ("config.json", "preprocessor_config.json", "README.md"):
        assert (tmp_path / "there" / name).read_text() == (tmp_path / "back" / name).read_text()


def test_bin_and_shards_are_read_as_one_safetensors_file_is(tmp_path):
    folder = folder_of(tiny(), tmp_path / "whole")
    tensors = load_file(folder / "model.safetensors")
    for name in ("bin", "shards"):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "bin/pytorch_model.bin")
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, tmp_path / "shards" / shard)
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    whole = load_huggingface(folder, say=quiet)
    assert same(whole, load_huggingface(tmp_path / "bin", say=quiet))
    assert same(whole, load_huggingface(tmp_path / "shards", say=quiet))
    assert same(whole, load_huggingface(tensors, quiet, heads=3, decoder_heads=2, pixel_mean=0.5, pixel_std=0.25))


def test_a_cross_decoder_is_left_out_and_said(tmp_path):
    said = []
    save_huggingface(tiny(decoder="cross"), tmp_path, say=said.append)
    assert "cross decoder: the decoder is left out" in said[0]
    back = load_huggingface(tmp_path, say=quiet, **{n: s for n, s in TINY.items() if n.startswith("decoder_")})
    assert same(tiny(decoder="cross").encoder, back.encoder)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ViTModel"]


def test_images_that_are_not_square_keep_their_grid(tmp_path):
    model = tiny(1, image_size=(8, 20))
    back = load_huggingface(folder_of(model, tmp_path), say=quiet)
    assert back.encoder.grid == (2, 5)
    assert same(model.encoder, back.encoder)


# ---------------------------------------------------------------- transformers reads what we write


def test_vit_reads_rectangles_and_grey(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny(1, image_size=(8, 20))
    vit = transformers.ViTModel.from_pretrained(folder_of(model, tmp_path), add_pooling_layer=False).eval()
    images = random(2, 1, 8, 20)
    with torch.no_grad():
        torch.testing.assert_close(vit(images).last_hidden_state, model.encoder(images), rtol=0, atol=1e-5)


def test_an_encoder_is_what_vit_for_classification_starts_from(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, images = tiny(), random(2, 3, 12, 12)
    vit = transformers.ViTForImageClassification.from_pretrained(folder_of(model, tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(vit.vit(images).last_hidden_state, model.encoder(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_an_exported_classifier_gives_our_probability(mode, runs, tmp_path):
    transformers = pytest.importorskip("transformers")
    run = runs / f"mae-{mode}"
    succeed(mae_export, "--checkpoint", run / "last.pt", "--out", tmp_path)
    vit = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    checkpoint = load_checkpoint(run / "last.pt")
    encoder = mae_from(checkpoint.config.model, checkpoint.config.data.image_size).encoder
    ours = build_classifier(encoder, "cls", mode == "linear").eval()
    load_weights(ours, checkpoint)
    images = ours.standardize(grey(5))
    with torch.no_grad():
        probabilities = vit(images).logits.softmax(1)  # b 2
        torch.testing.assert_close(probabilities[:, 1], ours(images).sigmoid(), rtol=0, atol=1e-5)
    assert vit.config.id2label == {0: "normal", 1: "abnormal"}
    assert vit.config.threshold["image"] == checkpoint.meta["threshold"]["image"]


@pytest.mark.parametrize(("target", "names"), [(None, ("normal", "abnormal")), ("Pneumonia", ("negative", "positive"))])
def test_an_exported_classifier_names_its_classes(target, names, tmp_path):
    config = tiny_config(tmp_path, data__target=target, finetune__pool="cls")
    weights = build_model(config).state_dict()
    save_checkpoint(Checkpoint("classifier", config.model_dump(mode="json"), weights), tmp_path / "best.pt")
    succeed(mae_export, "--checkpoint", tmp_path / "best.pt", "--out", tmp_path / "vit")
    written = json.loads((tmp_path / "vit/config.json").read_text())
    assert written["id2label"] == {"0": names[0], "1": names[1]}
    assert written["label2id"] == {names[0]: 0, names[1]: 1}


def test_a_probes_norm_is_folded_into_the_head():
    probe = build_classifier(tiny().encoder, "cls", probe=True).eval()
    probe.norm.running_mean.copy_(random(WIDTH))
    probe.norm.running_var.copy_(random(WIDTH).square() + 0.1)
    images = random(3, 3, 12, 12)
    weight, bias = linear_head(probe)
    with torch.no_grad():
        torch.testing.assert_close(probe.encoder(images)[:, 0] @ weight + bias, probe(images))


# ---------------------------------------------------------------- timm and facebookresearch/mae


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


def test_timm_files_of_every_kind(tmp_path):
    weights = timm_weights()
    save_file(weights, tmp_path / "vit.safetensors")
    torch.save(weights, tmp_path / "vit.bin")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "vit.pth")
    models = [load_timm(tmp_path / name, quiet, heads=HEADS) for name in ("vit.safetensors", "vit.bin", "vit.pth")]
    assert all(same(models[0].encoder, model.encoder) for model in models)
    assert "epoch" in models[2].report.unexpected


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


# ---------------------------------------------------------------- nothing is dropped in silence


def sources(folder: Path):
    """Every kind of source, with tensors nobody asked for: (names it has, its model)."""
    weights = timm_weights() | {"extra.weight": torch.ones(2)}
    sizes = {"heads": HEADS, "decoder_heads": 2}
    yield set(weights), load_timm(weights, quiet, heads=HEADS, in_channels=1, image_size=(8, 12))
    reference = with_decoder(weights)
    file = reference_file(folder / "mae.pth", reference, epoch=1)
    yield {*reference, "epoch"}, load_facebook(file, quiet, **sizes)
    half = {name: tensor.half() for name, tensor in load_file(folder_of(tiny(), folder) / "model.safetensors").items()}
    half |= {"vit.pooler.dense.weight": torch.ones(2), "classifier.bias": torch.ones(2)}
    yield set(half), load_huggingface(half, quiet, **sizes)
    yield set(half), load_huggingface(half, quiet, **sizes, decoder_depth=2)  # its own decoder does not fit
    alone = {name.removeprefix("vit."): tensor for name, tensor in half.items() if name.startswith("vit.")}
    yield set(alone), load_huggingface(alone, quiet, heads=HEADS)
    yield {*half, "mask_token"}, load_huggingface(half | {"mask_token": torch.ones(2)}, quiet, **sizes)


def test_every_tensor_of_a_source_is_accounted_for_once(tmp_path):
    for names, model in sources(tmp_path):
        report = model.report
        parts = [*report.loaded, *report.adapted, *report.unexpected]
        assert sorted(parts) == sorted(names)


def test_every_tensor_of_a_model_is_accounted_for(tmp_path):
    for _, model in sources(tmp_path):
        fresh = tiny(seed=5)
        parts = {name for name in model.state_dict() if name.startswith("decoder.")}
        assert set(model.report.missing) in (set(), parts)
        assert set(fresh.encoder.state_dict()) == set(model.encoder.state_dict())


def test_the_printed_report_says_what_was_loaded_adapted_missing_and_unexpected():
    said = []
    load_timm(timm_weights(), said.append, heads=HEADS, in_channels=1, image_size=20)
    [text] = said
    assert text.startswith("state dict: 26 tensors loaded, licence unknown\n")
    assert "pos_embed: without the class token's; 3×3 → 5×5 patches, bicubic" in text
    assert "patch_embed.proj.weight, patch_embed.proj.bias: 3 channels and their normalisation → grey, exactly" in text
    assert "missing, left at fresh initialisation: decoder.mask_token" in text
    assert "unexpected, not used: head.weight, head.bias" in text
    assert "ImageNet's" in text


# ---------------------------------------------------------------- channels and grids


def test_grey_reads_as_three_normalised_channels_did(tmp_path):
    folder, images = folder_of(tiny(pixel_mean=IMAGENET[0], pixel_std=IMAGENET[1]), tmp_path), grey()
    colour, folded = load_huggingface(folder, quiet), load_huggingface(folder, quiet, in_channels=1)
    assert folded.encoder.standardize(images).equal(images / 255)
    mean, std = (torch.tensor(value)[:, None, None] for value in IMAGENET)
    replicated = (images / 255).expand(-1, 3, -1, -1).sub(mean).div(std)
    with torch.no_grad():
        expected = colour.encoder(replicated)
        torch.testing.assert_close(folded.encoder(folded.encoder.standardize(images)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("norm_pixel", [False, True])
def test_a_grey_prediction_is_the_mean_of_the_channels(norm_pixel, tmp_path):
    """Exact in grey levels; under norm-pixel loss the mean of the normalised ones."""
    model = tiny(pixel_mean=IMAGENET[0], pixel_std=IMAGENET[1], norm_pixel_loss=norm_pixel)
    folder, images, noise = folder_of(model, tmp_path), grey(), torch.rand(2, 9)
    folded = load_huggingface(folder, quiet, in_channels=1)
    with torch.no_grad():
        three = model(model.encoder.standardize(images), 0.5, noise).pred.unflatten(2, (-1, 3))  # b m p·p c
        one = folded(folded.encoder.standardize(images), 0.5, noise).pred  # b m p·p
    levels = three if norm_pixel else three * torch.tensor(IMAGENET[1]) + torch.tensor(IMAGENET[0])
    torch.testing.assert_close(one, levels.mean(-1), rtol=0, atol=2e-5)
    how = folded.report.adapted["decoder.decoder_pred.weight"]
    assert ("approximately" in how) == norm_pixel


def test_the_mean_and_deviation_of_the_folder_are_what_is_folded(tmp_path):
    folder, images = folder_of(tiny(pixel_mean=0.4, pixel_std=0.3), tmp_path), grey()
    colour, folded = load_huggingface(folder, quiet), load_huggingface(folder, quiet, in_channels=1)
    with torch.no_grad():
        expected = colour.encoder(colour.encoder.standardize(images))
        torch.testing.assert_close(folded.encoder(images / 255), expected, rtol=0, atol=2e-5)


def test_statistics_of_levels_up_to_255_are_understood(tmp_path):
    folder = folder_of(tiny(pixel_mean=0.4, pixel_std=0.2), tmp_path)
    changes = {"do_rescale": False, "image_mean": [102.0] * 3, "image_std": [51.0] * 3}
    edit_json(folder / "preprocessor_config.json", **changes)
    encoder = load_huggingface(folder, quiet).encoder
    torch.testing.assert_close(encoder.mean.flatten(), torch.full((3,), 0.4))
    torch.testing.assert_close(encoder.std.flatten(), torch.full((3,), 0.2))


def test_grey_weights_do_not_become_three_channels(tmp_path):
    with pytest.raises(UserError, match=r"found weights for 1 channel\(s\), expected 3; give model.in_channels=1"):
        load_huggingface(folder_of(tiny(1), tmp_path), quiet, in_channels=3)


def test_positions_are_interpolated_to_rectangles():
    weights = timm_weights(grid=4)
    model = load_timm(weights, quiet, heads=HEADS, image_size=(12, 24))
    image = weights["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (4, 4))  # 1 d 4 4
    expected = F.interpolate(image, (3, 6), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)[0]
    assert model.encoder.positions.equal(expected)
    assert model.encoder(random(1, 3, 12, 24)).shape == (1, 19, WIDTH)


def test_the_same_grid_keeps_positions_bit_for_bit():
    weights = timm_weights()
    model = load_timm(weights, quiet, heads=HEADS, image_size=12)
    assert model.encoder.positions.equal(weights["pos_embed"][0, 1:])


# ---------------------------------------------------------------- model.init and the commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A pretraining from a reference file (CC BY-NC), which is gone since, and two fine-tunings of it."""
    root = tmp_path_factory.mktemp("runs")
    file = reference_file(root / "mae.pth", with_decoder(timm_weights(grid=2)))
    config = from_weights(root, file, {"model.heads": HEADS, "model.decoder_heads": 2})
    folder = pretrain(config)
    file.unlink()
    for mode in ("full", "linear"):
        made = load_checkpoint(folder / "last.pt").config
        finetune(change_config(made, {"finetune.mode": mode, "finetune.pool": "cls"}), folder / "last.pt")
    return root


def from_weights(root: Path, init: Path, changes: dict | None = None, **settings) -> Root:
    """tiny_runs' config with weights to begin from, sizes left out."""
    config = tiny_config(root, pretrain__epochs=1, finetune__epochs=1, **settings)
    null = {f"model.{name}": None for name in MODEL}
    return change_config(config, null | {"model.init": str(init)} | (changes or {}))


def test_a_config_with_init_gets_the_sizes_of_the_file(tmp_path):
    config = from_weights(tmp_path, folder_of(tiny(norm_eps=1e-9), tmp_path / "weights"))
    model = resolve(config).model
    assert {name: getattr(model, name) for name in TINY} == TINY
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
    folder = folder_of(build_mae(image_size=SIZE, in_channels=3, **MODEL), tmp_path / "weights", "mit")
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


# ---------------------------------------------------------------- bad input


class Code:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


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
        "image_size=16": "found 9 positions of patches, expected those of 16 pixels in patches of 4",
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
    words = [f"model.init={folder}", "data.source=table", "data.image_size=16", f"run={tmp_path}/run"]
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
        words = [f"model.init={folder}", "data.source=table", f"run={tmp_path}/run", change]
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


def test_a_classifier_that_transformers_has_no_model_for_is_not_exported(world, tmp_path):
    outcome = call(mae_export, "--checkpoint", world.classifier / "last.pt", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "found finetune.pool = mean, expected cls" in outcome.err
    config = tiny_config(tmp_path, finetune__model="resnet18")
    resnet = Checkpoint("classifier", config.model_dump(mode="json"), build_model(config).state_dict())
    save_checkpoint(resnet, tmp_path / "resnet.pt")
    outcome = call(mae_export, "--checkpoint", tmp_path / "resnet.pt", "--out", tmp_path / "out")
    assert "found resnet18, expected a ViT" in outcome.err
    assert not (tmp_path / "out").exists()
