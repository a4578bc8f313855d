"""Any encoder of ours × a user's images → features, a row for each image: mae-embed."""

import csv
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from classify.models.classifier import Classifier
from classify.models.resnet_weights import is_resnet
from classify.scores import full_precision
from classify.settings import Pool
from classify.start import config_of
from classify.trained import model_of
from data.errors import UserError, printable
from data.folders import written_by_one
from data.inputs import Input, find_inputs, read_inputs
from data.privacy import credentialed_places, terms
from data.signals import beginning_anew
from data.writing import flush_to_disk, in_utf8, keep_private, replacing, restoring_umask, write_rows_of_csv, writing
from mae.encoder import Encoder
from mae.engine.checkpoint import Checkpoint, load_checkpoint
from mae.engine.run import device_of
from mae.reconstruct import model_of as autoencoder_of
from mae.weights import is_foreign

POOLED = {"mean": "mean of the patch tokens", "cls": "class token"}
COLUMNS = ("row", "path")  # how every table of rows begins


@dataclass(frozen=True)
class Embedder:
    """An encoder, ready for 8-bit images that were read as its training's were."""

    checkpoint: Checkpoint
    device: torch.device
    width: int  # of a row (d)
    what: str  # what a row is, in words
    features_of: Callable[[Tensor], Tensor]  # 8-bit images (b 1 h w) on the device → (b d)

    def features(self, images: np.ndarray) -> np.ndarray:
        """8-bit images (b 1 h w) → (b d) float32, whatever precision training computed in."""
        with torch.no_grad(), full_precision(self.device):
            found = self.features_of(torch.from_numpy(images).to(self.device))
        return found.float().cpu().numpy()


def load_embedder(path: str | Path, pool: Pool | None = None, device: str = "auto") -> Embedder:
    """The encoder of a pretraining, of a fine-tuned or probed ViT, or a ResNet's trunk.

    pool: how a ViT's tokens are pooled; None: by their mean, or as the classifier's own head does. UserError for a
    ResNet with `pool`, and for other programs' weights, which do not say how images are to be read.
    """
    if is_foreign(path) or is_resnet(path):
        raise UserError(
            f"{path}: found weights of another program, expected a run of mae-pretrain or mae-finetune, which says how "
            "images are read; begin a run from them: model.init, or finetune.init of a ResNet"
        )
    checkpoint = load_checkpoint(path)
    where = device_of(device)
    if checkpoint.kind == "mae":
        return _of_encoder(checkpoint, autoencoder_of(checkpoint).encoder.to(where), pool or "mean", where)

    model = model_of(checkpoint, where)
    if isinstance(model, Classifier):
        return _of_encoder(checkpoint, model.encoder, pool or model.pool, where)
    if pool is not None:
        raise UserError(
            f"{checkpoint.place}: found a {config_of(checkpoint).finetune.model}, expected a ViT with --pool; leave "
            "--pool out: a ResNet's features are the mean over its last layer"
        )
    return Embedder(
        checkpoint=checkpoint,
        device=where,
        width=model.fc.in_features,
        what=f"the mean over the last layer of a {config_of(checkpoint).finetune.model}",
        features_of=lambda images: model.features(model.standardize(images)),
    )


def _of_encoder(checkpoint: Checkpoint, encoder: Encoder, pool: Pool, device: torch.device) -> Embedder:
    encoder.eval()

    def pooled(images: Tensor) -> Tensor:
        tokens = encoder(encoder.standardize(images))  # b 1+n d
        return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)

    trained = "pretrained" if checkpoint.kind == "mae" else "classifier's"
    return Embedder(checkpoint, device, encoder.width, f"the {POOLED[pool]} of a {trained} ViT", pooled)


# ---------------------------------------------------------------- as a command


