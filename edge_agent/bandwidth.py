"""How fast a device sends and receives: a limit that may be another at other times of day."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, tzinfo
from urllib.request import getproxies
from zoneinfo import ZoneInfo

import httpx2
from prometheus_client import Counter, Gauge

from primespark.core.clock import utc_now
from primespark.core.link_settings import BandwidthSettings

# What is sent at once, as a time at the limit: more would be a burst, less would wake the device for nothing.
_QUANTUM_S = 0.05
_LEAST_QUANTUM_BYTES, _MOST_QUANTUM_BYTES = 256, 64 * 1024
# A sleep that lasts longer than it should is made up for, to this much; who was idle has saved nothing.
_CATCH_UP_S = 0.1
_LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 4096, 256 * 1024
# A gate waits a minute for a body.
_BATCH_S = 20.0

LIMIT = Gauge("primespark_bandwidth_limit_bytes_per_second", "What may be sent, and as much received; 0 without limit.")
WAITED = Counter("primespark_bandwidth_waited_seconds_total", "Time that bytes waited for the limit.", ["direction"])


class Bandwidth:
    """The limit of now, and waiting for it; each direction has its own.

    Args:
        settings: The limit, and when it is another.
        now: The present, for the windows.
        monotonic_s: The time that waits are counted in.
        sleep: Waits so many seconds of it.
    """

    def __init__(
        self,
        settings: BandwidthSettings,
        now: Callable[[], datetime] = utc_now,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._now = now
        self._zone: tzinfo | None = ZoneInfo(settings.timezone) if settings.timezone else None
        self._up, self._down = (_Direction(self.limit, name, monotonic_s, sleep) for name in ("up", "down"))

    @property
    def slowest(self) -> int | None:
        """The lowest limit of the day, bytes per second; None without any."""
        limits = [self._settings.bytes_per_s, *(window.bytes_per_s for window in self._settings.windows)]
        return min((limit for limit in limits if limit is not None), default=None)

    def limit(self) -> int | None:
        """Bytes per second at this moment, of the first window it is in; None without limit."""
        limit = self._settings.bytes_per_s
        if self._settings.windows:
            # Without a time zone it is the device's; where clocks are changed, windows go by what the clock shows.
            local = self._now().astimezone(self._zone).strftime("%H:%M")
            limit = next((window.bytes_per_s for window in self._settings.windows if window.has(local)), limit)
        LIMIT.set(limit or 0)
        return limit

    def batch_bytes(self, most: int) -> int:
        """How large a batch may be, so that a gate still waits for the last of it."""
        return most if self.slowest is None else min(most, int(self.slowest * _BATCH_S))

    async def paced(self, body: bytes) -> AsyncIterator[bytes]:
        """The body, piece by piece, as fast as may be sent."""
        place = 0
        while place < len(body):
            piece = body[place : place + self._up.quantum()]
            await self._up.take(len(piece))
            yield piece
            place += len(piece)

    async def sent(self, count: int) -> None:
        """Wait until `count` bytes may be sent."""
        await self._up.take(count)

    async def received(self, count: int) -> None:
        """Wait until more may be received after `count` bytes."""
        await self._down.pay(count)


class _Direction:
    """A token bucket as the time at which it is level again (ITU-T I.371, generic cell rate)."""

    def __init__(
        self,
        limit: Callable[[], int | None],
        name: str,
        monotonic_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._limit = limit
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._waited = WAITED.labels(name)
        self._level_at = 0.0

    def quantum(self) -> int:
        """Bytes to send at once."""
        limit = self._limit()
        if limit is None:
            return _MOST_QUANTUM_BYTES
        return min(max(int(limit * _QUANTUM_S), _LEAST_QUANTUM_BYTES), _MOST_QUANTUM_BYTES)

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may be sent; who asks first goes first."""
        await self._wait_until(self._book(count)[0])

    async def pay(self, count: int) -> None:
        """Wait until `count` bytes that came could have come."""
        await self._wait_until(self._book(count)[1])

    def _book(self, count: int) -> tuple[float, float]:
        """When these bytes begin and end; both past without a limit."""
        limit = self._limit()
        if limit is None:
            return 0.0, 0.0
        now = self._monotonic_s()
        begin = self._level_at if self._level_at > now - _CATCH_UP_S else now
        self._level_at = begin + count / limit
        return begin, self._level_at

    async def _wait_until(self, moment: float) -> None:
        wait_s = moment - self._monotonic_s()
        if wait_s > 0:
            self._waited.inc(wait_s)
            await self._sleep(wait_s)


def limited_transport(bandwidth: Bandwidth) -> httpx2.AsyncHTTPTransport | None:
    """With a limit, one that takes in little ahead of what is read; the usual one where there is a proxy to go by."""
    if bandwidth.slowest is None or getproxies():
        return None
    buffer_bytes = min(max(bandwidth.slowest // 8, _LEAST_BUFFER_BYTES), _MOST_BUFFER_BYTES)
    return httpx2.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)])
