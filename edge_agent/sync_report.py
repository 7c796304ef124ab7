"""What the cloud cannot see of a device's queue, told in `reported.sync` of its twin."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import NoReturn

from edge_agent.documents import TWIN, Documents
from edge_agent.queue import OfflineQueue
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

INTERVAL_S = 60.0
# What waits for less is on its way: told, every device at work would write its twin each time it is asked.
_LONG = timedelta(seconds=60)

log = get_logger(__name__)


class SyncReport:
    """Keeps `reported.sync` in step with the queue: `{pending, oldest_at, dead_letters, lost}`.

    Args:
        queue: Whose state is told.
        documents: Of the device; the twin is written only where it says something else.
        interval_s: Between two looks.
    """

    def __init__(self, queue: OfflineQueue, documents: Documents, interval_s: float = INTERVAL_S) -> None:
        self._queue = queue
        self._documents = documents
        self._interval_s = interval_s

    async def run(self) -> NoReturn:
        """Look and tell until cancelled; first after one interval, when what waited for the link has had its time."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.tell(utc_now())
            except PrimeSparkError as error:
                log.warning("sync_not_reported", code=error.code, cause=error.message)

    async def tell(self, now: datetime) -> None:
        """Write how the queue stands at `now`, if the twin says otherwise."""
        status, oldest = await self._queue.status(), await self._queue.oldest_time()
        oldest_at = datetime.fromisoformat(oldest) if oldest else None
        waits_long = oldest_at is not None and now - oldest_at > _LONG
        await self._documents.patch(
            TWIN,
            {
                "reported": {
                    "sync": {
                        "pending": status.pending if waits_long else 0,
                        # None removes it.
                        "oldest_at": to_rfc3339(oldest_at) if oldest_at and waits_long else None,
                        "dead_letters": status.dead_letters,
                        "lost": sum(stream.lost for stream in status.streams.values()),
                    }
                }
            },
        )
