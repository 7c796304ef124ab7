"""Bytes on the wire: batches against the same facts as lines of JSON, a new version of a model against all of it."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn

from benchmarks.processes import postgres
from benchmarks.result import Result
from edge_agent.database import Database
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue, compose, encode
from edge_agent.slots.download import BlobFolder
from edge_agent.uploads.uploader import send_blob
from primespark.cloud.main import build, build_app
from primespark.cloud.state import Cloud
from primespark.core.settings import NetworkSettings, OfflineSettings, load_settings
from primespark.core.web.server import bind
from primespark.embedded.link import Link
from primespark.store import devices, documents
from primespark.sync.chunks import cut_file
from primespark.sync.records import DataClass

GOAL_OF_RECORDS = {10: 0.13, 1000: 0.10}
MODEL_BYTES = 20_000_000
GOAL_OF_MODEL = 0.03
DEVICE = "edge-1"
SEED = 5


def run() -> Iterator[Result]:
    """Bodies of batches of a device's own measurements, then every byte a model's download takes from the socket."""
    for records, goal in GOAL_OF_RECORDS.items():
        yield asyncio.run(_batch(records, goal))
    for measure in (_model, _file):
        with tempfile.TemporaryDirectory(prefix="ps-bench-") as folder, postgres(Path(folder)) as url:
            yield asyncio.run(measure(Path(folder), url))


async def _batch(records: int, goal: float) -> Result:
    body, lines = await measured_batch(records)
    ratio = len(body) / len(lines)
    return Result(
        area="wire", name=f"body of a batch of {records} measurements", value=len(body), unit="bytes",
        against="the same as lines of JSON", reference=len(lines), ratio=ratio, goal=f"<= {goal}", ok=ratio <= goal,
    )  # fmt: skip


async def measured_batch(records: int) -> tuple[bytes, bytes]:
    """The body of a device's batch of its measurements, and the same records as lines of JSON."""
    facts = _measurements(records)
    lines = b"".join(compose(stream, seq, tail) + b"\n" for seq, (stream, tail) in enumerate(map(encode, facts), 1))
    with tempfile.TemporaryDirectory(prefix="ps-bench-") as folder:
        database = Database(Path(folder) / "queue.db")
        outgoing = Outgoing(database, DEVICE, records, 16 * 1024 * 1024)
        await outgoing.begin_epoch(1)
        await OfflineQueue(database, OfflineSettings()).enqueue(facts)
        batch = await outgoing.next_batch()
        database.close()
    assert batch is not None
    assert batch.records == records
    return batch.body, lines


def _measurements(count: int) -> list[NewFact]:
    """What a device measures every 10 s, wandering as such figures do; no value is one of the dictionary's samples."""
    chance = random.Random(SEED)  # noqa: S311 (a benchmark)
    at, monotonic_ns = datetime(2026, 11, 20, 10, tzinfo=UTC), 86_400_000_000_000
    cpu, memory, load, warmth = 20.0, 40.0, 1.0, 50.0
    facts = []
    for _ in range(count):
        step_s = 10 + chance.random() / 100
        at, monotonic_ns = at + timedelta(seconds=step_s), monotonic_ns + int(step_s * 1e9)
        cpu, memory = abs(cpu + chance.gauss(0, 8)) % 100, min(99.0, max(5.0, memory + chance.gauss(0, 0.3)))
        load, warmth = abs(load + chance.gauss(0, 0.1)), warmth + chance.gauss(0, 0.4)
        value = {
            "cpu_percent": round(cpu, 1), "memory_percent": round(memory, 1), "swap_percent": 0.0,
            "disk_percent": 61.3, "load_1m": int(load * 2048) / 2048, "load_5m": int(load * 1900) / 2048,
            "temperature_celsius": round(warmth, 1),
        }  # fmt: skip
        facts.append(NewFact(DataClass.TELEMETRY, value, at, "0b7c8f2e-8f27-4b0e-9a57-0d2d1f0c5a11", monotonic_ns))
    return facts


def _versions() -> tuple[bytes, bytes]:
    """Two, between which a run of 1 % differs."""
    old = random.Random(SEED).randbytes(MODEL_BYTES)  # noqa: S311 (a benchmark)
    changed = random.Random(SEED + 1).randbytes(MODEL_BYTES // 100)  # noqa: S311
    return old, old[:7_000_000] + changed + old[7_000_000 + len(changed) :]


async def _file(root: Path, url: str) -> Result:
    """Two versions of a file that a program hands over on a device, one after the other."""
    costs = []
    async with AsyncExitStack() as stack:
        cloud = await asyncio.to_thread(build, load_settings(overrides={"cloud": {"store": {"url": url}}}), root)
        stack.callback(cloud.engine.dispose)
        link = await stack.enter_async_context(Link(await stack.enter_async_context(_serve(cloud))))
        gate = GateClient(link.url, NetworkSettings())
        stack.push_async_callback(gate.aclose)
        gate.use_key(_enrol(cloud, []))
        for number, data in enumerate(_versions()):
            path = root / str(number)
            await asyncio.to_thread(path.write_bytes, data)
            blob = await asyncio.to_thread(cut_file, path)
            before = link.counts.bytes_up + link.counts.bytes_down
            await send_blob(gate, blob, path)
            costs.append(link.counts.bytes_up + link.counts.bytes_down - before)
            assert cloud.blobs.get(blob.sha256) == data
    return _changed("upload of a file of which a run of 1 % changed", costs)


async def _model(root: Path, url: str) -> Result:
    old, new = _versions()
    async with AsyncExitStack() as stack:
        cloud = await asyncio.to_thread(build, load_settings(overrides={"cloud": {"store": {"url": url}}}), root)
        stack.callback(cloud.engine.dispose)
        first, second = cloud.blobs.put(old), cloud.blobs.put(new)
        link = await stack.enter_async_context(Link(await stack.enter_async_context(_serve(cloud))))
        gate = GateClient(link.url, NetworkSettings())
        stack.push_async_callback(gate.aclose)
        gate.use_key(_enrol(cloud, [first, second]))
        folder = BlobFolder(root / "models", 0)
        await folder.fetch(first, gate, MODEL_BYTES, MODEL_BYTES)
        whole = link.counts.bytes_up + link.counts.bytes_down
        await folder.fetch(second, gate, MODEL_BYTES, MODEL_BYTES)
        assert folder.path(second).read_bytes() == new
        changed_bytes = link.counts.bytes_up + link.counts.bytes_down - whole
    return _changed("download of a model of which a run of 1 % changed", [whole, changed_bytes])


def _changed(name: str, costs: list[int]) -> Result:
    whole, changed = costs
    ratio = changed / whole
    return Result(
        area="wire", name=name, value=changed, unit="bytes", against="all of it", reference=whole, ratio=ratio,
        goal=f"<= {GOAL_OF_MODEL}", ok=ratio <= GOAL_OF_MODEL,
    )  # fmt: skip


def _enrol(cloud: Cloud, artifacts: list[str]) -> str:
    with cloud.engine.begin() as connection:
        token = devices.create_token(connection, 1, timedelta(hours=1))
        documents.write_cloud(connection, DEVICE, "twin", {"desired": {"models": {"m": {"artifacts": artifacts}}}})
        return devices.enrol(connection, token, DEVICE, {}, {}).key


@asynccontextmanager
async def _serve(cloud: Cloud) -> AsyncIterator[int]:
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(build_app(cloud), log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
