"""Waiting for something to happen without missing it between a look and the wait."""

from __future__ import annotations

import asyncio


class Tickets:
    """Wakes whoever waits; used on one event loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing will wake anybody any more."""
        return self._closed

    def ticket(self) -> asyncio.Future[None]:
        """A future that the next `wake_all` completes; taken before a look, it misses nothing that comes after it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.cancel()
        else:
            self._waiting.add(future)
            future.add_done_callback(self._waiting.discard)
        return future

    async def wait_for(self, ticket: asyncio.Future[None], timeout_s: float) -> bool:
        """Whether somebody woke it before the time was over or the service stopped; the ticket is spent afterwards."""
        try:
            await asyncio.wait({ticket}, timeout=timeout_s)
            return ticket.done() and not ticket.cancelled()
        finally:
            ticket.cancel()

    def close(self) -> None:
        """Let everybody who waits go on at once; for a service that stops."""
        self._closed = True
        for future in list(self._waiting):
            future.cancel()

    def wake_all(self) -> None:
        """Complete all tickets."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)
