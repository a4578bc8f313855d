"""mae-reconstruct: shows what a masked autoencoder makes of images: original, masked, reconstruction and mix."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from data.config import SHIPPED, shipped_data
from data.draws import uniform
from data.errors import LONGEST, UserError, printable
from data.images import read_fitted
from data.refusal import UnreadableImage
from data.settings import DataSettings
from data.sources import images as folders
from data.writing import keep_private, restoring_umask
from mae.contact_sheet import save_picture, sheet
from mae.denormalize import applied, continue_borders, statistics
from mae.encoder import Encoder
from mae.engine.checkpoint import Checkpoint, expect_fit
from mae.engine.optim import with_weights_of
from mae.masking import put, random_masking, take
from mae.model import MaskedAutoencoder, mae_from
from mae.patches import patchify, unpatchify

CONTINUED = (
    "A norm-pixel model predicts each hidden patch up to brightness and contrast; these are chosen so that it "
    "continues what surrounds it, never from the hidden patch itself."
)
CAPTION = f"Left to right: original, what the encoder saw, the predicted patches alone, and both together. {CONTINUED}"
GREY_LEVELS = "The model predicts grey levels; they are shown as predicted."
NOT_A_PREDICTION = "Uses the hidden patches' own mean and deviation: not a prediction."
PRIVATE = "Made by a model of credentialed data: check the data use agreement before sharing any of it."
SHEET = "-sheet.png"


class Pictures(NamedTuple):
    """Grey levels in 0..1, each (b 1 h w); the mean grey stands where a picture shows no patch."""

    original: Tensor
    masked: Tensor  # the patches the encoder saw
    reconstruction: Tensor  # the patches that were predicted: all others
    mix: Tensor  # both


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder, images: Tensor, mask_ratio: float, noise: Tensor, hidden_statistics: bool = False
) -> Pictures:
    """8-bit images (b c h w) and mask noise (b n) → pictures.

    hidden_statistics: a norm-pixel model's patches get the hidden patches' own mean and deviation, which leaks these.
    """
    encoder = model.encoder
    pixels = encoder.standardize(images)  # b c h w
    patches = patchify(pixels, encoder.patch_size)  # b n p·p·c
    keep, masked = random_masking(noise, mask_ratio)  # b k, b m
    pred = model(pixels, mask_ratio, noise).pred.to(patches.dtype)  # b m p·p·c

    # a norm-pixel model leaves brightness and contrast open
    if model.norm_pixel_loss and hidden_statistics:
        pred = applied(statistics(take(patches, masked)), pred)
    elif model.norm_pixel_loss:
        pred = continue_borders(patches, keep, pred, masked, encoder.grid, encoder.patch_size)

    # 0 is the mean grey
    seen = put(patches, masked, torch.zeros_like(pred))  # b n p·p·c
    alone = put(torch.zeros_like(patches), masked, pred)  # b n p·p·c
    mix = put(patches, masked, pred)  # b n p·p·c
    return Pictures(
        original=_to_grey(encoder, patches),
        masked=_to_grey(encoder, seen),
        reconstruction=_to_grey(encoder, alone),
        mix=_to_grey(encoder, mix),
    )


def _to_grey(encoder: Encoder, patches: Tensor) -> Tensor:
    """Radiographs are grey: where a model predicts three channels, their mean is shown."""
    images = unpatchify(patches, encoder.grid, encoder.patch_size)  # b c h w
    return (images * encoder.std + encoder.mean).clamp(0, 1).mean(dim=1, keepdim=True)  # b 1 h w


def model_of(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """The masked autoencoder of a pretraining's checkpoint, in evaluation mode."""
    config = checkpoint.config

    def build() -> MaskedAutoencoder:
        return mae_from(config.model, config.data.image_size)

    expect_fit(build, checkpoint)
    return with_weights_of(checkpoint, build).eval()


# ---------------------------------------------------------------- the command


@dataclass(frozen=True)
class View:
    """How images are to be shown."""

    mask_ratio: float
    seed: int = 0
    samples: int = 1  # masks of each image
    separate: bool = False  # each picture in a file of its own too
    hidden_statistics: bool = False

    def separate_files(self) -> dict[str, tuple[int, int]]:
        """Endings of the separate files' names → the sample and the column that each file holds."""
        endings: dict[str, tuple[int, int]] = {}
        if not self.separate:
            return endings
        for sample in range(self.samples):
            for column, part in enumerate(Pictures._fields):
                endings[self._ending(sample, part)] = (sample, column)
        return endings

    def _ending(self, sample: int, part: str) -> str:
        ending = f"-{part}"
        if self.hidden_statistics and part in ("reconstruction", "mix"):
            ending += "-own-statistics"
        if self.samples > 1 and part != "original":  # there is only one original
            ending += f"-{sample + 1}"
        return f"{ending}.png"


