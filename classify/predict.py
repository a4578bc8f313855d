"""Trained classifiers × somebody's images → calibrated probabilities and decisions: mae-predict, and `Predictor`.

Images are read as in training, each network's own way. Of several networks every one is calibrated, then they are
averaged; `spread` is the standard deviation of their probabilities, with these networks as all there are (ddof 0).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import expit, logit
from tqdm import tqdm

from classify.domain import Domain, why_unknown
from classify.explain import heatmaps, judged, overlay
from classify.metrics.operating_points import RATES, Rate
from classify.scores import logits_of_means
from classify.settings import Unit
from classify.trained import Decision, Trained, load_trained
from data.errors import UserError
from data.inputs import Images, Input, as_inputs, find_inputs, read_inputs, with_studies
from data.labels import words
from data.privacy import credentialed_places, terms
from data.settings import height_and_width
from data.writing import keep_private, read_first_line, restoring_umask, write_csv, writing
from mae.contact_sheet import save_picture
from mae.reconstruct import names_of

COLUMNS = ("path", "probability", "score", "decision", "domain", "reason")  # of every table, in this order
PLUGINS = "pip install 'mae-cxr[dicom]'"  # what data/dicom.py advises
LOOKED_AT = 256  # pixels that the longer side of a picture has at least
NOT_REACHED = "not reached: interrupted"
Seen = Callable[[Images], None]


# ---------------------------------------------------------------- where a line is drawn


@dataclass(frozen=True)
class Operating:
    """From which score on an image is called abnormal: the stored threshold's, or one that is asked for instead."""

    threshold: float | None = None
    sensitivity: float | None = None
    specificity: float | None = None

    def __post_init__(self) -> None:
        """UserError for several at once, and for what is no share, or no whole per cent."""
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{given[0]}: found {' and '.join(given)}, expected one of them")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"threshold: found {self.threshold:g}, expected a score from 0 to 1")
        if self.rate is not None:
            name, value = self.rate
            if min(abs(value - share) for share in RATES) > 1e-6:
                raise UserError(f"{name}: found {value:g}, expected a whole per cent from 0.01 to 0.99, such as 0.95")

    @property
    def rate(self) -> tuple[Rate, float] | None:
        """The rate on validation that is asked for."""
        if self.sensitivity is not None:
            return "sensitivity", self.sensitivity
        if self.specificity is not None:
            return "specificity", self.specificity
        return None

    def of(self, members: Sequence[Trained], unit: Unit) -> float:
        """The threshold: of a network's score, of several networks' mean probability.

        Several networks have no common validation here, so theirs is the mean of the thresholds' calibrated values.
        """
        if self.threshold is not None:
            return self.threshold
        thresholds = [self._of_one(member, unit) for member in members]
        if len(members) == 1:
            return thresholds[0]
        calibrated = [probability_of(member, unit, each) for member, each in zip(members, thresholds, strict=True)]
        return float(np.mean(calibrated))

    def _of_one(self, member: Trained, unit: Unit) -> float:
        if self.rate is None:
            return member.threshold_for(unit)
        name, value = self.rate
        kept = member.checkpoint.meta.get("operating")
        try:
            threshold = kept[unit][name][round(100 * value) - 1]  # type: ignore[index]
            if len(kept[unit][name]) != len(RATES) or not np.isfinite(threshold):  # type: ignore[index]
                raise ValueError
        except (TypeError, LookupError, ValueError):
            raise UserError(
                f"{member.place}: found no thresholds for a {name}, expected those that this version keeps; it has one "
                f"threshold, {member.threshold_for(unit):.4g}: leave --{name} out, or fine-tune again"
            ) from None
        return float(threshold)

    def told(self, members: Sequence[Trained], unit: Unit) -> str:
        """Where the line is drawn and what that is, for people."""
        threshold = self.of(members, unit)
        rules = sorted({member.config.finetune.threshold for member in members})
        how = f"chosen on validation by {', '.join(rules)}"
        if self.threshold is not None:
            how = "as asked for"
        elif self.rate is not None:
            name, value = self.rate
            how = f"{name} {100 * value:.0f} % on validation"

        _, positive = words(members[0].config.data.target)
        if len(members) > 1:
            mean = "" if self.threshold is not None else ", the mean of theirs"
            return f"{positive} from a mean probability of {threshold:.4g} on ({how}{mean})"
        probability = probability_of(members[0], unit, threshold)
        return f"{positive} from a score of {threshold:.4g} on ({how}), which is a probability of {probability:.4g}"


