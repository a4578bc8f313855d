"""Each pretraining's reconstructions of validation images, as files beside the comparison and inside its page."""

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from classify.comparison import Comparison, Reconstructions
from classify.report.folder import picture_digest
from classify.settings import ClassifyConfig
from data.loader import Data, Loader
from data.privacy import credentialed_sources, may_show
from data.settings import DataSettings, height_and_width
from data.writing import writing
from mae.engine.checkpoint import Checkpoint, load_checkpoint
from mae.pretrain import panel
from mae.reconstruct import model_of

PANEL_IMAGES = 4  # validation images reconstructed by each stage-one run
SMALL = 96  # up to this side, in pixels, a panel is saved losslessly
KINDS = {".png": "png", ".jpg": "jpeg"}


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


# ---------------------------------------------------------------- drawing


def draw_reconstructions(
    pretrainings: Mapping[str, Path],
    configs: Mapping[str, ClassifyConfig],
    data_of: Callable[[DataSettings], Data],
    folder: Path,
) -> dict[str, Reconstructions]:
    """Draw each stage-one run's reconstructions of validation images into `folder`, where they may be shown.

    Whether they may is decided by the pretraining's data, not the comparison's. An earlier permission does not count.
    """
    found = {}
    for name, run in pretrainings.items():
        checkpoint = load_checkpoint(run / "best.pt", kind="mae")
        wished = configs[name].report.images
        data = data_of(configs[name].data)
        private = credentialed_sources(checkpoint.config.data)

        file = digest = withheld = None
        if may_show(bool(private) or data.manifest.credentialed, wished):
            file, digest = _draw(checkpoint, data, folder, name)
        else:
            withheld = "report.images is false"
            if wished is None:
                withheld = (
                    f"the source is credentialed ({', '.join(private)})" if private else "the source is credentialed"
                )
        _remove_others(folder, name, file)

        found[name] = Reconstructions(
            file=file,
            digest=digest,
            withheld=withheld,
            masking=f"{100 * checkpoint.config.pretrain.mask_ratio:g}",
            image_size=height_and_width(checkpoint.config.data.image_size),
            credentialed=private,
        )
    return found


def _draw(checkpoint: Checkpoint, data: Data, folder: Path, name: str) -> tuple[str, str]:
    """Write the picture; returns its name below `folder` and the digest of its bytes."""
    # images spread evenly over the split
    table = data.split("validate")
    spread = np.linspace(0, len(table) - 1, min(PANEL_IMAGES, len(table))).round().astype(int)
    batch = next(Loader(data, table.iloc[spread], len(spread)).epoch())
    [picture] = panel(model_of(checkpoint), batch, checkpoint.config.pretrain.mask_ratio)
    grey = (picture * 255).round().byte().numpy()  # h w

    content = BytesIO()
    if _is_small(height_and_width(checkpoint.config.data.image_size)):
        ending = ".png"
        Image.fromarray(grey).save(content, "png", optimize=True)
    else:
        ending = ".jpg"
        Image.fromarray(grey).save(content, "jpeg", quality=88)

    (folder / "reconstructions").mkdir(exist_ok=True)
    file = f"reconstructions/{name}{ending}"
    with writing(folder / file) as opened:
        opened.write(content.getvalue())
    return file, picture_digest(content.getvalue())


def _remove_others(folder: Path, name: str, kept: str | None) -> None:
    """Delete a run's earlier pictures but `kept`: they may no longer be shown."""
    for ending in KINDS:
        if kept != f"reconstructions/{name}{ending}":
            with suppress(FileNotFoundError, NotADirectoryError):
                (folder / "reconstructions" / f"{name}{ending}").unlink()


def _is_small(size: tuple[int, int]) -> bool:
    return max(size) <= SMALL


# ---------------------------------------------------------------- showing


def panels(comparison: Comparison) -> list[Panel] | None:
    """The reconstructions that are there and may be shown; [] without pretrainings, None if no pretraining has any."""
    shown = []
    for name, drawn in comparison.reconstructions.items():
        content = _content(comparison, name, drawn)
        if content is not None:
            shown.append(_panel(name, drawn, content))
    return shown or (None if comparison.pretrainings else [])


def withheld(comparison: Comparison) -> Iterator[str]:
    """Which stage-one runs' reconstructions may not be shown, and why."""
    for name, drawn in comparison.reconstructions.items():
        if drawn.withheld is not None:
            yield f"{name}: {drawn.withheld}"


def missing(comparison: Comparison) -> Iterator[str]:
    """Which stage-one runs' pictures are missing, or changed since they were drawn."""
    for name, drawn in comparison.reconstructions.items():
        if drawn.withheld is None and _content(comparison, name, drawn) is None:
            yield f"reconstructions of {name}: {drawn.file} is missing or was changed"


def _content(comparison: Comparison, name: str, drawn: Reconstructions) -> bytes | None:
    """The picture as it was drawn; None if it is missing, changed, or may not be shown."""
    wished = comparison.pretrain_configs[name].report.images if name in comparison.pretrain_configs else None
    if drawn.file is None or drawn.withheld is not None or not may_show(bool(drawn.credentialed), wished):
        return None
    with suppress(OSError):
        content = (comparison.folder / drawn.file).read_bytes()
        if picture_digest(content) == drawn.digest:
            return content
    return None


def _panel(name: str, drawn: Reconstructions, content: bytes) -> Panel:
    assert drawn.file is not None
    kind = KINDS[Path(drawn.file).suffix]
    with Image.open(BytesIO(content)) as picture:
        size = picture.size

    # small images are shown larger, pixel by pixel
    width = drawn.image_size[1]
    return Panel(
        name=name,
        masking=drawn.masking,
        source=f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        size=size,
        width=4 * width * max(1, round(150 / width)),
        pixelated=_is_small(drawn.image_size),
        credentialed=drawn.credentialed,
    )
