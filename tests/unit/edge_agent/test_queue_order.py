"""What goes first, what a failing cloud does to a batch, and files of older versions."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_agent import schema
from edge_agent.batch_selection import BEHIND_OPERATIONS
from edge_agent.database import Database
from edge_agent.outgoing import Batch, Outgoing
from edge_agent.priority import Priority
from edge_agent.queue import OfflineQueue
from edge_agent.rate import Rate
from primespark.core.settings import OfflineSettings, StreamSettings
from primespark.errors import OverloadedError
from tests.unit.edge_agent.test_queue import answer, fact, payload

FOUR = OfflineSettings.model_validate({"streams": tuple({"stream": name, "priority": name} for name in Priority)})


async def begin(database: Database, records: int = 100, **other: Any) -> Outgoing:
    outgoing = Outgoing(database, "edge-1", records, 10_000_000, **other)
    await outgoing.begin_epoch(1)
    return outgoing


async def send(outgoing: Outgoing) -> list[Any]:
    """The records of the next batch, which the cloud takes."""
    batch = await outgoing.next_batch()
    if batch is None:
        return []
    await outgoing.acknowledge(batch.batch_seq, answer(batch))
    return list(payload(batch).records)


def streams_of(records: list[Any]) -> dict[str, int]:
    return dict(Counter(record.stream for record in records))


async def test_a_batch_goes_by_priority_and_each_class_has_its_floor(database: Database) -> None:
    queue, outgoing = OfflineQueue(database, FOUR), await begin(database)
    for name in reversed(Priority):
        await queue.enqueue([fact(n, name) for n in range(200)])
    first = await send(outgoing)
    assert streams_of(first) == {"critical": 85, "high": 5, "normal": 5, "low": 5}
    order = [record.stream for record in first]
    assert order == sorted(order, key=list(Priority).index)
    rest = [streams_of(await send(outgoing)) for _ in range(7)]
    assert rest[1] == {"critical": 30, "high": 60, "normal": 5, "low": 5}
    assert rest[-1] == {"low": 100}
    assert outgoing.waiting == 0


async def test_a_stream_keeps_its_priority_while_anything_of_it_waits(database: Database) -> None:
    outgoing = await begin(database)
    await OfflineQueue(database, OfflineSettings()).enqueue([fact(0, "alarm"), fact(0, "other")])
    urgent = OfflineQueue(database, OfflineSettings(streams=(StreamSettings(stream="alarm", priority="critical"),)))
    await urgent.enqueue([fact(1, "other"), fact(1, "alarm")])
    sent = await send(outgoing)
    assert [(r.stream, r.seq) for r in sent] == [("alarm", 1), ("other", 1), ("other", 2), ("alarm", 2)]
    await urgent.enqueue([fact(2, "other"), fact(2, "alarm")])
    assert outgoing.is_urgent
    assert [r.stream for r in await send(outgoing)] == ["alarm", "other"]
    assert not outgoing.is_urgent


async def test_what_happens_now_overtakes_a_backlog_which_has_a_share_of_its_own(database: Database) -> None:
    queue, outgoing = OfflineQueue(database, OfflineSettings()), await begin(database, 500, backlog_records_per_s=1)
    await queue.enqueue([fact(n) for n in range(BEHIND_OPERATIONS + 1)])
    assert streams_of(await send(outgoing)) == {"telemetry": 500}
    await queue.enqueue([fact(n) for n in range(20)])
    # The share of a second is spent, so that the backlog waits; what is new does not.
    assert streams_of(await send(outgoing)) == {"telemetry.live": 20}
    assert await outgoing.next_batch() is None
    assert outgoing.pause_s > 1
    unlimited = Outgoing(database, "edge-1", 500, 10_000_000, 10**9)
    await queue.enqueue([fact(n) for n in range(20)])
    assert streams_of(await send(unlimited)) == {"telemetry.live": 20, "telemetry": 480}
    while await send(unlimited):
        pass
    # Caught up: the stream goes on where it was.
    await queue.enqueue([fact(0)])
    (record,) = await send(unlimited)
    assert (record.stream, record.seq) == ("telemetry", BEHIND_OPERATIONS + 2)


async def test_what_is_critical_is_never_dropped(database: Database) -> None:
    settings = OfflineSettings(
        capacity_operations=4,
        streams=(
            StreamSettings(stream="critical", priority="critical", on_full="drop_lowest"),
            StreamSettings(stream="low", priority="low", on_full="drop_lowest"),
        ),
    )
    queue = OfflineQueue(database, settings)
    await queue.enqueue([fact(n, "critical") for n in range(4)])
    for stream in ("critical", "low"):
        with pytest.raises(OverloadedError):
            await queue.enqueue([fact(9, stream)])
    assert (await queue.status()).streams["critical"].lost == 0
    with pytest.raises(ValidationError, match="never dropped"):
        StreamSettings(stream="x", priority="critical", on_full="drop_oldest")


async def test_drops_are_told_before_what_follows_them(database: Database) -> None:
    settings = OfflineSettings(
        capacity_operations=3, streams=(StreamSettings(stream="telemetry", on_full="drop_oldest"),)
    )
    queue, outgoing = OfflineQueue(database, settings), await begin(database, 2)
    await queue.enqueue([fact(n) for n in range(3)])
    first = await outgoing.next_batch()
    assert first is not None
    # Two are under way and stay; of the others the oldest goes.
    await queue.enqueue([fact(3)])
    with pytest.raises(OverloadedError):
        await queue.enqueue([fact(4), fact(5)])
    await outgoing.acknowledge(first.batch_seq, answer(first))
    sent = [record.model_dump(include={"op", "seq", "seq_from", "seq_to", "reason"}) for record in await send(outgoing)]
    assert sent == [
        {"op": "lost", "seq_from": 3, "seq_to": 3, "reason": "queue_full"}, {"op": "append", "seq": 4},
    ]  # fmt: skip
    assert (await queue.status()).streams["telemetry"].lost == 1


async def fail(outgoing: Outgoing, batch: Batch) -> None:
    """The cloud fails on a batch as often as it may."""
    assert [await outgoing.failed(batch.batch_seq, "internal") for _ in range(3)] == [False, False, True]


async def test_the_record_a_cloud_fails_on_is_found_and_set_aside(database: Database) -> None:
    queue, outgoing = OfflineQueue(database, OfflineSettings()), await begin(database)
    await queue.enqueue([fact(n) for n in range(8)])
    seen: list[int] = []
    for _ in range(60):
        batch = await outgoing.next_batch()
        if batch is None:
            break
        numbers = [record.value["n"] for record in payload(batch).records if record.op == "append"]
        if 5 in numbers:
            await fail(outgoing, batch)
        else:
            await outgoing.acknowledge(batch.batch_seq, answer(batch))
            seen += numbers
    assert seen == [0, 1, 2, 3, 4, 6, 7]
    status = await queue.status()
    assert (status.dead_letters, status.pending) == (1, 0)
    assert status.streams["telemetry"].lost == 1


async def test_while_the_cloud_fails_on_everything_nothing_is_set_aside(database: Database) -> None:
    queue, outgoing = OfflineQueue(database, OfflineSettings()), await begin(database)
    await queue.enqueue([fact(n) for n in range(4)])
    numbers = set()
    for _ in range(40):
        batch = await outgoing.next_batch()
        assert batch is not None
        numbers.add(batch.batch_seq)
        await outgoing.failed(batch.batch_seq, "internal")
    assert numbers == {1}
    status = await queue.status()
    assert (status.dead_letters, status.pending) == (0, 4)


async def test_a_batch_that_was_applied_though_the_cloud_failed_is_not_taken_for_a_cloned_card(
    database: Database,
) -> None:
    queue, outgoing = OfflineQueue(database, OfflineSettings()), await begin(database)
    await queue.enqueue([fact(n) for n in range(4)])
    whole = await outgoing.next_batch()
    assert whole is not None
    await fail(outgoing, whole)
    half = await outgoing.next_batch()
    assert half is not None
    assert (half.batch_seq, half.records) == (whole.batch_seq, 2)
    # The cloud knows another batch of this number.
    assert await outgoing.take_up_again(half.batch_seq)
    assert await outgoing.next_batch() == whole
    # Once more would be another machine's.
    assert not await outgoing.take_up_again(whole.batch_seq)
    await outgoing.acknowledge(whole.batch_seq, answer(whole))
    assert outgoing.waiting == 0


def test_a_file_of_the_first_version_keeps_what_waits_and_what_is_under_way(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    connection.executescript(f"BEGIN; {schema.STEPS[0]}; PRAGMA user_version = 1; COMMIT")
    tail = (
        '"data_class":"telemetry","time":"2026-03-01T12:00:00.000000Z","boot_id":"b","monotonic_ns":1,"value":{"n":1}}'
    )
    connection.execute("INSERT INTO stream VALUES ('telemetry', 6, 2, 1, 3, ?)", (3 * (len(tail) + 64),))
    connection.executemany(
        "INSERT INTO operation (id, stream, seq, tail) VALUES (?, 'telemetry', ?, ?)",
        [(id_, seq, tail.encode()) for id_, seq in ((11, 4), (12, 5), (13, 6))],
    )
    connection.execute("INSERT INTO lost VALUES (1, 'telemetry', 3, 3, 'refused: x')")
    connection.execute("INSERT INTO meta VALUES ('epoch', '1'), ('next_batch_seq', '7')")
    connection.execute(
        "INSERT INTO batch VALUES (7, 1, 1, 12, ?, 1, 4, ?, 'body')",
        ('[["edge-1", "twin", 9]]', '{"Content-Digest": "x"}'),
    )
    connection.close()
    database = Database(tmp_path / "queue.db")
    version, records = database.submit(_read).result()
    assert version == schema.VERSION
    lane = 5 << 56
    assert records == (
        f'[["lost",1],["document","edge-1","twin",9],["operation",{lane + 11}],["operation",{lane + 12}]]'
    )
    outgoing = Outgoing(database, "edge-1", 100, 100_000)
    batch = database.submit(outgoing._next_batch).result()
    assert batch is not None
    assert (batch.batch_seq, batch.records) == (7, 4)
    database.submit(lambda c: outgoing._acknowledge(c, 7, answer(batch))).result()
    rest = database.submit(outgoing._next_batch).result()
    assert rest is not None
    assert [record.seq for record in payload(rest).records if record.op == "append"] == [6]
    database.close()


def _read(connection: sqlite3.Connection) -> tuple[int, str]:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (records,) = connection.execute("SELECT records FROM batch").fetchone()
    return version, records


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50)), max_size=30))
def test_a_rate_never_gives_more_than_its_limit(steps: list[tuple[float, int]]) -> None:
    now, given_out = 0.0, 0
    rate = Rate(10, 20, lambda: now)
    for pause, wanted in steps:
        now += pause
        units = min(wanted, rate.available())
        rate.spend(units)
        given_out += units
        assert given_out <= 20 + 10 * now + 1e-6
        wait = rate.wait_s(1)
        assert (wait == 0) == (rate.available() >= 1)
