"""Files handed over on a device arrive at a real cloud whole, and each fact after the blob it names."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from edge_agent.dead_letters import DeadLetters
from edge_agent.gate_client import SENT
from edge_agent.queue import NewFact
from edge_agent.uploads import rows
from edge_agent.uploads.queue import UploadQueue
from edge_agent.uploads.rows import Upload
from edge_agent.uploads.uploader import Uploader
from primespark.cloud.main import build, build_app
from primespark.cloud.state import Cloud
from primespark.core.settings import OfflineSettings, load_settings
from primespark.core.web.server import bind
from primespark.errors import OverloadedError, TooLargeError, TransientError
from primespark.store import devices
from primespark.sync.chunks import ChunkList, UploadState
from primespark.sync.records import DataClass
from tests.integration.edge_agent.device import FAST, Device, running_device, until
from tests.integration.edge_agent.gate import serve_on_thread

MOST = 3_000_000


@dataclass
class FailingGate:
    """The gate of a device, which fails before what it is told to."""

    gate: Any
    failures: list[Exception] = field(default_factory=list)
    chunks: int = 0

    async def name_chunks(self, blob: ChunkList) -> UploadState:
        state: UploadState = await self.gate.name_chunks(blob)
        return state

    async def send_chunk(self, sha256: str, data: bytes) -> None:
        if self.failures:
            raise self.failures.pop()
        self.chunks += 1
        await self.gate.send_chunk(sha256, data)


@dataclass
class Running:
    """A device, its cloud, and what uploads."""

    device: Device
    cloud: Cloud
    uploads: UploadQueue
    uploader: Uploader
    gate: FailingGate
    folder: Path

    def ask(self, query: str) -> list[Any]:
        with self.cloud.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    async def take(self, data: bytes, number: int = 0, stream: str = "clips") -> Upload:
        fact = NewFact(DataClass.INFERENCE_RESULTS, {"n": number}, stream=stream)
        return await self.uploads.take(_pieces(data), fact)

    async def arrived(self, facts: int) -> None:
        await until(lambda: self.ask("SELECT count(*) FROM sync.fact") == [(facts,)], 20)
        await until(lambda: not list(self.folder.iterdir()), 20)


async def _pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def data_of(seed: int, size: int = 1_000_000) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
async def running(store_engine: Engine, tmp_path: Path) -> AsyncIterator[Running]:
    limits = {"store": {"url": store_engine.url.render_as_string(hide_password=False)}, "max_blob_bytes": 2_000_000}
    cloud = await asyncio.to_thread(build, load_settings(overrides={"cloud": limits}), tmp_path / "cloud")
    listener = bind("127.0.0.1", 0)
    with cloud.engine.begin() as connection:
        token = devices.create_token(connection, 1, timedelta(hours=1))
    with serve_on_thread(build_app(cloud), listener, lifespan="on"):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        offline = OfflineSettings(capacity_bytes=2 * MOST)
        async with running_device(tmp_path / "device", url, token=token, limits=offline) as device:
            folder = tmp_path / "device" / "uploads"
            folder.mkdir()
            uploads = UploadQueue(device.database, device.queue, folder, MOST)
            gate = FailingGate(device.gate)
            uploader = Uploader(uploads, gate, device.files, FAST, device.engine.synchronise_now)
            device.database.watch_from_loop(uploader.notify)
            await until(lambda: device.files.current is not None)
            task = asyncio.create_task(uploader.run())
            yield Running(device, cloud, uploads, uploader, gate, folder)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    cloud.engine.dispose()


async def test_a_fact_follows_its_blob_and_nothing_waits_for_it(running: Running) -> None:
    data = data_of(1)
    running.gate.failures = [TransientError("a fault", code="internal")]
    upload = await running.take(data, 1)
    assert (upload.sha256, upload.size) == (hashlib.sha256(data).hexdigest(), len(data))
    await running.device.enqueue(2, stream="clips")
    await running.arrived(2)
    stored = running.ask("SELECT blob, (value->>'n')::int FROM sync.fact ORDER BY 2")
    assert stored == [(upload.sha256, 1), (None, 2)]
    assert running.cloud.blobs.get(upload.sha256) == data
    assert (await running.device.queue.status()).bytes == 0
    assert await running.device.database.run(rows.names) == set()


async def test_of_a_changed_version_what_differs_is_sent(running: Running) -> None:
    data = data_of(2, 2_000_000)
    await running.take(data)
    await running.arrived(1)
    before = SENT.labels("upload")._value.get()
    changed = data[:700_000] + data_of(3, 20_000) + data[720_000:]
    second = await running.take(changed)
    await running.arrived(2)
    # The chunks at both ends of the run are sent whole; each list of chunks has some 4 KB, and goes twice.
    assert SENT.labels("upload")._value.get() - before <= 20_000 + 2 * 256 * 1024 + 20_000
    assert running.cloud.blobs.get(second.sha256) == changed


async def test_what_the_cloud_never_takes_is_set_aside_with_its_fact(running: Running) -> None:
    await running.take(data_of(4, 2_000_001), 1)
    await running.take(data_of(5, 500_000), 2)
    await running.arrived(1)
    letters = DeadLetters(running.device.database, running.device.queue)
    await until(lambda: running.ask("SELECT reason FROM sync.lost") == [("refused: blob_too_large",)])
    (letter,) = await letters.page(0, 10)
    assert (letter.stream, letter.code) == ("clips", "blob_too_large")
    assert running.ask("SELECT (value->>'n')::int FROM sync.fact") == [(2,)]
    # Sent once more without its blob, it is found out, and set aside again; others go on.
    await letters.replay(letter.id)
    await running.device.enqueue(*range(3), stream="other")
    await until(lambda: running.ask("SELECT count(*) FROM sync.fact WHERE stream = 'other'") == [(3,)], 20)
    await running.device.drained()
    (again,) = await letters.page(0, 10)
    assert again.code == "blob_missing"


async def test_a_blob_that_the_cloud_lost_before_the_fact_came_is_sent_again(running: Running) -> None:
    data = data_of(6)
    sha256 = hashlib.sha256(data).hexdigest()
    complete = running.uploads.complete

    async def lose_then_complete(upload: Upload) -> None:
        running.cloud.blobs.path(sha256).unlink()
        running.uploads.complete = complete  # type: ignore[method-assign]
        await complete(upload)

    running.uploads.complete = lose_then_complete  # type: ignore[method-assign]
    await running.take(data)
    await running.arrived(1)
    assert running.cloud.blobs.get(sha256) == data
    assert running.ask("SELECT count(*) FROM sync.lost") == [(0,)]


async def test_more_than_may_be_kept_is_refused_and_leaves_nothing(running: Running) -> None:
    with pytest.raises(TooLargeError) as too_large:
        await running.take(data_of(7, MOST + 1))
    assert too_large.value.code == "blob_too_large"
    running.gate.failures = [TransientError("a fault", code="internal") for _ in range(10_000)]
    await running.take(data_of(8, 1_900_000))
    with pytest.raises(OverloadedError) as full:
        await running.take(data_of(9, 1_900_000))
    assert full.value.code == "queue_full"
    assert len(list(running.folder.iterdir())) == 1
    # Facts have the other half.
    await running.device.enqueue(1)
    running.gate.failures.clear()
    await running.arrived(2)
