"""A trained classifier as it is used: its network, its threshold and calibration, and how its images are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from classify.metrics.recalibration import Calibration
from classify.models.build import Model, build_model
from classify.models.classifier import Classifier
from classify.scores import full_precision
from classify.settings import ClassifyConfig, Unit
from classify.start import config_of, file_digest
from data.errors import UserError
from mae.engine.checkpoint import Checkpoint, expect_fit, load_checkpoint
from mae.engine.optim import with_weights_of
from mae.engine.run import device_of

AT_ONCE = 64  # images in a forward pass


@dataclass(frozen=True)
class Decision:
    """What was chosen on validation for a unit, and is kept with the weights."""

    threshold: float
    calibration: Calibration | None  # None: of an earlier version, which had none

    @classmethod
    def of(cls, checkpoint: Checkpoint, unit: Unit) -> "Decision":
        """UserError if a checkpoint has none for the unit, or an invalid one."""
        thresholds = checkpoint.fact("threshold")
        if unit not in thresholds:
            raise UserError(
                f"{checkpoint.place}: found no threshold for studies, as images of one validation study had different "
                "labels, expected one; give evaluate.unit=image"
            )
        calibration = (checkpoint.meta.get("calibration") or {}).get(unit)
        try:
            return cls(thresholds[unit], calibration and Calibration(**calibration))
        except (TypeError, ValueError):
            raise UserError(
                f"{checkpoint.place}: meta.calibration: found {calibration}, expected a temperature above 0 and an "
                "intercept"
            ) from None

    def applied(self, units: pd.DataFrame) -> pd.DataFrame:
        """Units with their calibrated probability and their predicted class."""
        calibration = self.calibration or Calibration()
        return units.assign(
            calibrated=calibration.probabilities(units["logit"]),
            predicted=(units["score"].to_numpy() >= self.threshold).astype(int),
        )


@dataclass(frozen=True)
class Trained:
    """A classifier, ready for 8-bit images of `config.data.image_size` that were read as its training's were."""

    checkpoint: Checkpoint
    config: ClassifyConfig
    model: Model  # in evaluation mode, on the device
    device: torch.device
    digest: str  # of the checkpoint's file

    @property
    def place(self) -> str:
        """The checkpoint's file."""
        return self.checkpoint.place

    @property
    def threshold(self) -> float:
        """From this score on an image is called abnormal."""
        return self.threshold_for("image")

    @property
    def calibration(self) -> Calibration:
        """Of an image's logit."""
        return self.calibration_for("image")

    def threshold_for(self, unit: Unit) -> float:
        """The same for an image or for a study's mean score; UserError where none was chosen."""
        return Decision.of(self.checkpoint, unit).threshold

    def calibration_for(self, unit: Unit) -> Calibration:
        """The same for an image or for a study; one that changes nothing where an earlier version fitted none."""
        return Decision.of(self.checkpoint, unit).calibration or Calibration()

    def logits(self, images: np.ndarray | Tensor) -> np.ndarray:
        """(b) float32 logits of *abnormal*, of 8-bit images (b 1 h w)."""
        return self._of_images(images, lambda pixels: self.model(pixels))

    def features(self, images: np.ndarray | Tensor) -> np.ndarray:
        """(b d) float32: what the head sees, of 8-bit images (b 1 h w)."""
        return self._of_images(images, lambda pixels: self.model.features(pixels))

    def logits_and_features(self, images: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Both, from one pass over the images."""
        both = self._of_images(images, self._both)  # b 1+d
        return both[:, 0], both[:, 1:]

    def _both(self, pixels: Tensor) -> Tensor:
        if isinstance(self.model, Classifier):
            tokens = self.model.encoder(pixels)  # b 1+n d
            logits, features = self.model.classify(tokens), self.model.pooled(tokens)
        else:
            maps = self.model.maps(pixels)  # b d h w
            logits, features = self.model.classify(maps), maps.mean(dim=(2, 3))
        return torch.cat([logits[:, None], features], dim=1)

    def _of_images(self, images: np.ndarray | Tensor, compute: Callable[[Tensor], Tensor]) -> np.ndarray:
        """As validation and evaluation compute: in 32 bits throughout, and for a few images at a time."""
        images = torch.as_tensor(images)
        assert images.dtype == torch.uint8 and images.ndim == 4
        parts = []
        with torch.no_grad(), full_precision(self.device):
            for some in images.split(AT_ONCE):
                pixels = self.model.standardize(some.to(self.device))  # b c h w
                parts.append(compute(pixels).float().cpu())
        return torch.cat(parts).numpy()


def load_trained(path: str | Path, device: str = "auto") -> Trained:
    """The classifier in a run folder's best.pt, or in a checkpoint file; UserError where there is none."""
    checkpoint = load_checkpoint(path, "classifier")
    where = device_of(device)
    return Trained(
        checkpoint=checkpoint,
        config=config_of(checkpoint),
        model=model_of(checkpoint, where),
        device=where,
        digest=file_digest(checkpoint.place) or "",
    )


def model_of(checkpoint: Checkpoint, device: torch.device) -> Model:
    """A checkpoint's network with its weights, in evaluation mode; UserError where they do not fit."""
    config = config_of(checkpoint)
    expect_fit(lambda: build_model(config), checkpoint)
    return with_weights_of(checkpoint, lambda: build_model(config)).to(device).eval()
