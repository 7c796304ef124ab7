"""Series of answers as tests write them: point by point."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from datetime import datetime

from primespark.store.analytics.series import Group, Series, to_microseconds


def series_of(group: Group, points: Sequence[tuple[datetime, Sequence[float | None]]]) -> Series:
    """A series of `points`, which are in order."""
    width = len(points[0][1]) if points else 0
    columns = [array("d", (_or_nan(values[at]) for _, values in points)) for at in range(width)]
    return Series(group, array("q", (to_microseconds(at) for at, _ in points)), columns)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