def probability_of(member: Trained, unit: Unit, score: float) -> float:
    """The calibrated probability of a score."""
    with np.errstate(divide="ignore"):
        raw = logit(np.clip(score, 0, 1))
    return float(member.calibration_for(unit).probabilities(raw))


# ---------------------------------------------------------------- networks


def load_members(runs: Sequence[str | Path], device: str = "auto") -> tuple[Trained, ...]:
    """Classifiers that answer together; UserError where they answer different questions, or one is there twice."""
    if not runs:
        raise UserError("checkpoint: found none, expected the folder of a mae-finetune run")
    members = tuple(load_trained(run, device) for run in runs)
    first = members[0]
    for number, member in enumerate(members):
        if member.config.data.target != first.config.data.target:
            raise UserError(
                f"{member.place}: found data.target = {member.config.data.target}, expected "
                f"{first.config.data.target} as in {first.place}: they answer different questions"
            )
        for other in members[:number]:
            if other.digest == member.digest:
                raise UserError(f"{member.place}: found the same checkpoint as {other.place}, expected another one")
    return members


def unit_of(members: Sequence[Trained], inputs: Sequence[Input], wished: Unit | None) -> Unit:
    """What gets a row: what is wished for, else studies where all inputs have one and the networks are judged by them.

    UserError where a network has no threshold for it.
    """
    unit = wished
    if unit is None:
        unit = "image"
        if all(one.study_id for one in inputs) and all(each.config.evaluate.unit == "study" for each in members):
            unit = "study"
    for member in members:
        if unit == "study" and unit not in member.checkpoint.fact("threshold"):
            raise UserError(
                f"{member.place}: found no threshold for studies, as images of one validation study had different "
                "labels, expected one; give --unit image"
            )
        Decision.of(member.checkpoint, unit)
    return unit


# ---------------------------------------------------------------- scores


class Answers:
    """What the networks have said so far."""

    def __init__(self, members: Sequence[Trained], inputs: int):
        self.members = members
        self.domains = [Domain.of(member.checkpoint, member.device) for member in members]
        self.logits = np.full((len(members), inputs), np.nan)  # m n
        self.distances = np.full((len(members), inputs), np.nan)  # m n, of the allowed; NaN where a network cannot tell
        self.reasons: list[str | None] = [NOT_REACHED] * inputs

    @property
    def read(self) -> np.ndarray:
        """(n) bool: which inputs every network has answered."""
        return np.array([reason is None for reason in self.reasons], dtype=bool)


def score(inputs: Sequence[Input], answers: Answers, workers: int = 0, seen: Seen | None = None) -> None:
    """Fill in the answers, input by input. Networks that read images alike share the reading.

    seen: called with images that every network has just answered, as the last of them saw them.
    """
    members = answers.members
    groups = _alike(members)
    refused: dict[int, str] = {}
    with tqdm(total=len(groups) * len(inputs), desc="predict", unit="image", disable=None) as bar:
        for turn, numbers in enumerate(groups, start=1):
            how = members[numbers[0]].config.data
            with closing(read_inputs(inputs, how, workers)) as parts:
                for images in parts:
                    _look(numbers, images, answers, refused)
                    if turn == len(groups):  # nobody has more to say of these
                        for place in images.numbers:
                            answers.reasons[place] = refused.get(place)
                        if seen is not None:
                            seen(images)
                    bar.update(len(images.numbers))


def _alike(members: Sequence[Trained]) -> list[list[int]]:
    """Numbers of the members, those together that read images in the same way."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, member in enumerate(members):
        settings = member.config.data
        groups.setdefault((settings.image_size, settings.resize, settings.tone), []).append(number)
    return list(groups.values())


def _look(numbers: Sequence[int], images: Images, answers: Answers, refused: dict[int, str]) -> None:
    """Some members' answers about some images; adds to `refused` why there is none."""
    places = []
    rows = []
    for row, (place, reason) in enumerate(zip(images.numbers, images.reasons, strict=True)):
        if reason is None:
            places.append(place)
            rows.append(row)
        else:
            refused.setdefault(place, reason)
    if not rows:
        return

    pixels = images.images[rows]
    for number in numbers:
        logits, features = answers.members[number].logits_and_features(pixels)
        found = logits.astype(np.float64)
        answers.logits[number, places] = found
        domain = answers.domains[number]
        if domain is not None:
            answers.distances[number, places] = domain.scores(features, pixels)
        for place, value in zip(places, found, strict=True):
            if not np.isfinite(value):
                refused.setdefault(place, "found a score that is not finite, expected a number")


# ---------------------------------------------------------------- rows


