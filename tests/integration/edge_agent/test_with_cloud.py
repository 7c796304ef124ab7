"""A device against the real cloud service on a real PostgreSQL: both halves of the protocol are of one mind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.queue import NewFact, OfflineQueue
from primespark.cloud.main import build, build_app
from primespark.cloud.state import Cloud
from primespark.core.clock import Clock, utc_now
from primespark.core.settings import OfflineSettings, load_settings
from primespark.core.web.server import bind
from primespark.embedded.link import Link
from primespark.store import devices, documents, groups
from primespark.sync.records import DataClass
from tests.integration.edge_agent.device import running_device, until
from tests.integration.edge_agent.digits import make_version
from tests.integration.edge_agent.gate import serve_on_thread


@dataclass(frozen=True, slots=True)
class RunningCloud:
    """The cloud and where it listens."""

    cloud: Cloud
    port: int

    def ask(self, statement: str) -> list[Any]:
        with self.cloud.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def token(self) -> str:
        with self.cloud.engine.begin() as connection:
            return devices.create_token(connection, 1, timedelta(hours=1))

    def desire(self, value: dict[str, Any]) -> None:
        with self.cloud.engine.begin() as connection:
            documents.write_cloud(connection, "edge-1", "twin", {"desired": value})

    def reported(self) -> dict[str, Any]:
        with self.cloud.engine.connect() as connection:
            twin = documents.read(connection, "edge-1", "twin")
        found: dict[str, Any] = twin.value.get("reported", {}) if twin else {}
        return found


@pytest.fixture
def running_cloud(store_engine: Engine, tmp_path: Path) -> Iterator[RunningCloud]:
    url = store_engine.url.render_as_string(hide_password=False)
    cloud = build(load_settings(overrides={"cloud": {"store": {"url": url}}}), tmp_path / "home")
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with serve_on_thread(build_app(cloud), listener, lifespan="on"):
        yield RunningCloud(cloud, port)
    cloud.engine.dispose()


async def test_what_a_wrong_clock_stamped_is_stored_with_its_true_time(
    running_cloud: RunningCloud, tmp_path: Path
) -> None:
    wrong = timedelta(days=-400)
    wrong_ns = int(wrong.total_seconds()) * 10**9
    folder, before = tmp_path / "device", utc_now()
    # Left by a boot that never reached the cloud.
    lost_boot = Clock(lambda: time.time_ns() + wrong_ns)
    database = Database(folder / "queue.db")
    queue = OfflineQueue(database, OfflineSettings(), clock=DeviceClock(5, lost_boot, "lost-boot"))
    await queue.enqueue([NewFact(DataClass.TELEMETRY, {"n": 0}, before + wrong, "lost-boot")])
    database.close()
    clock = DeviceClock(5, lost_boot)
    async with running_device(
        folder, f"http://127.0.0.1:{running_cloud.port}", token=running_cloud.token(), clock=clock
    ) as device:
        await device.queue.enqueue([NewFact(DataClass.TELEMETRY, {"n": 1}, utc_now() + wrong)])
        await device.drained()
        assert clock.offset_s == pytest.approx(wrong.total_seconds(), abs=1)
    lost, repaired = running_cloud.ask("SELECT time, quality FROM sync.fact ORDER BY seq")
    assert lost == (before + wrong, "clock_unknown")
    assert repaired[1] == "clock_repaired"
    assert before <= repaired[0] <= utc_now()


async def test_facts_are_stored_once_though_replies_are_lost(running_cloud: RunningCloud, tmp_path: Path) -> None:
    async with (
        Link(running_cloud.port) as link,
        running_device(tmp_path / "device", link.url, token=running_cloud.token()) as device,
    ):
        for number in range(0, 300, 30):
            if number % 90 == 0:
                link.lose_next_reply(b"POST /sync/v1/push")
            await device.enqueue(*range(number, number + 30))
            await device.drained()
        status = await device.queue.status()
    facts = running_cloud.ask("SELECT epoch, seq, (value->>'n')::int FROM sync.fact ORDER BY seq")
    assert facts == [(1, n + 1, n) for n in range(300)]
    assert running_cloud.ask("SELECT count(*) FROM sync.lost") == [(0,)]
    assert running_cloud.ask("SELECT count(*) FROM metrics.sample") == [(300,)]
    assert status.replayed_batches == link.counts.replies_lost > 0


async def test_a_lost_database_goes_on_in_a_new_epoch(running_cloud: RunningCloud, tmp_path: Path) -> None:
    url, folder = f"http://127.0.0.1:{running_cloud.port}", tmp_path / "device"
    async with running_device(folder, url, token=running_cloud.token()) as device:
        await device.documents.patch("twin", {"reported": {"n": 1}})
        await device.enqueue(0, 1)
        await device.drained()
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        (folder / name).unlink(missing_ok=True)
    async with running_device(folder, url) as device:
        await device.documents.patch("twin", {"reported": {"n": 2}})
        await device.enqueue(2)
        await device.drained()
    assert running_cloud.ask("SELECT epoch, seq, (value->>'n')::int FROM sync.fact ORDER BY 1, 2") == [
        (1, 1, 0), (1, 2, 1), (2, 1, 2),
    ]  # fmt: skip
    assert running_cloud.reported() == {"n": 2}


async def test_a_model_travels_and_is_reported(running_cloud: RunningCloud, tmp_path: Path) -> None:
    version = make_version(1, running_cloud.cloud.signing_key)
    for blob in (version.onnx, version.manifest):
        running_cloud.cloud.blobs.put(blob)
    url = f"http://127.0.0.1:{running_cloud.port}"
    async with running_device(tmp_path / "device", url, token=running_cloud.token()) as device:
        await until(lambda: device.engine.state.last_pull_at is not None)
        await asyncio.to_thread(running_cloud.desire, {"models": {"digits": version.pointer}})
        await until(lambda: device.slots.get("digits") is not None)
        await until(lambda: running_cloud.reported().get("models", {}).get("digits", {}).get("version") == 1)
        await asyncio.to_thread(running_cloud.desire, {"models": {"digits": {**version.pointer, "version": 2}}})
        await until(lambda: device.engine.state.last_pull_at is not None)
    assert running_cloud.reported()["models"]["digits"].keys() >= {"version", "digest", "since"}


async def test_a_membership_reaches_the_device_though_replies_are_lost(
    running_cloud: RunningCloud, tmp_path: Path
) -> None:
    def change(work: Callable[[Connection], Any]) -> None:
        with running_cloud.cloud.engine.begin() as connection:
            work(connection)

    async def holds(value: dict[str, Any]) -> None:
        async with asyncio.timeout(20):
            while await device.documents.effective("light") != value:  # noqa: ASYNC110 (a file wakes nobody)
                await asyncio.sleep(0.02)

    for scope, value in (("group:b", {"n": 2}), ("group:a", {"n": 1, "a": 1}), ("fleet", {"n": 0, "fleet": 1})):
        change(partial(documents.write_cloud, scope=scope, key="light", patch=value))
    async with (
        Link(running_cloud.port) as link,
        running_device(tmp_path / "device", link.url, token=running_cloud.token()) as device,
    ):
        await holds({"n": 0, "fleet": 1})
        for group in ("a", "b"):
            link.lose_next_reply(b"GET /sync/v1/pull")
            await asyncio.to_thread(change, partial(groups.join, device_id="edge-1", group=group))
        await holds({"n": 2, "a": 1, "fleet": 1})
        link.lose_next_reply(b"GET /sync/v1/pull")
        await asyncio.to_thread(change, partial(groups.leave, device_id="edge-1", group="b"))
        await holds({"n": 1, "a": 1, "fleet": 1})
        assert link.counts.replies_lost > 0
