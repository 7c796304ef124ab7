"""A fleet against one gate process: after an outage of half of it all devices are equal, and no request starves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from edge_agent.credentials import CredentialFiles
from edge_agent.database import Database
from edge_agent.documents import Documents
from edge_agent.exchange import Exchange
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Batch, Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.reading import Position
from primespark.core.settings import EdgeSettings, NetworkSettings, OfflineSettings, SyncSettings
from primespark.embedded.link import Link
from primespark.embedded.ports import choose_port
from primespark.store import devices, documents
from primespark.sync.records import DataClass, PullResponse, PushResponse
from tests.helpers import rounds, wait_until

BATCH_RECORDS = 50
SETTINGS = SyncSettings(batch_records=BATCH_RECORDS, batch_wait_s=0.1, pull_wait_s=20, retry_base_s=0.2, retry_max_s=5)
# Of the mean time a device took for everything it had: what no push and no pull may take, and what no device may.
LONGEST_REQUEST, LONGEST_DRAIN = 0.75, 2.0
LIMIT_S = 240.0


class TimedGateClient(GateClient):
    """Notes how long each answer took; of pulls, those that do not wait for a change."""

    def __init__(self, url: str, network: NetworkSettings) -> None:
        super().__init__(url, network)
        self.pushes: list[float] = []
        self.pulls: list[float] = []

    async def push(self, batch: Batch) -> PushResponse:
        started = time.monotonic()
        answer = await super().push(batch)
        self.pushes.append(time.monotonic() - started)
        return answer

    async def pull(self, position: Position, limit: int, wait_s: float) -> PullResponse:
        started = time.monotonic()
        page = await super().pull(position, limit, wait_s)
        if not wait_s:
            self.pulls.append(time.monotonic() - started)
        return page


class Member:
    """One device's synchronisation, on a folder of its own."""

    def __init__(self, folder: Path, device_id: str, url: str, token: str) -> None:
        self.device_id = device_id
        self.database = Database(folder / "queue.db")
        self.queue = OfflineQueue(self.database, OfflineSettings(minimum_free_disk_bytes=0))
        self.documents = Documents(self.database, device_id)
        self.outgoing = Outgoing(self.database, device_id, BATCH_RECORDS, 500_000)
        self.gate = TimedGateClient(url, NetworkSettings(request_timeout_s=60, connect_timeout_s=30))
        files = CredentialFiles(folder, EdgeSettings(device_id=device_id, enrolment_token=SecretStr(token)))
        self.exchange = Exchange(
            self.gate, files, self.outgoing, self.documents, SETTINGS, device_id=device_id, on_documents=lambda: None
        )
        loop = asyncio.get_running_loop()

        def notify(_: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(self.exchange.notify)

        self.database.watch(notify)

    async def enqueue(self, first: int, count: int) -> None:
        """Facts with values `{"n": number}`."""
        await self.queue.enqueue([NewFact(DataClass.TELEMETRY, {"n": n}) for n in range(first, first + count)])

    async def equal(self, number: int) -> float:
        """When nothing waits here and what the cloud told the fleet last is here."""
        while self.outgoing.waiting or (await self.documents.effective("light")) != {"n": number}:  # noqa: ASYNC110 (a file)
            await asyncio.sleep(0.05)
        return time.monotonic()


@contextlib.asynccontextmanager
async def fleet(folder: Path, urls: list[str], token: str) -> AsyncIterator[list[Member]]:
    """Devices at work, one for each URL."""
    members = []
    for number, url in enumerate(urls):
        (folder / f"edge-{number}").mkdir()
        members.append(Member(folder / f"edge-{number}", f"edge-{number}", url, token))
    tasks = [asyncio.create_task(member.exchange.run()) for member in members]
    try:
        yield members
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in members:
            await member.gate.aclose()
            member.database.close()


@pytest.fixture
def gate_port(store_engine: Engine, tmp_path: Path) -> Iterator[int]:
    """Where a gate process of its own listens."""
    port = choose_port(0, set())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PRIMESPARK_")},
        "PRIMESPARK_HOME": str(tmp_path / "home"),
        "PRIMESPARK_CLOUD__PORT": str(port),
        "PRIMESPARK_CLOUD__STORE__URL": store_engine.url.render_as_string(hide_password=False),
    }
    command = [sys.executable, "-m", "primespark.cli.main", "cloud"]
    with (tmp_path / "cloud.log").open("wb") as log_file:
        process = subprocess.Popen(command, env=environment, stdout=log_file, stderr=log_file)

    def is_up() -> bool:
        assert process.poll() is None, (tmp_path / "cloud.log").read_text()
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"http://127.0.0.1:{port}/livez", timeout=5).status_code == 200
        return False

    try:
        wait_until(is_up, 60)
        yield port
    finally:
        process.terminate()
        process.wait(30)


