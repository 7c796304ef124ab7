"""How fast a device sends and receives: a limit that may be another at other times of day, shared by what travels."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, tzinfo
from urllib.request import getproxies
from zoneinfo import ZoneInfo

import httpx2
from prometheus_client import Gauge

from edge_agent.fair_link import FairLink, Traffic
from primespark.core.clock import utc_now
from primespark.core.link_settings import BandwidthSettings

# What is sent at once, as a time at the limit: more would be a burst, less would wake the device for nothing.
_QUANTUM_S = 0.05
_LEAST_QUANTUM_BYTES, _MOST_QUANTUM_BYTES = 256, 64 * 1024
_LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 4096, 256 * 1024
# Windows begin at a minute.
_LOOK_S = 20.0
# A gate waits a minute for a body.
_BATCH_S = 20.0

LIMIT = Gauge("primespark_bandwidth_limit_bytes_per_second", "What may be sent, and as much received; 0 without limit.")


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
        self._sleep = sleep
        self._zone: tzinfo | None = ZoneInfo(settings.timezone) if settings.timezone else None
        shares = {Traffic(name): weight for name, weight in settings.shares}
        self._up, self._down = (FairLink(self.limit, name, shares, monotonic_s, sleep) for name in ("up", "down"))

    @property
    def slowest(self) -> int | None:
        """The lowest limit of the day, bytes per second; None without any."""
        limits = [self._settings.bytes_per_s, *(window.bytes_per_s for window in self._settings.windows)]
        return min((limit for limit in limits if limit is not None), default=None)

    def limit(self) -> int | None:
        """Bytes per second at this moment, of the first window it is in; None without limit."""
        limit = self._settings.bytes_per_s
        if self._settings.windows:
            local = self._time_of_day()
            limit = next((window.bytes_per_s for window in self._settings.windows if window.has(local)), limit)
        LIMIT.set(limit or 0)
        return limit

    def may_send_low(self) -> bool:
        """Whether facts of low priority, models and other blobs may travel at this moment."""
        windows = self._settings.low_windows
        return not windows or any(window.has(self._time_of_day()) for window in windows)

    async def until_low_may_go(self) -> None:
        """Wait for a window in which they may."""
        while not self.may_send_low():
            await self._sleep(_LOOK_S)

    def batch_bytes(self, most: int) -> int:
        """How large a batch may be, so that a gate still waits for the last of it."""
        return most if self.slowest is None else min(most, int(self.slowest * _BATCH_S))

    async def paced(self, body: bytes, traffic: Traffic = Traffic.RECORDS) -> AsyncIterator[bytes]:
        """The body, piece by piece, as fast as may be sent."""
        place = 0
        while place < len(body):
            piece = body[place : place + self._quantum()]
            await self._up.take(len(piece), traffic)
            yield piece
            place += len(piece)

    async def sent(self, count: int) -> None:
        """Wait until `count` bytes may be sent."""
        await self._up.take(count, Traffic.RECORDS)

    async def received(self, count: int, traffic: Traffic = Traffic.RECORDS) -> None:
        """Wait until more may be received after `count` bytes."""
        await self._down.pay(count, traffic)

    def _time_of_day(self) -> str:
        # Without a time zone it is the device's; where clocks are changed, windows go by what the clock shows.
        return self._now().astimezone(self._zone).strftime("%H:%M")

    def _quantum(self) -> int:
        """Bytes to send at once."""
        limit = self.limit()
        if limit is None:
            return _MOST_QUANTUM_BYTES
        return min(max(int(limit * _QUANTUM_S), _LEAST_QUANTUM_BYTES), _MOST_QUANTUM_BYTES)


def limited_transport(bandwidth: Bandwidth) -> httpx2.AsyncHTTPTransport | None:
    """With a limit, one that takes in little ahead of what is read; the usual one where there is a proxy to go by."""
    if bandwidth.slowest is None or getproxies():
        return None
    buffer_bytes = min(max(bandwidth.slowest // 8, _LEAST_BUFFER_BYTES), _MOST_BUFFER_BYTES)
    return httpx2.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)])
