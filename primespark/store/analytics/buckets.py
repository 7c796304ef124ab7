"""Buckets of time: seconds to months, any interval, in any time zone.

A bucket's time is its beginning. Without a time zone, buckets of one length are counted from Monday 2000-01-03 00:00
UTC. In a time zone, days, weeks and months begin at its midnights, so that a day has 23 or 25 hours where clocks are
changed; shorter buckets begin anew at each midnight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import cache
from itertools import takewhile
from zoneinfo import ZoneInfo, available_timezones

from primespark.errors import InvalidInputError

ORIGIN = datetime(2000, 1, 3, tzinfo=UTC)
SHORTEST = timedelta(milliseconds=1)
LONGEST = timedelta(days=3660)
_DAY = timedelta(days=1)


class Unit(StrEnum):
    """Granularities with a name."""

    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_WIDTHS = {
    Unit.SECOND: timedelta(seconds=1),
    Unit.MINUTE: timedelta(minutes=1),
    Unit.HOUR: timedelta(hours=1),
    Unit.DAY: _DAY,
    Unit.WEEK: timedelta(days=7),
}


@dataclass(frozen=True, slots=True)
class Granularity:
    """How time is cut into buckets.

    Attributes:
        width: Of a bucket; None: calendar months.
        zone: Whose days and months; None: UTC.
    """

    width: timedelta | None
    zone: tzinfo | None = None

    @property
    def is_even(self) -> bool:
        """Whether all buckets have one length, counted from `ORIGIN`."""
        return self.width is not None and self.zone is None

    def starts(self, start: datetime, end: datetime, limit: int) -> list[datetime]:
        """When each bucket begins that has a moment of `[start, end)`, in UTC and in order.

        Raises:
            InvalidInputError: Code `too_many_points`: more than `limit`.
        """
        found: list[datetime] = []
        for moment in takewhile(lambda moment: moment < end, self._from(start)):
            if found and moment <= start:
                found.pop()  # the bucket before `start` is none of them
            found.append(moment)
            if len(found) > limit:
                raise too_many_points(limit)
        return found

    def _from(self, start: datetime) -> Iterator[datetime]:
        """Beginnings in order; the second or a later one is the first after `start`."""
        if self.zone is None and self.width is not None:
            moment = ORIGIN + (start - ORIGIN) // self.width * self.width
            while True:
                yield moment
                moment += self.width
        previous = None
        for midnight, after in self._days(start):
            moment = midnight
            while moment < after:
                # A day that a time zone left out begins with the one after it.
                if moment != previous:
                    yield moment
                previous = moment
                moment = moment + self.width if self.width is not None and self.width < _DAY else after

    def _days(self, start: datetime) -> Iterator[tuple[datetime, datetime]]:
        """From when to when each period of whole days lasts, from before `start` on."""
        zone = self.zone or UTC
        here = start.astimezone(zone).date() - _DAY
        if self.width is None:
            day = here.replace(day=1)
            while True:
                following = (day + 31 * _DAY).replace(day=1)
                yield _midnight(day, zone), _midnight(following, zone)
                day = following
        days = max(self.width // _DAY, 1)
        day = here - timedelta(days=(here - ORIGIN.date()).days % days)
        while True:
            following = day + timedelta(days=days)
            yield _midnight(day, zone), _midnight(following, zone)
            day = following


def of_unit(unit: Unit, zone: tzinfo | None = None) -> Granularity:
    """A granularity with a name."""
    return Granularity(_WIDTHS.get(unit), zone)


def of_seconds(every_s: float, zone: tzinfo | None = None) -> Granularity:
    """Buckets of `every_s` seconds.

    Raises:
        InvalidInputError: Code `bad_granularity`: too short, too long, or days in a time zone that are not whole.
    """
    width = timedelta(milliseconds=round(every_s * 1000)) if 0 < every_s < LONGEST.total_seconds() else timedelta(0)
    if width < SHORTEST:
        raise InvalidInputError(
            f"buckets of {every_s:g} seconds", remedy="from 0.001 seconds to ten years", code="bad_granularity"
        )
    if zone is not None and width > _DAY and width % _DAY:
        raise InvalidInputError(
            f"in a time zone {every_s:g} seconds are no number of days",
            remedy="give a multiple of 86400, at most a day, or no time zone",
            code="bad_granularity",
        )
    return Granularity(width, zone)


def zone_named(name: str) -> tzinfo | None:
    """The time zone of a name of the IANA database; None for UTC.

    Raises:
        InvalidInputError: Code `unknown_time_zone`.
    """
    if name not in _zone_names():
        raise InvalidInputError(
            f"no time zone {name[:60]!r}", remedy="use a name such as Europe/Berlin", code="unknown_time_zone"
        )
    return None if name in ("UTC", "Etc/UTC") else ZoneInfo(name)


def too_many_points(limit: int) -> InvalidInputError:
    """More points than one answer has."""
    return InvalidInputError(
        f"more than {limit} points", remedy="ask for less time or larger buckets", code="too_many_points"
    )


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _midnight(day: date, zone: tzinfo) -> datetime:
    """When a day begins; where its midnight is left out, the moment the clock is put forward."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
