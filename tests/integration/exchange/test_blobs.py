"""A new version of a model on its way from a real cloud to a device's folder: what differs comes, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from edge_agent.gate_client import SENT, GateClient
from edge_agent.slots.download import BlobFolder
from primespark.cloud.main import build, build_app
from primespark.cloud.state import Cloud
from primespark.core.settings import NetworkSettings
from primespark.core.web.server import bind
from primespark.errors import NotFoundError
from primespark.store import documents
from tests.integration.cloud.test_gate import settings_of
from tests.integration.edge_agent.gate import serve_on_thread
from tests.integration.store.builders import enrol

SIZE = 20_000_000


@pytest.fixture
async def cloud(store_engine: Engine, tmp_path: Path) -> AsyncIterator[Cloud]:
    built = await asyncio.to_thread(build, settings_of(store_engine), tmp_path / "cloud")
    yield built
    built.engine.dispose()


@pytest.fixture
async def gate(cloud: Cloud) -> AsyncIterator[GateClient]:
    with cloud.engine.begin() as connection:
        key = enrol(connection)
    listener = bind("127.0.0.1", 0)
    with serve_on_thread(build_app(cloud), listener, lifespan="on"):
        client = GateClient(f"http://127.0.0.1:{listener.getsockname()[1]}", NetworkSettings())
        client.use_key(key)
        yield client
        await client.aclose()


def name_to_device(cloud: Cloud, *sha256s: str) -> None:
    with cloud.engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"models": {"m": {"artifacts": [*sha256s]}}}})


async def test_a_model_of_which_a_hundredth_changed(cloud: Cloud, gate: GateClient, tmp_path: Path) -> None:
    old = random.Random(1).randbytes(SIZE)
    new = old[:7_000_000] + random.Random(2).randbytes(SIZE // 100) + old[7_000_000 + SIZE // 100 :]
    first, second = cloud.blobs.put(old), cloud.blobs.put(new)
    folder = BlobFolder(tmp_path / "models", 0)
    with pytest.raises(NotFoundError):
        await gate.chunks_of(first)
    name_to_device(cloud, first, second)
    counter = SENT.labels("blob")
    costs = []
    for sha256 in (first, second):
        before = counter._value.get()
        await folder.fetch(sha256, gate, SIZE, SIZE)
        costs.append(counter._value.get() - before)
    assert folder.path(first).read_bytes() == old
    assert folder.path(second).read_bytes() == new
    assert costs[0] == SIZE
    assert costs[1] <= 0.03 * SIZE


async def test_a_part_in_the_middle_is_what_was_asked_for(cloud: Cloud, gate: GateClient) -> None:
    data = random.Random(3).randbytes(100_000)
    sha256 = cloud.blobs.put(data)
    name_to_device(cloud, sha256)
    for start, end in ((0, 10), (0, None), (50, 60_000), (99_999, 100_000)):
        async with gate.blob_from(sha256, start, end) as part:
            got = b"".join([chunk async for chunk in part.chunks])
        assert (part.offset, got) == (start, data[start:end])
        assert part.is_part == ((start, end) != (0, None))