@restoring_umask()
def reconstruct_files(checkpoint: Checkpoint, words: Iterable[str], out: Path, view: View, device: torch.device) -> int:
    """Write a sheet for every image file, and every image in a folder, into `out`; returns how many are unreadable.

    Each unreadable image is one line on stderr. Raises UserError, before anything is written, if there is no image, if
    an image itself would be overwritten, or if a model has no use for `hidden_statistics`.
    """
    keep_private(checkpoint.credentialed, checkpoint.config.data.share)
    model = model_of(checkpoint).to(device)
    if view.hidden_statistics and not model.norm_pixel_loss:
        raise UserError("--hidden-statistics: found a model that predicts grey levels, expected a norm-pixel model")

    # errors are raised before anything is written
    names = names_of(image_files(words))
    _spare(names, out, view)

    # what every sheet says, said once here
    notes = notes_of(checkpoint, view)
    if view.hidden_statistics:
        print(NOT_A_PREDICTION)
    print(*notes, sep="\n")

    # an unreadable image does not stop the others
    unreadable = 0
    for path, name in names.items():
        try:
            image = _read(checkpoint, path)
        except UnreadableImage as reason:
            unreadable += 1
            print(f"error: {printable(reason, LONGEST)}", file=sys.stderr, flush=True)
            continue
        pictures = pictures_of(model, image.to(device), view)
        write(pictures, out / name, notes, view)
        print(printable(f"{path} → {out / name}{SHEET}", LONGEST), flush=True)
    return unreadable


def image_files(words: Iterable[str]) -> list[str]:
    """The named files, and the images in the named folders, each once; UserError for a folder without images."""
    found: list[str] = []
    for word in words:
        if word.startswith(SHIPPED):
            word = str(shipped_data(word, "images"))
        if Path(word).is_dir():
            found += _images_in(Path(word))
        else:
            found.append(word)
    return list(dict.fromkeys(found))


def _images_in(folder: Path) -> list[str]:
    try:
        table, _ = folders.read(DataSettings(source="images"), folder)
        return table["path"].tolist()
    except UserError as error:  # it names a setting, but here the folder is from the command line
        raise UserError(str(error).removeprefix("data.root: ")) from None


def names_of(paths: Iterable[str]) -> dict[str, str]:
    """A name for each image's output files: that of its own file, numbered if several have the same."""
    stems = {path: Path(path).stem for path in paths}
    reserved = {stem.casefold() for stem in stems.values()}  # some file systems do not tell A from a

    names: dict[str, str] = {}
    used: set[str] = set()
    for path, stem in stems.items():
        name = stem
        number = 1
        # the first file of a stem gets it; a numbered name must not be another file's stem
        while name.casefold() in used or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}-{number}"
        names[path] = name
        used.add(name.casefold())
    return names


def _spare(names: dict[str, str], out: Path, view: View) -> None:
    """UserError if a file to be written is one of the images."""
    images = {Path(path).resolve() for path in names}
    for name in names.values():
        for ending in (SHEET, *view.separate_files()):
            if (out / f"{name}{ending}").resolve() in images:
                raise UserError(f"--out: {out}: found the image {name}{ending} there, expected another folder")


def notes_of(checkpoint: Checkpoint, view: View) -> list[str]:
    """The notes that go with every picture."""
    config = checkpoint.config

    # how it was made
    notes = [
        f"{100 * view.mask_ratio:g} % of the patches hidden, mask seed {view.seed}. "
        "Reconstruction: the predicted patches alone; mix: these and the visible ones."
    ]

    # where its brightness and contrast come from
    if config.model.norm_pixel_loss is False:
        notes.append(GREY_LEVELS)
    elif not view.hidden_statistics:
        notes.append(CONTINUED)

    # who may see it
    if checkpoint.credentialed:
        notes.append(f"{PRIVATE} Credentialed are: {', '.join(checkpoint.credentialed)}.")
    return notes


def _read(checkpoint: Checkpoint, path: str) -> Tensor:
    """The radiograph (h w) as the checkpoint's own images were read."""
    data = checkpoint.config.data
    return torch.from_numpy(read_fitted(path, data.image_size, data.resize, data.tone))


def pictures_of(model: MaskedAutoencoder, image: Tensor, view: View) -> np.ndarray:
    """An 8-bit radiograph (h w) → 8-bit pictures (s 4 h w), a sample a row; a mask depends on seed and sample only."""
    samples = torch.arange(view.samples, device=image.device)
    noise = uniform(view.seed, "reconstruct", 0, samples, model.patches)  # s n
    images = repeat(image, "h w -> s 1 h w", s=view.samples)
    pictures = reconstruct(model, images, view.mask_ratio, noise, view.hidden_statistics)
    grey = rearrange(list(pictures), "four s 1 h w -> s four h w")
    return (grey * 255).round().byte().cpu().numpy()


def write(pictures: np.ndarray, place: Path, notes: list[str], view: View) -> None:
    """Write the sheet of an image's pictures (s 4 h w) and, if wished, each picture; their paths begin with `place`."""
    # the notes stand below the pictures and inside each file, as text
    warning = None
    inside = notes
    if view.hidden_statistics:
        warning = NOT_A_PREDICTION
        inside = [warning, *notes]

    place.parent.mkdir(parents=True, exist_ok=True)
    page = sheet(pictures, Pictures._fields, notes, warning)
    save_picture(page, place.with_name(f"{place.name}{SHEET}"), inside)
    for ending, (sample, column) in view.separate_files().items():
        picture = Image.fromarray(pictures[sample, column])
        save_picture(picture, place.with_name(f"{place.name}{ending}"), inside)
