"""What each pretraining makes of validation images, as pictures inside the page."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from classify.comparison import Comparison
from data.loader import Data, Loader, open_data
from data.settings import DataSettings, height_and_width
from mae.engine.checkpoint import load_checkpoint
from mae.pretrain import panel
from mae.reconstruct import model_of

PANEL_IMAGES = 4  # validation images reconstructed by each stage-one run
SMALL = 96  # up to this side, in pixels, a panel is kept without loss


@dataclass(frozen=True)
class Panel:
    """A stage-one run's reconstructions."""

    name: str
    masking: str  # percent
    source: str  # the picture itself, as a data URI
    size: tuple[int, int]  # of the picture: width and height
    width: int  # at which the page shows it
    pixelated: bool


def panels(comparison: Comparison) -> list[Panel] | None:
    """Each stage-one run's reconstructions of validation images; None where radiographs may not be shown."""
    if not comparison.data.manifest.may_show(comparison.config.report.images):
        return None
    return [_panel(comparison, name, folder) for name, folder in comparison.pretrainings.items()]


def _panel(comparison: Comparison, name: str, folder: Path) -> Panel:
    checkpoint = load_checkpoint(folder / "best.pt", kind="mae")
    config = checkpoint.config

    # images spread evenly over the split
    data = _data_of(comparison, config.data)
    table = data.split("validate")
    spread = np.linspace(0, len(table) - 1, min(PANEL_IMAGES, len(table))).round().astype(int)
    batch = next(Loader(data, table.iloc[spread], len(spread)).epoch())
    [picture] = panel(model_of(checkpoint), batch, config.pretrain.mask_ratio)
    grey = (picture * 255).round().byte().numpy()  # h w

    # small images are shown larger, pixel by pixel
    height, width = height_and_width(config.data.image_size)
    small = max(height, width) <= SMALL
    return Panel(
        name=name,
        masking=f"{100 * config.pretrain.mask_ratio:g}",
        source=_png_uri(grey) if small else _jpeg_uri(grey),
        size=(grey.shape[1], grey.shape[0]),
        width=4 * width * max(1, round(150 / width)),
        pixelated=small,
    )


def _data_of(comparison: Comparison, settings: DataSettings) -> Data:
    """The data a pretraining saw: the comparison's own, unless a pretraining changes `data`."""
    own = comparison.config.data
    settings = settings.model_copy(update={"store": own.store, "workers": own.workers})
    if settings == own:
        return comparison.data
    return open_data(settings)


def _png_uri(grey: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(grey).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _jpeg_uri(grey: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(grey).save(file, "jpeg", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
