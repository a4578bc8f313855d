"""Where a comparison comes from, as plain facts: data, leak audits of its runs, who opened the split, the code."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classify.evaluate import Evaluation, openings_of
from data.audit import audit_lines
from data.characteristics import characteristics, split_counts
from data.loader import Data
from data.sources import SPLITS, LeftOut
from data.store import ImageStore
from data.writing import read_json
from mae.engine.run import commit, environment


@dataclass(frozen=True)
class Facts:
    """What the texts of a comparison say of its data and of how it was made."""

    manifest: str  # fingerprints
    store: str
    notes: tuple[str, ...] = ()  # what the manifest has to say
    summary: str = ""  # images, patients and classes by split, as a table
    classes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # split → labelled normal, abnormal images
    patients_known: bool = True
    splits: tuple[Mapping[str, Any], ...] = ()  # images, patients, normal, abnormal, unknown of each
    label_policy: tuple[Mapping[str, Any], ...] = ()  # what became of the images by each label rule
    left_out: tuple[Mapping[str, Any], ...] = ()  # {images, reason}: what the sources have and no split has
    people: tuple[Mapping[str, Any], ...] = ()  # counts by sex, age, view; small ones of credentialed data are withheld
    unreadable: int | None = None  # files without an image in the store; None: not known, as images are read from files
    software: Mapping[str, str] = field(default_factory=dict)  # versions of what computed the comparison
    credentialed: tuple[str, ...] = ()  # data sets that anything in it is made from
    commit: str | None = None
    audits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # run folder → its leak audit, as lines
    openings: tuple[Mapping[str, Any], ...] = ()  # of the test split, from the ledger


def facts_of(data: Data, evaluations: Sequence[Evaluation]) -> Facts:
    """The facts of evaluations on this data."""
    manifest = data.manifest
    classes = {}
    for split in SPLITS:
        labels = manifest.table.loc[manifest.table["split"] == split, "label"]
        classes[split] = (int((labels == 0).sum()), int((labels == 1).sum()))

    return Facts(
        manifest=manifest.fingerprint(),
        store=data.store.fingerprint,
        notes=tuple(str(note) for note in manifest.notes),
        summary=manifest.summary(),
        classes=classes,
        patients_known=manifest.patients_known,
        splits=tuple(split_counts(manifest.table)),
        label_policy=tuple(manifest.label_policy()),
        left_out=tuple(_left_out(manifest.notes)),
        people=tuple(characteristics(manifest.table, manifest.credentialed)),
        unreadable=_unreadable(data),
        software=_software(),
        commit=commit(),
        audits={evaluation.run.name: audit_of(evaluation) for evaluation in evaluations},
        openings=tuple(_openings(evaluations)),
    )


def _left_out(notes: Iterable[str]) -> Iterator[dict[str, Any]]:
    for note in notes:
        if isinstance(note, LeftOut):
            yield {"images": note.images, "reason": note.reason}


def _unreadable(data: Data) -> int | None:
    """How many of the manifest's files had no image when the store was made."""
    if not isinstance(data.store, ImageStore):
        return None
    return int((data.store.rows(data.manifest.table["image_id"]) < 0).sum())


def _software() -> dict[str, str]:
    made_with = environment()
    packages = {name: version for name, version in made_with["packages"].items() if version}
    return {"python": made_with["python"], **packages}


def _openings(evaluations: Iterable[Evaluation]) -> Iterator[dict[str, Any]]:
    """What the ledgers know of the test split that is evaluated, each line once, oldest first."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for evaluation in evaluations:
        if evaluation.config.evaluate.split == "test" and "split_fingerprint" in evaluation.summary:
            for line in openings_of(evaluation):
                found.setdefault((line["time"], line["run"], line["checkpoint"], str(line["times"])), line)
    for _, line in sorted(found.items()):
        yield _opening(line)


def _opening(line: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of an opening: no path of this machine, and no command, as it may contain one."""
    return {
        "time": line["time"],
        "run": Path(line["run"]).name,
        "checkpoint": line["checkpoint"],
        "n": line["n"],
    }


def audit_of(evaluation: Evaluation) -> tuple[str, ...]:
    """The leak audit that was kept beside an evaluation's run, as lines that name nobody; () where there is none."""
    of_other_data = evaluation.path.stem.removeprefix(evaluation.config.evaluate.split)
    with suppress(OSError, ValueError, LookupError, TypeError):
        report = read_json(evaluation.run / f"audit{of_other_data}.json")
        return tuple(audit_lines(report, {}, named=False))
    return ()
