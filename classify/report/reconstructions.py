"""What each pretraining makes of validation images, as pictures inside the page."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from classify.comparison import Comparison
from data.loader import Data, Loader, open_data
from data.privacy import credentialed_sources, may_show
from data.settings import DataSettings, height_and_width
from mae.engine.checkpoint import Checkpoint, load_checkpoint
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
    credentialed: tuple[str, ...]  # the credentialed data sets that it shows images of


def panels(comparison: Comparison) -> list[Panel] | None:
    """Each stage-one run's reconstructions of validation images; None where radiographs of none may be shown."""
    shown = [
        _panel(comparison, name, checkpoint)
        for name, checkpoint in _checkpoints(comparison)
        if _may_show(comparison, name, checkpoint)
    ]
    return shown or (None if comparison.pretrainings else [])


def withheld(comparison: Comparison) -> Iterator[str]:
    """Which stage-one runs' reconstructions are not shown, and why."""
    for name, checkpoint in _checkpoints(comparison):
        if not _may_show(comparison, name, checkpoint):
            private = credentialed_sources(checkpoint.config.data)
            why = "report.images is false"
            if _wished(comparison, name, checkpoint) is None:
                why = f"the source is credentialed ({', '.join(private)})" if private else "the source is credentialed"
            yield f"{name}: {why}"


def _checkpoints(comparison: Comparison) -> Iterator[tuple[str, Checkpoint]]:
    for name, folder in comparison.pretrainings.items():
        yield name, load_checkpoint(folder / "best.pt", kind="mae")


def _may_show(comparison: Comparison, name: str, checkpoint: Checkpoint) -> bool:
    """The data that a pretraining's images are of is asked, not the comparison's; what it was asked before is past."""
    credentialed = bool(credentialed_sources(checkpoint.config.data))
    if _is_own(comparison, checkpoint.config.data):
        credentialed = credentialed or comparison.data.manifest.credentialed
    return may_show(credentialed, _wished(comparison, name, checkpoint))


def _wished(comparison: Comparison, name: str, checkpoint: Checkpoint) -> bool | None:
    return comparison.pretrain_configs.get(name, checkpoint.config).report.images


def _panel(comparison: Comparison, name: str, checkpoint: Checkpoint) -> Panel:
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
        credentialed=credentialed_sources(config.data),
    )


def _data_of(comparison: Comparison, settings: DataSettings) -> Data:
    """The data a pretraining saw: the comparison's own, unless a pretraining changes `data`."""
    if _is_own(comparison, settings):
        return comparison.data
    return open_data(_opened_here(comparison, settings))


def _is_own(comparison: Comparison, settings: DataSettings) -> bool:
    return _opened_here(comparison, settings) == comparison.config.data


def _opened_here(comparison: Comparison, settings: DataSettings) -> DataSettings:
    """With what says nothing of the images as the comparison has it."""
    own = comparison.config.data
    return settings.model_copy(update={"store": own.store, "workers": own.workers, "share": own.share})


def _png_uri(grey: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(grey).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _jpeg_uri(grey: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(grey).save(file, "jpeg", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
