"""Whether the cloud can be reached: told by every exchange, and by probes while there is none."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn

import httpx2
from prometheus_client import Counter, Gauge

from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.link_settings import ProbeSettings
from primespark.core.logging import get_logger

_MAX_PROBE_ANSWER_BYTES = 4096
_SHARE_TO_CONNECT = 0.8
_ALIVE = b'{"status":"alive"}'

UP = Gauge("primespark_link_up", "1 while the cloud answers.")
PROBES = Counter("primespark_link_probes_total", "Questions whether the cloud is there.", ["outcome"])
for _outcome in ("answered", "failed"):
    PROBES.labels(_outcome)

log = get_logger(__name__)


class LinkState(StrEnum):
    """How far a request comes."""

    UNKNOWN = "unknown"
    UP = "up"
    NOT_CONNECTED = "not_connected"
    NO_ANSWER = "no_answer"
    NO_GATE = "no_gate"


def fault_of(error: Exception) -> LinkState:
    """What a failed request says of the link.

    Where no connection comes about, nothing arrived. Where one does and no answer follows, what was sent may have
    arrived: replies are lost, or the cloud hangs.
    """
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
        return LinkState.NOT_CONNECTED
    return LinkState.NO_ANSWER


class LinkHealth:
    """The link's state, which one failure alone does not change.

    Args:
        failures: After so many in a row it is down.
        successes: After so many in a row it is up again.
    """

    def __init__(self, failures: int = 2, successes: int = 1) -> None:
        self._failures = failures
        self._successes = successes
        self._in_a_row = 0
        self.state = LinkState.UNKNOWN
        self.since = utc_now()
        self.last_answer_at: datetime | None = None
        UP.set(0)

    @property
    def is_up(self) -> bool:
        """Whether the cloud answers."""
        return self.state is LinkState.UP

    def answered(self) -> None:
        """The cloud answered, whatever it said."""
        self.last_answer_at = utc_now()
        self._count(self.is_up, self._successes, LinkState.UP)

    def failed(self, fault: LinkState) -> None:
        """A request came to nothing."""
        is_down = self.state not in (LinkState.UP, LinkState.UNKNOWN)
        if is_down and fault is not self.state:
            self._become(fault)
        self._count(is_down, self._failures, fault)

    def _count(self, is_so_already: bool, needed: int, state: LinkState) -> None:
        self._in_a_row = 0 if is_so_already else self._in_a_row + 1
        # Nothing is known yet: the first word counts.
        if self._in_a_row >= (1 if self.state is LinkState.UNKNOWN else needed):
            self._become(state)

    def _become(self, state: LinkState) -> None:
        log.info("link", state=state, was=self.state)
        self.state, self.since, self._in_a_row = state, utc_now(), 0
        UP.set(self.is_up)


@dataclass(slots=True)
class Endpoint:
    """A place that is asked, and what it answered last."""

    url: str
    is_gate: bool
    state: LinkState = LinkState.UNKNOWN
    at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"url": self.url, "state": self.state, "at": to_rfc3339(self.at) if self.at else None}


class ConnectivityMonitor:
    """Asks the cloud whether it is there while no exchange says so, and says when it is back.

    Args:
        cloud_url: Of the gate; its `/livez` is asked.
        settings: How often, how long, and what else to ask: the network may be there and the cloud not.
        link: Of the gate; exchanges tell it too.
        on_answer: Called when the gate answered a probe.
    """

    def __init__(
        self, cloud_url: str, settings: ProbeSettings, link: LinkHealth, on_answer: Callable[[], None]
    ) -> None:
        self.link = link
        gate = Endpoint(f"{cloud_url.rstrip('/')}/livez", is_gate=True)
        self.endpoints = [gate, *(Endpoint(url, is_gate=False) for url in settings.endpoints)]
        self._settings = settings
        self._on_answer = on_answer

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        while True:
            before = self.link.last_answer_at
            await asyncio.sleep(self._settings.interval_s * random.uniform(0.9, 1.0))  # noqa: S311 (no secret)
            if self.link.last_answer_at == before:
                await self.probe()

    async def probe(self) -> None:
        """Ask all endpoints once."""
        # Of a link that drops all, no connection comes about: that must be found out before the whole time is over.
        limits = httpx2.Timeout(self._settings.timeout_s, connect=self._settings.timeout_s * _SHARE_TO_CONNECT)
        # New connections: one that is kept may be of a link that is gone.
        async with (
            httpx2.AsyncClient(timeout=limits, follow_redirects=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for endpoint in self.endpoints:
                group.create_task(self._ask(client, endpoint), name=f"probe {endpoint.url}")

    def to_json(self) -> dict[str, Any]:
        """As `/api/v1/sync/status` has it."""
        last, link = self.link.last_answer_at, self.link
        return {
            "state": link.state, "since": to_rfc3339(link.since), "last_answer_at": to_rfc3339(last) if last else None,
            "endpoints": [endpoint.to_json() for endpoint in self.endpoints],
        }  # fmt: skip

    async def _ask(self, client: httpx2.AsyncClient, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                endpoint.state = await _answer(client, endpoint)
        except TimeoutError:
            endpoint.state = LinkState.NO_ANSWER
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            endpoint.state = fault_of(error)
        endpoint.at = utc_now()
        is_up = endpoint.state is LinkState.UP
        PROBES.labels("answered" if is_up else "failed").inc()
        if endpoint.is_gate and is_up:
            self.link.answered()
            self._on_answer()
        elif endpoint.is_gate:
            self.link.failed(endpoint.state)


async def _answer(client: httpx2.AsyncClient, endpoint: Endpoint) -> LinkState:
    """UP for an answer of what is asked; a portal that asks for a password answers too, and is no gate."""
    async with client.stream("GET", endpoint.url, headers={"Accept-Encoding": "identity"}) as reply:
        body = b""
        async for chunk in reply.aiter_raw():
            body += chunk
            if len(body) > _MAX_PROBE_ANSWER_BYTES:
                break
    is_expected = reply.is_success and (not endpoint.is_gate or body == _ALIVE)
    return LinkState.UP if is_expected else LinkState.NO_GATE
