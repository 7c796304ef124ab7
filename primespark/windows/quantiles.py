"""Mergeable quantiles: exact of few values, of many within 1 % (log bins, as in DDSketch, Masson et al. 2019).

The bins are those of the metrics store. Counts of bins merge by addition, so the order in which values come changes
nothing, and a replay ends in the same bits.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Self

# Up to so many values are kept as they are.
MOST_EXACT = 100
# Each bin ends at so many times the end of the one before.
BASE = 1.02
# Between bins of negative values and bins of positive ones; larger than any exponent of a double.
SHIFT = 40_000


class Quantiles:
    """The values of one window; grows by `add` and `merge`, never shrinks."""

    __slots__ = ("_bins", "_values")

    def __init__(self) -> None:
        self._values: list[float] | None = []
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Take in one finite value."""
        if self._values is None:
            self._bins[log_bin(value)] += 1
            return
        self._values.append(value)
        if len(self._values) > MOST_EXACT:
            self._to_bins()

    def merge(self, other: Quantiles) -> None:
        """Take in all that `other` has seen; `other` stays as it is."""
        if self._values is not None and other._values is not None:
            self._values.extend(other._values)
            if len(self._values) > MOST_EXACT:
                self._to_bins()
            return
        self._to_bins()
        self._bins.update(other._bins)
        self._bins.update(map(log_bin, other._values or ()))

    def percentile(self, percentile: float) -> float | None:
        """Between the two nearest values by linear interpolation, as `percentile_cont`; None of nothing.

        Args:
            percentile: 0 to 100.
        """
        values = sorted(self._values) if self._values is not None else None
        count = len(values) if values is not None else self._bins.total()
        if not count:
            return None
        rank = percentile / 100 * (count - 1)
        below, above = math.floor(rank), math.ceil(rank)
        low, high = (values[below], values[above]) if values is not None else self._at(below, above)
        return low + (high - low) * (rank - below)

    def to_state(self) -> list[Any]:
        """JSON from which `from_state` builds the same."""
        if self._values is not None:
            return [self._values]
        bins = sorted(self._bins)
        return [None, bins, [self._bins[number] for number in bins]]

    @classmethod
    def from_state(cls, state: list[Any]) -> Self:
        """What wrote `state`."""
        self = cls()
        if state[0] is None:
            self._values = None
            self._bins = Counter(dict(zip(state[1], state[2], strict=True)))
        else:
            self._values = [float(value) for value in state[0]]
        return self

    def _to_bins(self) -> None:
        if self._values is not None:
            self._bins.update(map(log_bin, self._values))
            self._values = None

    def _at(self, *ranks: int) -> tuple[float, ...]:
        """The values of these ranks, which are in order."""
        found = []
        upto, bins = 0, iter(sorted(self._bins))
        number = 0
        for rank in ranks:
            while upto <= rank:
                number = next(bins)
                upto += self._bins[number]
            found.append(bin_value(number))
        return tuple(found)


def log_bin(value: float) -> int:
    """The number of the bin that a finite value is in; bins are in the order of their values."""
    if not value:
        return 0
    exponent = math.ceil(math.log(abs(value)) / math.log(BASE))
    return SHIFT + exponent if value > 0 else -SHIFT - exponent


def bin_value(number: int) -> float:
    """The value that is equally far from both ends of a bin, in relation to them."""
    if not number:
        return 0.0
    # The bound above of the last bin is no double any more.
    below = BASE ** (abs(number) - SHIFT - 1)
    return math.copysign(below * (2 * BASE / (1 + BASE)), number)
