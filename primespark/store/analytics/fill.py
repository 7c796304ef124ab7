"""What stands for buckets without samples."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum

from primespark.store.analytics.series import Series


class Fill(StrEnum):
    """How an empty bucket is answered."""

    NONE = "none"
    NULL = "null"
    PREVIOUS = "previous"
    LINEAR = "linear"
    ZERO = "zero"


def filled(series: Series, starts: Sequence[int], fill: Fill) -> Series:
    """A point for each of `starts`, in microseconds: those of `series`, and between them what `fill` says.

    `previous` is null before the first point, `linear` before the first and after the last.
    """
    if fill is Fill.NONE:
        return series
    columns = [array("d", _column(series.times, column, starts, fill)) for column in series.columns]
    return Series(series.group, array("q", starts), columns)


def _column(times: Sequence[int], values: Sequence[float], starts: Sequence[int], fill: Fill) -> list[float]:
    known = dict(zip(times, values, strict=True))
    answer = []
    for moment in starts:
        value = known.get(moment)
        if value is None:
            value = 0.0 if fill is Fill.ZERO else math.nan
            after = bisect_left(times, moment)
            if fill is Fill.PREVIOUS and after > 0:
                value = values[after - 1]
            elif fill is Fill.LINEAR and 0 < after < len(times):
                share = (moment - times[after - 1]) / (times[after] - times[after - 1])
                value = values[after - 1] + (values[after] - values[after - 1]) * share
        answer.append(value)
    return answer
