"""`reported.sync` of a twin against the queue it tells of."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge_agent.database import Database
from edge_agent.dead_letters import add_dead_letter
from edge_agent.documents import TWIN, Documents, dirty
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.sync_report import SyncReport
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass, PushResponse

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "queue.db")
    yield database
    database.close()


class Reporting:
    """A queue and its report."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.queue = OfflineQueue(database, OfflineSettings())
        self.documents = Documents(database, "edge-1")
        self.report = SyncReport(self.queue, self.documents)

    async def told(self, now: datetime = NOW) -> Any:
        await self.report.tell(now)
        twin = await self.documents.read("edge-1", TWIN)
        assert twin is not None
        return twin.value["reported"]["sync"]

    async def enqueue(self, *ages_s: float) -> None:
        facts = [NewFact(DataClass.TELEMETRY, {"n": 1}, NOW - timedelta(seconds=age)) for age in ages_s]
        await self.queue.enqueue(facts)

    async def counter(self) -> int:
        return await self.database.run(lambda connection: dirty(connection)[0].document.vv["edge-1"])


@pytest.fixture
def reporting(database: Database) -> Reporting:
    return Reporting(database)


async def test_what_is_on_its_way_is_no_backlog(reporting: Reporting) -> None:
    await reporting.enqueue(59, 1)
    assert await reporting.told() == {"pending": 0, "dead_letters": 0, "lost": 0}


async def test_what_waits_long_is_told_and_no_longer_once_it_is_gone(reporting: Reporting) -> None:
    outgoing = Outgoing(reporting.database, "edge-1", 500, 500_000)
    await reporting.enqueue(3600, 5)
    assert await reporting.told() == {
        "pending": 2, "oldest_at": "2026-03-01T11:00:00.000000Z", "dead_letters": 0, "lost": 0
    }  # fmt: skip
    await outgoing.begin_epoch(1)
    batch = await outgoing.next_batch()
    assert batch is not None
    answer = PushResponse(
        status="applied", ack_batch_seq=1, results=[], server_hlc="0000000000001-0000-cloud", server_epoch=1
    )
    await outgoing.acknowledge(batch.batch_seq, answer)
    assert await reporting.told() == {"pending": 0, "dead_letters": 0, "lost": 0}


async def test_time_alone_writes_nothing(reporting: Reporting) -> None:
    await reporting.enqueue(3600)
    await reporting.told()
    before = await reporting.counter()
    for minutes in range(1, 5):
        await reporting.told(NOW + timedelta(minutes=minutes))
    assert await reporting.counter() == before
    await reporting.enqueue(5)
    await reporting.told()
    assert await reporting.counter() == before + 1


async def test_dead_letters_and_losses_are_told(reporting: Reporting) -> None:
    await reporting.enqueue(1)
    await reporting.database.run(lambda connection: add_dead_letter(connection, "telemetry", 1, "bad_metric", "{}"))
    await reporting.database.run(lambda connection: connection.execute("UPDATE stream SET lost = 3"))
    assert await reporting.told() == {"pending": 0, "dead_letters": 1, "lost": 3}
