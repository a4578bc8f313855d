"""Leak audit: what stands in two splits, be it a patient, a file, an image or a near copy of one.

Radiographs look alike, so two are nearly the same only if their stored pixels correlate above LEAST. For images centred
and scaled to length 1, a correlation c is a squared distance of 2 (1 - c), and means over blocks are an orthogonal
projection, which makes no distance longer. So pairs that are further apart than that in 8 x 8 means (one matrix product
for all pairs) are out, and then those in 16 x 16: no near copy is lost by that. Of what is left, the NEAREST few of
each image are compared pixel by pixel.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.errors import printable
from data.manifest import Manifest
from data.sources import SPLITS
from data.store import ImageStore
from data.writing import read_json, write_json

VERSION = 2  # raise it when an audit would find something else
LEAST = 0.99  # correlation of stored pixels above which two images are nearly the same
KINDS = ("same file", "same pixels", "nearly the same")  # from strong to weak; an image counts as the strongest
COARSE, FINE = 8, 16  # blocks a side
SLACK = 1e-3  # of squared distances: fine block means are kept in 16 bits
QUERIES, KEYS = 1024, 16384  # images of a matrix product: 67 MB
NEAREST = 16  # candidates of an image in a product that are compared by pixels
BLOCK = 64  # images whose pixels are in memory at a time
EXAMPLES = 3
SEVERITIES = ("leak", "contamination", "unknown", "note")  # of what is found, the worst first
WARNED = ("leak", "contamination")
PATIENTS_UNKNOWN = "patients are not all known: one may stand in two splits"


def audited(manifest: Manifest, store: ImageStore) -> dict[str, Any]:
    """The audit of a store's images under the manifest's splits, kept as `audit.json` beside them while it is valid."""
    path = store.folder / "audit.json"
    origin = {"version": VERSION, "manifest": manifest.fingerprint(), "store": store.fingerprint}
    with suppress(OSError, ValueError, LookupError, TypeError):
        report = read_json(path)
        digest = report.pop("digest")
        if report["origin"] == origin and digest == _digest_of(report):
            return report

    report = {"origin": origin, **audit(manifest, store)}
    with suppress(OSError):  # a shared store may be read-only
        keep({**report, "digest": _digest_of(report)}, path)
    return report


def _digest_of(report: dict[str, Any]) -> str:
    """16 hexadecimal digits that tell a report from a changed one."""
    return blake2b(json.dumps(report, sort_keys=True).encode(), digest_size=8).hexdigest()


def keep(report: dict[str, Any], path: Path) -> None:
    """Write a report, all of it or nothing; a file that says the same already is left alone."""
    with suppress(OSError, ValueError):
        if read_json(path) == report:
            return
    write_json(path, report)


def audit(manifest: Manifest, store: ImageStore) -> dict[str, Any]:
    """Counts, and rows of the store: no ids, so a report of confidential images says nothing about them."""
    parts = _rows_of_splits(manifest, store.rows)
    prints = Prints(store, np.sort(np.concatenate(list(parts.values()))))

    across = []
    for earlier, later in combinations(SPLITS, 2):
        across.append({"earlier": earlier, "later": later, **_across(prints, parts[earlier], parts[later])})
    return {
        **_uncompared(manifest, parts),
        "compared": True,
        "files_compared": prints.files is not None,
        "copies_within": {split: prints.copies(part) for split, part in parts.items()},
        "across": across,
    }


def uncompared(manifest: Manifest, rows: Callable[[pd.Series], np.ndarray]) -> dict[str, Any]:
    """The audit of images without a store: of patients alone. rows: image ids → their rows."""
    report = _uncompared(manifest, _rows_of_splits(manifest, rows))
    return report | {"compared": False, "files_compared": False, "copies_within": {}, "across": []}


def _uncompared(manifest: Manifest, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "images": {split: len(part) for split, part in parts.items()},
        "patients_in_two_splits": 0 if manifest.patients_known else None,  # the manifest refuses any that it can tell
    }


def _rows_of_splits(manifest: Manifest, rows: Callable[[pd.Series], np.ndarray]) -> dict[str, np.ndarray]:
    numbers = rows(manifest.table["image_id"])
    parts = {}
    for split in SPLITS:
        readable = (manifest.table["split"] == split) & (numbers >= 0)
        parts[split] = np.sort(numbers[readable])
    return parts


def _across(prints: "Prints", earlier: np.ndarray, later: np.ndarray) -> dict[str, Any]:
    """How many of the later split's images have a twin in the earlier one, and which: [row, twin's row, kind]."""
    counts = dict.fromkeys(KINDS, 0)
    twins = []
    for row, (twin, kind) in sorted(prints.twins(earlier, later).items()):
        counts[kind] += 1
        twins.append([row, twin, kind])
    return {"images": counts, "twins": twins}


def copies_elsewhere(manifest: Manifest, store: ImageStore, others: ImageStore) -> list[str]:
    """Which validation and test images stand among those of another store too, in words: a line for each split.

    If the others serve a pretraining, labels of validation and test then mean less than they seem to.
    """
    both = _SideBySide(store, others)
    there = np.arange(len(store.images), len(both.images))
    parts = _rows_of_splits(manifest, store.rows)
    del parts["train"]
    prints = Prints(both, np.sort(np.concatenate([*parts.values(), there])))

    lines = []
    for split, rows in parts.items():
        pair = _across(prints, there, rows)
        if pair["twins"]:
            lines.append(f"{len(pair['twins']):,} of {len(rows):,} {split} images stand there too ({_kinds(pair)})")
    return lines


def served_pretraining(report: dict[str, Any], tested: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Of the rows `tested`, those `seen` by a pretraining, and others with a twin in another split that was seen."""
    tests = set(tested.tolist())
    served = set(seen.tolist())

    # twins count both ways: either may be the one that is tested
    pairs: list[Any] = []  # row, twin's row, kind
    for pair in report["across"]:
        pairs += pair["twins"]
    pairs += [(twin, row, kind) for row, twin, kind in pairs]

    # an image with several twins counts once
    unseen = tests - served
    kinds = {row: kind for row, twin, kind in pairs if row in unseen and twin in served}
    counts = dict.fromkeys(KINDS, 0)
    for kind in kinds.values():
        counts[kind] += 1
    return {"tested": len(tests), "images": len(tests & served), "twins": counts}


