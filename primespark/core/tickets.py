"""Waiting for something to happen without missing it between a look and the wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Set


class Tickets:
    """Wakes whoever waits; used on one event loop."""

    def __init__(self) -> None:
        # None: whatever happens wakes it.
        self._waiting: dict[asyncio.Future[None], frozenset[str] | None] = {}
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing will wake anybody any more."""
        return self._closed

    def ticket(self) -> asyncio.Future[None]:
        """A future that the next wake completes; taken before a look, it misses nothing that comes after it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.cancel()
        else:
            self._waiting[future] = None
            future.add_done_callback(lambda done: self._waiting.pop(done, None))
        return future

    def narrow(self, ticket: asyncio.Future[None], topics: Iterable[str]) -> None:
        """From now on only these topics wake it: for what is known to matter after the look only."""
        if ticket in self._waiting:
            self._waiting[ticket] = frozenset(topics)

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
        self._complete(list(self._waiting))

    def wake(self, topics: Set[str]) -> None:
        """Complete the tickets of these topics, and those that were not narrowed."""
        self._complete([future for future, own in self._waiting.items() if own is None or not own.isdisjoint(topics)])

    @staticmethod
    def _complete(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)
