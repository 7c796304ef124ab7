"""What happens, told to whoever listens: each listener has a bounded queue, and a slow one loses the oldest."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import Counter, Gauge

from primespark.core.web.watching import HEARTBEAT, as_server_sent
from primespark.errors import OverloadedError

MAX_LISTENERS = 16
MAX_WAITING = 256
HEARTBEAT_S = 15.0

LISTENERS = Gauge("primespark_event_stream_listeners", "Clients of the event stream.")
LOST = Counter("primespark_event_stream_lost_total", "Messages that slow clients of the event stream did not get.")


class Listener:
    """One client's queue.

    Args:
        heartbeat_s: Longest silence.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._is_closed = False
        self._changed = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Add a message; the oldest makes room for it."""
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1
            LOST.inc()
        self._waiting.append(message)
        self._changed.set()

    def close(self) -> None:
        """End the stream after what waits."""
        self._is_closed = True
        self._changed.set()

    async def messages(self) -> AsyncIterator[bytes]:
        """Server-sent events until closed: what was lost first, a comment where nothing happens."""
        yield HEARTBEAT
        while True:
            while self._waiting:
                if self._lost:
                    lost, self._lost = self._lost, 0
                    yield as_server_sent("lost", {"count": lost})
                yield self._waiting.popleft()
            if self._is_closed:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._changed.wait()
            except TimeoutError:
                yield HEARTBEAT


class Broadcast:
    """All listeners of a device; belongs to the event loop.

    Args:
        heartbeat_s: Longest silence of a stream.
    """

    def __init__(self, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._heartbeat_s = heartbeat_s
        self._listeners: set[Listener] = set()
        self._is_closed = False

    def tell(self, name: str, value: dict[str, Any]) -> None:
        """Tell all listeners; costs nothing without any."""
        if self._listeners:
            message = as_server_sent(name, value)
            for listener in self._listeners:
                listener.put(message)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """A listener, told everything from now on.

        Raises:
            OverloadedError: Code `too_many_listeners`.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise OverloadedError(
                f"{MAX_LISTENERS} clients listen already", remedy="end one of them", code="too_many_listeners"
            )
        listener = Listener(self._heartbeat_s)
        if self._is_closed:
            listener.close()
        self._listeners.add(listener)
        LISTENERS.set(len(self._listeners))
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            LISTENERS.set(len(self._listeners))

    def close(self) -> None:
        """End all streams, now and later."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()
