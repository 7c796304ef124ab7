"""Files kept for the cloud: with their facts or not at all, and for as long as they are needed."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_agent.database import Database
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.schema import STEPS, VERSION
from edge_agent.uploads.queue import UploadQueue
from primespark.core.settings import OfflineSettings
from primespark.errors import InvalidInputError
from primespark.sync.records import DataClass, PushResponse

FACT = NewFact(DataClass.INFERENCE_RESULTS, {"door": 3}, stream="clips")


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def opened(database: Database, tmp_path: Path) -> tuple[OfflineQueue, UploadQueue]:
    queue = OfflineQueue(database, OfflineSettings())
    return queue, UploadQueue(database, queue, tmp_path / "uploads", 1000)


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "uploads").iterdir()}


def answer(batch_seq: int) -> PushResponse:
    hlc = "1790000000000-0000-cloud"
    return PushResponse(status="applied", ack_batch_seq=batch_seq, results=[], server_epoch=1, server_hlc=hlc)


async def test_a_file_is_kept_until_its_fact_is_acknowledged(database: Database, tmp_path: Path) -> None:
    queue, uploads = opened(database, tmp_path)
    outgoing = Outgoing(database, "edge-1", 500, 100_000)
    await outgoing.begin_epoch(1)
    upload = await uploads.take(pieces(b"ab", b"c"), FACT)
    assert uploads.path(upload).read_bytes() == b"abc"
    assert await outgoing.next_batch() is None
    waiting = await uploads.next_to_send()
    assert waiting == upload
    await uploads.complete(upload)
    await uploads.complete(upload)  # as after a kill between the cloud's answer and this
    assert await uploads.next_to_send() is None
    batch = await outgoing.next_batch()
    assert batch is not None
    assert batch.records == 1
    await uploads.tidy()
    assert files(tmp_path) == {upload.name}
    await outgoing.acknowledge(batch.batch_seq, answer(batch.batch_seq))
    await uploads.tidy()
    assert files(tmp_path) == set()
    status = await queue.status()
    assert (status.pending, status.bytes, status.uploads.waiting, status.uploads.bytes) == (0, 0, 0, 0)


async def test_what_was_cut_short_leaves_nothing(database: Database, tmp_path: Path) -> None:
    _, uploads = opened(database, tmp_path)

    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise InvalidInputError("the sender is gone")

    with pytest.raises(InvalidInputError):
        await uploads.take(broken(), FACT)
    assert files(tmp_path) == set()
    # As a kill leaves them: before the name, and before the row.
    for name in (".part-1", "2"):
        (tmp_path / "uploads" / name).write_bytes(b"x")
    kept = await uploads.take(pieces(b"whole"), FACT)
    await uploads.tidy()
    assert files(tmp_path) == {kept.name}


async def test_a_refused_file_leaves_its_fact_among_the_dead_letters(database: Database, tmp_path: Path) -> None:
    queue, uploads = opened(database, tmp_path)
    outgoing = Outgoing(database, "edge-1", 500, 100_000)
    await outgoing.begin_epoch(1)
    await uploads.refuse(await uploads.take(pieces(b"abc"), FACT), "blob_too_large")
    status = await queue.status()
    assert (status.dead_letters, status.pending, status.streams["clips"].lost) == (1, 0, 1)
    batch = await outgoing.next_batch()
    assert batch is not None
    assert batch.records == 1  # the range that is lost
    await uploads.tidy()
    assert files(tmp_path) == set()


async def test_a_file_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    before_uploads = next(number for number, step in enumerate(STEPS) if "TABLE upload" in step)
    with sqlite3.connect(tmp_path / "queue.db") as before:
        before.executescript("; ".join(STEPS[:before_uploads]) + f"; PRAGMA user_version = {before_uploads}")
        before.execute("INSERT INTO stream (name, last_seq, pending, bytes) VALUES ('clips', 1, 1, 66)")
        before.execute("INSERT INTO operation VALUES (?, 'clips', 1, x'7b7d')", ((5 << 56) + 1,))
    before.close()
    database = Database(tmp_path / "queue.db")
    try:
        queue, uploads = opened(database, tmp_path)
        await uploads.complete(await uploads.take(pieces(b"abc"), FACT))
        assert (await queue.status()).pending == 2
        assert await database.run(lambda c: c.execute("PRAGMA user_version").fetchone()) == (VERSION,)
    finally:
        database.close()
