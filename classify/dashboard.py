"""TensorBoard's view of a classifier: what its validation scores look like, and where they are most wrong."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve
from torch.utils.tensorboard import SummaryWriter

from classify.style import COLOURS, GREY, STYLE
from data.labels import words
from data.loader import Data
from mae.contact_sheet import sheet

MISTAKES = 6  # how many are shown
BINS = np.linspace(0, 1, 26)  # of scores
Names = tuple[str, str]  # of the classes, by label
Drawing = Callable[[Axes, pd.DataFrame, float, Names], None]  # (axes, scored images, threshold, names)


def show_scores(
    data: Data, scored: pd.DataFrame, threshold: float, board: SummaryWriter, step: int, may_show_images: bool
) -> None:
    """Curves, counts and histograms of the validation images' scores; the worst mistakes where images may be shown.

    `scored` has the columns label, logit and score, a row per image.
    """
    names = words(data.manifest.target)
    labels = scored["label"].to_numpy(int)  # n
    scores = scored["score"].to_numpy(float)  # n

    # in TensorBoard's own tabs
    board.add_pr_curve("validate/precision_recall", labels, scores, step)
    for label, name in enumerate(names):
        board.add_histogram(f"validate/score_{name}", scores[labels == label], step, bins=BINS)

    # as pictures
    for name, draw in DRAWINGS.items():
        board.add_image(f"validate/{name}", raster(draw, scored, threshold, names), step, dataformats="HWC")
    if may_show_images:
        for number, (_, mistake) in enumerate(worst_mistakes(scored, threshold).iterrows(), start=1):
            board.add_image(f"worst_mistakes/{number}", picture(data, mistake, names), step, dataformats="HW")


def raster(draw: Drawing, scored: pd.DataFrame, threshold: float, names: Names) -> np.ndarray:
    """A drawing of the scored images as 8-bit colours (h w 3), of the size at which TensorBoard lays images out."""
    with rc_context(STYLE):
        figure = Figure((4, 4), layout="constrained")
        draw(figure.subplots(), scored, threshold, names)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def draw_roc(axes: Axes, scored: pd.DataFrame, threshold: float, names: Names) -> None:
    """ROC curve, the threshold marked."""
    labels = scored["label"].to_numpy(int)  # n
    logits = scored["logit"].to_numpy(float)  # n; they differ where scores round to the same number
    x, y, _ = roc_curve(labels, logits)

    # where the threshold stands on the curve
    predicted = scored["score"].to_numpy(float) >= threshold
    false_positive_rate = predicted[labels == 0].mean()
    sensitivity = predicted[labels == 1].mean()

    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    axes.plot(x, y, color=COLOURS[0], linewidth=1.6)
    axes.plot(false_positive_rate, sensitivity, "o", color=COLOURS[0], mec="white", markersize=8)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="1 − specificity")
    axes.set(ylabel="Sensitivity (recall)", title=f"ROC, AUC {roc_auc_score(labels, logits):.3f}")


def draw_confusion(axes: Axes, scored: pd.DataFrame, threshold: float, names: Names) -> None:
    """How many of each class are predicted as each class, and which share of the true class that is."""
    counts = confusion_matrix(scored["label"].to_numpy(int), scored["score"] >= threshold, labels=[0, 1])
    shares = counts / counts.sum(axis=1, keepdims=True)

    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts[row, column]:,}\n{share:.0%}"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=13)
    axes.set(xticks=[0, 1], xticklabels=names, yticks=[0, 1], yticklabels=names)
    axes.set(xlabel="Predicted class", ylabel="True class", title=f"Confusion at threshold {threshold:.3f}")
    axes.grid(False)


def draw_histogram(axes: Axes, scored: pd.DataFrame, threshold: float, names: Names) -> None:
    """Histogram of each class's scores, with the threshold."""
    for label, name in enumerate(names):
        axes.hist(scored["score"][scored["label"] == label], BINS.tolist(), color=COLOURS[label], alpha=0.6, label=name)
    axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), xlabel="Score", ylabel="Images", title="Scores of each class")
    axes.legend()


DRAWINGS = {"roc": draw_roc, "confusion": draw_confusion, "scores": draw_histogram}


def worst_mistakes(scored: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The images on the wrong side of the threshold whose scores are furthest from their labels, worst first."""
    wrong = scored[(scored["score"] >= threshold) != (scored["label"] == 1)]
    far = (wrong["label"].astype(float) - wrong["score"]).abs()
    return wrong.loc[far.sort_values(ascending=False, kind="stable").index[:MISTAKES]]


def picture(data: Data, mistake: pd.Series, names: Names) -> np.ndarray:
    """An image with its id above and its label and score below, as grey levels (h w)."""
    caption = f"{names[int(mistake['label'])]}, score {mistake['score']:.3f}"
    [image] = next(data.store.read([np.array([mistake["row"]])]))
    return np.asarray(sheet(image[None, None], [mistake["image_id"]], [caption]))
