"""Numbers as texts and tables show them."""

import math
import re

from classify.metrics import Interval


def show(interval: Interval, signed: bool = False) -> str:
    """`.755 [.735, .774]`; signed: `+.012 [-.003, +.027]`; what is not known is a dash."""
    low, high = interval.interval
    estimate = show_number(interval.estimate, signed)
    if math.isnan(low) or math.isnan(high):
        return estimate
    return f"{estimate} [{show_number(low, signed)}, {show_number(high, signed)}]"


def show_number(value: float | None, signed: bool = False) -> str:
    """`.755`, `1.000`, signed `+.012`; `–` where it is not known."""
    if value is None or math.isnan(value):
        return "–"
    text = format(round(value, 3) + 0.0, "+.3f" if signed else ".3f")  # and no -.000
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


def show_p(value: float, named: bool = False) -> str:
    """`.023` or `< .001`; named: `p = .023` or `p < .001`."""
    if math.isnan(value):
        return "–"
    if value < 0.001:
        return "p < .001" if named else "< .001"
    text = f"{value:.3f}".removeprefix("0")
    return f"p = {text}" if named else text