@restoring_umask()
def embed(
    run: str | Path,
    paths: Sequence[str],
    out: Path,
    *,
    pool: Pool | None = None,
    device: str = "auto",
    workers: int = 0,
    say: Callable[[str], object] = print,
) -> None:
    """Write features (n d) of the images that can be read, and beside them a CSV: which row is which image's.

    Both are written whole or not at all, and older files stay until both can be replaced. Raises UserError for what
    cannot work, before anything is read, and, after both are written, if no image could be read.
    """
    table = out.with_suffix(".csv")
    check_out(out, paths)
    inputs = find_inputs(paths, say)
    _expect_no_input(out, inputs)
    embedder = load_embedder(run, pool, device)
    credentialed = sorted({*embedder.checkpoint.credentialed, *credentialed_places(paths)})
    keep_private(credentialed, "private")
    if credentialed:
        say(terms(credentialed))

    out.parent.mkdir(parents=True, exist_ok=True)
    reasons: list[str | None] = []
    with beginning_anew(), written_by_one(out), writing(out) as file:
        with closing(_rows(embedder, inputs, reasons, workers)) as rows:
            count = write_rows(file, rows, embedder.width)
        flush_to_disk(file)
        with replacing(table) as lines:
            _write_table(lines, inputs, reasons)
            out.unlink(missing_ok=True)  # older features would be of other rows

    say(f"features: {out}, {count:,} rows of {embedder.width}: {embedder.what}")
    say(f"which image is in which row: {table}")
    if count < len(inputs):
        say(f"{len(inputs) - count:,} of {len(inputs):,} images could not be read, and have a reason there")
    if not count:
        raise UserError(f"{table}: found none of {len(inputs):,} images readable, expected some; see the reasons there")


def check_out(out: Path, paths: Sequence[str]) -> None:
    """UserError if features and their table cannot, or should not, be written there."""
    if out.is_dir():
        raise UserError(f"--out: {out}: found a folder, expected a file such as {out / 'features.npy'}")
    if out.suffix != ".npy":
        raise UserError(f"--out: found {out.name!r}, expected a name that ends in .npy")

    # files of an earlier run are overwritten, and no others
    table = out.with_suffix(".csv")
    for path in paths:
        if Path(path).resolve() in (out.resolve(), table.resolve()):
            raise UserError(f"--out: {out}: {printable(path)} would be written over, expected another name")
    if (out.exists() or table.exists()) and not _is_table(table):
        found = table if table.exists() else out
        raise UserError(f"--out: {found}: found a file that mae-embed has not written, expected another name")


def _is_table(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(next(csv.reader(file), [])[: len(COLUMNS)]) == COLUMNS
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _expect_no_input(out: Path, inputs: Sequence[Input]) -> None:
    written = (out.resolve(), out.with_suffix(".csv").resolve())
    if any(one.path.resolve() in written for one in inputs if one.path.stem == out.stem):
        raise UserError(f"--out: {out}: found one of the images, expected another name")


def _rows(
    embedder: Embedder, inputs: Sequence[Input], reasons: list[str | None], workers: int
) -> Generator[np.ndarray]:
    """Features (b d) of the readable images, some at a time; appends each input's reason, or None, to `reasons`."""
    with (
        tqdm(total=len(inputs), desc="embed", unit="image", disable=None) as bar,
        closing(read_inputs(inputs, embedder.checkpoint.config.data, workers)) as parts,
    ):
        for part in parts:
            readable = np.array([reason is None for reason in part.reasons])
            reasons += part.reasons
            bar.update(len(readable))
            if readable.any():
                yield embedder.features(part.images[readable])


def write_rows(file: IO[bytes], parts: Iterator[np.ndarray], width: int) -> int:
    """Rows (b d) of float32 in numpy's own format, as they come; returns how many there are.

    Their number is known only at the end, so the header is written twice. numpy leaves room in it for any number.
    """
    count = 0
    _write_header(file, (count, width))
    start = file.tell()
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype="<f4").data)
        count += len(part)

    file.seek(0)
    _write_header(file, (count, width))
    assert file.tell() == start
    return count


def _write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_table(path: Path, inputs: Sequence[Input], reasons: Sequence[str | None]) -> None:
    """A line for each input, in order: its row among the features, empty where it could not be read, and why not."""
    studies = any(one.study_id for one in inputs)
    columns = [*COLUMNS, *(["study_id"] if studies else []), "reason"]
    write_rows_of_csv(path, columns, _lines(inputs, reasons, studies))


def _lines(inputs: Sequence[Input], reasons: Sequence[str | None], studies: bool) -> Iterator[list[str]]:
    row = 0
    for one, reason in zip(inputs, reasons, strict=True):
        study = [one.study_id] if studies else []
        yield ["" if reason else str(row), in_utf8(one.shown), *study, in_utf8(reason or "")]
        row += reason is None