def served_training(known: np.ndarray, served: Mapping[str, Any], pretrained: np.ndarray) -> dict[str, int]:
    """Of the images tested, those that trained the classifier, that chose it, and that served its pretraining.

    known (n k) int64: all hashes by which each may be remembered (`Data.trained_by`); served: {train, validate} → the
    hashes a checkpoint keeps, None where they do not count; pretrained (n) bool. `images` counts each image of any kind
    once.
    """
    counts = {"tested": len(known)}
    kinds: list[np.ndarray] = [pretrained]
    for role, hashes in served.items():
        found = np.isin(known, [] if hashes is None else hashes)  # n k
        kinds.append(np.asarray(found.any(axis=1)))
        counts[role] = int(kinds[-1].sum())
    return counts | {"pretraining": int(pretrained.sum()), "images": int(np.any(kinds, axis=0).sum())}


# ---------------------------------------------------------------- what is printed


class Leak(NamedTuple):
    """One thing that an audit found, in words without any id."""

    severity: str  # one of SEVERITIES
    text: str
    images: int  # that it concerns; 0 where that is not known


def leaks(report: dict[str, Any], names: Mapping[int, str] | None = None) -> list[Leak]:
    """What a report says, the worst first; with a few image ids where their `names` by row are given."""
    found = [
        *_trained_leaks(report),
        *[_leak_across(pair, report["images"], names or {}) for pair in report["across"] if pair["twins"]],
        *_contamination(report.get("pretraining"), report["compared"]),
        *_unknown(report),
    ]

    # what stands twice in one split
    copies = [(split, count) for split, count in report["copies_within"].items() if count]
    if copies:
        words = ", ".join(f"{count:,} in {split}" for split, count in copies)
        found.append(Leak("note", f"copies within a split: {words}", sum(count for _, count in copies)))
    if report["compared"] and not report["files_compared"]:
        found.append(Leak("note", "the store is older than digests: pixels were compared, files not", 0))
    return sorted(found, key=lambda leak: SEVERITIES.index(leak.severity))


def audit_lines(report: dict[str, Any], index: Mapping[str, int], named: bool) -> list[str]:
    """The report as lines to print, leaks first, with a few image ids where they may be `named`."""
    names: dict[int, str] = {}
    if named:
        names = {row: image_id for image_id, row in index.items()}
    found = leaks(report, names)

    verdict = "no patient in two splits"
    if report["patients_in_two_splits"] is None:
        verdict = "patients are not all known"
    if report["compared"] and not any(pair["twins"] for pair in report["across"]):
        verdict += ", no image or near copy of one in two"
    total = sum(report["images"].values())

    lines = [f"warning: {leak.text}" for leak in found if leak.severity in WARNED]
    lines.append(f"leak audit of {total:,} images: {verdict}")
    return lines + [leak.text for leak in found if leak.severity not in WARNED and leak.text != PATIENTS_UNKNOWN]


