"""Readings of a sensor, summed up by windows of time.

A window is [start, start + size), aligned to time 0. Windows run without a break from the first reading's to the last
one's: in a gap they have count 0 and NaN for the rest, so that a gap is seen and never filled in. A reading that is
NaN, infinite or beyond 1e150, whose square no number holds, is one the sensor could not take: it is counted in
`invalid` and left out of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from primespark.errors import InvalidInputError

MAX_WINDOWS = 100_000
# Beyond, windows have no number of their own.
_MOST_WINDOWS_FROM_0 = 2.0**53
_LARGEST_READING = 1e150

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SensorWindows:
    """One entry a window, in the order of time.

    Attributes:
        start_s: Where it begins.
        count: Readings in it, those without a value not counted.
        invalid: Readings without a value.
        mean: NaN where count is 0, as the next three.
        std: Of the population: a single reading has 0.
        min: The lowest.
        max: The highest.
    """

    start_s: Values
    count: NDArray[np.int64]
    invalid: NDArray[np.int64]
    mean: Values
    std: Values
    min: Values
    max: Values


def sum_up(times_s: ArrayLike, values: ArrayLike, window_s: float) -> SensorWindows:
    """Windows over readings in any order.

    Args:
        times_s: [n], seconds; finite.
        values: [n].
        window_s: Size of a window.

    Raises:
        InvalidInputError: Code `bad_series`: lengths differ, a time is not finite, a size is not positive;
            `too_many_windows`: over 100,000.
    """
    times, readings = _series(times_s, values, window_s)
    windows = np.floor(times / window_s)
    first, last = (windows.min(), windows.max()) if len(times) else (0.0, -1.0)
    if last - first >= MAX_WINDOWS:
        raise InvalidInputError(
            f"{last - first + 1:.0f} windows, limit {MAX_WINDOWS}", remedy="use larger ones", code="too_many_windows"
        )
    total = int(last - first) + 1
    places, valid = (windows - first).astype(np.intp), np.abs(readings) <= _LARGEST_READING
    invalid = np.bincount(places[~valid], minlength=total).astype(np.int64)
    starts: Values = (first + np.arange(total, dtype=np.float64)) * window_s
    return _of_valid(places[valid], readings[valid], starts, invalid)


def _of_valid(places: NDArray[np.intp], readings: Values, starts: Values, invalid: NDArray[np.int64]) -> SensorWindows:
    total = len(starts)
    count = np.bincount(places, minlength=total).astype(np.int64)
    lowest, highest = np.full(total, np.inf), np.full(total, -np.inf)
    np.minimum.at(lowest, places, readings)
    np.maximum.at(highest, places, readings)
    divisor = np.maximum(count, 1)
    mean: Values = np.clip(np.bincount(places, readings, minlength=total) / divisor, lowest, highest)
    # From the mean, never as a difference of squares: that has no digits left where readings vary little.
    std = np.sqrt(np.bincount(places, (readings - mean[places]) ** 2, minlength=total) / divisor)
    empty = count == 0
    for column in (mean, std, lowest, highest):
        column[empty] = np.nan
    return SensorWindows(starts, count, invalid, mean, std, lowest, highest)


def _series(times_s: ArrayLike, values: ArrayLike, window_s: float) -> tuple[Values, Values]:
    try:
        times, readings = np.asarray(times_s, dtype=np.float64), np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _bad("times and values are numbers") from None
    if times.ndim != 1 or times.shape != readings.shape:
        raise _bad(f"times of shape {list(times.shape)} with values of shape {list(readings.shape)}")
    if not (0 < window_s < np.inf):
        raise _bad(f"a window of {window_s} s")
    if not np.isfinite(times).all() or (np.abs(times) > _MOST_WINDOWS_FROM_0 * window_s).any():
        raise _bad("a time that is not finite, or too far from 0 for windows of this size")
    return times, readings


def _bad(cause: str) -> InvalidInputError:
    return InvalidInputError(cause, remedy="send times in seconds and as many values", code="bad_series")
