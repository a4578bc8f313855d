"""Figures as inline SVG, by matplotlib's object API: no clock, no global state, no markup from users.

Names stand in the HTML around a figure, or as text the SVG writer escapes. A row of the table keeps
its colour and marker through every figure. Colours are the page's own, so that they follow light and dark.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from classify.comparison import Line
from classify.style import COLOURS, GREY, INK, MARKERS, PALE, STYLE

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

PIXELS_PER_INCH = 100  # how large an inch of figure is shown, at most
PAPER = "#fffffe"  # stands for the page's background; differs from an intended white
# a colour in the drawing → its name in the page's style
VARIABLES = {
    INK: "--ink",
    GREY: "--grey",
    PALE: "--line",
    PAPER: "--paper",
    **{colour.lower(): f"--row{number}" for number, colour in enumerate(COLOURS)},
}
ON_PAPER: "dict[RcKeyType, Any]" = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.titlecolor": INK,
    "legend.labelcolor": INK,
}


@dataclass(frozen=True)
class Row:
    """A line of the comparison, with the name, colour and marker it has throughout the report."""

    name: str
    place: int  # among all rows of the comparison
    line: Line

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]

    @property
    def css(self) -> str:
        """Its colour, by its name in the page's style."""
        return f"var(--row{self.place % len(COLOURS)})"

    @property
    def marker(self) -> str:
        return list(MARKERS)[self.place % len(MARKERS)]

    @property
    def symbol(self) -> str:
        return MARKERS[self.marker]

    @property
    def has_both_classes(self) -> bool:
        return len(np.unique(self.line.labels)) == 2


def svg(label: str, draw: Callable[..., Figure], *arguments: Any) -> Markup:
    """The drawing as an `<svg>` that shrinks with the page; `label` says what it shows and is unique in a page."""
    buffer = StringIO()
    with rc_context(STYLE | ON_PAPER | {"svg.hashsalt": label}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the page's fonts may have it
        figure = draw(*arguments)
        figure.savefig(buffer, format="svg", metadata={"Date": None})

    # no clock, no version, and no ids that other figures of the page have too
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0]), text)

    # drop the file's header and its size: the page's style sets the size
    body = text[text.index("<svg") :]
    body = re.sub(r' (width|height)="[^"]*"', "", body, count=2)
    width = figure.get_size_inches()[0] * PIXELS_PER_INCH
    attributes = f'role="img" aria-label="{escape(label)}" style="max-width:{width:.0f}px"'
    body = body.replace("<svg", f"<svg {attributes}", 1)
    return Markup(body.replace(">", f"><title>{escape(label)}</title>", 1))


def _tag(tag: str) -> str:
    """A tag of the drawing, with the page's colours, and coordinates to a hundredth of a point."""
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _page_colour(colour[0]), tag)


def _page_colour(colour: str) -> str:
    name = VARIABLES.get(colour)
    return f"var({name})" if name else colour


def axes_of(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, and its axes side by side."""
    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def shortened(name: str, longest: int = 60) -> str:
    """A name that fits into a figure."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


# ---------------------------------------------------------------- training

Epoch = dict[str, float]  # a row of metrics.jsonl that ends an epoch


def reconstruction_losses(epochs: Sequence[Epoch]) -> Figure:
    """Training and validation loss of a stage-one run, the epoch with the lowest ringed."""
    figure, [axes] = axes_of(3.1, 2.2)
    _losses(axes, epochs, INK)
    best = min(epochs, key=lambda row: row["validate/loss"])
    _ring(axes, best, "validate/loss", INK)
    _finish(axes, "Reconstruction loss")
    return figure


class RunCurves(NamedTuple):
    epochs: Sequence[Epoch]
    kept: Epoch  # the one that best.pt holds


def training_curves(runs: Sequence[RunCurves], colour: str, auc_range: tuple[float, float]) -> Figure:
    """Losses and validation AUC of a row's runs, one per seed, each with the epoch that was kept."""
    figure, [left, right] = axes_of(4.6, 2.3, columns=2)
    for number, run in enumerate(runs):
        _losses(left, run.epochs, colour, named=number == 0)
        _ring(left, run.kept, "validate/loss", colour)
        _curve(right, run.epochs, "validate/auc", colour, dash="-")
        _ring(right, run.kept, "validate/auc", colour)

    right.set_ylim(auc_range)
    _finish(left, "Loss")
    _finish(right, "Validation AUC")
    return figure


def _losses(axes: Axes, epochs: Sequence[Epoch], colour: str, named: bool = True) -> None:
    """Training and validation loss; `named` in the legend, once for all seeds."""
    _curve(axes, epochs, "epoch/train_loss", colour, dash=":", label="training" if named else None)
    _curve(axes, epochs, "validate/loss", colour, dash="-", label="validation" if named else None)
    axes.legend(loc="best", handlelength=1.6)


def _curve(axes: Axes, epochs: Sequence[Epoch], name: str, colour: str, dash: str, label: str | None = None) -> None:
    x = [row["epoch"] for row in epochs]
    y = [row[name] for row in epochs]
    marker = "o" if len(epochs) == 1 else None  # a line through one point would not be seen
    axes.plot(x, y, dash, color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)


def _ring(axes: Axes, row: Epoch, name: str, colour: str) -> None:
    axes.plot([row["epoch"]], [row[name]], "o", color=colour, markerfacecolor=PAPER, markersize=6)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("Epoch")
    axes.margins(x=0.05, y=0.12)
    axes.set_xlim(left=0)
    locator = AutoLocator()
    locator.set_params(integer=True)
    axes.xaxis.set_major_locator(locator)
