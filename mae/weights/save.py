"""Our models as folders that Hugging Face's transformers loads; transformers itself is not needed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
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
from mae.transformer import Block
from mae.weights.layouts import to_huggingface
from mae.weights.licenses import License, fields_of, front_matter, spoken

FRONT_MATTER = {"library_name": "transformers", "tags": ["masked-autoencoder", "chest-x-ray"]}
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
README = """# {architecture}

Written by mae-export of mae-cxr. `preprocessor_config.json` says how images are resized and standardised;
one channel is grey.

{reading}

Licence of the weights: {license}. Not a medical device.
{owed}"""


def save_huggingface(
    model: MaskedAutoencoder,
    folder: str | Path,
    license: License | None = None,
    say: Callable[[str], None] = print,
    resize: Resize = "squash",
    owed: str = "",
) -> None:
    """Write a folder for `ViTMAEForPreTraining.from_pretrained`; ViTModel reads its encoder.

    Where transformers has no such model (cross decoder, images that are not square) the encoder alone is
    written, as a ViTModel, and `say` is told. license: of the weights; None takes it from the report they came with.
    resize: how images of another shape were fitted to the model's (`data.resize`); squash is what transformers does.
    owed: what else is to be said of the weights, in README.md.
    """
    license = license or getattr(getattr(model, "report", None), "license", None)
    encoder, decoder = model.encoder, model.decoder
    if isinstance(decoder, Decoder) and encoder.grid[0] == encoder.grid[1]:
        weights = to_huggingface(_weights(encoder, "encoder") | _weights(decoder, "decoder"), encoder.patch_size)
        config = encoder_config(encoder, "ViTMAEForPreTraining") | _decoder_config(decoder, model.norm_pixel_loss)
        write_folder(folder, weights, config, encoder, license, say, resize, owed)
        return
    why = "a decoder for images that are not square" if isinstance(decoder, Decoder) else "a cross decoder"
    say(f"{folder}: transformers has no model with {why}: the decoder is left out, the encoder written as ViTModel")
    save_encoder(encoder, folder, "ViTModel", license=license, say=say, resize=resize, owed=owed)


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
) -> None:
    """Write an encoder as one of transformers' ViT architectures, with its heads' tensors and settings."""
    weights = to_huggingface(_weights(encoder, "encoder"), encoder.patch_size) | dict(heads or {})
    if architecture == "ViTModel":  # only what holds one puts this before its names
        weights = {name.removeprefix("vit."): tensor for name, tensor in weights.items()}
    write_folder(
        folder, weights, encoder_config(encoder, architecture) | dict(config or {}), encoder, license, say, resize, owed
    )


def _weights(module: Encoder | Decoder, room: str) -> dict[str, Tensor]:
    return {f"{room}.{name}": t for name, t in module.state_dict().items() if name not in ("mean", "std")}


def encoder_config(encoder: Encoder, architecture: str) -> dict[str, Any]:
    """What transformers' config.json says of an encoder."""
    height, width = _image_size(encoder)
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
    license: License | None,
    say: Callable[[str], None],
    resize: Resize,
    owed: str = "",
) -> None:
    """config.json, model.safetensors, preprocessor_config.json and README.md; `weights` by transformers' names.

    An earlier export is replaced whole. Raises UserError, before anything is written, where a weight is not finite or
    the folder holds anything else.
    """
    folder = Path(folder)
    expect_finite(weights, folder)
    expect_no_links_out(folder)
    architecture = config["architectures"][0]
    settings = {**config, "torch_dtype": "float32"}
    settings |= fields_of(license)
    text = README.format(
        architecture=architecture, license=spoken(license), reading=_reading(encoder, resize), owed=owed and f"{owed}\n"
    )

    with replacing_folder(folder, FILES) as new:
        _write_tensors(new / "model.safetensors", weights)
        write_json(new / "config.json", settings, indent=2)
        write_json(new / "preprocessor_config.json", _preprocessing(encoder, resize), indent=2)
        write_text(new / "README.md", front_matter(license, FRONT_MATTER) + text)
    say(f"{folder}: {len(weights)} tensors written, for {architecture}; licence {spoken(license)}")
    if resize != "squash":
        say(f"{folder}: images of another shape: {resize}; README.md says how")


def _write_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        with replacing(path) as temporary:
            save_file(dict(weights), temporary, {"format": "pt"})
    except SafetensorError as error:  # its name for what the system says
        raise UserError(f"{path.parent}: not written ({error})") from None


def _preprocessing(encoder: Encoder, resize: Resize) -> dict[str, Any]:
    """preprocessor_config.json: our reading of an image, as far as transformers has words for it."""
    height, width = _image_size(encoder)
    said = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": int(Image.Resampling.LANCZOS),  # transformers would take bilinear, which features are not used to
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": encoder.mean.flatten().tolist(),
        "image_std": encoder.std.flatten().tolist(),
    }
    if resize == "crop" and height == width:
        # another processor, which differs from ViT's in this alone: the central square, to within a pixel
        said["image_processor_type"] = "CLIPImageProcessor"
        said["size"] = {"shortest_edge": height}
        said["do_center_crop"] = True
        said["crop_size"] = {"height": height, "width": width}
        said["do_convert_rgb"] = encoder.in_channels == 3
    return said


def _reading(encoder: Encoder, resize: Resize) -> str:
    """For the README: what preprocessor_config.json cannot say of the way images are read."""
    height, width = _image_size(encoder)
    mode = "L" if encoder.in_channels == 1 else "RGB"
    how = {
        "pad": ("are shown whole, centred between black bars, for which transformers has no words", "pad"),
        "crop": ("are cropped to their central part", "fit"),
        "squash": ("are stretched to this shape, which preprocessor_config.json says", None),
    }
    done, function = how[resize]
    centred = ", centering=(0.499, 0.499)" if resize == "pad" else ""  # a half pixel is rounded down, as ours is
    text = f"Images of another shape than {width} × {height} pixels {done}."
    if function is None:
        return text
    return f"""{text} Before the processor, do

```python
image = ImageOps.{function}(image.convert("{mode}"), ({width}, {height}), Image.Resampling.LANCZOS{centred})  # of PIL
```"""


def _image_size(encoder: Encoder) -> tuple[int, int]:
    """Height and width, pixels."""
    height, width = (side * encoder.patch_size for side in encoder.grid)
    return height, width
