"""A classifier as one ONNX file: 8-bit grey images in, probabilities out, and what a consumer must know as metadata."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classify.metrics.recalibration import Calibration
from classify.models.build import Model
from classify.scores import full_precision
from data.errors import UserError
from data.writing import flush_to_disk, replacing
from mae.engine.checkpoint import expect_finite

NEEDED = ("onnx", "onnxscript", "onnxruntime")  # packages of the extra
OPSET = 18  # LayerNormalization is one operator from 17 on; torch writes 18 without converting
IR_VERSION = 8  # the oldest that has this opset: onnxruntime from 1.14 on reads it
LARGEST = 2**31 - 2**20  # bytes of weights in a file; protobuf's messages end at 2 GiB
TOLERANCE = 1e-4  # between onnxruntime's scores and ours; more means that another network was written


class Probabilities(nn.Module):
    """uint8 images (b 1 h w) → calibrated probability (b) and score (b) before calibration."""

    slope: Tensor
    intercept: Tensor

    def __init__(self, model: Model, calibration: Calibration):
        super().__init__()
        self.model = model
        self.register_buffer("slope", torch.tensor(1 / calibration.temperature))
        self.register_buffer("intercept", torch.tensor(calibration.intercept))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.model.standardize(images)).float()  # b
        return torch.sigmoid(logits * self.slope + self.intercept), torch.sigmoid(logits)


def expect_onnx() -> None:
    """UserError where a package of the extra is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"this Python: found no {', '.join(missing)}, expected the extra for ONNX; pip install 'mae-cxr[onnx]', or "
            "leave out --format onnx"
        )


def write_onnx(
    model: Model, calibration: Calibration, size: tuple[int, int], path: Path, metadata: Mapping[str, str]
) -> float:
    """Write the file, and `<file>.data` beside it if the weights are more than a file may hold; metadata by name.

    The file is checked and tried before it is put in place. Returns the largest difference of a probability from ours,
    on random images.
    """
    expect_finite(model.state_dict(), path)
    wrapped = Probabilities(model, calibration).eval()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder, path.name)
        _save(_program_of(wrapped, size), made, metadata)
        _check(made)
        difference = _difference(wrapped, size, made)
        take_place(made, path)
    return difference


# ---------------------------------------------------------------- made


def _program_of(wrapped: Probabilities, size: tuple[int, int]) -> Any:
    """What torch's exporter makes of it, for any number of images."""
    images = torch.zeros(3, 1, *size, dtype=torch.uint8)  # a batch of 0 or 1 would be written as fixed
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            wrapped,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["probability", "score"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages on packages that nobody needs, and on what it will change one day."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _save(program: Any, path: Path, metadata: Mapping[str, str]) -> None:
    model = program.model
    model.ir_version = IR_VERSION
    model.producer_name = "mae-cxr"
    model.graph.name = "classifier"
    model.metadata_props.clear()
    model.metadata_props.update(metadata)

    # remove where in the code each node comes from: these are paths of this machine, and other bytes each time
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    program.save(path, external_data=weights > LARGEST)


def _check(path: Path) -> None:
    import onnx

    onnx.checker.check_model(str(path), full_check=True)  # by its path: a model of any size


def _difference(wrapped: Probabilities, size: tuple[int, int], path: Path) -> float:
    """The largest difference of a probability; UserError if the scores show that it is not the same network."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 1, *size), dtype=torch.uint8, generator=generator)
    with full_precision(torch.device("cpu")), torch.no_grad():
        ours = [part.numpy() for part in wrapped(images)]
    theirs = run_onnx(path, images.numpy())

    probability, score = (float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not score <= TOLERANCE:
        raise UserError(
            f"{path.name}: found scores {score:.1g} from ours in onnxruntime, expected {TOLERANCE:g} at most; nothing "
            "was written; another version of torch or onnxruntime may help"
        )
    return probability


def data_file(path: Path) -> Path:
    """Where weights lie that are too large for the file itself; move both files together."""
    return path.with_name(f"{path.name}.data")


def run_onnx(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """Probability (b) and score (b) of uint8 images (b 1 h w) by onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["probability", "score"], {"images": images})


# ---------------------------------------------------------------- put in place


def take_place(made: Path, path: Path) -> None:
    """Put each file in place whole or not at all, and never a file beside another one's weights."""
    data = data_file(path)
    if data_file(made).exists() or data.exists():
        path.unlink(missing_ok=True)
    if data_file(made).exists():
        _move(data_file(made), data)
    else:
        data.unlink(missing_ok=True)
    _move(made, path)


def _move(made: Path, path: Path) -> None:
    with made.open("rb+") as file:
        flush_to_disk(file)
    with replacing(path) as temporary:
        shutil.move(made, temporary)
