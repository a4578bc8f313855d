"""Networks × inputs → their answers: a row for each image or study, with probability, decision and domain.

Each network's images are read as in its training. Several networks are calibrated one by one, then averaged; `spread`
is the standard deviation of their probabilities, taken over these networks as the whole population (ddof 0).
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from classify.decisions import origin_of_threshold
from classify.domain import Domain
from classify.metrics.operating_points import RATES, Rate
from classify.scores import logits_of_means
from classify.settings import Unit
from classify.trained import Decision, Trained, load_trained
from data.errors import UserError
from data.inputs import Images, Input, read_inputs
from data.labels import words

COLUMNS = ("path", "probability", "score", "decision", "domain", "reason")  # of every table, in this order
PLUGINS = "pip install 'mae-cxr[dicom]'"  # what data/dicom.py advises
NOT_REACHED = "not reached: interrupted"
Seen = Callable[[Images], None]


# ---------------------------------------------------------------- where a line is drawn


@dataclass(frozen=True)
class Operating:
    """The score from which an image is called abnormal: the stored threshold, or one that is asked for instead."""

    threshold: float | None = None
    sensitivity: float | None = None
    specificity: float | None = None

    def __post_init__(self) -> None:
        """UserError if several are given, or if one is no share or no whole per cent."""
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
        """The threshold: for one network's score, or for several networks' mean probability.

        Several networks have no common validation here, so their threshold is the mean of their calibrated thresholds.
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
        """The threshold and what it means, in words."""
        threshold = self.of(members, unit)
        rules = sorted({member.config.finetune.threshold for member in members})
        how = " or ".join(map(origin_of_threshold, rules))
        if self.threshold is not None:
            how = "as asked for"
        elif self.rate is not None:
            name, value = self.rate
            how = f"{name} {100 * value:.0f} % on validation"

        _, positive = words(members[0].config.data.target)
        if len(members) > 1:
            mean = "" if self.threshold is not None else ", the mean of theirs"
            return f"{positive} from a mean probability of {threshold:.4g} on, {how}{mean}"
        probability = probability_of(members[0], unit, threshold)
        return f"{positive} from a score of {threshold:.4g} on, {how}; that is a probability of {probability:.4g}"


def probability_of(member: Trained, unit: Unit, score: float) -> float:
    """The calibrated probability of a score."""
    return member.calibration_for(unit).probability_of(np.clip(score, 0, 1))


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
    """What gets a row: `wished`; else studies, if all inputs have one and all networks are judged by them; else images.

    UserError if a network has no threshold for it.
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
        self.distances = np.full((len(members), inputs), np.nan)  # m n, shares of the limit; NaN: network cannot tell
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
    groups = read_alike(members)
    refused: dict[int, str] = {}
    with tqdm(total=len(groups) * len(inputs), desc="predict", unit="image", disable=None) as bar:
        for turn, numbers in enumerate(groups, start=1):
            how = members[numbers[0]].config.data
            with closing(read_inputs(inputs, how, workers)) as parts:
                for images in parts:
                    _look(numbers, images, answers, refused)
                    if turn == len(groups):  # every network has answered these
                        for place in images.numbers:
                            answers.reasons[place] = refused.get(place)
                        if seen is not None:
                            seen(images)
                    bar.update(len(images.numbers))


def read_alike(members: Sequence[Trained]) -> list[list[int]]:
    """Numbers of the members, grouped by the way in which they read images."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, member in enumerate(members):
        settings = member.config.data
        groups.setdefault((settings.image_size, settings.resize, settings.tone), []).append(number)
    return list(groups.values())


def _look(numbers: Sequence[int], images: Images, answers: Answers, refused: dict[int, str]) -> None:
    """Fill in some members' answers for some images; where there is none, `refused` gets the reason."""
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
    """The answers as a table: `COLUMNS`, then what else is known. A row for each input or study, in their order."""
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

    One network decides by its raw score. Several decide by their mean probability, which is not calibrated again.
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
    """(n) the row of each input. Studies belong to patients, where known; an input without a study is one by itself."""
    if unit == "image":
        return np.arange(len(inputs))
    rows: dict[Any, int] = {}
    found = []
    for number, one in enumerate(inputs):
        study = (one.patient_id, one.study_id) if one.study_id else number
        found.append(rows.setdefault(study, len(rows)))
    return np.array(found)


def _of_groups(logits: np.ndarray, read: np.ndarray, groups: np.ndarray, unit: Unit) -> np.ndarray:
    """Logits of images (n) → logits of rows (r): a study's is that of its images' mean score; NaN if none was read."""
    known = np.where(read, logits, np.nan)
    if unit == "image":
        return known
    rows = np.full(int(groups.max()) + 1, np.nan)
    some = np.flatnonzero(read)
    if len(some):
        rising = some[np.argsort(known[some], kind="stable")]  # the order in which evaluation adds them
        present, numbers = np.unique(groups[rising], return_inverse=True)
        rows[present] = logits_of_means(known[rising], numbers)
    return rows


def _farthest(answers: Answers, groups: np.ndarray, count: int) -> np.ndarray:
    """(r) the mean over networks of the distance, at a study's most distant image; NaN where no network can tell."""
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
    """Why a row has no numbers; for a study that lacks some images, how many and why."""
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
