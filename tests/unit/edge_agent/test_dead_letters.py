"""What the cloud refused for good: seen, sent once more with the same content, dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.database import Database
from edge_agent.dead_letters import DeadLetters, add_dead_letter
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.encoding import decode_body
from primespark.core.settings import OfflineSettings
from primespark.errors import ConflictError, NotFoundError, OverloadedError
from primespark.sync.records import DataClass, PushResponse, RecordResult, ResultStatus

FACT = NewFact(DataClass.TELEMETRY, {"name": "bär \u2603", "n": 1.5})


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "queue.db")
    yield database
    database.close()


async def send(outgoing: Outgoing, *refused: int) -> list[dict[str, object]]:
    """The records of the next batch, those at the indexes `refused` refused."""
    batch = await outgoing.next_batch()
    if batch is None:
        return []
    headers = batch.headers
    body = decode_body(
        batch.body, encoding=headers.get("Content-Encoding"), digest=headers["Content-Digest"], max_bytes=10_000_000
    )
    results = [RecordResult(index=index, status=ResultStatus.REJECTED, code="bad_label") for index in refused]
    answer = PushResponse(
        status="applied", ack_batch_seq=batch.batch_seq, results=results, server_epoch=1,
        server_hlc="1790000000000-0000-cloud",
    )  # fmt: skip
    await outgoing.acknowledge(batch.batch_seq, answer)
    records: list[dict[str, object]] = json.loads(body)["records"]
    return records


async def refused_once(database: Database, capacity: int = 100) -> tuple[DeadLetters, Outgoing, dict[str, object]]:
    queue = OfflineQueue(database, OfflineSettings(capacity_operations=capacity))
    outgoing = Outgoing(database, "edge-1", 500, 100_000)
    await outgoing.begin_epoch(1)
    await queue.enqueue([FACT, FACT])
    _, refused = await send(outgoing, 1)
    return DeadLetters(database, queue), outgoing, refused


async def test_what_was_refused_is_listed_and_shown_as_it_was_sent(database: Database) -> None:
    letters, _, refused = await refused_once(database)
    (letter,) = await letters.page(0, 10)
    assert (letter.stream, letter.seq, letter.code) == ("telemetry", 2, "bad_label")
    shown, record = await letters.read(letter.id)
    assert shown == letter
    assert json.loads(record) == refused
    assert letter.bytes == len(record.encode())
    assert await letters.page(letter.id, 10) == []


async def test_a_fact_is_sent_once_more_with_its_own_content_and_time(database: Database) -> None:
    letters, outgoing, refused = await refused_once(database)
    (letter,) = await letters.page(0, 10)
    assert await letters.replay(letter.id) == 3
    with pytest.raises(NotFoundError):
        await letters.replay(letter.id)
    assert await send(outgoing) == [{**refused, "seq": 3}]
    assert await send(outgoing) == []


async def test_what_the_full_queue_does_not_take_stays_a_dead_letter(database: Database) -> None:
    letters, outgoing, _ = await refused_once(database, capacity=2)
    (letter,) = await letters.page(0, 10)
    await OfflineQueue(database, OfflineSettings()).enqueue([FACT, FACT])
    with pytest.raises(OverloadedError):
        await letters.replay(letter.id)
    assert await letters.page(0, 10) == [letter]
    assert [record["seq"] for record in await send(outgoing)] == [3, 4]


async def test_one_that_is_dropped_is_gone(database: Database) -> None:
    letters, outgoing, _ = await refused_once(database)
    (letter,) = await letters.page(0, 10)
    await letters.discard(letter.id)
    assert await letters.page(0, 10) == []
    for missing in (letters.discard, letters.read, letters.replay):
        with pytest.raises(NotFoundError) as caught:
            await missing(letter.id)
        assert caught.value.code == "unknown_dead_letter"
    assert await send(outgoing) == []


async def test_a_document_is_not_sent_again_as_it_was(database: Database) -> None:
    letters, _, _ = await refused_once(database)
    await database.run(lambda connection: add_dead_letter(connection, "twin", 0, "bad_document", '{"reported": 1}'))
    document = (await letters.page(0, 10))[-1]
    with pytest.raises(ConflictError) as caught:
        await letters.replay(document.id)
    assert caught.value.code == "not_replayable"
    assert document in await letters.page(0, 10)
