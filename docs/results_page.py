"""Fills the tables of docs/results.md from the comparisons that are committed in docs/results/: from predictions alone.

python docs/results_page.py                       # write the tables
python docs/results_page.py --check               # exit 1 if they are not what this would write
python docs/results_page.py --keep runs/NAME      # first take over a finished comparison: docs/results/NAME.tar.xz
python docs/results_page.py --draw NAME FOLDER    # first draw its mistakes, of the images there: docs/NAME_mistakes.png

A table stands between the lines `<!-- made of NAME: KIND -->` and `<!-- end -->`. KIND is efficiency (AUC by labels),
contrasts, subgroups, mistakes, pretrainings, table, calibration or costs; the last three may name a label budget, as in
`table 1000`, and have all labels without one. What stands between such lines is written anew; all else is prose.
"""

import argparse
import csv
import io
import re
import sys
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib import pyplot as plt

from classify.comparison import Comparison
from classify.evaluate import Evaluation, evaluation_digest
from classify.report.calibrations import calibration_rows
from classify.report.costs import cost_rows
from classify.report.labels import efficiency_rows
from classify.report.mistakes import EACH, MISTAKES, are_shown, mistake_rows, mistakes_of
from classify.report.read import read_comparison
from classify.report.stage_one import STAGE_ONE, stage_one_rows
from classify.report.subgroup_tables import subgroup_rows
from classify.report.tables import caption, contrast_caption, contrast_rows, images_of, markdown, table_rows
from classify.report.verdict import largest_budget
from classify.report.write import digest_of
from data.config import change_config
from data.labels import words
from data.loader import open_data
from data.writing import read_json, write_json

