"""The durable queue one fact at a time, for many callers at once, and with a million facts waiting."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result
from edge_agent.database import Database
from edge_agent.database_file import LOG_BYTES
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue, encode
from primespark.core.settings import OfflineSettings, StreamSettings
from primespark.sync.records import DataClass, PushResponse

ROUNDS = 9
SINGLES_PER_ROUND = 150
CALLERS = 64
CALLS_PER_CALLER = 40
FEW, MANY = 10_000, 1_000_000
# Of the few, half are sent.
BATCHES = 50
BATCH = 100
_FACT = NewFact(DataClass.TELEMETRY, {"text": "x" * 1024})
_PRIORITIES = ("critical", "high", "normal", "low")
_HLC = "1790000000000-0000-cloud"


def run() -> Iterator[Result]:
    """On the disk of the working directory."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        single, log, together = asyncio.run(_enqueues(Path(folder)))
        yield _result("durable enqueue, one fact of 1 KiB", single, "facts/s", "log, fdatasync for each", log, 0.7)
        name = f"durable enqueue, {CALLERS} callers of one fact each"
        yield _result(name, together, "facts/s", "one caller", single, 15)
        few, many = (_drained(Path(folder) / f"{count}.db", count) for count in (FEW, MANY))
        name = f"batches of {BATCH} taken and acknowledged, 1,000,000 waiting"
        yield _result(name, many, "facts/s", "10,000 waiting", few, 0.5)


def _result(name: str, value: float, unit: str, against: str, reference: float, goal: float) -> Result:
    ratio = value / reference
    return Result(
        area="queue", name=name, value=value, unit=unit, against=against, reference=reference, ratio=ratio,
        goal=f">= {goal}", ok=ratio >= goal,
    )  # fmt: skip


async def _enqueues(folder: Path) -> tuple[float, float, float]:
    """Facts a second: one at a time, appended to a log one at a time, by many callers at once."""
    database = Database(folder / "queue.db", LOG_BYTES)
    queue = OfflineQueue(database, OfflineSettings())
    singles, logs, together = [], [], []
    with (folder / "log").open("ab", buffering=0) as log:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(SINGLES_PER_ROUND):
                os.write(log.fileno(), encode(_FACT)[1])
                os.fdatasync(log.fileno())
            logs.append(SINGLES_PER_ROUND / (time.perf_counter() - started))
            started = time.perf_counter()
            for _ in range(SINGLES_PER_ROUND):
                await queue.enqueue([_FACT])
            singles.append(SINGLES_PER_ROUND / (time.perf_counter() - started))
            started = time.perf_counter()
            await asyncio.gather(*(_call(queue) for _ in range(CALLERS)))
            together.append(CALLERS * CALLS_PER_CALLER / (time.perf_counter() - started))
    await asyncio.to_thread(database.close)
    return statistics.median(singles), statistics.median(logs), statistics.median(together)


async def _call(queue: OfflineQueue) -> None:
    for _ in range(CALLS_PER_CALLER):
        await queue.enqueue([_FACT])


def _drained(path: Path, waiting: int) -> float:
    """Facts a second that leave the queue while so many wait, of four priorities."""
    streams = tuple(StreamSettings.model_validate({"stream": name, "priority": name}) for name in _PRIORITIES)
    database = Database(path)
    queue = OfflineQueue(database, OfflineSettings(capacity_operations=2 * MANY, streams=streams))
    for first in range(0, waiting, 2000):
        facts = [
            NewFact(DataClass.TELEMETRY, {"text": "x" * 128}, stream=_PRIORITIES[number % 4])
            for number in range(first, min(first + 2000, waiting))
        ]
        queue.submit(facts).result()
    rate = asyncio.run(_drain(Outgoing(database, "edge-1", BATCH, 10_000_000, 10**9)))
    database.close()
    return rate


async def _drain(outgoing: Outgoing) -> float:
    await outgoing.begin_epoch(1)
    started = time.perf_counter()
    for _ in range(BATCHES):
        batch = await outgoing.next_batch()
        assert batch is not None
        answer = PushResponse(
            status="applied", ack_batch_seq=batch.batch_seq, results=[], server_hlc=_HLC, server_epoch=1
        )
        await outgoing.acknowledge(batch.batch_seq, answer)
    return BATCH * BATCHES / (time.perf_counter() - started)
