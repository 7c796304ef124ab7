"""The durable queue and its batches, against a list that says what must be where."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.database import Database
from edge_agent.outgoing import Batch, Outgoing
from edge_agent.queue import MAX_FACT_BYTES, NewFact, OfflineQueue
from primespark.core.encoding import decode_body
from primespark.core.settings import OfflineSettings, StreamSettings
from primespark.errors import IntegrityError, InvalidInputError, OverloadedError, TooLargeError, UnavailableError
from primespark.sync.records import DataClass, PushRequest, PushResponse, RecordResult, ResultStatus
from tests.helpers import rounds

HLC = "1790000000000-0000-cloud"


def fact(number: int, stream: str = "telemetry", **value: Any) -> NewFact:
    return NewFact(DataClass.TELEMETRY, {"n": number, **value}, stream=stream)


def payload(batch: Batch) -> PushRequest:
    body = decode_body(
        batch.body,
        encoding=batch.headers.get("Content-Encoding"),
        digest=batch.headers["Content-Digest"],
        max_bytes=10_000_000,
    )
    return PushRequest.model_validate_json(body)


def answer(batch: Batch, rejected: list[int] | None = None) -> PushResponse:
    results = [RecordResult(index=i, status=ResultStatus.REJECTED, code="bad_label") for i in rejected or []]
    return PushResponse(
        status="applied", ack_batch_seq=batch.batch_seq, results=results, server_hlc=HLC, server_epoch=1
    )


async def test_seqs_count_from_1_in_each_stream(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    assert await queue.enqueue([fact(0), fact(0, "other"), fact(1)]) == [1, 1, 2]
    assert await queue.enqueue([fact(2)]) == [3]


async def test_a_key_is_enqueued_once(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    assert await queue.enqueue([fact(0), fact(1)], once=["a", "b"]) == [1, 2]
    assert await queue.enqueue([fact(1), fact(2)], once=["b", "c"]) == [0, 3]
    assert await queue.unknown(["c", "d", "a", "e"]) == ["d", "e"]


async def test_a_refused_key_is_not_remembered(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings(capacity_operations=2))
    outgoing = Outgoing(database, "edge-1", 500, 20_000)
    await outgoing.begin_epoch(1)
    await queue.enqueue([fact(0)])
    with pytest.raises(OverloadedError):
        await queue.enqueue([fact(1), fact(2)], once=["a", "b"])
    assert await queue.unknown(["a", "b"]) == ["a", "b"]
    batch = await outgoing.next_batch()
    assert batch is not None
    await outgoing.acknowledge(batch.batch_seq, answer(batch))
    assert await queue.enqueue([fact(1), fact(2)], once=["a", "b"]) == [2, 3]


@pytest.mark.parametrize(
    ("limits", "free", "taken"),
    [
        ({"capacity_operations": 3}, 10**12, 3),
        ({"capacity_bytes": 1000}, 10**12, 4),
        ({"minimum_free_disk_bytes": 1000}, 999, 0),
    ],
)
async def test_a_full_queue_refuses_all_or_nothing(
    database: Database, limits: dict[str, int], free: int, taken: int
) -> None:
    queue = OfflineQueue(database, OfflineSettings.model_validate(limits), free_bytes=lambda: free)
    for number in range(taken):
        await queue.enqueue([fact(number)])
    with pytest.raises(OverloadedError) as refused:
        await queue.enqueue([fact(taken)])
    assert refused.value.code == "queue_full"
    with pytest.raises(OverloadedError):
        await queue.enqueue([fact(n) for n in range(5)])
    assert (await queue.status()).pending == taken


async def test_a_full_disk_refuses_and_keeps_what_was_taken(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    await queue.enqueue([fact(0)])
    pages = await database.run(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    # SQLite itself answers SQLITE_FULL beyond this, as it does when the disk has no page left.
    await database.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 5}").fetchone())
    with pytest.raises(OverloadedError) as refused:
        await queue.enqueue([fact(number, text="x" * 4000) for number in range(100)])
    assert (refused.value.code, failure(database)) == ("queue_full", "no space for the queue")
    await database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
    status = await queue.status()
    assert failure(database) is None
    waiting = await queue.waiting(0, 1000)
    assert [item.seq for item in waiting] == list(range(1, status.pending + 1))
    assert await queue.enqueue([fact(1)]) == [status.pending + 1]


def failure(database: Database) -> str | None:
    """As a function, whose answer a type checker does not believe to stay."""
    return database.failure


@pytest.mark.parametrize("value", [{"x": math.nan}, {"x": math.inf}, {"x": object()}, {"x": "\ud800"}, [], "text"])
def test_a_value_that_is_not_json_is_refused(database: Database, value: Any) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    with pytest.raises(InvalidInputError):
        queue.submit([NewFact(DataClass.TELEMETRY, value)])


def test_a_fact_over_the_limit_and_a_bad_stream_are_refused(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    with pytest.raises(TooLargeError):
        queue.submit([fact(0, text="x" * MAX_FACT_BYTES)])
    with pytest.raises(InvalidInputError):
        queue.submit([fact(0, 'a"b')])


async def test_a_fault_of_one_job_leaves_the_others_of_its_group(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())

    def fail(_: Any) -> None:
        raise RuntimeError("fault")

    first, failing, second = queue.submit([fact(0)]), database.submit(fail), queue.submit([fact(1)])
    assert (first.result(), second.result()) == ([1], [2])
    with pytest.raises(RuntimeError):
        failing.result()


def test_a_closed_database_takes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.db")
    queue = OfflineQueue(database, OfflineSettings())
    future = queue.submit([fact(0)])
    database.close()
    assert future.result() == [1]
    with pytest.raises(UnavailableError):
        queue.submit([fact(1)])


@pytest.mark.parametrize("is_checked_at_start", [True, False])
def test_a_damaged_file_is_set_aside_and_the_queue_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_checked_at_start: bool
) -> None:
    path = tmp_path / "queue.db"
    database = Database(path)
    queue = OfflineQueue(database, OfflineSettings())
    queue.submit([fact(n, text="x" * 2000) for n in range(400)]).result()
    database.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    if not is_checked_at_start:
        monkeypatch.setattr("edge_agent.database_file._CHECKED_BYTES", 0)
    database = Database(path)
    queue = OfflineQueue(database, OfflineSettings())
    if not is_checked_at_start:
        read = database.submit(
            lambda connection: connection.execute("SELECT sum(length(tail)) FROM operation").fetchone()
        )
        assert isinstance(read.exception(), IntegrityError)
    assert queue.submit([fact(0)]).result() == [1]
    database.close()
    assert [part.name for part in tmp_path.glob("queue.db.corrupt-*") if part.suffix[-4:] not in ("-wal", "-shm")]


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_log_without_its_file_is_set_aside_and_not_dropped(tmp_path: Path, is_gone: bool) -> None:
    path = tmp_path / "queue.db"
    database = Database(path)
    OfflineQueue(database, OfflineSettings()).submit([fact(0)]).result()
    log = (tmp_path / "queue.db-wal").read_bytes()
    database.close()
    path.write_bytes(b"")
    if is_gone:
        path.unlink()
    (tmp_path / "queue.db-wal").write_bytes(log)
    database = Database(path)
    assert OfflineQueue(database, OfflineSettings()).submit([fact(0)]).result() == [1]
    database.close()
    (kept,) = tmp_path.glob("queue.db.corrupt-*-wal")
    assert kept.read_bytes() == log


async def test_what_is_acknowledged_is_on_the_disk_first(database: Database) -> None:
    (level,) = await database.run(lambda connection: connection.execute("PRAGMA synchronous").fetchone())
    assert level == 2  # FULL


async def test_batches_are_whole_again_after_one_was_split(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    outgoing = Outgoing(database, "edge-1", 4, 100_000)
    await outgoing.begin_epoch(1)
    await queue.enqueue([fact(n) for n in range(10)])
    sizes = []
    while (batch := await outgoing.next_batch()) is not None:
        sizes.append(batch.records)
        if len(sizes) == 1:
            assert await outgoing.reject(batch.batch_seq, "invalid_input")
        else:
            await outgoing.acknowledge(batch.batch_seq, answer(batch))
    assert sizes == [4, 2, 4, 4]


async def test_a_lost_range_that_is_refused_is_kept(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    outgoing = Outgoing(database, "edge-1", 4, 100_000)
    await outgoing.begin_epoch(1)
    await queue.enqueue([fact(0)])
    await outgoing.next_batch()
    assert await outgoing.reject(1, "invalid_input")
    batch = await outgoing.next_batch()
    assert batch is not None
    for _ in range(3):
        assert not await outgoing.reject(batch.batch_seq, "invalid_input")
        assert await outgoing.next_batch() == batch
    assert (await queue.status()).dead_letters == 1


async def test_a_batch_closes_at_its_bytes_and_one_record_always_fits(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    outgoing = Outgoing(database, "edge-1", 500, 20_000)
    await outgoing.begin_epoch(1)
    await queue.enqueue([fact(0, text="x" * 100_000), *(fact(n, text="x" * 5000) for n in range(1, 8))])
    sizes = []
    while (batch := await outgoing.next_batch()) is not None:
        sizes.append(batch.records)
        await outgoing.acknowledge(batch.batch_seq, answer(batch))
    assert sizes == [1, 3, 3, 1]


async def test_time_and_boot_travel_as_given(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    outgoing = Outgoing(database, "edge-1", 500, 20_000)
    await outgoing.begin_epoch(3)
    moment = datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)
    await queue.enqueue([NewFact(DataClass.LABELS, {"grüße": [1, None]}, moment, "boot", 77)])
    batch = await outgoing.next_batch()
    assert batch is not None
    request = payload(batch)
    (record,) = request.records
    assert (request.epoch, request.batch_seq, request.replica_id) == (3, 1, "edge-1")
    assert record.model_dump(exclude={"time"}) == {
        "data_class": "labels", "op": "append", "stream": "labels", "seq": 1, "boot_id": "boot", "monotonic_ns": 77,
        "quality": None, "blob": None, "value": {"grüße": [1, None]},
    }  # fmt: skip
    assert getattr(record, "time", None) == moment


STREAMS = (
    StreamSettings(stream="a", priority="normal", on_full="reject"),
    StreamSettings(stream="b", priority="low", on_full="drop_oldest"),
    StreamSettings(stream="c", priority="critical", on_full="drop_lowest"),
)


class QueueMachine(RuleBasedStateMachine):
    """Every fact that was answered for is sent, waiting, aside or told as lost, once; in order, without gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.number = 0
        self.waiting: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        self.arrived: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        self.aside: list[int] = []
        self.dropped: list[int] = []
        self.was_under_way: set[int] = set()
        self.watermark: dict[str, int] = {}
        self.fixed: Batch | None = None
        self.epoch = 1
        self.open()
        self.outgoing.begin_epoch_now(1)

    def open(self) -> None:
        self.database = Database(Path(self.folder.name) / "queue.db")
        self.queue = OfflineQueue(self.database, OfflineSettings(capacity_operations=30, streams=STREAMS))
        self.outgoing = _Blocking(self.database)

    @rule(stream=st.sampled_from(["a", "b", "c"]), count=st.integers(1, 9))
    def enqueue(self, stream: str, count: int) -> None:
        numbers = list(range(self.number, self.number + count))
        victims = self.victims(stream, sum(map(len, self.waiting.values())) + count - 30)
        future = self.queue.submit([fact(n, stream) for n in numbers])
        if victims is None:
            assert isinstance(future.exception(), OverloadedError)
            return
        future.result()
        self.number += count
        for victim in victims:
            (of,) = [name for name, waiting in self.waiting.items() if victim in waiting]
            self.waiting[of].remove(victim)
        self.dropped += victims
        self.waiting[stream] += numbers

    def victims(self, stream: str, missing: int) -> list[int] | None:
        """What must go, by the words of the settings; None: it is refused."""
        if missing <= 0:
            return []
        sent = (
            {record.value["n"] for record in payload(self.fixed).records if record.op == "append"}
            if self.fixed
            else set()
        )
        yielding = {"a": [], "b": ["b"], "c": ["b", "a"]}[stream]
        candidates = [n for name in yielding for n in self.waiting[name] if n not in sent]
        return candidates[:missing] if len(candidates) >= missing else None

    @rule()
    def fix(self) -> None:
        batch = self.outgoing.next_batch()
        if self.fixed is not None:
            assert batch == self.fixed
        self.fixed = batch

    @precondition(lambda self: self.fixed is not None)
    @rule(rejected=st.sets(st.integers(0, 9), max_size=2))
    def acknowledge(self, rejected: set[int]) -> None:
        assert self.fixed is not None
        request = payload(self.fixed)
        refused = [i for i in sorted(rejected) if i < len(request.records) and request.records[i].op == "append"]
        for index, record in enumerate(request.records):
            self.receive(record.model_dump(mode="json"), index in refused)
        self.outgoing.acknowledge(self.fixed.batch_seq, answer(self.fixed, refused))
        self.fixed = None

    @precondition(lambda self: self.fixed is not None)
    @rule()
    def refuse_batch(self) -> None:
        assert self.fixed is not None
        records = payload(self.fixed).records
        # Only a fact is ever at fault; a lost range is ours.
        if len(records) == 1 and records[0].op == "lost":
            return
        self.outgoing.reject(self.fixed.batch_seq, "invalid_input")
        if len(records) == 1:
            (record,) = [record.model_dump(mode="json") for record in records]
            self.waiting[record["stream"]].remove(record["value"]["n"])
            self.aside.append(record["value"]["n"])
        self.fixed = None

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.open()

    @rule()
    def begin_epoch(self) -> None:
        self.epoch += 1
        self.outgoing.begin_epoch_now(self.epoch)
        self.watermark.clear()
        self.fixed = None

    def receive(self, record: dict[str, Any], is_refused: bool) -> None:
        stream = record["stream"]
        if record["op"] == "lost":
            assert record["seq_from"] == self.watermark.get(stream, 0) + 1
            self.watermark[stream] = record["seq_to"]
            return
        assert record["seq"] == self.watermark.get(stream, 0) + 1
        self.watermark[stream] = record["seq"]
        number = record["value"]["n"]
        assert self.waiting[stream].pop(0) == number
        (self.aside if is_refused else self.arrived[stream]).append(number)

    @invariant()
    def ranges_of_lost_facts_that_touch_are_one(self) -> None:
        ranges, under_way = self.database.submit(_read_lost).result()
        # One that was under way when the next fact went stays as it is, even where its batch was divided since.
        self.was_under_way |= under_way
        for (stream, _, seq_to, id_), (other, seq_from, _, _) in itertools.pairwise(sorted(ranges)):
            assert (stream, seq_to + 1) != (other, seq_from) or id_ in self.was_under_way

    @invariant()
    def every_fact_is_somewhere(self) -> None:
        status = self.database.submit(_read).result()
        assert status["pending"] == {s: len(n) for s, n in self.waiting.items() if n}
        assert status["bytes"] == status["counted_bytes"]
        assert sorted(status["aside"]) == sorted(self.aside)
        lists = [self.aside, self.dropped, *self.waiting.values(), *self.arrived.values()]
        assert sorted(number for part in lists for number in part) == list(range(self.number))

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()


