"""A worker's membership in the consumer group, given up and taken anew when there is another topic to read.

Faust could subscribe to a topic that comes later, but waits 45 s, and forgets it where a rebalance is under way. A
further app is a member in a second or two, and has nothing of the last one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from primespark.core.logging import get_logger
from primespark.core.settings import Settings
from primespark.errors import UnavailableError
from streams.app import FaustSource, attach, build_app
from streams.worker import StreamWorker

# A member that is not gone would hold partitions against the one that follows. At the end of the process none does:
# then less than the supervisor's 8 s, as Faust, cut off while it starts, waits for a broker that is gone.
_STOP_TIMEOUT_S = 10.0
_LAST_STOP_TIMEOUT_S = 4.0

log = get_logger(__name__)


class Membership:
    """Lets one Faust app after another feed the worker.

    Args:
        settings: Of the cloud.
        worker: Whose rules name the topics.
        source: The worker's view of the app at work.
        resubscribe: Set when there is another topic.
        started: Is set when the first app has started.
    """

    def __init__(
        self,
        settings: Settings,
        worker: StreamWorker,
        source: FaustSource,
        resubscribe: asyncio.Event,
        started: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._source = source
        self._resubscribe = resubscribe
        self._started = started

    async def run(self) -> None:
        """Be a member until cancelled.

        Raises:
            UnavailableError: The app broke down, or does not end.
        """
        while True:
            self._resubscribe.clear()
            topics = self._worker.engine.source_topics
            await self._run_one(build_app(self._settings))
            log.info("subscription_changed", before=topics, now=self._worker.engine.source_topics)

    async def _run_one(self, app: Any) -> None:
        self._source.use(app)
        attach(app, self._worker)
        app.finalize()
        consuming = asyncio.create_task(self._start_and_wait(app), name="faust-app")
        changed = asyncio.create_task(self._resubscribe.wait(), name="resubscribe")
        try:
            await asyncio.wait({consuming, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._worker.revoked()
            await _stop(app, _STOP_TIMEOUT_S if self._resubscribe.is_set() else _LAST_STOP_TIMEOUT_S)
            consuming.cancel()
            changed.cancel()
            ended, _ = await asyncio.gather(consuming, changed, return_exceptions=True)
        if not self._resubscribe.is_set():
            raise UnavailableError(f"the consumer ended: {app.crash_reason or ended!r}", remedy="look at the log")

    async def _start_and_wait(self, app: Any) -> None:
        await app.start()
        self._started.set()
        await app.wait_until_stopped()


async def _stop(app: Any, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await app.stop()
    except TimeoutError:
        raise UnavailableError(
            f"Faust has not stopped in {timeout_s:.0f} s", remedy="none needed: a restart goes on"
        ) from None
