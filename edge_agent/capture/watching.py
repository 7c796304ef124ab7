"""A source at work: how it stands, and how one that fails is opened anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NoReturn

from prometheus_client import Counter, Gauge

from edge_agent.backoff import Backoff
from edge_agent.capture.configured import ConfiguredSource
from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

RECONNECT_BASE_S = 1.0
_RECONNECT_MAX_S = 60.0
# A source that lasted so long is tried again soon; one that gives something and dies is not.
_STEADY_S = 30.0

UP = Gauge("primespark_capture_source_up", "Whether a source gives frames or sound.", ["source"])
RECONNECTS = Counter(
    "primespark_capture_reconnects_total", "Cameras, streams and microphones opened anew.", ["source", "code"]
)

log = get_logger(__name__)


class SourceState(StrEnum):
    """How a source stands."""

    STARTING = "starting"
    LIVE = "live"
    RECONNECTING = "reconnecting"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Watched:
    """A source at work; the last frame of a microphone is its last window.

    Attributes:
        fault: Why it gives nothing.
        frame_fault: Why its last frame was not looked at, or not queued.
        warning: What of its settings can have no effect.
    """

    source: ConfiguredSource
    state: SourceState = SourceState.STARTING
    fault: str = ""
    frame_fault: str = ""
    warning: str = ""
    reconnects: int = 0
    last_frame_at: datetime | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.source.name

    def enter(self, state: SourceState, fault: str = "") -> None:
        """Change the state, where everyone sees it."""
        self.state, self.fault = state, fault
        UP.labels(self.name).set(state is SourceState.LIVE)

    def go_live(self) -> None:
        """It gives something: tell so once."""
        if self.state is not SourceState.LIVE:
            log.info("source_live", source=self.name)
            self.enter(SourceState.LIVE)

    def fail(self, state: SourceState, error: Exception) -> None:
        """Enter `state`; a fault is logged when it comes or changes, not at each attempt."""
        if self.fault != str(error):
            remedy = getattr(error, "remedy", "")
            log.error("source_failed", source=self.name, cause=str(error), remedy=remedy)
        self.enter(state, str(error))


async def reopen_forever(
    watched: Watched, attempt: Callable[[], Awaitable[None]], unavailable: str, base_s: float
) -> NoReturn:
    """Make attempts, each of which lasts until the source fails, with back-off between them.

    Args:
        watched: The source.
        attempt: Opens it and takes what it gives.
        unavailable: Code of faults that have none.
        base_s: Bound of the first pause.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff(base_s, _RECONNECT_MAX_S)
    while True:
        opened = loop.time()
        try:
            await attempt()
        except (PrimeSparkError, OSError) as error:
            watched.fail(SourceState.RECONNECTING, error)
            watched.reconnects += 1
            RECONNECTS.labels(watched.name, error.code if isinstance(error, PrimeSparkError) else unavailable).inc()
        if loop.time() - opened > _STEADY_S:
            backoff.succeeded()
        await backoff.pause()