def _trained_leaks(report: dict[str, Any]) -> list[Leak]:
    """The tested images that trained or chose the classifier."""
    trained = report.get("trained_on")
    if not trained:
        return []
    found = []
    for role, did in (("train", "trained"), ("validate", "chose (as validation images)")):
        if count := trained[role]:
            text = f"{count:,} of the {trained['tested']:,} images predicted {did} these very weights, or are copies"
            found.append(Leak("leak", f"{text} of images that did", count))
    return found


def _unknown(report: dict[str, Any]) -> list[Leak]:
    found = []
    if not report["compared"]:
        found.append(Leak("unknown", "images were not compared, which needs a store (data.store=stores)", 0))
    if report["patients_in_two_splits"] is None:
        found.append(Leak("unknown", PATIENTS_UNKNOWN, 0))
    if report.get("unread"):
        text = "which images without labels served pretraining is not known: nobody had read them (data.store=false)"
        found.append(Leak("unknown", text, 0))
    if "trained_on" in report and report["trained_on"] is None:
        text = "which images these weights were trained on is not known: they are older than such records"
        found.append(Leak("unknown", text, 0))
    return found


def _leak_across(pair: dict[str, Any], sizes: dict[str, int], names: Mapping[int, str]) -> Leak:
    later, earlier = pair["later"], pair["earlier"]
    count = len(pair["twins"])
    examples = ""
    if names:
        shown = [printable(f"{names[row]} = {names[twin]}") for row, twin, _ in pair["twins"][:EXAMPLES]]
        examples = f"; such as {', '.join(shown)}"
    text = f"{count:,} of {sizes[later]:,} {later} images stand in {earlier} too ({_kinds(pair)}){examples}"
    return Leak("leak", text, count)


def _kinds(pair: dict[str, Any]) -> str:
    """How many twins there are of each kind."""
    return ", ".join(f"{kind} {number:,}" for kind, number in pair["images"].items() if number)


def _contamination(served: dict[str, Any] | None, compared: bool) -> list[Leak]:
    if not served or not (served["images"] or any(served["twins"].values())):
        return []
    copies = sum(served["twins"].values())
    text = f"{served['images']:,} of the {served['tested']:,} images predicted served pretraining"
    if compared:
        text += f", and {copies:,} more are copies of such"
    return [Leak("contamination", text, served["images"] + copies)]


# ---------------------------------------------------------------- images compared


