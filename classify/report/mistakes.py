"""The most confident mistakes of each row at the largest label budget, where single cases may be shown."""

import base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from classify.comparison import Comparison, Line
from classify.grid import folder_name
from classify.report.calibrations import are_probabilities, calibrated_scores
from classify.report.folder import picture_digest
from classify.report.numbers import show_number
from classify.report.verdict import largest_budget
from classify.subgroups import USUAL, number_text
from data.labels import words
from data.loader import Data
from data.privacy import may_show
from data.writing import writing

EACH = 3  # of either kind
FOLDER = "mistakes"  # below the comparison's
SIDE = 160  # pixels of a picture, at most
GAP = 4  # pixels between pictures
MISTAKES = (
    "Cases that at least half of a row's seeds call wrongly. Those whose probability is furthest from the true class "
    "come first (mean over seeds, calibrated if all seeds of the row are). They are not a sample: most mistakes are "
    "less striking."
)
WITHHELD = (
    "Single cases are withheld{why}. To show them, set report.images=true in the config that names these images' "
    "data. A report that shows cases of a credentialed source may not be shared."
)


class Mistake(NamedTuple):
    """A case on the wrong side of the threshold."""

    place: int  # among the predictions
    is_positive: bool
    score: float  # mean over seeds


def are_shown(comparison: Comparison) -> bool:
    """Whether single cases may be shown."""
    return may_show(bool(comparison.credentialed), comparison.config.report.images)


def withheld_cases(comparison: Comparison) -> str:
    """Why single cases are not shown."""
    why = ", because the source is credentialed" if comparison.config.report.images is None else ""
    return WITHHELD.format(why=why)


def mistakes_of(line: Line) -> list[Mistake]:
    """Called positive first, then called negative, each the most confident first."""
    wrong = (line.scores >= line.thresholds[:, None]) != (line.labels == 1)  # s n
    scores = calibrated_scores(line)
    mean = (line.scores if scores is None else scores).mean(0)  # n
    mostly = wrong.mean(0) >= 0.5

    found = []
    for is_positive in (False, True):
        members = np.flatnonzero(mostly & ((line.labels == 1) == is_positive))
        furthest = np.argsort(mean[members] if is_positive else -mean[members], kind="stable")[:EACH]
        found += [Mistake(int(place), is_positive, float(mean[place])) for place in members[furthest]]
    return found


def mistake_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """A table row for each mistake; nothing if cases may not be shown."""
    if not are_shown(comparison):
        return
    names = words(comparison.config.data.target)
    for line in comparison.lines_of(largest_budget(comparison)):
        predictions = line.evaluations[0].predictions
        kind = "" if are_probabilities(line) else " (rating, from 0 to 1)"
        known = [column for column in USUAL if column in predictions and predictions[column].notna().any()]

        for mistake in mistakes_of(line):
            case = predictions.iloc[mistake.place]
            row = {
                "Model": line.name,
                "Case": str(case["image_id"]),
                "Is": names[mistake.is_positive],
                "Called": names[not mistake.is_positive],
                f"Probability of {names[1]}": f"{show_number(mistake.score)}{kind}",
            }
            yield row | {column.capitalize(): _shown(case[column]) for column in known}


def _shown(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return number_text(value) if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Strip:
    """A row's mistakes side by side, in the order of its table."""

    name: str  # of the row
    source: str  # the picture itself, as a data URI
    size: tuple[int, int]  # width and height


def draw_mistakes(comparison: Comparison, data: Data) -> dict[str, tuple[str, str]]:
    """Draw each row's mistakes below the comparison's folder, if they may be shown; returns file and digest by row.

    Pictures that were drawn before and may no longer be shown are deleted.
    """
    drawn: dict[str, tuple[str, str]] = {}
    if are_shown(comparison):
        table = data.split(comparison.config.compare.split).set_index("image_id")
        for number, line in enumerate(comparison.lines_of(largest_budget(comparison))):
            ids = [line.evaluations[0].predictions["image_id"].iloc[mistake.place] for mistake in mistakes_of(line)]
            rows = table["row"].loc[ids].to_numpy()
            if len(rows):
                content = _strip(next(data.store.read([rows])))
                file = f"{FOLDER}/{number}-{folder_name(line.name)[:60]}.png"
                (comparison.folder / FOLDER).mkdir(exist_ok=True)
                with writing(comparison.folder / file) as opened:
                    opened.write(content)
                drawn[line.name] = (file, picture_digest(content))

    kept = {file for file, _ in drawn.values()}
    for path in (comparison.folder / FOLDER).glob("*.png"):
        if f"{FOLDER}/{path.name}" not in kept:
            path.unlink()
    return drawn


def _strip(images: np.ndarray) -> bytes:
    """Images (k h w) uint8 side by side, as a PNG."""
    pictures = []
    for image in images:
        times = max(1, SIDE // (2 * max(image.shape)))  # small ones are shown larger, pixel by pixel
        picture = Image.fromarray(np.kron(image, np.ones((times, times), np.uint8)))
        picture.thumbnail((SIDE, SIDE))
        pictures.append(picture)
    width, height = pictures[0].size

    strip = Image.new("L", (len(pictures) * (width + GAP) - GAP, height), 128)
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * (width + GAP), 0))
    content = BytesIO()
    strip.save(content, "png", optimize=True)
    return content.getvalue()


def strips(comparison: Comparison) -> list[Strip]:
    """The pictures that are there, unchanged, and may be shown."""
    found = []
    for name, (file, digest) in comparison.mistakes.items():
        with suppress(OSError):
            content = Path(comparison.folder, file).read_bytes()
            if are_shown(comparison) and picture_digest(content) == digest:
                with Image.open(BytesIO(content)) as picture:
                    size = picture.size
                found.append(Strip(name, f"data:image/png;base64,{base64.b64encode(content).decode()}", size))
    return found
