"""Laws of Hugging Face's layout: there and back is the same, and transformers reads what we write."""

import json
import shutil

import pytest
import torch
from foreign_weights import WIDTH, folder_of, grey, quiet, random, same, tiny
from safetensors.torch import load_file, save_file
from tiny_world import MODEL, succeed, tiny_config

from classify.cli import export as mae_export
from classify.export import linear_head
from classify.metrics.recalibration import Calibration
from classify.models.build import build_model
from classify.models.classifier import build_classifier
from mae import load_checkpoint
from mae.engine.checkpoint import Checkpoint, load_weights, save_checkpoint
from mae.model import mae_from
from mae.weights import load_huggingface, save_huggingface

# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("channels", [1, 3])
def test_ours_there_and_back_is_the_same_bit_for_bit(channels, tmp_path):
    model = tiny(channels, norm_eps=1e-7, pixel_mean=0.4, pixel_std=0.3, norm_pixel_loss=False)
    back = load_huggingface(folder_of(model, tmp_path), say=quiet)
    assert same(model, back)
    assert back.encoder.norm.eps == back.decoder.blocks[0].norm2.eps == 1e-7
    assert not back.norm_pixel_loss
    assert [block.attention.heads for block in (*back.encoder.blocks, *back.decoder.blocks)] == [3, 3, 2]


def test_weights_are_written_however_they_lie_in_memory(tmp_path):
    model = tiny()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.t().contiguous().t()  # not contiguous (safetensors 469)
    one, other = model.encoder.blocks[0].norm1, model.encoder.blocks[0].norm2
    one.weight.data = other.weight.data  # sharing memory
    assert same(model, load_huggingface(folder_of(model, tmp_path), say=quiet))


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


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_file_of_a_folder_is_what_the_folder_says_of_it(name, tmp_path):
    folder = folder_of(tiny(norm_eps=1e-4, pixel_mean=(0.1, 0.2, 0.3), pixel_std=0.7), tmp_path / "weights", "mit")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    whole = load_huggingface(folder, say=quiet)
    one = load_huggingface(folder / name, say=quiet)
    assert same(one, whole)
    assert (one.encoder.norm.eps, one.report.license, one.report.assumed) == (1e-4, "mit", ())


def test_a_config_of_something_else_says_nothing_of_the_file_beside_it(tmp_path):
    folder = folder_of(tiny(), tmp_path / "weights")
    (folder / "config.json").write_text('{"lr": 0.1}')
    assert load_huggingface(folder / "model.safetensors", say=quiet, heads=3, decoder_heads=2).report.assumed


def test_a_cross_decoder_is_left_out_and_said(tmp_path):
    said = []
    save_huggingface(tiny(decoder="cross"), tmp_path, say=said.append)
    assert "cross decoder: the decoder is left out" in said[0]
    back = load_huggingface(tmp_path, say=quiet, **{n: s for n, s in MODEL.items() if n.startswith("decoder_")})
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
        calibrated = Calibration(**checkpoint.meta["calibration"]["image"]).logits(ours(images).numpy())
        torch.testing.assert_close(
            probabilities[:, 1].double(), torch.from_numpy(calibrated).sigmoid(), rtol=0, atol=1e-5
        )
    assert vit.config.id2label == {0: "normal", 1: "abnormal"}
    assert vit.config.score_threshold["image"] == checkpoint.meta["threshold"]["image"]


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
        torch.testing.assert_close((probe.encoder(images)[:, 0].double() @ weight + bias).float(), probe(images))
