"""A gate that answers 503 for as long as a test says, and devices that are at work against it in virtual time."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from edge_agent.credentials import CredentialFiles
from edge_agent.documents import Documents
from edge_agent.exchange import Exchange
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import EdgeSettings, NetworkSettings, OfflineSettings, StreamSettings, SyncSettings
from primespark.sync.records import DataClass
from tests.integration.edge_agent.gate import TOKEN, GateOracle
from tests.integration.exchange.virtual_time import VirtualDatabase

LIMITS = OfflineSettings(minimum_free_disk_bytes=0, streams=(StreamSettings(stream="alarm", priority="critical"),))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came, and whether it was told 503."""

    at_s: float
    device: str
    direction: str
    is_refused: bool


class StormyGate(httpx2.AsyncBaseTransport):
    """The way to the oracle's gate, without a network; while there is a storm every request is told 503.

    Attributes:
        retry_after_s: What the storm tells, if anything.
        bodies: Of each device, the batches it sent during storms, as they were sent.
    """

    def __init__(self, retry_after_s: int | None = None) -> None:
        self.oracle = GateOracle()
        self.retry_after_s = retry_after_s
        self.asked: list[Asked] = []
        # When each fact was taken, by device, stream and number; what is live has a stream of its own.
        self.taken_s: dict[tuple[str, str, int], float] = {}
        self.bodies: defaultdict[str, list[bytes]] = defaultdict(list)
        self._storm = asyncio.Event()

    def begin_storm(self) -> None:
        """From now on; pulls that wait are told too."""
        self._storm.set()

    def end_storm(self) -> None:
        """From now on requests are answered."""
        self._storm = asyncio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request's answer."""
        body, direction = await request.aread(), request.url.path.rsplit("/", 1)[1]
        if direction == "enroll":
            reply = self.oracle.enrol(json.loads(body))
            return httpx2.Response(reply.status_code, headers=dict(reply.headers), content=bytes(reply.body))
        key = request.headers["authorization"].removeprefix("Bearer ")
        # key-<device>-<epoch>, as the oracle made it.
        device = key.removeprefix("key-").rsplit("-", 1)[0]
        self.asked.append(Asked(self._now_s(), device, direction, self._storm.is_set()))
        if self._storm.is_set():
            if direction == "push":
                self.bodies[device].append(body)
            return self._refusal()
        if direction == "pull":
            return await self._pull(device, request)
        before = len(self.oracle.facts)
        reply = self.oracle.push(device, body, request.headers)
        for fact in self.oracle.facts[before:]:
            place = (device, fact["stream"].removesuffix(".live"), fact["value"]["n"])
            assert place not in self.taken_s, "taken twice"
            self.taken_s[place] = self._now_s()
        return httpx2.Response(reply.status_code, headers=dict(reply.headers), content=bytes(reply.body))

    async def _pull(self, device: str, request: httpx2.Request) -> httpx2.Response:
        try:
            async with asyncio.timeout(float(request.url.params["wait"])):
                await self._storm.wait()
        except TimeoutError:
            return httpx2.Response(200, json=self.oracle.pull(device, int(request.url.params["cursor"])))
        return self._refusal()

    def _refusal(self) -> httpx2.Response:
        """In turn what an overloaded gate says, and a proxy before one that is gone."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if len(self.asked) % 2:
            return httpx2.Response(503, headers=headers, html="<h1>503 Service Unavailable</h1>")
        problem = {"code": "gate_overloaded", "detail": "too many requests wait", "status": 503}
        return httpx2.Response(503, headers=headers, json=problem)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


class Member:
    """One device's synchronisation, on a folder of its own, in virtual time."""

    def __init__(self, folder: Path, device_id: str, settings: SyncSettings) -> None:
        folder.mkdir()
        self.device_id = device_id
        self.database = VirtualDatabase(folder / "queue.db")
        self.queue = OfflineQueue(self.database, LIMITS)
        self.outgoing = Outgoing(
            self.database, device_id, settings.batch_records, 1_000_000, settings.backlog_records_per_s
        )
        self.gate = GateClient("http://gate.test", NetworkSettings())
        files = CredentialFiles(folder, EdgeSettings(device_id=device_id, enrolment_token=SecretStr(TOKEN)))
        self.exchange = Exchange(
            self.gate, files, self.outgoing, Documents(self.database, device_id), settings,
            device_id=device_id, on_documents=lambda: None,
        )  # fmt: skip
        loop = asyncio.get_running_loop()

        def notify(_: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(self.exchange.notify)

        self.database.watch(notify)
        self._task = asyncio.create_task(self.exchange.run())

    async def enqueue(self, *numbers: int, stream: str = "telemetry") -> None:
        """Facts with values `{"n": number}`."""
        await self.queue.enqueue([NewFact(DataClass.TELEMETRY, {"n": n}, stream=stream) for n in numbers])

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What is in its file."""
        return await self.database.run(lambda connection: connection.execute(query).fetchall())

    async def close(self) -> None:
        """End the device."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.gate.aclose()
        self.database.close()
