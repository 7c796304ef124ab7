"""One listener on the sync log for all waiting requests, so that a waiting pull holds no database connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sqlalchemy import Engine

from primespark.core.logging import get_logger
from primespark.errors import UnavailableError
from primespark.store.database import Listener

CHANNEL = "sync_log"
_RETRY_S = 1.0

log = get_logger(__name__)


class Notifier:
    """Wakes whoever waits when the sync log has grown; used on one event loop.

    Args:
        listen: Opens the listener; it is opened again when its connection breaks.
    """

    def __init__(self, listen: Callable[[], Listener]) -> None:
        self._listen = listen
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    @classmethod
    def on(cls, engine: Engine) -> Notifier:
        """A notifier on the store's sync log."""
        return cls(lambda: Listener(engine, CHANNEL))

    def ticket(self) -> asyncio.Future[None]:
        """A future that the next growth completes; taken before a read, it misses nothing committed after it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.cancel()
        else:
            self._waiting.add(future)
            future.add_done_callback(self._waiting.discard)
        return future

    async def wait_for(self, ticket: asyncio.Future[None], timeout_s: float) -> bool:
        """Whether the log grew before the time was over or the service stopped; the ticket is spent afterwards."""
        try:
            await asyncio.wait({ticket}, timeout=timeout_s)
            return ticket.done() and not ticket.cancelled()
        finally:
            ticket.cancel()

    def close(self) -> None:
        """Let every waiting request answer at once; for a service that stops."""
        self._closed = True
        for future in list(self._waiting):
            future.cancel()

    def wake_all(self) -> None:
        """Complete all tickets."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen_until_broken()
            except UnavailableError as error:
                log.warning("listener_broken", error=error.message)
            await asyncio.sleep(_RETRY_S)

    async def _listen_until_broken(self) -> None:
        listener = await asyncio.to_thread(self._listen)
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        descriptor = listener.fileno()
        loop.add_reader(descriptor, readable.set)
        try:
            # Whatever was notified while nobody listened.
            self.wake_all()
            while True:
                await readable.wait()
                readable.clear()
                if listener.wait(0):
                    self.wake_all()
        finally:
            loop.remove_reader(descriptor)
            listener.close()
