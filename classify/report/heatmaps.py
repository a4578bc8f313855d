"""What the models look at: the same few images under each row's heat, where single cases may be shown."""

import base64
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from classify.comparison import Comparison, Line
from classify.evaluate import Evaluation
from classify.explain import heatmaps, judged, overlay, sheet
from classify.report.folder import picture_digest
from classify.report.mistakes import are_shown
from classify.report.numbers import show_number
from classify.report.verdict import largest_budget
from classify.trained import load_trained
from data.labels import words
from data.loader import Data
from data.settings import DataSettings
from data.writing import writing

MOST_ROWS = 8  # that are shown, the first of the table
PICTURE = "heatmaps/sheet.png"  # below the comparison's folder
LOOKS = (
    "The same images, each under the heat of every row (first seed). Heat marks the places that spoke for the class "
    "that the row called. The images are the first of each class by id, not chosen by their looks. Heat shows what "
    "changed a number, not where a disease is."
)


def draw_heatmaps(comparison: Comparison, data_of: Callable[[DataSettings], Data]) -> tuple[str, str] | None:
    """Draw the sheet below the comparison's folder, if cases may be shown; returns its file and digest, else None.

    A sheet that was drawn before and may no longer be shown is deleted.
    """
    path = comparison.folder / PICTURE
    lines = lines_shown(comparison)
    if not lines or not are_shown(comparison):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        return None

    # the radiographs as the first row reads them, and each row's heat over those that it reads itself
    names = {}
    for line in lines:
        grey, heat = _look(line.evaluations[0], cases(comparison, line), data_of)
        names[line.name] = np.stack([overlay(image, hot) for image, hot in zip(grey, heat, strict=True)])
        if len(names) == 1:
            radiographs = grey

    content = BytesIO()
    sheet(radiographs, names, notes=[]).save(content, "png", optimize=True)
    path.parent.mkdir(exist_ok=True)
    with writing(path) as opened:
        opened.write(content.getvalue())
    return PICTURE, picture_digest(content.getvalue())


def lines_shown(comparison: Comparison) -> list[Line]:
    """The first rows of the largest label budget that have a trained network."""
    if not comparison.config.report.heatmaps:
        return []
    lines = comparison.lines_of(largest_budget(comparison))
    return [line for line in lines if line.evaluations[0].is_trained][:MOST_ROWS]


def cases(comparison: Comparison, line: Line) -> pd.DataFrame:
    """The cases of a row's predictions that are shown: abnormal and normal in turn, in order of their ids."""
    predictions = line.evaluations[0].predictions.sort_values("image_id")
    places = np.arange(len(predictions))
    positive = predictions["label"].to_numpy() == 1
    in_turn = zip_longest(places[positive], places[~positive])
    chosen = [place for pair in in_turn for place in pair if place is not None]
    return predictions.iloc[chosen[: comparison.config.report.heatmaps]]


def _look(
    evaluation: Evaluation, shown: pd.DataFrame, data_of: Callable[[DataSettings], Data]
) -> tuple[np.ndarray, np.ndarray]:
    """Images (k h w) and their heat (k h w) for the class that each was called."""
    data = data_of(evaluation.config.data)
    table = data.split(evaluation.config.evaluate.split).set_index("image_id")
    grey = next(data.store.read([table["row"].loc[shown["image_id"]].to_numpy()]))  # k h w

    model = load_trained(evaluation.run, evaluation.config.device).model
    called = torch.from_numpy(shown["predicted"].to_numpy() == 1)
    return grey, heatmaps(model, torch.from_numpy(grey[:, None]), abnormal=called)


# ---------------------------------------------------------------- showing


@dataclass(frozen=True)
class Picture:
    """The sheet, as the page shows it."""

    source: str  # the picture itself, as a data URI
    size: tuple[int, int]  # width and height


def picture(comparison: Comparison) -> Picture | None:
    """The sheet, if its file is there, unchanged, and may be shown; else None."""
    if comparison.heatmaps is None or not are_shown(comparison):
        return None
    file, digest = comparison.heatmaps
    with suppress(OSError):
        content = Path(comparison.folder, file).read_bytes()
        if picture_digest(content) == digest:
            with Image.open(BytesIO(content)) as opened:
                size = opened.size
            return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", size)
    return None


def heatmap_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """What each row called the cases of the sheet; nothing without a sheet."""
    if picture(comparison) is None:
        return
    names = words(comparison.config.data.target)
    for line in lines_shown(comparison):
        row = {"Model": line.name}
        for _, case in cases(comparison, line).iterrows():
            called = f"{names[int(case['predicted'])]}, {show_number(case['calibrated'])}"
            row[f"{case['image_id']}: {names[int(case['label'])]}"] = called
        yield row


def heatmap_texts(comparison: Comparison) -> Iterator[str]:
    """What the reader must know about the sheet; nothing without a sheet."""
    if picture(comparison) is None:
        return
    yield LOOKS
    kinds = {line.evaluations[0].config.finetune.model == "vit" for line in lines_shown(comparison)}
    for is_vit in sorted(kinds, reverse=True):
        yield judged("vit" if is_vit else "resnet")
