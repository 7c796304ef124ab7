"""Mergeable aggregate state of one window: what is kept, how two parts merge, what each function says of it.

Variance is kept as mean and M2 (Welford's update, Chan, Golub and LeVeque's merge, 1979), never as a sum of squares;
the sum carries a compensation term (Neumaier, 1974).
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, Self

from primespark.windows.quantiles import Quantiles

# Event time, offset, row within the message: the order in which records are first and last.
Position = tuple[int, int, int]


class AggregationFunction(StrEnum):
    """What a rule computes from the values of a window."""

    AVG = "avg"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    COUNT = "count"
    STDDEV = "stddev"
    VARIANCE = "variance"
    FIRST = "first"
    LAST = "last"
    RATE = "rate"
    PERCENTILE = "percentile"


class Aggregate:
    """State of one window; grows by `add` and `merge`, never shrinks."""

    __slots__ = (
        "_compensation",
        "_total",
        "count",
        "first",
        "first_position",
        "last",
        "last_position",
        "m2",
        "maximum",
        "mean",
        "minimum",
        "quantiles",
    )

    def __init__(self, *, with_quantiles: bool = False) -> None:
        # For percentiles alone: they take more room than all the rest.
        self.quantiles = Quantiles() if with_quantiles else None
        self.count = 0
        self._total = 0.0
        self._compensation = 0.0
        self.mean = 0.0
        self.m2 = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.first = self.last = 0.0
        self.first_position: Position = (0, 0, 0)
        self.last_position: Position = (0, 0, 0)

    @property
    def total(self) -> float:
        """The compensated sum."""
        return self._total + self._compensation

    def add(self, value: float, position: Position) -> None:
        """Take in one finite value."""
        if not self.count or position < self.first_position:
            self.first, self.first_position = value, position
        if not self.count or position > self.last_position:
            self.last, self.last_position = value, position
        self.count += 1
        self._add_to_total(value)
        delta = value - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (value - self.mean)
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        if self.quantiles is not None:
            self.quantiles.add(value)

    def merge(self, other: Aggregate) -> None:
        """Take in all that `other` has seen; `other` stays as it is."""
        if not other.count:
            return
        if not self.count:
            self._become(other)
            return
        if other.first_position < self.first_position:
            self.first, self.first_position = other.first, other.first_position
        if other.last_position > self.last_position:
            self.last, self.last_position = other.last, other.last_position
        count = self.count + other.count
        delta = other.mean - self.mean
        self.m2 += other.m2 + delta * delta * (self.count * other.count / count)
        self.mean += delta * (other.count / count)
        self.count = count
        self._add_to_total(other._total)
        self._compensation += other._compensation
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        if self.quantiles is not None and other.quantiles is not None:
            self.quantiles.merge(other.quantiles)

    def value(
        self, function: AggregationFunction, *, ddof: int = 1, percentile: float = 50.0, span_s: float = 1.0
    ) -> float | None:
        """What `function` says; None where it has no value or the value left the range of a double.

        Args:
            function: The function of the rule.
            ddof: Divisor of variance and stddev is count - ddof; 1 is the sample's, as in SQL, 0 the population's.
            percentile: Which one, 0 to 100.
            span_s: Length of the window, for the rate.
        """
        if function is AggregationFunction.COUNT:
            return float(self.count)
        if function is AggregationFunction.RATE:
            return self.count / span_s
        if not self.count:
            return None
        if function is AggregationFunction.PERCENTILE:
            result = self.quantiles.percentile(percentile) if self.quantiles is not None else None
        else:
            result = self._spread(function, ddof) if function in _SPREAD else self._plain(function)
        return result if result is not None and math.isfinite(result) else None

    def to_state(self) -> list[Any]:
        """A JSON list from which `from_state` builds the same aggregate, bit for bit."""
        return [
            self.count,
            self._total,
            self._compensation,
            self.mean,
            self.m2,
            self.minimum,
            self.maximum,
            self.first,
            *self.first_position,
            self.last,
            *self.last_position,
            *([] if self.quantiles is None else [self.quantiles.to_state()]),
        ]

    @classmethod
    def from_state(cls, state: list[Any]) -> Self:
        """The aggregate that wrote `state`."""
        self = cls.__new__(cls)
        (
            self.count, self._total, self._compensation, self.mean, self.m2, self.minimum, self.maximum, self.first,
            first_ms, first_offset, first_index, self.last, last_ms, last_offset, last_index, *quantiles,
        ) = state  # fmt: skip
        self.first_position = (first_ms, first_offset, first_index)
        self.last_position = (last_ms, last_offset, last_index)
        self.quantiles = Quantiles.from_state(quantiles[0]) if quantiles else None
        return self

    def _become(self, other: Aggregate) -> None:
        self.first, self.first_position = other.first, other.first_position
        self.last, self.last_position = other.last, other.last_position
        self.count, self.mean, self.m2 = other.count, other.mean, other.m2
        self._total, self._compensation = other._total, other._compensation
        self.minimum, self.maximum = other.minimum, other.maximum
        if self.quantiles is not None and other.quantiles is not None:
            self.quantiles.merge(other.quantiles)

    def _add_to_total(self, value: float) -> None:
        total = self._total + value
        if abs(self._total) >= abs(value):
            self._compensation += (self._total - total) + value
        else:
            self._compensation += (value - total) + self._total
        self._total = total

    def _plain(self, function: AggregationFunction) -> float:
        match function:
            case AggregationFunction.SUM:
                return self.total
            case AggregationFunction.AVG:
                return self.total / self.count
            case AggregationFunction.MIN:
                return self.minimum
            case AggregationFunction.MAX:
                return self.maximum
            case AggregationFunction.FIRST:
                return self.first
            case _:
                return self.last

    def _spread(self, function: AggregationFunction, ddof: int) -> float | None:
        if self.count <= ddof:
            return None
        variance = self.m2 / (self.count - ddof)
        if not math.isfinite(variance):
            return None
        return math.sqrt(variance) if function is AggregationFunction.STDDEV else variance


_SPREAD = (AggregationFunction.STDDEV, AggregationFunction.VARIANCE)