class _Blocking:
    """`Outgoing` for a machine that is not asynchronous."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._outgoing = Outgoing(database, "edge-1", 8, 100_000)

    def next_batch(self) -> Batch | None:
        return self._database.submit(self._outgoing._next_batch).result()

    def acknowledge(self, batch_seq: int, response: PushResponse) -> None:
        self._database.submit(lambda c: self._outgoing._acknowledge(c, batch_seq, response)).result()

    def reject(self, batch_seq: int, code: str) -> None:
        self._database.submit(lambda c: self._outgoing._reject(c, batch_seq, code)).result()

    def begin_epoch_now(self, epoch: int) -> None:
        from edge_agent.outgoing import _begin_epoch

        self._database.submit(lambda c: _begin_epoch(c, "edge-1", epoch, 1)).result()


def _read_lost(connection: Any) -> tuple[list[tuple[str, int, int, int]], set[int]]:
    ranges = connection.execute("SELECT stream, seq_from, seq_to, id FROM lost WHERE reason = 'queue_full'").fetchall()
    rows = connection.execute("SELECT records FROM batch").fetchall()
    return ranges, {place[1] for (records,) in rows for place in json.loads(records) if place[0] == "lost"}


def _read(connection: Any) -> dict[str, Any]:
    operations = connection.execute("SELECT stream, length(tail) FROM operation").fetchall()
    pending = connection.execute("SELECT name, pending FROM stream WHERE pending > 0").fetchall()
    return {
        "pending": dict(pending),
        "bytes": connection.execute("SELECT coalesce(sum(bytes), 0) FROM stream").fetchone()[0],
        "counted_bytes": sum(size + 64 for _, size in operations),
        "aside": [json.loads(r)["value"]["n"] for (r,) in connection.execute("SELECT record FROM dead_letter")],
    }


TestQueueMachine = pytest.mark.prove(QueueMachine.TestCase)
TestQueueMachine.settings = settings(max_examples=rounds(25, 500), stateful_step_count=25, deadline=None)
