"""Search of the first value of a graph that two engines compute differently, in few comparisons of some values each.

Sixteen are looked at together, then the sixteen between the last that agreed and the first that did not. A value that is looked at is
not fused with what reads it, so that looking can mend a fault; where sixteen agree and the graph does not, the search goes on by halves,
one value at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_AT_ONCE = 16


def first_under(count: int, compare: Callable[[Sequence[int]], Sequence[float]], limit_db: float) -> tuple[int, float] | None:
    """The first place that is under `limit_db`, and its SQNR; None where the last one agrees when it is looked at alone.

    Args:
        count: of values, in the order of the graph; the last is its output.
        compare: places -> SQNR of each, dB.
    """
    low, high = 0, count
    places = [high - 1]
    first: tuple[int, float] | None = None
    alone = False
    while low < high:
        agreed = compare(places)
        bad = next((index for index, value in enumerate(agreed) if value < limit_db), None)
        if bad is not None:
            first = places[bad], agreed[bad]
            low, high = (places[bad - 1] + 1 if bad else low), places[bad]
        elif first is None:
            return None
        elif alone:
            low = places[0] + 1
        else:
            alone = True
        places = [(low + high) // 2] if alone else _spread(low, high)
    return first


def _spread(low: int, high: int) -> list[int]:
    """Places from `low` to `high - 1`, both among them, as many as are looked at together."""
    return sorted({round(place) for place in np.linspace(low, high - 1, min(_AT_ONCE, max(high - low, 0)))})
