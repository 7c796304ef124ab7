"""The durable queue against the least that durability costs: an append-only log, synced as often."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result
from edge_agent.database import Database
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass

BATCH = 100
BATCHES_PER_ROUND = 60
ROUNDS = 7
VALUE_BYTES = 1024
GOAL = 0.6


def run() -> Iterator[Result]:
    """Facts per second of both, in interleaved rounds on the disk of the working directory."""
    # Not the system's folder for temporary files, which may be in memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield _enqueue(Path(folder))


def _enqueue(folder: Path) -> Result:
    facts = [NewFact(DataClass.TELEMETRY, {"text": "x" * VALUE_BYTES}) for _ in range(BATCH)]
    record = b"x" * (VALUE_BYTES - 1) + b"\n"
    database = Database(folder / "queue.db")
    queue = OfflineQueue(database, OfflineSettings())
    queue_rates, log_rates = [], []
    with (folder / "log").open("ab", buffering=0) as log:
        for _ in range(ROUNDS):
            log_rates.append(_rate(lambda: _append(log.fileno(), record)))
            queue_rates.append(_rate(lambda: queue.submit(facts).result()))
    database.close()
    value, reference = statistics.median(queue_rates), statistics.median(log_rates)
    ratio = value / reference
    return Result(
        area="sync", name=f"durable enqueue, {BATCH} facts of 1 KiB at once", value=value, unit="facts/s",
        against="append-only log, fdatasync per 100 records", reference=reference, ratio=ratio, goal=f">= {GOAL}",
        ok=ratio >= GOAL,
    )  # fmt: skip


def _append(descriptor: int, record: bytes) -> None:
    for _ in range(BATCH):
        os.write(descriptor, record)
    os.fdatasync(descriptor)


def _rate(write_batch: object) -> float:
    assert callable(write_batch)
    started = time.perf_counter()
    for _ in range(BATCHES_PER_ROUND):
        write_batch()
    return BATCH * BATCHES_PER_ROUND / (time.perf_counter() - started)
