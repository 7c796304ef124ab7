"""`kill -9` of workers under load: afterwards every window is right."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.helpers import rounds, wait_until
from tests.integration.streams.stage import DEVICES, Stage, Worker, averages, equals, recording, singles

# Small beside what a worker is given between two kills.
PIECE = 60

on_apache_kafka = pytest.mark.parametrize("broker", ["apache_kafka"], indirect=True)


def publish_in_pieces(stage: Stage, rows: Sequence[Mapping[str, Any]]) -> None:
    """So that it takes a while."""
    for start in range(0, len(rows), PIECE):
        stage.publish(singles(rows[start : start + PIECE]))


def has_counted(stage: Stage, records: float) -> bool:
    return stage.counted() >= records


@pytest.mark.prove
@on_apache_kafka
def test_kills_under_load_neither_lose_nor_double_a_record(stage: Stage) -> None:
    rows = recording(DEVICES, minutes=240, step_s=3)
    expected = averages(rows)
    worker = stage.start_ready()
    kills = rounds(2, 8)
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
