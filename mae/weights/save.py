"""Our models as folders that Hugging Face's transformers loads; transformers itself is not needed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data.errors import UserError
from data.folders import replacing_folder
from data.settings import Resize
from data.writing import expect_no_links_out, replacing, write_json, write_text
from mae.decoder import Decoder
from mae.encoder import Encoder
from mae.engine.checkpoint import expect_finite
from mae.model import MaskedAutoencoder
from mae.patch_embedding import PatchConvolutions
from mae.transformer import Block
from mae.weights.layouts import DINOV2, HUGGINGFACE, to_huggingface
from mae.weights.licenses import License, fields_of, front_matter, spoken
from mae.weights.reading import Reading, before_the_processor, preprocessor

FRONT_MATTER = {"library_name": "transformers", "tags": ["masked-autoencoder", "chest-x-ray"]}
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
README = """# {architecture}

Written by mae-cxr. `preprocessor_config.json` says how images are resized and standardised;
one channel is grey.

{reading}

Licence of the weights: {license}. Not a medical device.
{owed}"""
MakeCard = Callable[[str], str]  # architecture → the text of README.md


def save_huggingface(
    model: MaskedAutoencoder,
    folder: str | Path,
    license: License | None = None,
    say: Callable[[str], None] = print,
    resize: Resize = "squash",
    owed: str = "",
    card: MakeCard | None = None,
) -> None:
    """Write a folder for `ViTMAEForPreTraining.from_pretrained`; ViTModel reads its encoder.

    If transformers has no such model (cross decoder, images that are not square), only the encoder is
    written, as a ViTModel, and `say` is told. license: of the weights; None takes it from the report they came with.
    resize: how images of another shape were fitted to the model's (`data.resize`); squash is what transformers does.
    owed: further text about the weights for README.md. card: makes another README.md.
    """
    license = license or (model.report and model.report.license)
    encoder, decoder = model.encoder, model.decoder
    _expect_linear(encoder, folder)
    if isinstance(decoder, Decoder) and encoder.grid[0] == encoder.grid[1]:
        weights = to_huggingface(_weights(encoder, "encoder") | _weights(decoder, "decoder"), encoder.patch_size)
        config = encoder_config(encoder, "ViTMAEForPreTraining") | _decoder_config(decoder, model.norm_pixel_loss)
        card = card or _plain_card(Reading.of(encoder, resize), license, owed)
        write_folder(folder, weights, config, Reading.of(encoder, resize), license, say, card)
        return
    why = "a decoder for images that are not square" if isinstance(decoder, Decoder) else "a cross decoder"
    say(f"{folder}: transformers has no model with {why}: the decoder is left out, the encoder written as ViTModel")
    save_encoder(encoder, folder, "ViTModel", license=license, say=say, resize=resize, owed=owed, card=card)


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    architecture: str,
    heads: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    license: License | None = None,
    say: Callable[[str], None] = print,
    resize: Resize = "squash",
    owed: str = "",
    card: MakeCard | None = None,
) -> None:
    """Write an encoder as one of transformers' ViT architectures, with its heads' tensors and settings.

    `Dinov2ForImageClassification` is one too: a ViT whose residual branches have a scale, here 1. Its head reads the
    class token and the mean of the patch tokens.
    """
    _expect_linear(encoder, folder)
    reading = Reading.of(encoder, resize)
    settings = encoder_config(encoder, architecture)
    layout = DINOV2 if settings["model_type"] == "dinov2" else HUGGINGFACE
    weights = to_huggingface(_weights(encoder, "encoder"), encoder.patch_size, layout) | dict(heads or {})
    if settings["model_type"] == "dinov2":
        weights |= _scales_of_one(encoder)
    if architecture == "ViTModel":  # only models that hold a ViTModel put this before its names
        weights = {name.removeprefix("vit."): tensor for name, tensor in weights.items()}
    card = card or _plain_card(reading, license, owed)
    write_folder(folder, weights, settings | dict(config or {}), reading, license, say, card)


def _expect_linear(encoder: Encoder, folder: str | Path) -> None:
    if isinstance(encoder.embed, PatchConvolutions):
        raise UserError(
            f"{folder}: found a patch embedding of convolutions (model.embed = conv), expected linear: transformers "
            "has no ViT with another one, so nothing is written"
        )


def _scales_of_one(encoder: Encoder) -> dict[str, Tensor]:
    """What only a DINOv2 has: scales of branches that change nothing here, and a mask token that nothing here uses."""
    found = {"dinov2.embeddings.mask_token": torch.zeros(1, encoder.width)}
    for number in range(len(encoder.blocks)):
        for branch in ("layer_scale1", "layer_scale2"):
            found[f"dinov2.encoder.layer.{number}.{branch}.lambda1"] = torch.ones(encoder.width)
    return found


def _weights(module: Encoder | Decoder, room: str) -> dict[str, Tensor]:
    return {f"{room}.{name}": t for name, t in module.state_dict().items() if name not in ("mean", "std")}


def encoder_config(encoder: Encoder, architecture: str) -> dict[str, Any]:
    """What transformers' config.json says of an encoder."""
    height, width = (side * encoder.patch_size for side in encoder.grid)
    block = _first_block(encoder)
    hidden = block.mlp.up.out_features
    kind = {"ViTMAEForPreTraining": "vit_mae", "Dinov2ForImageClassification": "dinov2"}.get(architecture, "vit")
    settings = {
        # what it is
        "architectures": [architecture],
        "model_type": kind,
        # its sizes
        "hidden_size": encoder.width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attention.heads,
        "intermediate_size": hidden,
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
    if kind == "dinov2":
        del settings["intermediate_size"]
        settings |= {"mlp_ratio": hidden // encoder.width, "layerscale_value": 1.0, "use_swiglu_ffn": False}
    return settings


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
        "mask_ratio": 0.75,  # transformers' default; here each call chooses its own
        "norm_pix_loss": norm_pixel_loss,
    }


def write_folder(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    reading: Reading,
    license: License | None,
    say: Callable[[str], None],
    card: MakeCard,
) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and README.md; `weights` by transformers' names.

    An earlier export is replaced whole. Raises UserError, before anything is written, if a weight is not finite or
    the folder holds anything else.
    """
    folder = Path(folder)
    expect_finite(weights, folder)
    expect_no_links_out(folder)
    architecture = config["architectures"][0]
    settings = {**config, "torch_dtype": "float32"}
    settings |= fields_of(license)

    with replacing_folder(folder, FILES) as new:
        _write_tensors(new / "model.safetensors", weights)
        write_json(new / "config.json", settings, indent=2)
        write_json(new / "preprocessor_config.json", preprocessor(reading), indent=2)
        write_text(new / "README.md", card(architecture))
    say(f"{folder}: {len(weights)} tensors written, for {architecture}; licence {spoken(license)}")
    if reading.resize != "squash":
        say(f"{folder}: images of another shape: {reading.resize}; README.md says how")


def _plain_card(reading: Reading, license: License | None, owed: str) -> MakeCard:
    """A README with what is known of weights that come without their run."""

    def card(architecture: str) -> str:
        text = README.format(
            architecture=architecture,
            license=spoken(license),
            reading=before_the_processor(reading),
            owed=owed and f"{owed}\n",
        )
        return front_matter(license, FRONT_MATTER) + text

    return card


def _write_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        with replacing(path) as temporary:
            save_file(dict(weights), temporary, {"format": "pt"})
    except SafetensorError as error:  # stands for what the system says
        raise UserError(f"{path.parent}: not written ({error})") from None