@contextlib.asynccontextmanager
async def person(home: Path, port: int) -> AsyncIterator[list[float]]:
    """Somebody who asks for the list of devices all the time; how long each answer took."""
    taken, is_over = list[float](), asyncio.Event()
    key = (home / "cloud" / "admin.key").read_text().strip()

    async def ask() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=LIMIT_S) as client:
            while not is_over.is_set():
                started = time.monotonic()
                (await client.get("/api/v1/devices")).raise_for_status()
                taken.append(time.monotonic() - started)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        yield taken
        # The last answer is waited for: it may be the one that starves.
        is_over.set()


def tell_fleet(engine: Engine, number: int) -> None:
    with engine.begin() as connection:
        documents.write_cloud(connection, "fleet", "light", {"n": number})


@pytest.mark.prove
async def test_all_devices_are_equal_after_an_outage_of_half_and_no_request_starves(
    store_engine: Engine, gate_port: int, tmp_path: Path
) -> None:
    # Few devices have more to say: else one moment of a busy machine would be too large a part of the whole.
    size, each = rounds(12, 200), rounds(10, 4) * BATCH_RECORDS
    with store_engine.begin() as connection:
        token = devices.create_token(connection, size, timedelta(hours=1))
    tell_fleet(store_engine, 1)
    async with asyncio.timeout(LIMIT_S), Link(gate_port) as link:
        urls = [link.url if number % 2 else f"http://127.0.0.1:{gate_port}" for number in range(size)]
        async with fleet(tmp_path, urls, token) as members:
            await asyncio.gather(*(member.equal(1) for member in members))
            link.cut()
            await asyncio.to_thread(tell_fleet, store_engine, 2)
            await asyncio.gather(*(member.enqueue(0, each) for member in members[1::2]))
            await asyncio.gather(*(member.equal(2) for member in members[::2]))
            for member in members:
                member.gate.pushes.clear()
                member.gate.pulls.clear()
            # All at once: half come back with what waited, the others have as much to say, and the cloud tells all.
            link.heal()
            started = time.monotonic()
            for member in members[1::2]:
                member.exchange.synchronise_now()
            await asyncio.to_thread(tell_fleet, store_engine, 3)
            async with person(tmp_path / "home", gate_port) as asked:
                await asyncio.gather(*(member.enqueue(0, each) for member in members[::2]))
                drained = [ended - started for ended in await asyncio.gather(*(member.equal(3) for member in members))]
            pushes = [taken for member in members for taken in member.gate.pushes]
            pulls = [taken for member in members for taken in member.gate.pulls]
    mean_s = sum(drained) / size
    figures = {"mean": mean_s, "last": max(drained), "push": max(pushes), "pull": max(pulls), "person": max(asked)}
    print("drain", {name: round(seconds, 2) for name, seconds in figures.items()})
    with store_engine.connect() as connection:
        facts = connection.execute(
            text("SELECT device_id, array_agg((value->>'n')::int ORDER BY seq) FROM sync.fact GROUP BY device_id")
        ).all()
    assert {row[0]: row[1] for row in facts} == {member.device_id: list(range(each)) for member in members}
    assert max(drained) <= LONGEST_DRAIN * mean_s, figures
    assert max(*pushes, *pulls, *asked) <= LONGEST_REQUEST * mean_s, figures
