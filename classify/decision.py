"""What a trained classifier's numbers mean: classes, thresholds and calibrations, as its checkpoint keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import logit

from classify.metrics.recalibration import Calibration
from classify.settings import Unit
from classify.start import config_of
from data.labels import words
from mae.engine.checkpoint import Checkpoint


@dataclass(frozen=True)
class Decision:
    """Thresholds are of scores, which are probabilities before calibration; all were chosen on validation."""

    classes: tuple[str, str]
    thresholds: Mapping[Unit, float]
    calibrations: Mapping[Unit, Calibration]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Decision":
        fitted = checkpoint.meta.get("calibration") or {}
        return cls(
            classes=words(config_of(checkpoint).data.target),
            thresholds=dict(checkpoint.meta.get("threshold") or {}),
            calibrations={unit: Calibration(**numbers) for unit, numbers in fitted.items()},
        )

    @property
    def calibration(self) -> Calibration:
        """An image's; one that changes nothing where none was fitted."""
        return self.calibrations.get("image", Calibration())

    def probability_of(self, score: float) -> float:
        """An image's calibrated probability where its score is this one; above 1 stays there, as it calls none."""
        if score > 1:
            return score
        return float(self.calibration.probabilities(logit(score)))

    @property
    def probability_threshold(self) -> float | None:
        """The calibrated probability from which an image is called the second class, as by its score's threshold."""
        if "image" not in self.thresholds:
            return None
        return self.probability_of(self.thresholds["image"])
