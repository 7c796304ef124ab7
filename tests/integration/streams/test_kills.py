"""`kill -9` of workers under load: afterwards every window is right."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from primespark.core.encoding import compress
from streams.topics import SNAPSHOT_TOPIC
from tests.helpers import wait_until
from tests.integration.streams.proof import uncommitted
from tests.integration.streams.stage import (
    DEVICES,
    START_MS,
    Sent,
    Stage,
    Worker,
    averages,
    equals,
    recording,
    singles,
)  # fmt: skip

# Small beside what a worker is given between two kills.
PIECE = 60
# Devices whose windows are a state of many chunks.
MANY = 100_000

on_apache_kafka = pytest.mark.parametrize("broker", ["apache_kafka"], indirect=True)


def publish_in_pieces(stage: Stage, rows: Sequence[Mapping[str, Any]]) -> None:
    """So that it takes a while."""
    for start in range(0, len(rows), PIECE):
        stage.publish(singles(rows[start : start + PIECE]))


def has_counted(stage: Stage, records: float) -> bool:
    return stage.counted() >= records


@pytest.mark.prove(only=True)
@on_apache_kafka
def test_kills_under_load_neither_lose_nor_double_a_record(stage: Stage) -> None:
    rows = recording(DEVICES, minutes=240, step_s=3)
    expected = averages(rows)
    worker = stage.start_ready()
    kills = 8
    share = len(rows) // (kills + 1)
    with ThreadPoolExecutor(1) as pool:
        for kill in range(kills):
            known = stage.counted()
            feeding = pool.submit(publish_in_pieces, stage, rows[kill * share : (kill + 1) * share])
            wait_until(partial(has_counted, stage, known + 1), 40)
            assert not feeding.done(), "the worker had all it was given before it was killed"
            worker.kill()
            feeding.result()
            worker = stage.start_ready()
    stage.publish(singles(rows[kills * share :]))
    wait_until(lambda: equals(stage, expected), 60)
    assert worker.stop()[0] == 0


@on_apache_kafka
def test_two_workers_of_which_one_is_killed(stage: Stage) -> None:
    rows = recording(DEVICES, minutes=120, step_s=5)
    third = len(rows) // 3
    workers: dict[str, Worker] = {name: stage.start_ready(name) for name in ("worker-0", "worker-1")}
    stage.publish(singles(rows[:third]))
    wait_until(lambda: stage.counted() >= third // 2, 30)
    victim = random.choice(sorted(workers))
    workers.pop(victim).kill()
    stage.publish(singles(rows[third:]))
    wait_until(lambda: equals(stage, averages(rows)), 40)
    (survivor,) = workers.values()
    assert survivor.counter("rebalances") >= 2
    assert survivor.stop()[0] == 0


def rows_of_many(moment: int, add: float) -> Iterator[Sent]:
    """One row of each of very many devices, all in one partition."""
    for first in range(0, MANY, 5_000):
        lines = [
            json.dumps({"device_id": name_of(number), "ts": moment, "cpu_percent": value_of(number) + add})
            for number in range(first, first + 5_000)
        ]
        yield Sent(compress("\n".join(lines).encode()), 1, (("content-type", b"application/x-ndjson+zstd"),))


def name_of(number: int) -> str:
    """Of a device, which hardly packs."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:16]


def value_of(number: int) -> float:
    return number % 1000 / 8


@pytest.mark.prove(only=True)
@on_apache_kafka
def test_a_state_of_many_chunks_is_taken_over_from_a_worker_that_was_killed(stage: Stage) -> None:
    stage.write_rules({"allowed_lateness_seconds": 0}, aggregation_function="sum", value_field="cpu_percent")
    worker = stage.start_ready()
    stage.publish(rows_of_many(START_MS, 0.0))
    wait_until(lambda: worker.counter("events") == MANY, 60)
    # Snapshots come before offsets.
    wait_until(lambda: asyncio.run(uncommitted(stage.broker, stage.source)) == 0, 30, 0.2)
    worker.kill()
    written = [record for record in stage.read(SNAPSHOT_TOPIC) if record.key.startswith(f"{stage.source}|1|".encode())]
    assert sum(len(record.value or b"") for record in written) > 1_000_000
    assert max(int(record.key.rpartition(b"|")[2]) for record in written) > 1
    assert max(len(record.value or b"") for record in written) < 1_000_000

    successor = stage.start_ready("worker-1")
    assert successor.metric("windows_open") == MANY
    stage.publish(rows_of_many(START_MS + 1, 1.0))
    stage.publish(rows_of_many(START_MS + 70_000, 0.0))
    wait_until(lambda: stage.counted() == 2 * MANY, 120, 1)
    assert successor.counter("events") == 2 * MANY
    assert stage.windows() == {
        (name_of(number), START_MS): (2 * value_of(number) + 1, 2, 1) for number in range(MANY)
    }  # fmt: skip


@pytest.mark.parametrize("broker", ["embedded_broker"], indirect=True)
def test_the_embedded_broker_gives_a_killed_workers_place_to_its_successor(stage: Stage) -> None:
    """It never evicts a dead member, and gives nothing to others while it waits for it, whatever their `worker_id`."""
    rows = recording(DEVICES, minutes=20)
    half = len(rows) // 2
    stage.publish(singles(rows[:half]))
    worker = stage.start()
    wait_until(stage.counted, 30)
    worker.kill()
    stage.publish(singles(rows[half:]))
    stage.start("worker-1")
    wait_until(lambda: equals(stage, averages(rows)), 30)
