"""Our models as folders that Hugging Face's transformers loads; transformers itself is not needed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from data.writing import replacing, write_json, write_text
from mae.decoder import Decoder
from mae.encoder import Encoder
from mae.engine.checkpoint import expect_finite
from mae.model import MaskedAutoencoder
from mae.transformer import Block
from mae.weights.layouts import to_huggingface

README = """---
{front}library_name: transformers
tags: [masked-autoencoder, chest-x-ray]
---
# {architecture}

Written by mae-export of mae-cxr. `preprocessor_config.json` says how images are standardised; one channel is grey.

Licence of the weights: {license}. Not a medical device.
"""


def save_huggingface(
    model: MaskedAutoencoder, folder: str | Path, license: str | None = None, say: Callable[[str], None] = print
) -> None:
    """Write a folder for `ViTMAEForPreTraining.from_pretrained`; ViTModel reads its encoder.

    Where transformers has no such model (cross decoder, images that are not square) the encoder alone is
    written, as a ViTModel, and `say` is told. license: of the weights; None takes it from the report they came with.
    """
    license = license or getattr(getattr(model, "report", None), "license", None)
    encoder, decoder = model.encoder, model.decoder
    if isinstance(decoder, Decoder) and encoder.grid[0] == encoder.grid[1]:
        weights = to_huggingface(_weights(encoder, "encoder") | _weights(decoder, "decoder"), encoder.patch_size)
        config = encoder_config(encoder, "ViTMAEForPreTraining") | _decoder_config(decoder, model.norm_pixel_loss)
        write_folder(folder, weights, config, encoder, license, say)
        return
    why = "a decoder for images that are not square" if isinstance(decoder, Decoder) else "a cross decoder"
    say(f"{folder}: transformers has no model with {why}: the decoder is left out, the encoder written as ViTModel")
    save_encoder(encoder, folder, "ViTModel", license=license, say=say)


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    architecture: str,
    heads: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    license: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write an encoder as one of transformers' ViT architectures, with its heads' tensors and settings."""
    weights = to_huggingface(_weights(encoder, "encoder"), encoder.patch_size) | dict(heads or {})
    if architecture == "ViTModel":  # only what holds one puts this before its names
        weights = {name.removeprefix("vit."): tensor for name, tensor in weights.items()}
    write_folder(folder, weights, encoder_config(encoder, architecture) | dict(config or {}), encoder, license, say)


def _weights(module: Encoder | Decoder, room: str) -> dict[str, Tensor]:
    return {f"{room}.{name}": t for name, t in module.state_dict().items() if name not in ("mean", "std")}


def encoder_config(encoder: Encoder, architecture: str) -> dict[str, Any]:
    """What transformers' config.json says of an encoder."""
    height, width = (side * encoder.patch_size for side in encoder.grid)
    block = _first_block(encoder)
    return {
        # what it is
        "architectures": [architecture],
        "model_type": "vit_mae" if architecture == "ViTMAEForPreTraining" else "vit",
        # its sizes
        "hidden_size": encoder.width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.up.out_features,
        # how it computes
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm.eps,
        # what it reads
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.in_channels,
        "qkv_bias": True,
    }


def _first_block(module: Encoder | Decoder) -> Block:
    block = module.blocks[0]
    assert isinstance(block, Block)
    return block


def _decoder_config(decoder: Decoder, norm_pixel_loss: bool) -> dict[str, Any]:
    block = _first_block(decoder)
    return {
        "decoder_hidden_size": decoder.embed.out_features,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": block.attention.heads,
        "decoder_intermediate_size": block.mlp.up.out_features,
        "mask_ratio": 0.75,  # transformers' default; ours is a choice of every call
        "norm_pix_loss": norm_pixel_loss,
    }


def write_folder(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    encoder: Encoder,
    license: str | None,
    say: Callable[[str], None],
) -> None:
    """config.json, model.safetensors, preprocessor_config.json and README.md; `weights` by transformers' names.

    Raises UserError, before anything is written, where a weight is not finite.
    """
    folder = Path(folder)
    expect_finite(weights, folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = config["architectures"][0]
    spoken = license or "not stated"

    with replacing(folder / "model.safetensors") as temporary:
        save_file(dict(weights), temporary, {"format": "pt"})
    settings = {**config, "torch_dtype": "float32"}
    if license:
        settings["license"] = license
    write_json(folder / "config.json", settings, indent=2)
    write_json(folder / "preprocessor_config.json", _preprocessing(encoder), indent=2)

    front = f"license: {license.lower()}\n" if license else ""
    write_text(folder / "README.md", README.format(front=front, architecture=architecture, license=spoken))
    say(f"{folder}: {len(weights)} tensors written, for {architecture}; licence {spoken}")


def _preprocessing(encoder: Encoder) -> dict[str, Any]:
    height, width = (side * encoder.patch_size for side in encoder.grid)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": encoder.mean.flatten().tolist(),
        "image_std": encoder.std.flatten().tolist(),
    }
