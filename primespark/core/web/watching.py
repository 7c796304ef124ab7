"""Server-sent events of what there is and how it changes, read anew whenever something happened.

A stream keeps no queue: a slow client is told the newest state when it is ready for it, and one that does not read at
all is left by the server after a while.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from primespark.core.logging import get_logger
from primespark.core.tickets import Tickets
from primespark.errors import OverloadedError, PrimeSparkError

MAX_WATCHERS = 64
HEARTBEAT_S = 15.0
# A key may be revoked meanwhile: whoever watches comes again and shows it.
LONGEST_S = 3600.0
# Whatever happens, a stream looks no more often.
INTERVAL_S = 0.2
HEARTBEAT = b": heartbeat\n\n"

log = get_logger(__name__)


def as_server_sent(name: str, value: Mapping[str, Any]) -> bytes:
    """One server-sent event; JSON has no line breaks that would end it early."""
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Seen:
    """Records that changed since the look before, and whether there are more to be seen at once."""

    records: list[dict[str, Any]]
    has_more: bool = False


class View(Protocol):
    """What one stream shows."""

    async def look(self) -> Seen:
        """What changed since the last look; the first ones show what there is."""


class Watchers:
    """All streams of a service; used on one event loop.

    Args:
        tickets: Woken when something may have changed.
        heartbeat_s: Longest silence of a stream.
        interval_s: Shortest time between two looks.
    """

    def __init__(self, tickets: Tickets, heartbeat_s: float = HEARTBEAT_S, interval_s: float = INTERVAL_S) -> None:
        self._tickets = tickets
        self._heartbeat_s = heartbeat_s
        self._interval_s = interval_s
        self.count = 0

    def stream(self, view: View) -> Response:
        """An answer of events `record`, after the first ones `ready`, and comments where nothing happens.

        Asked to be sent while `MAX_WATCHERS` are, it raises OverloadedError, code `too_many_watchers`.
        """
        return _Stream(self, view)

    async def messages(self, view: View) -> AsyncIterator[bytes]:
        """The stream until the service stops, the view fails, or it is time to come again."""
        loop = asyncio.get_running_loop()
        end, told_at, is_ready = loop.time() + LONGEST_S, loop.time(), False
        while not self._tickets.is_closed and loop.time() < end:
            ticket = self._tickets.ticket()
            try:
                seen = await view.look()
            except PrimeSparkError as error:
                log.info("watch_ends", code=error.code, cause=error.message)
                ticket.cancel()
                return
            for record in seen.records:
                yield as_server_sent("record", record)
                told_at = loop.time()
            if seen.has_more:
                ticket.cancel()
                continue
            if not is_ready:
                yield as_server_sent("ready", {})
                is_ready, told_at = True, loop.time()
            if await self._tickets.wait_for(ticket, told_at + self._heartbeat_s - loop.time()):
                await asyncio.sleep(self._interval_s)
            if loop.time() - told_at >= self._heartbeat_s:
                yield HEARTBEAT
                told_at = loop.time()


class _Stream(StreamingResponse):
    """Counts only while it is sent, so that a client that has gone leaves nothing behind."""

    def __init__(self, watchers: Watchers, view: View) -> None:
        super().__init__((), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._watchers, self._view = watchers, view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._watchers.count >= MAX_WATCHERS:
            raise OverloadedError(
                f"{MAX_WATCHERS} clients watch already",
                remedy="end one of them",
                code="too_many_watchers",
                retry_after_s=1,
            )
        self._watchers.count += 1
        try:
            self.body_iterator = self._watchers.messages(self._view)
            await super().__call__(scope, receive, send)
        finally:
            self._watchers.count -= 1
