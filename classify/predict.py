"""Trained classifiers × a user's images → probabilities, decisions and heatmaps: mae-predict, and `Predictor`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from classify.answers import (
    COLUMNS,
    PLUGINS,
    Answers,
    Operating,
    Seen,
    combined,
    load_members,
    read_alike,
    score,
    table_of,
    unit_of,
)
from classify.domain import why_unknown
from classify.explain import HEAT_OF, heatmaps, judged, overlay
from classify.settings import Unit
from classify.trained import Trained
from data.errors import UserError
from data.folders import written_by_one
from data.inputs import Images, Input, as_inputs, find_inputs, with_studies
from data.labels import words
from data.privacy import credentialed_places, terms
from data.settings import height_and_width
from data.signals import beginning_anew
from data.writing import in_utf8, keep_private, read_first_line, restoring_umask, write_csv, writing
from mae.contact_sheet import save_picture
from mae.reconstruct import names_of

LOOKED_AT = 256  # pixels, at least, of the longer side of a picture


# ---------------------------------------------------------------- in Python


class Predictor:
    """`Predictor(run)(images)` → a table with a row for each image, as mae-predict writes it.

    runs: a run folder or checkpoint, or several, whose mean is taken. images: a file, a folder, a CSV of paths, or a
    list of files, arrays (h w) of uint8 or uint16, and Pillow's pictures. A file that cannot be read has a reason
    instead of numbers. At most one of threshold, sensitivity and specificity takes the place of the stored threshold.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path],
        device: str | None = None,
        *,
        unit: Unit | None = None,
        threshold: float | None = None,
        sensitivity: float | None = None,
        specificity: float | None = None,
        workers: int = 0,
    ):
        self.operating = Operating(threshold, sensitivity, specificity)
        if isinstance(runs, str | Path):
            runs = [runs]
        self.members = load_members(list(runs), device or "auto")
        self.unit = unit
        self.workers = workers

    def __call__(self, images: Any) -> pd.DataFrame:
        inputs = with_studies(as_inputs(images))
        unit = unit_of(self.members, inputs, self.unit)
        answers = Answers(self.members, len(inputs))
        score(inputs, answers, self.workers)
        return table_of(inputs, answers, unit, self.operating)

    def heatmaps(self, images: Any, method: str | None = None) -> np.ndarray:
        """(n h w) float32 from 0 to 1: where the networks looked; NaN for an image that cannot be read.

        For several networks it is their mean. They must read images alike.
        """
        expect_alike(self.members)
        inputs = as_inputs(images)
        answers = Answers(self.members, len(inputs))
        height, width = height_and_width(self.members[0].config.data.image_size)
        found = np.full((len(inputs), height, width), np.nan, np.float32)

        def look(images: Images) -> None:
            places, _, heat = heat_of(images, answers, self.operating, method)
            found[places] = heat

        score(inputs, answers, self.workers, look)
        return found


# ---------------------------------------------------------------- heatmaps


def expect_alike(members: Sequence[Trained]) -> None:
    """UserError unless one heatmap can be for all networks."""
    if len(read_alike(members)) > 1:
        raise UserError(
            "heatmaps: found networks that read images in different sizes, tones or ways to resize, expected one way; "
            "give one checkpoint"
        )


