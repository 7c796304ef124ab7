"""One direction of a limited link: never faster than its limit, and shared by weight where several want all of it."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from prometheus_client import Counter

# A sleep that lasts longer than it should is made up for, to this much; who was idle has saved nothing.
_CATCH_UP_S = 0.1

WAITED = Counter("primespark_bandwidth_waited_seconds_total", "Time that bytes waited for the limit.", ["direction"])


class Traffic(StrEnum):
    """What travels: batches and pulls, or models and other blobs."""

    RECORDS = "records"
    BLOBS = "blobs"


@dataclass(order=True, slots=True)
class _Turn:
    """Who waits to send; the tag is where its bytes begin in the time of its kind, the number breaks ties."""

    tag: float
    number: int
    is_next: asyncio.Event = field(compare=False, default_factory=asyncio.Event)


class FairLink:
    """A token bucket as the time at which it is level again (ITU-T I.371), its turns given by start-time fair queueing.

    While two kinds of traffic wait, what each has had by its weight differs by no more than a piece of each (Goyal, Vin
    and Cheng, "Start-time Fair Queueing", 1996); a kind alone has all of it.

    Args:
        limit: Bytes per second at this moment; None without limit.
        name: Of the direction.
        shares: Weight of each kind.
        monotonic_s: The time that waits are counted in.
        sleep: Waits so many seconds of it.
    """

    def __init__(
        self,
        limit: Callable[[], int | None],
        name: str,
        shares: Mapping[Traffic, int],
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limit = limit
        self._shares = shares
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._waited = WAITED.labels(name)
        self._level_at = 0.0
        self._turns: list[_Turn] = []
        self._number = 0
        self._tag = 0.0
        self._ends = dict.fromkeys(Traffic, 0.0)

    async def take(self, count: int, traffic: Traffic) -> None:
        """Wait until `count` bytes may be sent."""
        await self._begin(count, traffic)

    async def pay(self, count: int, traffic: Traffic) -> None:
        """Wait until `count` bytes that came could have come."""
        await self._wait_until(await self._begin(count, traffic))

    async def _begin(self, count: int, traffic: Traffic) -> float:
        """Wait for the turn of so many bytes; the time at which they end, past without a limit."""
        if self._limit() is None:
            return 0.0
        turn = self._line_up(count, traffic)
        try:
            while self._turns[0] is not turn or self._level_at > self._monotonic_s():
                if self._turns[0] is turn:
                    await self._wait_until(self._level_at)
                else:
                    turn.is_next.clear()
                    await turn.is_next.wait()
            return self._book(count, turn)
        finally:
            self._turns.remove(turn)
            heapq.heapify(self._turns)
            if self._turns:
                self._turns[0].is_next.set()

    def _line_up(self, count: int, traffic: Traffic) -> _Turn:
        self._number += 1
        turn = _Turn(max(self._tag, self._ends[traffic]), self._number)
        self._ends[traffic] = turn.tag + count / self._shares[traffic]
        heapq.heappush(self._turns, turn)
        return turn

    def _book(self, count: int, turn: _Turn) -> float:
        self._tag = turn.tag
        now, limit = self._monotonic_s(), self._limit()
        if limit is None:
            return 0.0
        begin = self._level_at if self._level_at > now - _CATCH_UP_S else now
        self._level_at = begin + count / limit
        return self._level_at

    async def _wait_until(self, moment: float) -> None:
        wait_s = moment - self._monotonic_s()
        if wait_s > 0:
            self._waited.inc(wait_s)
            await self._sleep(wait_s)
