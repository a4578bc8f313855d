"""What became of every tensor of a file, and of every one of the model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mae.weights.licenses import License, spoken

SHOWN = 12  # names in a printed line


@dataclass(frozen=True)
class Report:
    """The account of a conversion: every tensor of the source is loaded, adapted or unexpected."""

    place: str
    license: License | None  # of the weights, where they have one
    loaded: tuple[str, ...] = ()  # the source's names, taken bit for bit
    adapted: Mapping[str, str] = field(default_factory=dict)  # the source's name → what was done to it
    missing: tuple[str, ...] = ()  # the model's names, left at fresh initialisation
    unexpected: tuple[str, ...] = ()  # the source's names, not used
    assumed: tuple[str, ...] = ()  # what the source does not say
    loss: str = ""  # what a loaded decoder will be trained to predict

    def __str__(self) -> str:
        lines = [f"{self.place}: {len(self.loaded)} tensors loaded, licence {spoken(self.license)}"]
        for how in dict.fromkeys(self.adapted.values()):
            names = [name for name, done in self.adapted.items() if done == how]
            lines.append(f"  adapted: {_shorten(names)}: {how}")
        if self.missing:
            lines.append(f"  missing, left at fresh initialisation: {_shorten(self.missing)}")
        if self.unexpected:
            lines.append(f"  unexpected, not used: {_shorten(self.unexpected)}")
        if self.loss:
            lines.append(f"  loss: {self.loss}")
        lines += [f"  assumed: {what}" for what in self.assumed]
        return "\n".join(lines)


def _shorten(names: Iterable[str]) -> str:
    """`blocks.*.norm1.weight (12)` for the same tensor of several blocks."""
    counted = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    shown = [name if count == 1 else f"{name} ({count})" for name, count in counted.items()]
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return ", ".join(shown[:SHOWN] + more)
