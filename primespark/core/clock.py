"""Wall clock and hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from primespark.errors import InvalidInputError

_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_COUNTER_LIMIT = 0x10000
_TEXT = re.compile(r"(\d{13})-([0-9a-f]{4})-([a-z0-9][a-z0-9-]{0,62})")


def utc_now() -> datetime:
    """The present as aware UTC."""
    return datetime.now(UTC)


def to_rfc3339(moment: datetime) -> str:
    """`moment` as RFC 3339 UTC with microseconds and `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    """Milliseconds since some moment, whatever becomes of the wall clock; of the time that the machine was awake."""
    return time.monotonic_ns() // 1_000_000


def monotonic_ns() -> int:
    """Nanoseconds since the machine's boot; where the kernel tells, those it slept through too."""
    return time.clock_gettime_ns(_SINCE_BOOT)


@dataclass(frozen=True, slots=True)
class Clock:
    """The machine's two clocks in nanoseconds; passed in, so that a test runs in virtual time."""

    wall_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = monotonic_ns


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """A hybrid logical timestamp; the order of its text is the order of time."""

    unix_ms: int
    counter: int
    replica: str

    def __str__(self) -> str:
        return f"{self.unix_ms:013d}-{self.counter:04x}-{self.replica}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The timestamp written as `{unix_ms:013d}-{counter:04x}-{replica}`.

        Raises:
            InvalidInputError: Not that form.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InvalidInputError(f"not a hybrid logical timestamp: {text[:80]!r}", code="bad_hlc")
        return cls(int(match[1]), int(match[2], 16), match[3])


class HybridLogicalClock:
    """Stamps of one replica, each greater than every stamp given or seen before; not thread safe."""

    def __init__(self, replica: str, now_ms: Callable[[], int] = wall_clock_ms, last: Timestamp | None = None) -> None:
        self._replica = replica
        self._now_ms = now_ms
        self._unix_ms = last.unix_ms if last else 0
        self._counter = last.counter if last else 0

    def stamp(self) -> Timestamp:
        """A new timestamp of this replica."""
        self._advance(self._now_ms(), 0)
        return Timestamp(self._unix_ms, self._counter, self._replica)

    def observe(self, seen: Timestamp) -> None:
        """Make every later stamp greater than `seen`."""
        if (seen.unix_ms, seen.counter) > (self._unix_ms, self._counter):
            self._unix_ms, self._counter = seen.unix_ms, seen.counter

    def _advance(self, unix_ms: int, counter: int) -> None:
        if unix_ms > self._unix_ms:
            self._unix_ms, self._counter = unix_ms, counter
            return
        self._counter += 1
        if self._counter >= _COUNTER_LIMIT:
            # A full counter carries into the milliseconds, so text order stays time order.
            self._unix_ms, self._counter = self._unix_ms + 1, 0