def heat_of(
    images: Images, answers: Answers, operating: Operating, method: str | None = None
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Of the images that could be read: numbers (b), pixels (b h w), and heat (b h w) for the class each was called."""
    places = []
    rows = []
    for row, place in enumerate(images.numbers):
        if answers.reasons[place] is None:
            places.append(place)
            rows.append(row)
    pixels = images.images[rows]

    _, scores, _ = combined(answers.members, answers.logits[:, places], "image")
    abnormal = torch.from_numpy(scores >= operating.of(answers.members, "image"))
    heat = []
    for member in answers.members:
        heat.append(heatmaps(member.model, torch.from_numpy(pixels), method, abnormal))
    return places, pixels[:, 0], np.mean(heat, axis=0)


class HeatFolder:
    """A folder of heatmaps: for each image `<stem>.png`, laid over the radiograph, and `<stem>.npy`."""

    def __init__(self, folder: Path, inputs: Sequence[Input], paths: Sequence[str], notes: Sequence[str]):
        """UserError where heatmaps cannot lie there, or would be taken for radiographs the next time."""
        self.folder = folder
        self.notes = notes
        self.inputs = inputs
        self.names = names_of(str(one.path) for one in inputs)

        # a place of its own
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--heatmaps: {folder}: found a file, expected a folder")
        for path in paths:
            if Path(path).is_dir() and folder.resolve().is_relative_to(Path(path).resolve()):
                raise UserError(
                    f"--heatmaps: {folder}: found a folder inside of {path}, expected one elsewhere: next time its "
                    "pictures would be taken for radiographs"
                )

        # no image of the user's is overwritten
        images = {one.path.resolve() for one in inputs if one.path.parent.resolve() == folder.resolve()}
        for name in self.names.values():
            if (folder / f"{name}.png").resolve() in images:
                raise UserError(f"--heatmaps: {folder}: found the image {name}.png there, expected another folder")

        # nor anything else that is there by these names, but heatmaps of an earlier time
        for name in self.names.values() if folder.is_dir() else ():
            files = [folder / f"{name}{ending}" for ending in (".png", ".npy")]
            there = [file for file in files if file.exists()]
            if there and not _is_heatmap(files[0]):
                raise UserError(
                    f"--heatmaps: {there[0]}: found a file that mae-predict has not written, expected another folder"
                )

    def write(self, places: Sequence[int], pixels: np.ndarray, heat: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for place, image, heatmap in zip(places, pixels, heat, strict=True):
            name = self.names[str(self.inputs[place].path)]
            save_picture(_enlarged(overlay(image, heatmap)), self.folder / f"{name}.png", self.notes)
            with writing(self.folder / f"{name}.npy") as file:
                np.save(file, heatmap)


def _is_heatmap(path: Path) -> bool:
    """Whether it is a picture that `HeatFolder` has written, by what stands in it."""
    with suppress(OSError, ValueError, SyntaxError), Image.open(path) as picture:
        return str(picture.info.get("Description", "")).startswith(HEAT_OF)
    return False


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Colours (h w 3) as a picture for eyes: a small image that a network sees is enlarged, each pixel to a square."""
    times = -(-LOOKED_AT // max(picture.shape[:2]))
    return Image.fromarray(picture.repeat(times, axis=0).repeat(times, axis=1))


# ---------------------------------------------------------------- as a command


@restoring_umask()
def predict(
    runs: Sequence[str | Path],
    paths: Sequence[str],
    out: Path,
    *,
    operating: Operating | None = None,
    unit: Unit | None = None,
    device: str = "auto",
    workers: int = 0,
    heatmaps: Path | None = None,
    say: Callable[[str], object] = print,
) -> pd.DataFrame:
    """Write the table of `Predictor` as a CSV, whole or not at all; returns it. heatmaps: a folder for those, too.

    Files made from credentialed data can be read by their owner alone. Raises UserError for what cannot work, before
    anything is read, and, after the table is written, if no input could be read.
    """
    operating = operating or Operating()
    check_out(out, paths)
    inputs = find_inputs(paths, say)
    _expect_no_input(out, inputs)
    members = load_members(runs, device)
    credentialed = _credentialed(members, paths)
    keep_private(credentialed, "private")
    if credentialed:
        say(terms(credentialed))

    inputs = with_studies(inputs)
    unit = unit_of(members, inputs, unit)
    line = operating.told(members, unit)
    pictures = None
    if heatmaps is not None:
        expect_alike(members)
        kinds = {"vit" if member.config.finetune.model == "vit" else "resnet" for member in members}
        on_methods = [judged(kind) for kind in sorted(kinds)]
        pictures = HeatFolder(heatmaps, inputs, paths, [*on_methods, *([terms(credentialed)] if credentialed else [])])
    out.parent.mkdir(parents=True, exist_ok=True)

    answers = Answers(members, len(inputs))
    seen = None
    if pictures is not None:
        seen = _writing_heat(pictures, answers, operating)
    with written_by_one(out):
        with _keeping_what_is_done(lambda: table_of(inputs, answers, unit, operating), out, say):
            score(inputs, answers, workers, seen)
        table = table_of(inputs, answers, unit, operating)
        write_table(out, table)
    if not answers.read.any():
        raise UserError(f"{out}: found none of {len(inputs):,} inputs readable, expected some; see the reasons there")
    for told in _summary(answers, table, line):
        say(told)
    say(f"predictions: {out}")
    if pictures is not None:
        say(" ".join([f"heatmaps: {heatmaps}.", *on_methods]))
    return table


def _writing_heat(pictures: HeatFolder, answers: Answers, operating: Operating) -> Seen:
    def write(images: Images) -> None:
        pictures.write(*heat_of(images, answers, operating))

    return write


def check_out(out: Path, paths: Sequence[str]) -> None:
    """UserError if a table cannot, or should not, be written there."""
    if out.is_dir():
        raise UserError(f"--out: {out}: found a folder, expected a file such as {out / 'predictions.csv'}")
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out: found {out.name!r}, expected a name that ends in .csv")
    for file in (out, partial_of(out)):
        if any(file.resolve() == Path(path).resolve() for path in paths):
            raise UserError(f"--out: {file}: found one of the inputs, expected another file")
        if file.is_dir():
            raise UserError(f"--out: {file}: found a folder, expected none, or a table of predictions")
        if file.exists() and file.stat().st_size and not read_first_line(file).startswith(",".join(COLUMNS)):
            raise UserError(f"--out: {file}: found a file that is no table of predictions, expected another name")


def partial_of(out: Path) -> Path:
    """Where the table lies, as far as it is known, if the command ends early; it is removed by one that does not."""
    return out.with_suffix(".partial.csv")


def _expect_no_input(out: Path, inputs: Sequence[Input]) -> None:
    for file in (out, partial_of(out)):
        if any(one.path.name == file.name and one.path.resolve() == file.resolve() for one in inputs):
            raise UserError(f"--out: {file}: found one of the inputs, expected another file")


def _credentialed(members: Sequence[Trained], paths: Sequence[str]) -> list[str]:
    """The credentialed data sets that the networks have seen, and those that the inputs belong to."""
    names = set(credentialed_places(paths))
    for member in members:
        names.update(member.checkpoint.credentialed)
    return sorted(names)


@contextmanager
def _keeping_what_is_done(table: Callable[[], pd.DataFrame], out: Path, say: Callable[[str], object]) -> Iterator[None]:
    """If the block ends early, write what is known so far beside `out`; else remove such a file of an earlier run."""
    partial = partial_of(out)
    try:
        with beginning_anew():
            yield
    except (SystemExit, KeyboardInterrupt, OSError):  # a full disk, where heatmaps are written
        write_table(partial, table())
        say(f"ended early: what is known so far is in {partial}")
        raise
    partial.unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """The table as a CSV, with empty cells for what is not known."""
    rows = ([_cell(value) for value in row] for row in table.itertuples(index=False, name=None))
    write_csv(path, [str(name) for name in table], rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float) and np.isnan(value):
        return ""
    return in_utf8(value) if isinstance(value, str) else value


def _summary(answers: Answers, table: pd.DataFrame, line: str) -> Iterator[str]:
    """What is to be said of the table, a line each."""
    members = answers.members
    refused = int((~answers.read).sum())
    left_out = f"; {refused:,} could not be read, column reason says why" if refused else ""
    yield f"{len(answers.reasons) - refused:,} of {len(answers.reasons):,} images predicted{left_out}"
    lacking = sum(PLUGINS in (reason or "") for reason in answers.reasons)
    if lacking:
        yield f"{lacking:,} of them lack a DICOM plugin, which {PLUGINS} may bring"

    found = []
    for name in words(members[0].config.data.target):
        found.append(f"{int((table['decision'] == name).sum()):,} {name}")
    yield f"{', '.join(found)}: {line}"

    # whether the numbers mean anything
    for member, domain in zip(members, answers.domains, strict=True):
        if domain is None:
            yield f"note: no domain: {why_unknown(member.checkpoint)}"
        elif domain.note:
            yield f"note: {domain.note}"
    if any(domain is not None for domain in answers.domains):
        strange = int((table["domain"] == "out").sum())
        told_apart = int(table["domain"].isin(["in", "out"]).sum())
        yield f"{strange:,} of {told_apart:,} are out of its domain, unlike the images that it was trained on"
    scores = table["score"].dropna()
    if len(scores) > 2 and scores.nunique() == 1:
        yield f"warning: all {len(scores):,} have the same score, {scores.iloc[0]:.4g}; are they the same image?"
    for member in members:
        if not member.checkpoint.meta.get("calibration"):
            yield (
                f"note: {member.place}: found no calibration, as an earlier version made it, so its probabilities are "
                "raw scores; fine-tune again for one"
            )
