"""Numbers as texts and tables show them."""

import math
import re

from classify.metrics import Interval

ROUNDING = 1e-9  # what is left of a difference of 0; its sign says nothing
USUAL_LEVELS = (0.01, 0.05, 0.1)  # of tests


def show(interval: Interval, signed: bool = False) -> str:
    """`.755 [.735, .774]`; signed: `+.012 [-.003, +.027]`; what is not known is a dash."""
    low, high = interval.interval
    estimate = show_number(interval.estimate, signed)
    if math.isnan(low) or math.isnan(high):
        return estimate
    return f"{estimate} [{show_number(low, signed)}, {show_number(high, signed)}]"


def show_number(value: float | None, signed: bool = False) -> str:
    """`.755`, `1.000`, signed `+.012`; `–` where it is not known. `-.000` is below 0, as an interval's end may be."""
    if value is None or math.isnan(value):
        return "–"
    exact = 0.0 if abs(value) < ROUNDING else value
    text = format(exact, "+.3f" if signed else ".3f")
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


def show_p(value: float, named: bool = False) -> str:
    """`.023` or `< .001`, `.0496` where `.050` would look like the level itself; named: `p = .023` or `p < .001`."""
    if math.isnan(value):
        return "–"
    if value < 0.001:
        return "p < .001" if named else "< .001"
    text = f"{value:.{_decimals(value, 3, USUAL_LEVELS)}f}".removeprefix("0")
    return f"p = {text}" if named else text


def show_threshold(value: float, least: int = 3) -> str:
    """`0.305`; with more decimals where rounding would make it 0 or 1, from which on all or no cases are called."""
    return f"{value:.{_decimals(value, least, (0, 1))}f}"


def show_share(share: float, least: int = 0) -> str:
    """`3 %`; `0.2 %` and `99.8 %` where rounding would make it none or all. least: decimals."""
    return f"{100 * share:.{_decimals(100 * share, least, (0, 100))}f} %"


def _decimals(value: float, least: int, ends: tuple[float, ...]) -> int:
    """How many decimals a value needs, so that rounding does not make it one of `ends`."""
    decimals = least
    while decimals < 16 and any(round(value, decimals) == end != value for end in ends):
        decimals += 1
    return decimals
