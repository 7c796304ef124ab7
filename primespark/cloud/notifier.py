"""One listener on the sync log for all waiting requests, so that a waiting pull holds no database connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sqlalchemy import Engine

from primespark.core.logging import get_logger
from primespark.core.tickets import Tickets
from primespark.errors import UnavailableError
from primespark.store.database import Listener

CHANNEL = "sync_log"
_RETRY_S = 1.0

log = get_logger(__name__)


class Notifier(Tickets):
    """Wakes who waits for what the sync log grew by; used on one event loop.

    A topic is a scope of documents and commands (`sync_log.topic_of`) or `sync_log.FACTS`. So what one device pushes
    wakes no other's pull: with all of them woken by each push, the reads of a fleet would grow with its square.

    Args:
        listen: Opens the listener; it is opened again when its connection breaks.
    """

    def __init__(self, listen: Callable[[], Listener]) -> None:
        super().__init__()
        self._listen = listen

    @classmethod
    def on(cls, engine: Engine) -> Notifier:
        """A notifier on the store's sync log."""
        return cls(lambda: Listener(engine, CHANNEL))

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
                notified = listener.wait_for_payloads(0)
                if notified:
                    self.wake({topic for _, topic in notified})
        finally:
            loop.remove_reader(descriptor)
            listener.close()
