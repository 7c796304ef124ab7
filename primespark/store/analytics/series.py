"""Points of a group of series, column by column: an answer has tens of thousands, and a cache keeps them so."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TO_2000 = (datetime(2000, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
Group = dict[str, str | None]


def _times() -> array[int]:
    return array("q")


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one group, in order of time.

    Attributes:
        group: What its series have in common.
        times: Microseconds since 1970.
        columns: For each aggregation as many values; NaN where there is none.
    """

    group: Group
    times: array[int] = field(default_factory=_times)
    columns: list[array[float]] = field(default_factory=list)

    @classmethod
    def of_bytes(cls, group: Group, times: bytes, *columns: bytes) -> Series:
        """Of what PostgreSQL sends in binary: microseconds since 2000, and numbers, of eight bytes each."""
        since_2000 = struct.unpack(f">{len(times) // 8}q", times)
        values = [array("d", struct.unpack(f">{len(column) // 8}d", column)) for column in columns]
        return cls(group, array("q", (moment + _TO_2000 for moment in since_2000)), values)

    def points(self) -> Iterator[tuple[datetime, list[float | None]]]:
        """Each point's time and values."""
        for at, moment in enumerate(self.times):
            yield to_datetime(moment), [None if math.isnan(value[at]) else value[at] for value in self.columns]

    def part(self, start: int, end: int) -> Series:
        """The points from number `start` to before `end`."""
        return Series(self.group, self.times[start:end], [column[start:end] for column in self.columns])

    def reversed(self) -> Series:
        """The same, newest first."""
        return Series(self.group, self.times[::-1], [column[::-1] for column in self.columns])


def to_microseconds(moment: datetime) -> int:
    """Microseconds from 1970 to a moment."""
    return (moment - _EPOCH) // _MICROSECOND


def to_datetime(microseconds: int) -> datetime:
    """The moment so many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)
