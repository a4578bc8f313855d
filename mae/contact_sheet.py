"""A sheet: pictures in labelled columns, with notes on them below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import repeat
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from data.writing import writing

SHOWN = 256  # smaller pictures are enlarged to about this many pixels
WHITE = 255
BLACK = 0


def sheet(pictures: np.ndarray, labels: Sequence[str], notes: Sequence[str], warning: str | None = None) -> Image.Image:
    """Grey levels (r k h w) or colours (r k h w 3), uint8, k pictures a row → one image.

    The warning stands white on black above the notes.
    """
    # a small picture's pixels become squares: nothing is smoothed
    scale = max(1, round(SHOWN / max(pictures.shape[2:4])))
    pictures = repeat(pictures, "r k h w ... -> r k (h s) (w t) ...", s=scale, t=scale)
    page = _Page.of(pictures, labels)

    # strips, from top to bottom
    strips = [page.row([page.text([label], page.cell) for label in labels])]
    for row in pictures:
        strips.append(page.row([Image.fromarray(picture) for picture in row]))
    strips.append(page.text([], page.width))  # a gap
    if warning:
        strips.append(page.text([warning], page.width, BLACK))
    strips.append(page.text(notes, page.width))
    return _stack(strips)


@dataclass(frozen=True)
class _Page:
    """Sizes that grow with the pictures, so that the text beside them stays readable."""

    font: ImageFont.FreeTypeFont
    gap: int
    cell: int  # width of a column
    width: int

    @classmethod
    def of(cls, pictures: np.ndarray, labels: Sequence[str]) -> "_Page":
        font = ImageFont.load_default(max(14, max(pictures.shape[2:4]) // 20))
        assert isinstance(font, ImageFont.FreeTypeFont)  # load_default returns one if a size is given

        # a column is as wide as its picture or its label
        gap = round(font.size / 2)
        cell = max(pictures.shape[3], *(_length(font, label) for label in labels))
        return cls(font, gap, cell, width=len(labels) * (cell + gap) + gap)

    def row(self, pictures: Sequence[Image.Image]) -> Image.Image:
        """Pictures beside each other, each in its column."""
        height = max(picture.height for picture in pictures)
        strip = Image.new(pictures[0].mode, (self.width, height + self.gap), "white")
        for column, picture in enumerate(pictures):
            strip.paste(picture, (self.gap + column * (self.cell + self.gap), self.gap))
        return strip

    def text(self, paragraphs: Sequence[str], width: int, paper: int = WHITE) -> Image.Image:
        """Paragraphs, broken into lines that fit."""
        inset = self.gap if width == self.width else 0
        lines: list[str] = []
        for paragraph in paragraphs:
            lines += _lines(paragraph, self.font, width - 2 * inset)

        # white paper with black letters, or the other way round
        height = round(1.4 * self.font.size)  # of a line
        strip = Image.new("L", (width, len(lines) * height + inset), paper)
        for number, line in enumerate(lines):
            ImageDraw.Draw(strip).text((inset, number * height + inset // 2), line, WHITE - paper, self.font)
        return strip


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """The text, broken between words. No line is wider than `width`, unless a single word is."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and _length(font, longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _length(font: ImageFont.FreeTypeFont, text: str) -> int:
    return int(font.getlength(text)) + 1


def _stack(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips of one width below each other."""
    height = sum(strip.height for strip in strips)
    mode = "RGB" if any(strip.mode == "RGB" for strip in strips) else "L"
    page = Image.new(mode, (strips[0].width, height), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def save_picture(image: Image.Image, path: Path, notes: Sequence[str]) -> None:
    """Write a PNG whole or not at all, with the notes inside the file."""
    inside = PngInfo()
    inside.add_text("Description", " ".join(notes))
    with writing(path) as file:
        image.save(file, "png", pnginfo=inside)
