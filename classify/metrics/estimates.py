"""What every function for intervals and tests returns."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval.

    `note` names what the reader must know of the interval: why it is NaN, or that the usual one would have no width.
    `undefined` counts bootstrap replicates left out.
    """

    estimate: float
    interval: tuple[float, float]
    level: float = 0.95
    undefined: int = 0
    note: str = ""


@dataclass(frozen=True)
class Difference(Interval):
    """The difference a - b of one metric on the same cases.

    `seeds` are how many a and b have. One seed is one trained model, so with a 1 the difference says nothing of the
    methods. p-value and interval are made from `standard_error` and its degrees of `freedom`. Where an interval reaches
    down and up by different errors, these are those towards 0, and `below` has those downwards.
    """

    p_value: float = 1.0
    standard_error: float = np.nan
    freedom: float = np.inf
    seeds: tuple[int, int] = (1, 1)
    below: tuple[float, float] | None = None

    @classmethod
    def unknown(cls, estimate: float, level: float, note: str, seeds: tuple[int, int]) -> "Difference":
        """One that has no interval and no test, for the reason that `note` gives."""
        return cls(estimate, (np.nan, np.nan), level, note=note, p_value=np.nan, seeds=seeds)

    @property
    def of_methods(self) -> bool:
        """Whether the uncertainty includes training again, on both sides."""
        return min(self.seeds) > 1

    def non_inferior(self, margin: float) -> float:
        """One-sided p-value of "a is worse than b by `margin` or more": small where a is not inferior.

        For a metric that grows with quality; for an error (Brier, ece) ask it of b - a.
        """
        if not (np.isfinite(margin) and margin >= 0):
            raise ValueError(f"margin is {margin}, wanted 0 or more, in units of the metric")
        if np.isnan(self.estimate) or np.isnan(self.standard_error):
            return np.nan

        above = self.estimate + margin
        error, freedom = self.below or (self.standard_error, self.freedom)
        if error == 0:
            return float(above <= 0)
        return float(t.sf(above / error, freedom))
