"""One listener on the sync log for all waiting requests, so that a waiting pull holds no database connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from sqlalchemy import Engine

from primespark.core.logging import get_logger
from primespark.errors import UnavailableError
from primespark.store.database import Listener

CHANNEL = "sync_log"
_POLL_S = 0.5
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

    async def wait(self, timeout_s: float) -> bool:
        """Wait for growth of the log; False if there was none in time, or the service stops.

        Register before reading the log: `ticket` tells how.
        """
        return await self.wait_for(self.ticket(), timeout_s)

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
        """Wait for a ticket; the ticket is spent afterwards."""
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
        # Whatever was notified while nobody listened.
        self.wake_all()
        waiting: asyncio.Task[bool] | None = None
        try:
            while True:
                waiting = asyncio.create_task(asyncio.to_thread(listener.wait, _POLL_S))
                if await asyncio.shield(waiting):
                    self.wake_all()
        finally:
            # The thread polls the connection until its time is over; closing it under the thread would crash it.
            if waiting is not None and not waiting.done():
                with contextlib.suppress(UnavailableError):
                    await waiting
            listener.close()