PAGE = Path(__file__).with_name("results.md")
KEPT = Path(__file__).with_name("results")
MADE = re.compile(r"(<!-- made of (\S+): (\w+)(?: (\d+))? -->\n).*?(<!-- end -->)", re.S)
Rows = Iterable[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is another")
    parser.add_argument("--keep", nargs="+", type=Path, default=[], metavar="RUN", help="finished comparisons")
    parser.add_argument("--draw", nargs=2, metavar=("NAME", "FOLDER"), help="a comparison and its images")
    arguments = parser.parse_args()
    for run in arguments.keep:
        keep(run)
    if arguments.draw:
        draw(*arguments.draw)

    found = PAGE.read_text(encoding="utf-8")
    if not arguments.check:
        PAGE.write_text(filled(found), encoding="utf-8")
    elif found != filled(found):
        sys.exit(f"{PAGE}: found other tables than the predictions give; run python {Path(__file__).name}")


def keep(run: Path) -> None:
    """Take over a comparison's JSON and predictions, from which every number is made, into one archive.

    Columns that no table uses and paths of this machine are left out. So the digests differ.
    """
    comparison = read_comparison(run)
    if comparison.credentialed:
        sys.exit(f"{run}: found predictions of {', '.join(comparison.credentialed)}, expected none that are private")

    with TemporaryDirectory() as folder:
        place = Path(folder)
        digests = {}
        for evaluation in comparison.evaluations:
            copy = place / evaluation.path.relative_to(run)
            digests[evaluation.digest] = _keep_predictions(evaluation, copy, comparison.config.report.subgroups)

        written = read_json(run / "comparison.json")
        written.pop("digest")
        for row in written["rows"]:
            for seed in row["seeds"]:
                seed["digest"] = digests[seed["digest"]]
        written = _without_places(written)
        write_json(place / "comparison.json", written | {"digest": digest_of(written)})
        pack(place, KEPT / f"{run.name}.tar.xz")


def _keep_predictions(evaluation: Evaluation, copy: Path, subgroups: Collection[str] | None) -> str:
    """Write both files of an evaluation, with these columns of subgroups alone (None: all); returns their digest."""
    summary = read_json(evaluation.path.with_suffix(".json"))
    summary.pop("digest")
    dropped = set() if subgroups is None else summary["subgroups"].keys() - set(subgroups)
    summary["subgroups"] = {name: kind for name, kind in summary["subgroups"].items() if name not in dropped}
    summary = _without_places(summary)

    with evaluation.path.open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    columns = [number for number, name in enumerate(names) if name not in dropped]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([row[column] for column in columns] for row in (names, *rows))

    content = table.getvalue().encode()
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(content)
    digest = evaluation_digest(summary, content)
    write_json(copy.with_suffix(".json"), summary | {"digest": digest})
    return digest


def _without_places(value: Any) -> Any:
    """What was written, with each absolute path cut to its last part."""
    if isinstance(value, dict):
        return {name: _without_places(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def pack(folder: Path, archive: Path) -> None:
    """All of the folder's files, the same bytes each time: the tables of one set differ in a few columns alone."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(str(path.relative_to(folder)))
            member.size = path.stat().st_size
            with path.open("rb") as file:
                packed.addfile(member, file)


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


def draw(name: str, folder: str) -> None:
    """The mistakes of the `mistakes` table, a row of images for each model, from open images in a folder."""
    comparison = comparison_of(name)
    if not are_shown(comparison):
        sys.exit(f"{name}: found images that may not be shown, expected open ones")
    data = open_data(change_config(comparison.config, {"data.root": folder}).data)
    table = data.split(comparison.config.compare.split).set_index("image_id")["row"]
    words_of = words(comparison.config.data.target)

    lines = [line for line in comparison.lines_of(largest_budget(comparison)) if not line.is_ensemble]
    figure, rows = plt.subplots(
        len(lines), 2 * EACH, figsize=(9, 1.9 * len(lines)), squeeze=False, layout="constrained"
    )
    for line, axes in zip(lines, rows, strict=True):
        axes[0].set_ylabel(line.name, fontsize=8)
        found = mistakes_of(line)
        cases = line.evaluations[0].predictions["image_id"].iloc[[mistake.place for mistake in found]]
        images = next(data.store.read([table.loc[cases].to_numpy()]))
        for axis, mistake, image in zip(axes, found, images, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set_title(f"{words_of[mistake.is_positive]}, {mistake.score:.2f}", fontsize=8)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    figure.savefig(PAGE.with_name(f"{name}_mistakes.png"), dpi=80, metadata={"Software": None})


def filled(page: str) -> str:
    """The page with each of its tables made anew."""
    return MADE.sub(lambda found: f"{found[1]}\n{block(found[2], found[3], found[4])}\n{found[5]}", page)


def block(name: str, kind: str, labelled: str | None) -> str:
    """A table with its caption, as Markdown."""
    if kind not in KINDS:
        sys.exit(f"{PAGE}: found a table {kind!r} of {name}, expected one of {', '.join(KINDS)}")
    made = KINDS[kind](comparison_of(name), int(labelled) if labelled else None)
    if not made:
        sys.exit(f"{PAGE}: found nothing to make the table {kind!r} of {name} from, expected rows")
    return made


@cache
def comparison_of(name: str) -> Comparison:
    with TemporaryDirectory() as folder:
        unpack(KEPT / f"{name}.tar.xz", Path(folder))
        return read_comparison(Path(folder))


# ---------------------------------------------------------------- kinds of tables


def efficiency(comparison: Comparison, _: int | None) -> str:
    return shown(efficiency_rows(comparison), caption(comparison, comparison.budgets[-1]))


def table(comparison: Comparison, labelled: int | None) -> str:
    return shown(table_rows(comparison, labelled), caption(comparison, labelled))


def contrasts(comparison: Comparison, _: int | None) -> str:
    return shown(contrasts_of_all(comparison), contrast_caption(comparison))


def contrasts_of_all(comparison: Comparison) -> Iterator[dict[str, str]]:
    """The contrasts of every label budget in one table."""
    for labelled in comparison.budgets:
        for row in contrast_rows(comparison, labelled):
            yield {"Labels": images_of(comparison, labelled), **row}


def calibration(comparison: Comparison, labelled: int | None) -> str:
    return shown(calibration_rows(comparison, labelled))


def subgroups(comparison: Comparison, _: int | None) -> str:
    return shown(subgroup_rows(comparison))


def costs(comparison: Comparison, labelled: int | None) -> str:
    return shown(cost_rows(comparison, labelled))


def pretrainings(comparison: Comparison, _: int | None) -> str:
    return shown(stage_one_rows(comparison), STAGE_ONE)


def mistakes(comparison: Comparison, _: int | None) -> str:
    """Mistakes at the largest label budget, without ensembles: theirs are those of their members."""
    ensembles = {line.name for line in comparison.lines if line.is_ensemble}
    return shown((row for row in mistake_rows(comparison) if row["Model"] not in ensembles), MISTAKES)


def shown(rows: Rows, text: str = "") -> str:
    rows = list(rows)
    if not rows:
        return ""
    return "\n".join([markdown(rows).strip(), "", *([text, ""] if text else [])])


KINDS: dict[str, Callable[[Comparison, int | None], str]] = {
    "efficiency": efficiency,
    "table": table,
    "contrasts": contrasts,
    "calibration": calibration,
    "subgroups": subgroups,
    "costs": costs,
    "mistakes": mistakes,
    "pretrainings": pretrainings,
}

if __name__ == "__main__":
    main()