def table_of(inputs: Sequence[Input], answers: Answers, unit: Unit, operating: Operating) -> pd.DataFrame:
    """The answers as a table: `COLUMNS`, then what is known besides. A row an input, or a study, in their order."""
    members = answers.members
    groups = _groups(inputs, unit)
    count = int(groups.max()) + 1
    first = np.unique(groups, return_index=True)[1]  # of each row, the number of its first input
    logits = np.stack([_of_groups(each, answers.read, groups, unit) for each in answers.logits])  # m r
    probabilities, scores, spread = combined(members, logits, unit)

    # in words
    threshold = operating.of(members, unit)
    names = words(members[0].config.data.target)
    decisions = [names[int(value >= threshold)] if np.isfinite(value) else "" for value in scores]
    distances = _farthest(answers, groups, count)

    columns: dict[str, Any] = {
        "path": [inputs[number].shown for number in first],
        "probability": probabilities,
        "score": scores,
        "decision": decisions,
        "domain": [_domain(value) for value in distances],
        "reason": _reasons(answers, groups, count),
    }
    if any(one.study_id for one in inputs):
        columns["study_id"] = [inputs[number].study_id for number in first]
    if unit == "study":
        columns["images"] = np.bincount(groups, answers.read, count).astype(int)
    if len(members) > 1:
        columns["spread"] = spread
    if np.isfinite(distances).any():
        columns["domain_score"] = distances
    return pd.DataFrame(columns)


