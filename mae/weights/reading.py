"""How images must be read for exported weights: as facts, as PIL code, and as a preprocessor of transformers."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from data.settings import Resize, Tone
from mae.encoder import Encoder

FITTED = {
    "pad": "shown whole, centred between black bars",
    "crop": "cropped to their central part",
    "squash": "stretched to this shape",
}
TONES = {
    "window": "the VOI window of its header, MONOCHROME1 inverted",
    "mimic_jpg": "its values from least to most, equalised by their histogram, MONOCHROME1 inverted, as MIMIC-CXR-JPG",
}


@dataclass(frozen=True)
class Reading:
    """How the images that the weights were trained on were read; mean and deviation are shares of the grey range."""

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]  # one a channel
    std: tuple[float, ...]
    resize: Resize = "squash"
    tone: Tone | None = None  # None: no DICOMs were used, or it is not known

    @classmethod
    def of(cls, encoder: Encoder, resize: Resize, tone: Tone | None = None) -> "Reading":
        height, width = (side * encoder.patch_size for side in encoder.grid)
        return cls(
            height=height,
            width=width,
            channels=encoder.in_channels,
            mean=tuple(encoder.mean.flatten().tolist()),
            std=tuple(encoder.std.flatten().tolist()),
            resize=resize,
            tone=tone,
        )

    @property
    def converted(self) -> str:
        """PIL code behind an image: colours become grey, as ours do, then as many equal channels as are read."""
        return '.convert("L")' if self.channels == 1 else '.convert("L").convert("RGB")'


def fitting(reading: Reading) -> str:
    """A PIL expression: `image` of any shape → one of the model's shape, within a grey level of our own reading."""
    size = f"({reading.width}, {reading.height})"
    if reading.resize == "squash":
        return f"image.resize({size}, Image.Resampling.LANCZOS, reducing_gap=3.0)"
    if reading.resize == "crop":
        return f"ImageOps.fit(image, {size}, Image.Resampling.LANCZOS)"
    # a half pixel is rounded down, as ours is
    return f"ImageOps.pad(image, {size}, Image.Resampling.LANCZOS, centering=(0.49999, 0.49999))"


def described(reading: Reading) -> str:
    """One sentence on size and shape."""
    return f"Images of another shape than {reading.width} × {reading.height} pixels are {FITTED[reading.resize]}."


def preprocessor(reading: Reading) -> dict[str, Any]:
    """preprocessor_config.json: our reading of an image, as far as transformers can describe it."""
    said = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": reading.height, "width": reading.width},
        "resample": int(Image.Resampling.LANCZOS),  # transformers' default, bilinear, is not what features are used to
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(reading.mean),
        "image_std": list(reading.std),
    }
    if reading.resize == "crop" and reading.height == reading.width:
        # another processor, which differs from ViT's only in that it takes the central square, to within a pixel
        said["image_processor_type"] = "CLIPImageProcessor"
        said["size"] = {"shortest_edge": reading.height}
        said["do_center_crop"] = True
        said["crop_size"] = {"height": reading.height, "width": reading.width}
        said["do_convert_rgb"] = reading.channels == 3
    return said


def before_the_processor(reading: Reading) -> str:
    """For a README: what preprocessor_config.json cannot say of the way images are read."""
    if reading.resize == "squash":
        return f"{described(reading)} preprocessor_config.json says so."
    fitted = fitting(reading).replace("(image,", f"(image{reading.converted},")
    return f"""{described(reading)} Before the processor, do

```python
image = {fitted}  # of PIL
```"""
