"""Blobs that devices write over HTTP, with a real PostgreSQL and a real disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from primespark.cloud.main import build, build_app
from primespark.core.clock import utc_now
from primespark.core.encoding import encode_body
from primespark.core.settings import load_settings
from primespark.store import blob_collection, uploads
from primespark.sync.chunks import ChunkList, cut_bytes
from tests.integration.cloud.test_gate import Gate

LIMIT, QUOTA = 3_000_000, 4_000_000


@pytest.fixture
async def gate(store_engine: Engine, tmp_path: Path) -> AsyncIterator[Gate]:
    url = store_engine.url.render_as_string(hide_password=False)
    limits = {"store": {"url": url}, "max_blob_bytes": LIMIT, "max_unfinished_bytes": QUOTA}
    cloud = await asyncio.to_thread(build, load_settings(overrides={"cloud": limits}), tmp_path)
    app = build_app(cloud)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://cloud") as client,
    ):
        yield Gate(client, cloud, (tmp_path / "cloud" / "admin.key").read_text())
    cloud.engine.dispose()


def data_of(seed: int, size: int = 1_000_000) -> bytes:
    return random.Random(seed).randbytes(size)


class Uploader:
    """A device that uploads as the protocol says, and counts the bytes of its chunks."""

    def __init__(self, gate: Gate, key: dict[str, str]) -> None:
        self.gate, self.key, self.sent = gate, key, 0

    async def name(self, cut: ChunkList) -> httpx2.Response:
        headers = {**self.key, "Content-Type": "application/json"}
        return await self.gate.client.put(f"/sync/v1/blobs/{cut.sha256}/chunks", content=cut.to_json(), headers=headers)

    async def send(self, data: bytes, sha256: str | None = None, **headers: str) -> httpx2.Response:
        self.sent += len(data)
        path = f"/sync/v1/chunks/{sha256 or hashlib.sha256(data).hexdigest()}"
        return await self.gate.client.put(path, content=data, headers={**self.key, **headers})

    async def missing(self, cut: ChunkList) -> list[str]:
        answer = await self.name(cut)
        assert answer.status_code == 200, answer.text
        names: list[str] = answer.json()["missing"]
        return names

    async def upload(self, data: bytes) -> ChunkList:
        cut = cut_bytes(data)
        pieces = {chunk.sha256: data[start : start + chunk.size] for chunk, start in cut.places()}
        while missing := await self.missing(cut):
            for sha256 in missing:
                answer = await self.send(pieces[sha256])
                if answer.status_code == 409:
                    break  # it was finished meanwhile by another attempt
                assert answer.status_code == 204, answer.text
        return cut

    async def read(self, sha256: str) -> httpx2.Response:
        return await self.gate.client.get(f"/sync/v1/blobs/{sha256}", headers=self.key)


@pytest.fixture
def uploader(gate: Gate) -> Callable[[str], Awaitable[Uploader]]:
    async def make(device_id: str) -> Uploader:
        return Uploader(gate, await gate.enrol(device_id))

    return make


Make = Callable[[str], Awaitable[Uploader]]


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
async def test_what_was_uploaded_is_read_by_its_writer_and_by_nobody_else(
    gate: Gate, uploader: Make, size: int
) -> None:
    writer, other = await uploader("edge-1"), await uploader("edge-2")
    data = data_of(1, size)
    cut = await writer.upload(data)
    assert (await writer.read(cut.sha256)).content == data
    assert (await other.read(cut.sha256)).status_code == 404
    assert gate.count("sync.upload") == gate.count("sync.upload_chunk") == 0
    assert not list((gate.cloud.blobs.root / "uploads").rglob("?" * 64))
    before = writer.sent
    await writer.upload(data)
    assert writer.sent == before


async def test_a_blob_says_what_it_is_made_of_to_those_who_may_read_it(gate: Gate, uploader: Make) -> None:
    writer, other = await uploader("edge-1"), await uploader("edge-2")
    cut = await writer.upload(data_of(16))
    path = f"/sync/v1/blobs/{cut.sha256}/chunks"
    for _ in range(2):
        answer = await gate.client.get(path, headers=writer.key)
        assert (answer.status_code, answer.content) == (200, cut.to_json())
    assert (await gate.client.get(path, headers=other.key)).status_code == 404
    assert (await gate.client.get("/sync/v1/blobs/x/chunks", headers=other.key)).status_code == 404


async def test_a_digest_alone_gets_no_bytes(uploader: Make) -> None:
    writer, thief = await uploader("edge-1"), await uploader("edge-2")
    cut = await writer.upload(data_of(2))
    assert await thief.missing(cut) == list(dict.fromkeys(chunk.sha256 for chunk in cut.chunks))
    assert (await thief.read(cut.sha256)).status_code == 404


async def test_a_changed_run_costs_little_more_than_itself(uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(3, 3_000_000)
    await writer.upload(data)
    before = writer.sent
    changed = data[:1_000_000] + data_of(4, 30_000) + data[1_030_000:]
    cut = await writer.upload(changed)
    # The chunks at both ends of the run are sent whole.
    assert writer.sent - before <= 30_000 + 2 * 256 * 1024
    assert (await writer.read(cut.sha256)).content == changed


async def test_two_devices_and_twice_the_same_at_once(gate: Gate, uploader: Make) -> None:
    writers = [await uploader("edge-1"), await uploader("edge-2")]
    data = data_of(5)
    cuts = await asyncio.gather(*(writer.upload(data) for writer in writers for _ in range(3)))
    for writer in writers:
        assert (await writer.read(cuts[0].sha256)).content == data
    assert gate.count("sync.blob") == 2
    assert gate.count("sync.upload") == 0


async def test_a_chunk_that_was_damaged_is_missing_once_more(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(6)
    cut = cut_bytes(data)
    first, *others = [data[start : start + chunk.size] for chunk, start in cut.places()]
    await writer.missing(cut)
    for piece in (first, *others[:-1]):
        await writer.send(piece)
    path = gate.cloud.blobs.root / "uploads" / "edge-1" / cut.chunks[0].sha256
    path.write_bytes(b"")  # as a power cut leaves it
    await writer.send(others[-1])
    assert await writer.missing(cut) == [cut.chunks[0].sha256]
    await writer.send(first)
    assert await writer.missing(cut) == []
    assert (await writer.read(cut.sha256)).content == data


async def test_chunks_that_are_not_the_blobs_give_the_upload_up(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(7, 1000)
    lie = cut_bytes(data).model_copy(update={"sha256": "a" * 64})
    await writer.missing(lie)
    await writer.send(data)
    answer = await writer.name(lie)
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert gate.count("sync.upload") == gate.count("sync.blob") == 0
    assert not gate.cloud.blobs.exists("a" * 64)
    assert not list(gate.cloud.blobs.root.rglob(".staging-*"))


async def test_a_chunk_nobody_named_is_refused(gate: Gate, uploader: Make) -> None:
    writer, other = await uploader("edge-1"), await uploader("edge-2")
    data = data_of(8, 1000)
    refused = await writer.send(data)
    assert (refused.status_code, refused.json()["code"]) == (409, "chunk_not_expected")
    await writer.missing(cut_bytes(data))
    assert (await other.send(data)).status_code == 409
    wrong = await writer.send(data, sha256="b" * 64)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad_digest")
    assert (await writer.send(data_of(8, 256 * 1024 + 1))).status_code == 413
    assert (await writer.send(data, sha256="..%2f..%2fetc")).status_code in (400, 404)
    assert not list((gate.cloud.blobs.root / "uploads").rglob("?" * 64))


async def test_a_packed_chunk_is_unpacked_within_its_bound(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = b"\0" * 5000
    await writer.missing(cut_bytes(data))
    sent, headers = encode_body(data)
    assert (await writer.send(sent, hashlib.sha256(data).hexdigest(), **headers)).status_code == 204
    bomb, headers = encode_body(b"\0" * 50_000_000)
    assert (await writer.send(bomb, hashlib.sha256(data).hexdigest(), **headers)).status_code == 413
    assert await writer.missing(cut_bytes(data)) == []


async def test_what_one_device_has_on_its_way_is_bounded(uploader: Make) -> None:
    writer, other = await uploader("edge-1"), await uploader("edge-2")
    answer = await writer.name(cut_bytes(data_of(9, LIMIT + 1)))
    assert (answer.status_code, answer.json()["code"]) == (413, "blob_too_large")
    first, second = data_of(10, QUOTA // 2 + 1), data_of(11, QUOTA // 2 + 1)
    await writer.missing(cut_bytes(first))
    await writer.missing(cut_bytes(first))  # the same again counts once
    answer = await writer.name(cut_bytes(second))
    assert (answer.status_code, answer.json()["code"]) == (429, "upload_quota")
    assert int(answer.headers["retry-after"]) > 0
    assert await other.missing(cut_bytes(second))
    await writer.upload(first)
    assert await writer.missing(cut_bytes(second))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"sha256": 1}', b'{"sha256": "x", "size": 0, "chunks": []}'])
async def test_a_bad_list_is_refused(gate: Gate, uploader: Make, body: bytes) -> None:
    writer = await uploader("edge-1")
    headers = {**writer.key, "Content-Type": "application/json"}
    answer = await gate.client.put(f"/sync/v1/blobs/{'a' * 64}/chunks", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    other = await gate.client.put(
        f"/sync/v1/blobs/{'a' * 64}/chunks", content=cut_bytes(b"x").to_json(), headers=headers
    )
    assert (other.status_code, other.json()["code"]) == (422, "invalid_input")
    for path in (f"/sync/v1/blobs/{'a' * 64}/chunks", f"/sync/v1/chunks/{'a' * 64}"):
        assert (await gate.client.put(path, content=b"")).status_code == 401
        assert (await gate.client.put(path, content=b"", headers=gate.admin)).status_code == 403


async def collect(gate: Gate, later: timedelta) -> None:
    def work(connection: Any) -> None:
        uploads.forget_old(connection, utc_now() + later, timedelta(days=30))

    await gate.cloud.transact(work)
    await gate.cloud.transact(
        lambda connection: blob_collection.collect(connection, gate.cloud.blobs, utc_now() + later, timedelta(days=30))
    )


async def test_what_a_device_wrote_is_kept_for_a_while_and_what_it_left_is_not(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data, left = data_of(12), data_of(13, 1000)
    cut, unfinished = await writer.upload(data), cut_bytes(left)
    await writer.missing(unfinished)
    await writer.send(left)
    await collect(gate, timedelta(days=2))
    assert (await writer.read(cut.sha256)).content == data
    assert gate.count("sync.upload") == 1
    await collect(gate, timedelta(days=8))
    assert gate.count("sync.upload") == 0
    assert not list((gate.cloud.blobs.root / "uploads").rglob("?" * 64))
    await collect(gate, timedelta(days=31))
    assert (await writer.read(cut.sha256)).status_code == 404
    assert await writer.missing(unfinished)
    await writer.upload(data)
    assert (await writer.read(cut.sha256)).content == data


async def test_a_blob_whose_file_is_gone_comes_again(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(14)
    cut = await writer.upload(data)
    gate.cloud.blobs.path(cut.sha256).unlink()
    before = writer.sent
    await writer.upload(data)
    assert writer.sent == before + len(data)
    assert (await writer.read(cut.sha256)).content == data


async def test_chunks_are_found_in_a_version_whose_list_was_damaged(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(15)
    cut = await writer.upload(data)
    await writer.missing(cut_bytes(data + b"more"))
    kept = gate.cloud.blobs.path(cut.sha256).with_name(f"{cut.sha256}.chunks")
    kept.write_bytes(kept.read_bytes()[:100])
    before = writer.sent
    await writer.upload(data + b"more")
    assert writer.sent - before <= 256 * 1024
    # It goes with its blob.
    os.utime(gate.cloud.blobs.path(cut.sha256), (1000, 1000))
    assert gate.cloud.blobs.remove_older(cut.sha256, time.time())
    assert not kept.exists()


async def test_a_damaged_version_is_no_reason_against_a_new_one(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(17)
    path = gate.cloud.blobs.path((await writer.upload(data)).sha256)
    path.write_bytes(b"x" + data[1:])
    cut = await writer.upload(data + b"more")
    assert (await writer.read(cut.sha256)).content == data + b"more"
