"""The worker between in-process ends: whatever fails and whenever, no snapshot hides a result that is missing."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from primespark.errors import ConflictError
from primespark.windows.engine import Partition, WindowEngine
from streams.contracts import Incoming
from streams.decode import Headers
from streams.sink import Outgoing
from streams.state import StateLines
from streams.worker import StreamWorker
from tests.unit.windows.histories import make_rule

TOPIC = "in"
HERE = (TOPIC, 0)


class Log:
    """A partition, a sink and a snapshot store in memory, each of which can be told to fail."""

    def __init__(self) -> None:
        self.generation_id = 1
        self.sought: list[int] = []
        self.committed: dict[Partition, int] = {}
        self.states: defaultdict[Partition, StateLines] = defaultdict(StateLines)
        self.is_taken_over = False
        self.delivered: dict[str, tuple[float | None, int]] = {}
        self.first = 0
        self.sink_is_broken = False
        self.snapshots_are_broken = False
        self.deliveries = 0
        self.refused = 0
        self.loads = 0
        self.may_load = asyncio.Event()
        self.may_load.set()

    def generation(self) -> int | None:
        return self.generation_id

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        self.sought.append(offset)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        self.committed |= offsets

    async def open(self) -> None:
        return None

    async def deliver(self, outgoing: Outgoing) -> None:
        self.deliveries += 1
        if self.sink_is_broken:
            raise OSError("the sink is broken")
        for _topic, result in outgoing.results:
            self.delivered[result.key] = (result.value, result.revision)

    @property
    def snapshots(self) -> dict[Partition, dict[str, Any]]:
        return {key: state.to_snapshot() for key, state in self.states.items()}

    async def write(self, changes: Mapping[str, Any]) -> int:
        if self.is_taken_over:
            raise ConflictError("taken over")
        if self.snapshots_are_broken:
            raise OSError("the snapshots are broken")
        self.states[changes["topic"], changes["partition"]].apply(StateLines.encode(changes))
        return 1

    async def load(self, partitions: Collection[Partition]) -> dict[Partition, dict[str, Any]]:
        self.loads += 1
        await self.may_load.wait()
        return {key: self.snapshots[key] for key in partitions if key in self.snapshots}

    async def first_offset_from(self, topic: str, partition: int, offset: int) -> int | None:
        return max(self.first, offset)

    async def trim(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Message:
    """A record of a log."""

    offset: int
    value: bytes | None
    headers: Headers | None = None
    timestamp: int | None = None


def message(offset: int, ts: int, value: float = 1.0, generation: int = 1) -> Incoming:
    row = {"device_id": "a", "ts": ts, "cpu_percent": value}
    return Incoming(TOPIC, 0, [Message(offset, json.dumps(row).encode())], generation)


def new_worker(log: Log) -> StreamWorker:
    rule = make_rule({"watermark_scope": "key", "allowed_lateness_seconds": 0})
    return StreamWorker(WindowEngine([rule]), log, log, log)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the conditions are plain values)
            await asyncio.sleep(0.005)


async def running(worker: StreamWorker, body: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(worker.run())
    try:
        await body()
    finally:
        await worker.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def log() -> Log:
    return Log()


async def test_offsets_are_committed_after_results_and_snapshot(log: Log) -> None:
    worker = new_worker(log)

    async def body() -> None:
        await worker.assigned([HERE])
        await worker.take(message(0, 0, 3.0))
        await worker.take(message(1, 10_000))
        await eventually(lambda: log.committed)
        assert log.delivered == {"r|a|0|10000": (3.0, 1)}
        assert log.committed == {HERE: 2}
        assert log.snapshots[HERE]["next_offset"] == 2
        assert worker.not_ready == {}

    await running(worker, body)


async def test_while_results_cannot_be_delivered_nothing_is_snapshotted_and_a_stop_is_quick(log: Log) -> None:
    worker = new_worker(log)
    log.sink_is_broken = True

    async def body() -> None:
        await worker.assigned([HERE])
        await worker.take(message(0, 0, 3.0))
        await worker.take(message(1, 10_000))
        await eventually(lambda: log.deliveries >= 2)
        assert "broken" in worker.not_ready["delivery"]
        await worker.take(message(2, 10_001))
        log.sink_is_broken = False
        started = asyncio.get_running_loop().time()
        await worker.revoked()
        assert asyncio.get_running_loop().time() - started < 1

    await running(worker, body)
    assert not log.snapshots
    assert not log.committed
    assert not log.delivered


async def test_what_a_stop_lost_from_memory_is_said_by_the_next_worker(log: Log) -> None:
    messages = [message(0, 0, 3.0), message(1, 10_000, 5.0), message(2, 20_000)]
    log.sink_is_broken = True
    first = new_worker(log)

    async def broken() -> None:
        await first.assigned([HERE])
        for item in messages[:2]:
            await first.take(item)
        await eventually(lambda: log.deliveries)

    await running(first, broken)
    log.sink_is_broken = False
    second = new_worker(log)

    async def whole() -> None:
        await second.assigned([HERE])
        for item in messages:
            await second.take(item)
        await eventually(lambda: log.committed.get(HERE) == 3)

    await running(second, whole)
    assert log.delivered == {"r|a|0|10000": (3.0, 1), "r|a|10000|20000": (5.0, 1)}


async def test_a_snapshot_that_cannot_be_written_is_not_committed_and_is_repeated(log: Log) -> None:
    worker = new_worker(log)
    log.snapshots_are_broken = True

    async def body() -> None:
        await worker.assigned([HERE])
        await worker.take(message(0, 0))
        await eventually(lambda: worker.statistics.failures)
        assert log.committed == {}
        log.snapshots_are_broken = False
        await eventually(lambda: log.committed == {HERE: 1})

    await running(worker, body)


async def test_a_worker_whose_state_another_writes_ends_and_commits_nothing(log: Log) -> None:
    worker = new_worker(log)
    log.is_taken_over = True
    task = asyncio.create_task(worker.run())
    await worker.assigned([HERE])
    await worker.take(message(0, 0))
    async with asyncio.timeout(5):
        with pytest.raises(ExceptionGroup):
            await task
    await worker.close()
    assert log.committed == {}


async def test_a_stop_persists_what_was_taken_in(log: Log) -> None:
    worker = new_worker(log)

    async def body() -> None:
        await worker.assigned([HERE])
        await worker.take(message(0, 0, 3.0))
        await worker.take(message(1, 10_000))

    await running(worker, body)
    assert log.delivered == {"r|a|0|10000": (3.0, 1)}
    assert log.committed == {HERE: 2}


async def test_a_message_of_an_older_assignment_is_not_taken_in(log: Log) -> None:
    worker = new_worker(log)
    await worker.assigned([HERE])
    log.generation_id = 2
    await worker.take(message(0, 0, generation=1))
    assert worker.statistics.messages == 0
    await worker.take(message(0, 0, generation=2))
    assert worker.statistics.messages == 1
    await worker.close()


async def test_an_assignment_does_not_wait_for_the_state_and_messages_do(log: Log) -> None:
    worker = new_worker(log)
    log.may_load.clear()
    async with asyncio.timeout(5):
        await worker.assigned([HERE])
    first = asyncio.create_task(worker.loaded())
    await eventually(lambda: log.loads == 1)
    taking = asyncio.create_task(worker.take(message(0, 0)))
    await worker.assigned([HERE])
    second = asyncio.create_task(worker.loaded())
    await eventually(lambda: log.loads == 2)
    assert (first.cancelled(), second.done(), taking.done()) == (True, False, False)
    assert "partitions" in worker.not_ready
    log.may_load.set()
    await second
    await taking
    assert worker.statistics.messages == 1
    await worker.close()


async def test_a_revocation_ends_the_loading(log: Log) -> None:
    worker = new_worker(log)
    log.may_load.clear()
    async with asyncio.timeout(5):
        await worker.assigned([HERE])
    loading = asyncio.create_task(worker.loaded())
    await eventually(lambda: log.loads == 1)
    await worker.revoked()
    await asyncio.wait([loading])
    assert loading.cancelled()
    assert worker.engine.partitions == []


async def test_records_that_were_skipped_are_asked_for_again_and_gaps_of_the_log_are_not(log: Log) -> None:
    worker = new_worker(log)
    await worker.assigned([HERE])
    await worker.take(message(0, 0))
    await worker.take(message(3, 1))
    assert (log.sought, worker.statistics.messages) == ([1], 1)
    await worker.take(message(1, 2))
    log.first = 5
    await worker.take(message(5, 3))
    assert (log.sought, worker.statistics.messages) == ([1], 3)
    await worker.close()


async def test_a_message_that_cannot_be_read_is_passed_over_once(log: Log) -> None:
    worker = new_worker(log)
    await worker.assigned([HERE])
    poison = Incoming(TOPIC, 0, [Message(0, b"{")], 1)
    await worker.take(poison)
    await worker.take(poison)
    assert (worker.statistics.poison, worker.engine.duplicates) == (1, 1)
    assert worker.engine.next_offset(*HERE) == 1
    await worker.close()
    assert log.committed == {HERE: 1}


async def test_too_much_that_waits_holds_messages_back(log: Log) -> None:
    worker = new_worker(log)
    log.sink_is_broken = True

    async def fill() -> None:
        for offset in range(20_000):
            await worker.take(message(offset, offset * 10_000))

    await worker.assigned([HERE])
    filling = asyncio.create_task(fill())
    await eventually(lambda: worker.statistics.messages > 5_000)
    taken = worker.statistics.messages
    for _ in range(100):
        await asyncio.sleep(0)  # turns of the loop, in any of which it could go on
    assert worker.statistics.messages == taken < 5_100
    log.sink_is_broken = False
    task = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        await filling
    await worker.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(log.delivered) == 19_999
