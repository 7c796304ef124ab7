"""The specification's usage example, as printed but for the module path; and what is behind it, with a real agent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from edge_agent import version_tracker
from edge_agent.sync_engine import (
    DataType,
    SyncDirection,
    SyncEngine,
    SyncRecord,
    SyncStatus,
    get_sync_engine,
)
from primespark.core.settings import load_settings
from primespark.errors import InvalidInputError, OverloadedError
from primespark.sync.documents import Order
from primespark.sync.strategies import Strategy
from tests.helpers import wait_until
from tests.integration.edge_agent.gate import TOKEN, RunningGate
from tests.integration.edge_agent.test_process import Process, running

KEY = "records/metrics/metric_001"
GIVEN = SyncRecord(
    record_id="metric_001", data_type=DataType.METRICS, source="edge", destination="cloud", data_hash="abc123",
    version=1, timestamp=datetime(2026, 11, 26, tzinfo=UTC), size_bytes=1024,
)  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncEngine]:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    monkeypatch.setenv("PRIMESPARK_EDGE__PORT", "1")
    get_sync_engine.cache_clear()
    yield get_sync_engine()
    get_sync_engine.cache_clear()


@pytest.fixture
def port(gate: RunningGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A device at work; the rest of the test is a program beside it."""
    cloud = {"PRIMESPARK_NETWORK__CLOUD_URL": gate.url, "PRIMESPARK_EDGE__ENROLMENT_TOKEN": TOKEN}
    with running(tmp_path, **cloud, PRIMESPARK_FEATURES__CAPTURE="false") as device:
        port = int(device.url.rpartition(":")[2])
        wait_until(lambda: is_online(device), 30)
        monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
        monkeypatch.setenv("PRIMESPARK_EDGE__PORT", str(port))
        get_sync_engine.cache_clear()
        yield port
        get_sync_engine.cache_clear()


def is_online(device: Process) -> bool:
    with contextlib.suppress(httpx2.HTTPError, OSError):
        return bool(device.get("/api/v1/sync/status")["online"])
    return False


def described(gate: RunningGate) -> Any:
    return gate.oracle.documents["edge-1", KEY]["value"]["record"][0]


def write_as_cloud(gate: RunningGate, **changed: Any) -> None:
    change = gate.oracle.documents["edge-1", KEY]
    vv = {**change["vv"], "cloud": 2**32 + 1}
    stamp = f"{time.time_ns() // 1_000_000:013d}-0001-cloud"
    value = {"record": [{**described(gate), **changed}]}
    gate.oracle.put_document(
        "edge-1", KEY, {**change, "value": value, "vv": vv, "leaf_hlc": {"/record": stamp}, "hlc": stamp}
    )


@pytest.mark.filterwarnings("ignore:.*without a zone")
async def test_the_usage_example(gate: RunningGate, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    engine = get_sync_engine()
    await engine.initialize()

    # Sync data
    records = [
        SyncRecord(
            record_id="metric_001",
            data_type=DataType.METRICS,
            source="edge",
            destination="cloud",
            data_hash="abc123",
            version=1,
            timestamp=datetime.now(),  # noqa: DTZ005 (as printed)
            size_bytes=1024
        )
    ]  # fmt: skip

    operation = await engine.sync_data(records, SyncDirection.EDGE_TO_CLOUD)
    print(f"Status: {operation.status}")

    assert "Status: completed\n" in capsys.readouterr().out
    assert (described(gate)["data_hash"], described(gate)["version"], described(gate)["size_bytes"]) == (
        "abc123",
        1,
        1024,
    )
    assert datetime.fromisoformat(described(gate)["timestamp"]) == records[0].timestamp.astimezone()
    pushes = gate.oracle.requests
    again = await engine.sync_data(records, SyncDirection.BIDIRECTIONAL)
    assert (again.status, [record.data_hash for record in again.records]) == (SyncStatus.COMPLETED, ["abc123"])
    assert gate.oracle.requests == pushes

    # Long before the agent would look by itself into a file that another process wrote.
    for version in (2, 3):
        async with asyncio.timeout(8):
            newer = await engine.sync_data([replace(GIVEN, version=version)], SyncDirection.EDGE_TO_CLOUD)
        assert newer.status is SyncStatus.COMPLETED
        assert described(gate)["version"] == version

    # What the cloud has written since is here, whole, and what is older than that changes nothing.
    write_as_cloud(gate, version=5, data_hash="def456")
    pulled = await engine.sync_data([replace(GIVEN, version=4)], SyncDirection.CLOUD_TO_EDGE)
    assert (pulled.status, pulled.records[0].data_hash) == (SyncStatus.COMPLETED, "def456")
    late = await engine.sync_data([replace(GIVEN, version=4, data_hash="late")], SyncDirection.EDGE_TO_CLOUD)
    assert (late.status, late.conflicts, late.records[0].version) == (SyncStatus.CONFLICT, ("metric_001",), 5)
    await engine.shutdown()


async def test_without_an_agent_it_waits_on_disk_for_one(engine: SyncEngine) -> None:
    for version in (1, 1, 2):
        await engine.initialize()
        operation = await engine.sync_data([replace(GIVEN, version=version)], SyncDirection.EDGE_TO_CLOUD)
        assert (operation.status, operation.pending) == (SyncStatus.PENDING, ("metric_001",))
        assert operation.records[0].version == version
        await engine.shutdown()


async def test_versions_are_counted_by_vector(engine: SyncEngine) -> None:
    await engine.initialize()
    tracker, vectors = engine.version_tracker, []
    for version, is_new in ((1, True), (1, False), (5, True), (4, False)):
        assert await tracker.update(replace(GIVEN, version=version)) is is_new
        tracked = await tracker.get(DataType.METRICS, "metric_001")
        assert tracked is not None
        vectors.append(tracked.vv)
    assert vectors[0] == vectors[1] != vectors[2] == vectors[3]
    assert tracker.compare(vectors[0], vectors[2]) is Order.BEFORE
    assert tracker.compare({**vectors[0], "cloud": 1}, vectors[2]) is Order.CONCURRENT
    assert await tracker.get(DataType.MODELS, "metric_001") is None
    await engine.shutdown()


async def test_what_cannot_be_tracked_is_refused(engine: SyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.initialize()
    with pytest.raises(InvalidInputError):
        await engine.version_tracker.update(replace(GIVEN, record_id="a b"))
    with pytest.raises(InvalidInputError):
        await engine.version_tracker.update(replace(GIVEN, data={"n": float("nan")}))
    monkeypatch.setattr(version_tracker, "MAX_RECORDS", 2)
    for number in (1, 2):
        await engine.version_tracker.update(replace(GIVEN, record_id=f"m{number}"))
    with pytest.raises(OverloadedError) as refused:
        await engine.version_tracker.update(replace(GIVEN, record_id="m3"))
    assert refused.value.code == "too_many_records"
    assert await engine.version_tracker.update(replace(GIVEN, record_id="m2", version=2))
    await engine.shutdown()


def test_the_parts_are_those_of_the_settings(tmp_path: Path) -> None:
    rules = [{"prefix": "records/models/", "strategy": "edge_wins"}]
    settings = load_settings(overrides={"sync": {"strategies": rules, "bandwidth": {"bytes_per_s": 9000}}})
    engine = SyncEngine(settings, tmp_path)
    assert engine.conflict_resolver.strategy("records/models/a") is Strategy.EDGE_WINS
    assert engine.conflict_resolver.strategy("records/metrics/a") is Strategy.MERGE
    assert engine.bandwidth_optimizer.limit_bytes_per_s == 9000
