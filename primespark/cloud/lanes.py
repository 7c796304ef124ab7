"""Threads for what waits for the store, shared out to lanes, so that no kind of request can starve another.

A thread of a lane holds at most one connection, and the lanes have as many threads as the pool has connections. So a
storm of batches, or a store that answers one kind of question slowly, holds up that kind and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from enum import StrEnum
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from primespark.cloud.metrics import LANE_REFUSED, LANE_WAITING
from primespark.errors import UnavailableError

Answer = TypeVar("Answer")
_RETRY_AFTER_S = 2


class Lane(StrEnum):
    """What waits for its own kind only."""

    PUSHES = "pushes"
    DEVICES = "devices"
    PEOPLE = "people"
    TELEMETRY = "telemetry"
    PROBES = "probes"
    BACKGROUND = "background"


# Of devices, as many as can be served before their deadline: a change of the fleet's wakes all that wait.
MOST_WAITING: Mapping[Lane, int] = {
    Lane.PUSHES: 256, Lane.DEVICES: 2048, Lane.PEOPLE: 256, Lane.TELEMETRY: 64, Lane.PROBES: 16, Lane.BACKGROUND: 16,
}  # fmt: skip
_LANES_BY_PATH = (
    ("/sync/v1/conflicts", Lane.PEOPLE),
    ("/sync/v1/", Lane.DEVICES),
    ("/v1/metrics", Lane.TELEMETRY),
    ("/api/v1/write", Lane.TELEMETRY),
    ("/readyz", Lane.PROBES),
    ("/health", Lane.PROBES),
)

# Outside of requests, the relay's.
_lane: ContextVar[Lane] = ContextVar("lane", default=Lane.BACKGROUND)


class Lanes:
    """The threads of one service; used on one event loop.

    Args:
        connections: Of the pool; at least as many as there are lanes.
        most_waiting: For a turn, by lane; whoever comes then is refused.
    """

    def __init__(self, connections: int, most_waiting: Mapping[Lane, int] = MOST_WAITING) -> None:
        threads = share_out(connections)
        self._threads = {
            lane: _Threads(lane, threads[lane], most_waiting.get(lane, MOST_WAITING[lane])) for lane in Lane
        }

    async def run(self, work: Callable[[], Answer], lane: Lane | None = None) -> Answer:
        """What `work` answers, on a thread of the lane; of the request's own when absent.

        Cancelled while it waits for its turn, it never runs; cancelled later, it keeps its thread until it ends.

        Raises:
            UnavailableError: Code `gate_overloaded`: too many wait already.
        """
        return await self._threads[lane or _lane.get()].run(work)

    def check(self, lane: Lane) -> None:
        """Refuse a request before its body is read, where it would be refused afterwards.

        Raises:
            UnavailableError: Code `gate_overloaded`: too many wait already.
        """
        self._threads[lane].check()

    def close(self) -> None:
        """Wait for what is running."""
        for threads in self._threads.values():
            threads.close()


def share_out(connections: int) -> dict[Lane, int]:
    """Threads for each lane, `connections` together."""
    rest = connections - 2
    people, telemetry = max(1, rest // 4), max(1, rest // 5)
    devices = max(1, (rest - people - telemetry) // 2)
    pushes = rest - people - telemetry - devices
    return {
        Lane.PUSHES: pushes, Lane.DEVICES: devices, Lane.PEOPLE: people, Lane.TELEMETRY: telemetry,
        Lane.PROBES: 1, Lane.BACKGROUND: 1,
    }  # fmt: skip


class LaneByPath:
    """Middleware: while a request is served, its lane is that of its path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with _in_lane(lane_of(scope["path"])):
            await self._app(scope, receive, send)


def lane_of(path: str) -> Lane:
    """The lane of requests to `path`."""
    return next((lane for beginning, lane in _LANES_BY_PATH if path.startswith(beginning)), Lane.PEOPLE)


@contextlib.contextmanager
def _in_lane(lane: Lane) -> Iterator[None]:
    token = _lane.set(lane)
    try:
        yield
    finally:
        _lane.reset(token)


class _Threads:
    """Those of one lane."""

    def __init__(self, lane: Lane, count: int, most_waiting: int) -> None:
        self._lane, self._most_waiting = lane, most_waiting
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=lane)
        # Who waits, waits here, first come first served, and not in the executor: there nothing leaves the queue that
        # was cancelled, as what came too late is.
        self._free = asyncio.Semaphore(count)
        self._waiting = 0

    async def run(self, work: Callable[[], Answer]) -> Answer:
        self.check()
        self._count(1)
        try:
            await self._free.acquire()
        finally:
            self._count(-1)
        loop = asyncio.get_running_loop()

        def give_back(_: object) -> None:
            # The loop has ended where the service stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._free.release)

        running = self._executor.submit(copy_context().run, work)
        running.add_done_callback(give_back)
        return await asyncio.wrap_future(running)

    def check(self) -> None:
        if self._waiting >= self._most_waiting:
            LANE_REFUSED.labels(self._lane).inc()
            raise UnavailableError(
                f"{self._most_waiting} requests of this kind wait already",
                remedy="try again later",
                code="gate_overloaded",
                retry_after_s=_RETRY_AFTER_S,
            )

    def close(self) -> None:
        self._executor.shutdown()

    def _count(self, change: int) -> None:
        self._waiting += change
        LANE_WAITING.labels(self._lane).set(self._waiting)