class _SideBySide:
    """The images of two stores of one size as those of one store; rows of the second follow those of the first."""

    def __init__(self, first: ImageStore, second: ImageStore):
        self.first = first
        self.second = second
        self.images = self
        self.shape = (len(first.images) + len(second.images), *first.images.shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        ahead = len(self.first.images)
        later = rows >= ahead
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        images[~later] = self.first.images[rows[~later]]
        images[later] = self.second.images[rows[later] - ahead]
        return images

    def digests(self) -> dict[int, str]:
        """row → digest of the file's bytes; empty unless those of all are known."""
        first = self.first.digests()
        second = self.second.digests()
        if not first or not second:
            return {}
        return first | {row + len(self.first.images): digest for row, digest in second.items()}


class Prints:
    """What tells the images of a store apart, without their pixels: 800 bytes each.

    `files` and `pixels` are digests, `fine` (n 16·16) and `coarse` (n 8·8+2) block means, in order of `rows`.
    """

    def __init__(self, store: ImageStore | _SideBySide, rows: np.ndarray):
        self.images = store.images
        self.rows = rows

        # equal files get equal numbers, where the store knows them
        self.files: np.ndarray | None = None
        digests = store.digests()
        if digests:
            self.files, _ = pd.factorize(pd.Series(rows).map(digests))

        # block means of two sizes; coarse ones with two columns more, see `_candidates`
        height, width = store.images.shape[1:]
        fine = (_bands(FINE, height), _bands(FINE, width))
        coarse = (_bands(COARSE, height), _bands(COARSE, width))
        self.fine = np.empty((len(rows), len(fine[0]) * len(fine[1])), np.float16)
        self.coarse = np.empty((len(rows), len(coarse[0]) * len(coarse[1]) + 2), np.float32)
        self.pixels = np.empty(len(rows), np.int64)

        # read block by block: the images may be larger than the memory
        for start in range(0, len(rows), BLOCK):
            here = slice(start, start + BLOCK)
            block = store.images[rows[here]]
            self.pixels[here] = [_digest(image) for image in block]
            unit = _unit(block).reshape(block.shape)
            self.fine[here] = _means(unit, *fine)
            means = _means(unit, *coarse)
            half = -np.square(means).sum(1, keepdims=True) / 2
            self.coarse[here] = np.hstack([means, half, np.ones_like(half)])

    def copies(self, rows: np.ndarray) -> int:
        """How many of these images repeat the pixels of another of them."""
        return len(rows) - len(np.unique(self.pixels[self._places(rows)]))

    def twins(self, earlier: np.ndarray, later: np.ndarray) -> dict[int, tuple[int, str]]:
        """Row of `later` → row of a twin in `earlier` and the kind of twin, the strongest there is."""
        keys = self._places(earlier)
        queries = self._places(later)
        found: dict[int, tuple[int, str]] = {}

        # equal digests, of files before pixels
        for kind, digests in zip(KINDS, (self.files, self.pixels), strict=False):
            if digests is None:
                continue
            # backwards, so that of equal images the first is kept
            first = dict(zip(digests[keys[::-1]].tolist(), earlier[::-1].tolist(), strict=True))
            for row, digest in zip(later.tolist(), digests[queries].tolist(), strict=True):
                if digest in first and row not in found:
                    found[row] = (first[digest], kind)

        # nearly the same pixels
        rest = queries[~np.isin(later, list(found))]
        for query, key in self._near(keys, rest):
            found[int(self.rows[query])] = (int(self.rows[key]), KINDS[2])
        return found

    def _places(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.rows, rows)

    def _near(self, keys: np.ndarray, queries: np.ndarray) -> Iterator[tuple[int, int]]:
        """Places of a query and of its first near copy among the keys."""
        for start in range(0, len(queries), QUERIES):
            left = queries[start : start + QUERIES]
            for begin in range(0, len(keys), KEYS):
                query, key = self._candidates(left, keys[begin : begin + KEYS])
                near = self._correlations(query, key) > LEAST
                # backwards, so that a query keeps its nearest
                found = dict(zip(query[near][::-1].tolist(), key[near][::-1].tolist(), strict=True))
                yield from found.items()
                left = left[~np.isin(left, list(found))]

    def _candidates(self, queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (query, key) close enough in block means, a query's nearest first."""
        coarse = self.coarse[queries]
        coarse[:, -2:] = coarse[:, :-3:-1]  # so that the product is minus half the squared distance
        i, j = np.nonzero(coarse @ self.coarse[keys].T >= -(1 - LEAST) - SLACK)

        # pairs that remain after the coarse means are told apart by fine ones
        apart = np.empty(len(i), np.float32)
        for start in range(0, len(i), KEYS):
            here = slice(start, start + KEYS)
            difference = self.fine[queries[i[here]]].astype(np.float32) - self.fine[keys[j[here]]]
            apart[here] = np.square(difference).sum(1)
        close = np.flatnonzero(apart <= 2 * (1 - LEAST) + SLACK)
        close = close[np.lexsort((apart[close], i[close]))]

        # a query's nearest few are enough: one of them is its copy, if it has any
        rank = np.arange(len(close)) - np.searchsorted(i[close], i[close])
        close = close[rank < NEAREST]
        return queries[i[close]], keys[j[close]]

    def _correlations(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Correlations of the stored pixels of pairs of images; 0 where one of a pair is of a single grey."""
        correlations = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), BLOCK):
            here = slice(start, start + BLOCK)
            query = _unit(self.images[self.rows[queries[here]]])  # n h·w
            key = _unit(self.images[self.rows[keys[here]]])
            correlations[here] = np.einsum("np,np->n", query, key)
        return correlations


def _digest(image: np.ndarray) -> int:
    return int.from_bytes(blake2b(image.tobytes(), digest_size=8).digest(), "little", signed=True)


def _unit(images: np.ndarray) -> np.ndarray:
    """Images (n h w) → (n h·w) centred and of length 1; of length 0 where all pixels are alike."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _bands(count: int, side: int) -> np.ndarray:
    """(count side) with orthonormal rows, each of them constant over its band of pixels and zero elsewhere."""
    count = min(count, side)
    band = np.arange(side) * count // side
    rows = (band == np.arange(count)[:, None]).astype(np.float32)
    return rows / np.sqrt(rows.sum(1, keepdims=True))


def _means(images: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Block means (n k·l) of images (n h w), scaled so that distances only shrink."""
    return (down @ (images @ across.T)).reshape(len(images), -1)
