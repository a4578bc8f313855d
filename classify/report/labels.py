"""Label efficiency: the AUC of each row by the number of labelled images."""

from collections.abc import Iterator

from classify.comparison import Comparison, Line
from classify.report.numbers import show
from classify.report.tables import counts_text, of_which


def lines_by_name(comparison: Comparison) -> dict[str, list[tuple[float, Line]]]:
    """Each trained row's lines with the mean number of labelled images of its trainings, fewest first."""
    found: dict[str, list[tuple[float, Line]]] = {}
    for line in comparison.lines:
        mean = line.mean_train_images
        if mean is not None:
            found.setdefault(line.name, []).append((mean, line))
    return {name: sorted(lines, key=lambda each: each[0]) for name, lines in found.items()}


def efficiency_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """AUCs of each row by its label budgets; nothing where there is one budget only."""
    if len(comparison.budgets) < 2:
        return
    by_name = lines_by_name(comparison)

    # two budgets of a row can come to the same number of images
    shared: set[str] = set()
    for lines in by_name.values():
        counts = [counts_text(line.train_images) for _, line in lines]
        shared |= {count for count in counts if counts.count(count) > 1}

    def column(line: Line) -> str:
        count = counts_text(line.train_images)
        return f"{count} images{of_which(line.labelled) if count in shared else ''}"

    # a column for each number of images, fewest first
    columns: dict[str, float] = {}
    for lines in by_name.values():
        for mean, line in lines:
            columns.setdefault(column(line), mean)
    in_order = sorted(columns, key=lambda name: columns[name])

    for name, lines in by_name.items():
        of_row = {column(line): show(line.intervals["auc"]) for _, line in lines}
        yield {"Model": name} | {images: of_row.get(images, "–") for images in in_order}


EFFICIENCY = (
    "AUC by the number of labelled training images. Each training seed has its own draw of a label budget, so the "
    "intervals over several seeds include how much the choice of images matters."
)