def combined(members: Sequence[Trained], logits: np.ndarray, unit: Unit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (m r) → probabilities (r), the scores (r) that decisions go by, and how much networks disagree (r).

    One network's decision goes by its raw score. Several have a mean probability, and nothing to calibrate after it.
    """
    calibrated = []
    for member, each in zip(members, logits, strict=True):
        calibrated.append(member.calibration_for(unit).logits(each))
    spread = expit(np.stack(calibrated)).std(axis=0)
    if len(members) == 1:
        return expit(calibrated[0]), expit(logits[0]), spread

    mean = np.full(logits.shape[1], np.nan)
    known = np.flatnonzero(np.isfinite(logits).all(axis=0))
    if len(known):
        cases = np.tile(np.arange(len(known)), len(members))
        mean[known] = expit(logits_of_means(np.stack(calibrated)[:, known].ravel(), cases))
    return mean, mean, spread


def _groups(inputs: Sequence[Input], unit: Unit) -> np.ndarray:
    """(n) the row of each input. A study is a patient's, where patients are known; what has none is one by itself."""
    if unit == "image":
        return np.arange(len(inputs))
    rows: dict[Any, int] = {}
    found = []
    for number, one in enumerate(inputs):
        study = (one.patient_id, one.study_id) if one.study_id else number
        found.append(rows.setdefault(study, len(rows)))
    return np.array(found)


def _of_groups(logits: np.ndarray, read: np.ndarray, groups: np.ndarray, unit: Unit) -> np.ndarray:
    """(r) the logits of rows, of those of images (n): of a study, that of its images' mean score; NaN without any."""
    known = np.where(read, logits, np.nan)
    if unit == "image":
        return known
    rows = np.full(int(groups.max()) + 1, np.nan)
    some = np.flatnonzero(read)
    if len(some):
        rising = some[np.argsort(known[some], kind="stable")]  # as evaluation adds them
        present, numbers = np.unique(groups[rising], return_inverse=True)
        rows[present] = logits_of_means(known[rising], numbers)
    return rows


def _farthest(answers: Answers, groups: np.ndarray, count: int) -> np.ndarray:
    """(r) the networks' mean distance, of a study's most distant image; NaN where no network can tell."""
    told = np.isfinite(answers.distances)  # m n
    total = np.where(told, answers.distances, 0).sum(axis=0)
    distances = total / np.where(told.any(axis=0), told.sum(axis=0), np.nan)
    found = np.full(count, np.nan)
    np.fmax.at(found, groups, np.where(answers.read, distances, np.nan))
    return found


def _domain(distance: float) -> str:
    if np.isnan(distance):
        return ""
    return "out" if distance > 1 else "in"


def _reasons(answers: Answers, groups: np.ndarray, count: int) -> list[str]:
    """Why a row has no numbers; of a study that lacks some images, how many and why."""
    sizes = np.bincount(groups, minlength=count)
    missing = np.bincount(groups, ~answers.read, count).astype(int)
    reasons = [""] * count
    for number, row in enumerate(groups):
        reason = answers.reasons[number]
        if reason is None or reasons[row]:
            continue
        reasons[row] = reason
        if sizes[row] > 1:
            reasons[row] = f"{missing[row]} of {sizes[row]} images left out: {reason}"
    return reasons


# ---------------------------------------------------------------- in Python


class Predictor:
    """`Predictor(run)(images)` → a table with a row an image, as mae-predict writes it.

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
        """(n h w) float32 from 0 to 1, where the networks looked at; NaN for an image that cannot be read.

        Of several networks the mean. They must read images alike.
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
    if len(_alike(members)) > 1:
        raise UserError(
            "heatmaps: found networks that read images in different sizes, tones or ways to resize, expected one way; "
            "give one checkpoint"
        )


def heat_of(
    images: Images, answers: Answers, operating: Operating, method: str | None = None
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Of those images that were read: numbers (b), pixels (b h w), and heat (b h w) for what each was called."""
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
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--heatmaps: {folder}: found a file, expected a folder")
        for path in paths:
            if Path(path).is_dir() and folder.resolve().is_relative_to(Path(path).resolve()):
                raise UserError(
                    f"--heatmaps: {folder}: found a folder inside of {path}, expected one elsewhere: next time its "
                    "pictures would be taken for radiographs"
                )
        images = {one.path.resolve() for one in inputs if one.path.parent.resolve() == folder.resolve()}
        for name in self.names.values():
            if (folder / f"{name}.png").resolve() in images:
                raise UserError(f"--heatmaps: {folder}: found the image {name}.png there, expected another folder")

    def write(self, places: Sequence[int], pixels: np.ndarray, heat: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for place, image, heatmap in zip(places, pixels, heat, strict=True):
            name = self.names[str(self.inputs[place].path)]
            save_picture(_enlarged(overlay(image, heatmap)), self.folder / f"{name}.png", self.notes)
            with writing(self.folder / f"{name}.npy") as file:
                np.save(file, heatmap)


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Colours (h w 3) as a picture for eyes: a network of small images sees these pixels, each as a square."""
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

    What is made of credentialed data is for its owner alone. Raises UserError for what cannot work, before anything is
    read, and, when the table is written, where no input could be read.
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
    """UserError where a table cannot, or should not, be written there."""
    if out.is_dir():
        raise UserError(f"--out: {out}: found a folder, expected a file such as {out / 'predictions.csv'}")
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out: found {out.name!r}, expected a name that ends in .csv")
    if any(out.resolve() == Path(path).resolve() for path in paths):
        raise UserError(f"--out: {out}: found one of the inputs, expected another file")
    if out.exists() and out.stat().st_size and not read_first_line(out).startswith(",".join(COLUMNS)):
        raise UserError(f"--out: {out}: found a file that is no table of predictions, expected another name")


def _expect_no_input(out: Path, inputs: Sequence[Input]) -> None:
    if any(one.path.name == out.name and one.path.resolve() == out.resolve() for one in inputs):
        raise UserError(f"--out: {out}: found one of the inputs, expected another file")


def _credentialed(members: Sequence[Trained], paths: Sequence[str]) -> list[str]:
    """The credentialed data sets that the networks have seen, and those that the inputs belong to."""
    names = set(credentialed_places(paths))
    for member in members:
        names.update(member.checkpoint.credentialed)
    return sorted(names)


@contextmanager
def _keeping_what_is_done(table: Callable[[], pd.DataFrame], out: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Where the block is interrupted, what is known so far is written beside `out`; else such a file of before goes."""
    partial = out.with_suffix(".partial.csv")
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        write_table(partial, table())
        say(f"interrupted: what is known so far is in {partial}; the same command begins anew")
        raise
    partial.unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """The table as a CSV, with empty cells for what is not known."""
    rows = ([_cell(value) for value in row] for row in table.itertuples(index=False, name=None))
    write_csv(path, [str(name) for name in table], rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float) and np.isnan(value):
        return ""
    if isinstance(value, str):  # a name of bytes that are no UTF-8
        return os.fsencode(value).decode("utf-8", errors="backslashreplace")
    return value


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
        yield f"{strange:,} of {len(table):,} are out of its domain, unlike the images that it was trained on"
    scores = table["score"].dropna()
    if len(scores) > 2 and scores.nunique() == 1:
        yield f"warning: all {len(scores):,} have the same score, {scores.iloc[0]:.4g}; are they the same image?"
    for member in members:
        if not member.checkpoint.meta.get("calibration"):
            yield (
                f"note: {member.place}: found no calibration, as an earlier version made it, so its probabilities are "
                "raw scores; fine-tune again for one"
            )
