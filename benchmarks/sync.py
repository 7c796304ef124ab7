"""The durable queue against the least that durability costs: a log of the same facts, appended and synced as often."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.result import Result
from edge_agent.database import Database
from edge_agent.queue import NewFact, OfflineQueue, encode
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass

BATCH = 100
# Each round has a checkpoint of the database in it.
BATCHES_PER_ROUND = 160
ROUNDS = 11
VALUE_BYTES = 1024
GOAL = 0.6


def run() -> Iterator[Result]:
    """Facts per second of both, in interleaved rounds on the disk of the working directory."""
    # Not the system's folder for temporary files, which may be in memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield _enqueue(Path(folder))


def _enqueue(folder: Path) -> Result:
    facts = [NewFact(DataClass.TELEMETRY, {"text": "x" * VALUE_BYTES}) for _ in range(BATCH)]
    database = Database(folder / "queue.db")
    queue = OfflineQueue(database, OfflineSettings())
    queue_rates, log_rates = [], []
    with (folder / "log").open("ab", buffering=0) as log:
        for _ in range(ROUNDS):
            log_rates.append(_rate(lambda: _append(log.fileno(), facts)))
            queue_rates.append(_rate(lambda: queue.submit(facts).result()))
    database.close()
    value, reference = statistics.median(queue_rates), statistics.median(log_rates)
    ratio = value / reference
    return Result(
        area="sync", name=f"durable enqueue, {BATCH} facts of 1 KiB at once", value=value, unit="facts/s",
        against="log of the same facts, fdatasync per 100", reference=reference, ratio=ratio, goal=f">= {GOAL}",
        ok=ratio >= GOAL,
    )  # fmt: skip


def _append(descriptor: int, facts: list[NewFact]) -> None:
    for fact in facts:
        os.write(descriptor, encode(fact)[1])
    os.fdatasync(descriptor)


def _rate(write_batch: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(BATCHES_PER_ROUND):
        write_batch()
    return BATCH * BATCHES_PER_ROUND / (time.perf_counter() - started)
