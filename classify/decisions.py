"""What a trained classifier's numbers mean, for use in other programs: classes, thresholds, calibrations."""

from collections.abc import Mapping
from dataclasses import dataclass

from classify.metrics.recalibration import Calibration
from classify.settings import Unit
from classify.start import config_of
from classify.trained import Decision
from data.labels import words
from mae.engine.checkpoint import Checkpoint

UNITS: tuple[Unit, ...] = ("image", "study")


def origin_of_threshold(rule: str) -> str:
    """Where a threshold comes from, by `finetune.threshold`."""
    return "fixed at 0.5" if rule == "half" else f"chosen on validation (rule {rule})"


@dataclass(frozen=True)
class Decisions:
    """The decision for each unit that has one. Thresholds are of scores, which are probabilities before calibration."""

    classes: tuple[str, str]
    by_unit: Mapping[Unit, Decision]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Decisions":
        """UserError if a checkpoint has an invalid one."""
        chosen = checkpoint.meta.get("threshold") or {}
        by_unit = {unit: Decision.of(checkpoint, unit) for unit in UNITS if unit in chosen}
        return cls(words(config_of(checkpoint).data.target), by_unit)

    @property
    def thresholds(self) -> dict[str, float]:
        return {unit: decision.threshold for unit, decision in self.by_unit.items()}

    @property
    def calibrations(self) -> dict[str, dict[str, float]]:
        """Temperature and intercept of each unit that has them."""
        found = {}
        for unit, decision in self.by_unit.items():
            if decision.calibration:
                found[str(unit)] = decision.calibration.as_dict()
        return found

    @property
    def calibration(self) -> Calibration:
        """That of images; if none was fitted, one that changes nothing."""
        if "image" not in self.by_unit:
            return Calibration()
        return self.by_unit["image"].calibration or Calibration()

    def probability_of(self, score: float) -> float:
        """An image's calibrated probability at this score; a threshold above 1, which no image reaches, is kept."""
        if score > 1:
            return score
        return self.calibration.probability_of(score)

    @property
    def probability_threshold(self) -> float | None:
        """The calibrated probability from which an image is called the second class, matching the score's threshold."""
        if "image" not in self.by_unit:
            return None
        return self.probability_of(self.by_unit["image"].threshold)
