"""Label efficiency: the AUC of each row by the number of labelled images."""

from collections.abc import Iterator

from classify.comparison import Comparison, Line
from classify.report.numbers import show


def lines_by_name(comparison: Comparison) -> dict[str, list[tuple[int, Line]]]:
    """Each trained row's lines with the number of labelled images they were trained on, fewest first."""
    found: dict[str, list[tuple[int, Line]]] = {}
    for line in comparison.lines:
        count = line.evaluations[0].summary["meta"]["train_images"]
        if count is not None:
            found.setdefault(line.name, []).append((count, line))
    return {name: sorted(lines, key=lambda each: each[0]) for name, lines in found.items()}


def efficiency_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """AUCs of each row by its label budgets; nothing where there is one budget only."""
    if len(comparison.budgets) < 2:
        return
    by_name = lines_by_name(comparison)
    counts = sorted({images for lines in by_name.values() for images, _ in lines})
    for name, lines in by_name.items():
        of_row = {images: show(line.intervals["auc"]) for images, line in lines}
        yield {"Model": name} | {f"{images:,} images": of_row.get(images, "–") for images in counts}


EFFICIENCY = (
    "AUC by the number of labelled training images. Each training seed has its own draw of a label budget, so the "
    "intervals over several seeds include how much the choice of images matters."
)
