"""A device against the real cloud service on a real PostgreSQL: both halves of the protocol are of one mind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.documents import Documents
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.reading import Sweep
from primespark.cloud.main import build, build_app
from primespark.cloud.state import Cloud
from primespark.core.clock import Clock, Timestamp, utc_now
from primespark.core.settings import OfflineSettings, load_settings
from primespark.core.web.server import bind
from primespark.embedded.link import Link
from primespark.store import commands, devices, documents
from primespark.sync.records import DataClass
from tests.helpers import wait_until
from tests.integration.edge_agent import test_process as processes
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

    def command(self, name: str, lifetime: timedelta = timedelta(hours=1), **arguments: Any) -> str:
        with self.cloud.engine.begin() as connection:
            now = utc_now()
            return commands.issue(connection, "edge-1", name, arguments, "test", now, now + lifetime).command_id

    def commands(self) -> dict[str, tuple[str, str | None]]:
        """State and code of each command."""
        with self.cloud.engine.connect() as connection:
            rows = commands.page(connection, "edge-1", None, 100, utc_now())
        return {row.command_id: (row.state, row.code) for row in rows}

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


@pytest.mark.parametrize("wrong_days", [-20_000, 6_000])
async def test_a_wrong_clock_decides_no_conflict(running_cloud: RunningCloud, tmp_path: Path, wrong_days: int) -> None:
    """Of two concurrent writes of a leaf the later stands, by the true time, though a clock said 1971 or 2043."""
    folder, wrong_ns = tmp_path / "device", wrong_days * 86_400 * 10**9
    clock = DeviceClock(5, Clock(lambda: time.time_ns() + wrong_ns))
    database = Database(folder / "queue.db")
    alone = Documents(database, "edge-1", clock=clock)
    with running_cloud.cloud.engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "site", {"earlier": "cloud"})
    # Further apart than the device can be wrong about the cloud's time.
    await asyncio.sleep(0.1)
    written_at = utc_now()
    await alone.change("site", lambda _: {"earlier": "device", "later": "device"})
    database.close()
    await asyncio.sleep(0.1)
    with running_cloud.cloud.engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "site", {"earlier": "cloud", "later": "cloud"})
    async with running_device(
        folder, f"http://127.0.0.1:{running_cloud.port}", token=running_cloud.token(), clock=clock
    ) as device:
        await device.drained()
        stands = {"earlier": "device", "later": "cloud"}
        with running_cloud.cloud.engine.connect() as connection:
            merged = documents.read(connection, "edge-1", "site")
        assert merged is not None
        assert merged.value == stands
        stamp = Timestamp.parse(merged.leaf_hlc["/earlier"])
        assert stamp.unix_ms == pytest.approx(written_at.timestamp() * 1000, abs=90)
        # And what it writes from now on is of now, and stands.
        after = await device.documents.change("site", lambda before: {**before.value, "later": "device again"})
        assert abs(Timestamp.parse(after.hlc).unix_ms - time.time_ns() / 1e6) < 5000
        await device.drained()
    with running_cloud.cloud.engine.connect() as connection:
        merged = documents.read(connection, "edge-1", "site")
    assert merged is not None
    assert merged.value == {"earlier": "device", "later": "device again"}


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


async def test_commands_are_answered_though_replies_are_lost(running_cloud: RunningCloud, tmp_path: Path) -> None:
    folder, expected = tmp_path / "device", {}
    async with Link(running_cloud.port) as link:
        async with running_device(folder, link.url, token=running_cloud.token()) as device:
            await until(lambda: device.engine.state.last_pull_at is not None)
            for number in range(6):
                link.lose_next_reply(b"GET /sync/v1/pull" if number % 2 else b"POST /sync/v1/push")
                name = "clear_cache" if number == 3 else "sync_now"
                code = ("failed", "not_allowed") if number == 3 else ("succeeded", None)
                expected[await asyncio.to_thread(running_cloud.command, name)] = code
                await until(lambda: running_cloud.commands() == expected)
        # Read from the beginning again, as after a restored backup: what is answered is not sent.
        async with running_device(folder, link.url) as device:
            await device.documents.read_anew(Sweep.ALL)
            expected[await asyncio.to_thread(running_cloud.command, "sync_now")] = ("succeeded", None)
            await until(lambda: running_cloud.commands() == expected)
    assert link.counts.replies_lost > 0
    assert running_cloud.ask("SELECT count(*) FROM sync.fact WHERE data_class = 'command_results'") == [(7,)]


@pytest.mark.prove
def test_a_device_that_is_told_to_restart_does_so_once(running_cloud: RunningCloud, tmp_path: Path) -> None:
    settings = {
        "PRIMESPARK_NETWORK__CLOUD_URL": f"http://127.0.0.1:{running_cloud.port}",
        "PRIMESPARK_EDGE__ENROLMENT_TOKEN": running_cloud.token(),
        "PRIMESPARK_EDGE__COMMANDS": '["restart"]',
        "PRIMESPARK_FEATURES__CAPTURE": "false",
    }
    with processes.running(tmp_path, **settings) as device:
        wait_until(lambda: running_cloud.ask("SELECT 1 FROM sync.device WHERE cursor_at IS NOT NULL"), 60)
        alone = running_cloud.command("restart")
        wait_until(lambda: running_cloud.commands()[alone] == ("failed", "not_supervised"), 30)
        assert device.process.poll() is None
        device.process.terminate()
        assert device.process.wait(20) == 0
    asked = [running_cloud.command("restart") for _ in range(2)]
    for _ in asked:
        with processes.running(tmp_path, PRIMESPARK_SUPERVISED="1", **settings) as device:
            assert device.process.wait(60) == 0
    with processes.running(tmp_path, PRIMESPARK_SUPERVISED="1", **settings) as device:
        wait_until(lambda: [running_cloud.commands()[one] for one in asked] == [("succeeded", None)] * 2, 60)
        assert device.process.poll() is None
