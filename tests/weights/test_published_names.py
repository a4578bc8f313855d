"""ViTMAE's files as published, and as both of transformers' major versions write and read them.

facebook/vit-mae-base and whatever transformers 4 wrote call the decoder's blocks `decoder.decoder_layers.N`.
transformers 5 writes `decoder.decoder_encoder.layer.N`, which 4 does not find (transformers 46650). Both are read here;
the published names are written.
"""

import json

import pytest
import torch
from foreign_weights import HEADS, folder_of, quiet, random, same, tiny
from safetensors.torch import load_file, save_file
from transformers_versions import printed_with

from mae.weights import load_huggingface

# of a block of facebook/vit-mae-base, by its pytorch_model.bin
PUBLISHED_BLOCK = {
    "layernorm_before.weight",
    "layernorm_before.bias",
    "attention.attention.query.weight",
    "attention.attention.query.bias",
    "attention.attention.key.weight",
    "attention.attention.key.bias",
    "attention.attention.value.weight",
    "attention.attention.value.bias",
    "attention.output.dense.weight",
    "attention.output.dense.bias",
    "layernorm_after.weight",
    "layernorm_after.bias",
    "intermediate.dense.weight",
    "intermediate.dense.bias",
    "output.dense.weight",
    "output.dense.bias",
}
READ_BY_TRANSFORMERS = """
import json, sys, torch, transformers
model, found = transformers.ViTMAEForPreTraining.from_pretrained(sys.argv[1], output_loading_info=True)
given = torch.load(sys.argv[2])
with torch.no_grad():
    loss = model.eval()(given["images"], noise=given["noise"]).loss.item()
said = {"version": transformers.__version__, "loss": loss}
print(json.dumps(said | {name: len(found[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}))
"""


def test_what_we_write_has_the_published_names(tmp_path):
    names = set(load_file(folder_of(tiny(), tmp_path) / "model.safetensors"))
    for block in ("vit.encoder.layer.0.", "decoder.decoder_layers.0."):
        assert {name.removeprefix(block) for name in names if name.startswith(block)} == PUBLISHED_BLOCK


@pytest.mark.parametrize("blocks", ["decoder.decoder_layers.", "decoder.decoder_encoder.layer."])
def test_a_decoder_is_read_under_the_names_of_either_version(blocks, tmp_path):
    model = tiny()
    folder = folder_of(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("decoder.decoder_layers.", blocks): tensor for name, tensor in tensors.items()}
    assert sum(name.startswith(blocks) for name in renamed) == len(PUBLISHED_BLOCK)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})

    back = load_huggingface(folder, say=quiet)
    assert same(model, back)
    assert (back.report.missing, back.report.unexpected) == ((), ())
    alone = load_huggingface(renamed, quiet, heads=HEADS, decoder_heads=2, pixel_mean=0.5, pixel_std=0.25)
    assert same(model, alone)


def test_a_decoder_that_lacks_a_block_is_refused(tmp_path):
    folder = folder_of(tiny(decoder_depth=2), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "decoder_layers.1.output.dense.weight" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"found no tensor for decoder\.blocks\.1\.mlp\.down\.weight"):
        load_huggingface(folder, say=quiet)


@pytest.mark.parametrize("version", ["4", "5"])
def test_transformers_reads_what_we_write_whole(version, tmp_path):
    model = tiny(norm_pixel_loss=False)
    images, noise = random(5, 3, 12, 12), torch.rand(5, 9, generator=torch.Generator().manual_seed(3))
    torch.save({"images": images, "noise": noise}, tmp_path / "given.pt")
    folder = folder_of(model, tmp_path / "ours")

    said = json.loads(printed_with(version, READ_BY_TRANSFORMERS, folder, tmp_path / "given.pt").splitlines()[-1])
    assert said["version"].split(".")[0] == version
    assert (said["missing_keys"], said["unexpected_keys"], said["mismatched_keys"]) == (0, 0, 0)
    with torch.no_grad():
        assert said["loss"] == pytest.approx(model(images, 0.75, noise).loss.item(), rel=1e-5)
